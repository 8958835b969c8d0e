package trust

import (
	"bytes"
	"crypto/ecdh"
	"errors"
	"testing"
	"time"

	"meshd/mesh"
)

func TestRekey(t *testing.T) {
	w := newWorld(t)
	private := must(ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{5}, 32)))(t)
	member := *w.joined
	member.SealKey = mesh.Key(private.PublicKey().Bytes())
	secret := bytes.Repeat([]byte{8}, GossipKeySize)
	good := Rekey{
		Generation: 1, KeyID: KeyIDOf(secret), Boxes: []Box{must(SealKey(secret, &member))(t)}, At: start.Add(time.Hour), Signer: w.founder.Hash,
	}
	read := func(r Rekey, signer string) *Rekey {
		t.Helper()
		return must(ParseRekey(must(r.Sign(key(signer)))(t)))(t)
	}
	r := read(good, "founder")
	if err := r.Verify(w.founder); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Open(member.ID(), [32]byte(private.Bytes())); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("opened %x, %v", got, err)
	}
	if _, err := r.Open(member.ID(), [32]byte{1}); !errors.Is(err, ErrForbidden) {
		t.Error("with another seal key:", err)
	}
	if _, err := r.Open(w.founder.ID(), [32]byte(private.Bytes())); !errors.Is(err, ErrForbidden) {
		t.Error("for another node:", err)
	}
	if err := read(good, "node").Verify(w.founder); !errors.Is(err, ErrSignature) {
		t.Error("in another's name:", err)
	}
	plain := good
	plain.Signer = w.joined.Hash
	if err := read(plain, "node").Verify(w.joined); !errors.Is(err, ErrForbidden) {
		t.Error("by a member that may not:", err)
	}
	wrong := good
	wrong.KeyID = KeyID{1}
	if _, err := read(wrong, "founder").Open(member.ID(), [32]byte(private.Bytes())); !errors.Is(err, ErrForbidden) {
		t.Error("a box with another key:", err)
	}
	next, twin := good, good
	next.Generation, twin.KeyID = 2, KeyID{255}
	if !next.Newer(&good) || good.Newer(&next) || !twin.Newer(&good) {
		t.Error("the order of keys")
	}
	full := good
	full.Boxes = nil
	for i := range MaxBoxes {
		full.Boxes = append(full.Boxes, Box{mesh.NodeID{byte(i)}, good.Boxes[0].Sealed})
	}
	full.Generation, full.Grace = MaxGeneration, maxLife
	if raw := must(full.Sign(key("founder")))(t); len(raw) > MaxObject {
		t.Errorf("%d boxes take %d bytes", MaxBoxes, len(raw))
	}
}
