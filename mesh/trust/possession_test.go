package trust

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"meshd/mesh"
)

func unhex(t *testing.T, s string) [32]byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 32 {
		t.Fatalf("%q: %v", s, err)
	}
	return [32]byte(b)
}

func TestCurveVectors(t *testing.T) {
	for _, tt := range []struct{ name, y, u string }{
		// RFC 7748, section 4.1: the base points of both curves.
		{"base point", "5866666666666666666666666666666666666666666666666666666666666666", "0900000000000000000000000000000000000000000000000000000000000000"},
		// libsodium, test/default/ed25519_convert.c.
		{"libsodium", "b5076a8474a832daee4dd5b4040983b6623b5f344aca57d4d6ee4baf3f259e6e", "f1814f0e8ff1043d8a44d25babff3cedcae6c22c3edaa48f857ae70de2baae50"},
	} {
		y, u := unhex(t, tt.y), unhex(t, tt.u)
		if got, ok := montgomery(y[:]); !ok || got != mesh.Key(u) {
			t.Errorf("%s: u is %x, %v", tt.name, got[:], ok)
		}
		y[31] &= 0x7f
		if got, ok := edwards(mesh.Key(u)); !ok || !bytes.Equal(got, y[:]) {
			t.Errorf("%s: y is %x, %v", tt.name, got, ok)
		}
	}
}

// libsodium, test/default/ed25519_convert.c: the scalar of a seed.
func TestScalarVector(t *testing.T) {
	seed := unhex(t, "421151a459faeade3d247115f94aedae42318124095afabe4d1451a559faedee")
	k, err := TunnelKeyOf(seed)
	if err != nil {
		t.Fatal(err)
	}
	if want := unhex(t, "8052030376d47112be7f73ed7a019293dd12ad910b654455798b4667d73de166"); k.Scalar != want {
		t.Errorf("scalar is %x", k.Scalar[:])
	}
}

// The tunnel key is what X25519 makes of the scalar, so engines and proofs speak of
// one key.
func TestTunnelKeyIsX25519(t *testing.T) {
	for range 200 {
		k, err := DrawTunnelKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		private, err := ecdh.X25519().NewPrivateKey(k.Scalar[:])
		if err != nil {
			t.Fatal(err)
		}
		if got := mesh.Key(private.PublicKey().Bytes()); got != k.Public {
			t.Fatalf("seed %x: X25519 gives %s, the curve %s", k.Seed[:], got, k.Public)
		}
		again, err := TunnelKeyOf(k.Seed)
		if err != nil || again != k {
			t.Fatalf("another key of the same seed: %v", err)
		}
		id := mesh.NodeID{1}
		if !CheckPossession(id, k.Public, k.Prove(id)) {
			t.Fatalf("seed %x: the proof does not pass", k.Seed[:])
		}
	}
}

func TestPossessionIsRefused(t *testing.T) {
	k, err := DrawTunnelKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := DrawTunnelKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, thief := mesh.NodeID{1}, mesh.NodeID{2}
	proof := k.Prove(id)
	changed := bytes.Clone(proof)
	changed[40] ^= 1
	high := k.Public
	high[31] |= 0x80 // X25519 takes it for the same
	minusOne := mesh.Key(bytes.Repeat([]byte{0xff}, 32))
	minusOne[0], minusOne[31] = 0xec, 0x7f
	tooLarge := minusOne
	tooLarge[0] = 0xed
	_, identity, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		id    mesh.NodeID
		key   mesh.Key
		proof []byte
	}{
		"copied by another":           {thief, k.Public, proof},
		"of another key":              {id, other.Public, proof},
		"another key's":               {id, k.Public, other.Prove(id)},
		"changed":                     {id, k.Public, changed},
		"short":                       {id, k.Public, proof[:63]},
		"long":                        {id, k.Public, append(bytes.Clone(proof), 0)},
		"none":                        {id, k.Public, nil},
		"the thief's identity key's":  {thief, k.Public, ed25519.Sign(identity, possessionText(thief))},
		"key in another form":         {id, high, proof},
		"key that is no point: -1":    {id, minusOne, proof},
		"key beyond the field":        {id, tooLarge, proof},
		"key on the twist":            {id, mesh.Key{2}, proof},
		"key of small order, 0":       {id, mesh.Key{}, make([]byte, PossessionSize)},
		"key of small order, 1":       {id, mesh.Key{1}, make([]byte, PossessionSize)},
		"without the context":         {id, k.Public, ed25519.Sign(ed25519.NewKeyFromSeed(k.Seed[:]), id[:])},
		"over another form of the id": {id, k.Public, ed25519.Sign(ed25519.NewKeyFromSeed(k.Seed[:]), append(possessionText(id), 0))},
	} {
		if CheckPossession(tt.id, tt.key, tt.proof) {
			t.Errorf("a proof passes: %s", name)
		}
	}
	if !CheckPossession(id, k.Public, proof) {
		t.Error("the proof itself does not pass")
	}
}

// A record with a wrong proof is refused, and one without is taken: older members
// have none.
func TestRecordWithPossession(t *testing.T) {
	w := newWorld(t)
	k, err := DrawTunnelKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		proof []byte
		want  error
	}{
		{"none", nil, nil},
		{"its own", k.Prove(w.joined.ID()), nil},
		{"of another member", k.Prove(w.founder.ID()), ErrForbidden},
		{"junk", bytes.Repeat([]byte{1}, PossessionSize), ErrForbidden},
	} {
		r := testRecord(w.joined.Hash)
		r.Key, r.Possession = k.Public, tt.proof
		parsed := must(ParseRecord(must(r.Sign(key("node")))(t)))(t)
		if err := parsed.Verify(w.joined, nil); !errors.Is(err, tt.want) {
			t.Errorf("proof %s: %v, want %v", tt.name, err, tt.want)
		}
	}
	r := testRecord(w.joined.Hash)
	r.Possession = []byte{1}
	if _, err := r.Sign(key("node")); !errors.Is(err, ErrMalformed) {
		t.Errorf("a proof of one byte: %v", err)
	}
}

func TestTunnelKeyIsNotPrinted(t *testing.T) {
	k, err := DrawTunnelKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprintf("%v %+v %#v %x %s", k, k, k, k, text)
	for _, secret := range [][]byte{k.Seed[:], k.Scalar[:]} {
		if strings.Contains(all, hex.EncodeToString(secret)) || strings.Contains(all, fmt.Sprintf("%d", secret)) {
			t.Errorf("the private key is printed: %s", all)
		}
	}
}

func FuzzPossession(f *testing.F) {
	k, err := DrawTunnelKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(k.Public[:], k.Prove(mesh.NodeID{1}))
	f.Add(make([]byte, 32), make([]byte, 64))
	f.Fuzz(func(t *testing.T, key, proof []byte) {
		if len(key) != len(mesh.Key{}) {
			return
		}
		if CheckPossession(mesh.NodeID{2}, mesh.Key(key), proof) && mesh.Key(key) == k.Public {
			t.Errorf("%x proves a key of somebody else", proof)
		}
		if y, ok := edwards(mesh.Key(key)); ok { // and back
			if u, ok := montgomery(y); !ok && mesh.Key(key) != (mesh.Key{}) || ok && u != mesh.Key(key) {
				t.Errorf("%x is %x there and %x back", key, []byte(y), u[:])
			}
		}
	})
}
