package statedir

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"meshd/mesh/member"
)

func testKeyring() member.Keyring {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return member.Keyring{
		Send: 3,
		Keys: []member.GossipKey{
			{Generation: 4, Key: bytes.Repeat([]byte{4}, 32), Made: at.Add(time.Hour), Installed: at.Add(2 * time.Hour), Grace: 24 * time.Hour},
			{Generation: 3, Key: bytes.Repeat([]byte{3}, 32), Made: at},
			{Generation: 0, Key: bytes.Repeat([]byte{1}, 32)},
		},
	}
}

func TestKeyring(t *testing.T) {
	path, _ := create(t)
	d := open(t, path)
	want := d.Membership()
	if k := want.Keyring; k.Newest() != 0 || k.Send != 0 || len(k.Keys) != 1 {
		t.Errorf("a new node has a %v", k)
	}
	want.Keyring = testKeyring()
	if err := d.SaveKeyring(want.Keyring); err != nil {
		t.Fatal(err)
	}
	for who, got := range map[string]Membership{"who saved it": d.Membership(), "who reads it": open(t, path).Membership()} {
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s has %+v, want %+v", who, got, want)
		}
	}
}

// What a keyring no longer has is overwritten, and what was given out is not.
func TestKeyringIsWiped(t *testing.T) {
	path, _ := create(t)
	d := open(t, path)
	given := d.Membership().Keyring
	ours := d.membership.Keyring.Keys[0].Key
	if err := d.SaveKeyring(testKeyring()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(ours, make([]byte, 32)) {
		t.Error("a key that was dropped is still in memory")
	}
	if !bytes.Equal(given.Keys[0].Key, bytes.Repeat([]byte{'G'}, 32)) {
		t.Error("the copy of somebody else was overwritten")
	}
}

// A state of before there were generations has keys of generation 0.
func TestKeyringOfBefore(t *testing.T) {
	path, _ := create(t)
	m := open(t, path).Membership()
	type old struct {
		Charter     []byte   `json:"charter"`
		Certificate []byte   `json:"certificate"`
		GossipKeys  [][]byte `json:"gossip_keys"`
		Seeds       []string `json:"seeds,omitempty"`
		Founder     bool     `json:"founder,omitempty"`
	}
	m.Keyring = member.NewKeyring(bytes.Repeat([]byte{2}, 32), bytes.Repeat([]byte{1}, 32))
	file := old{m.Charter, m.Certificate, [][]byte{m.Keyring.Keys[0].Key, m.Keyring.Keys[1].Key}, m.Seeds, m.Founder}
	if err := writeFile(path, fileMesh, fileMesh, file); err != nil {
		t.Fatal(err)
	}
	if got := open(t, path).Membership(); !reflect.DeepEqual(got, m) {
		t.Errorf("read as %+v", got)
	}
	// And what is written before the first rotation is what such a version wrote.
	now, err := encodeFile(fileMesh, membershipFileOf(m))
	if err != nil {
		t.Fatal(err)
	}
	then, err := encodeFile(fileMesh, file)
	if err != nil || !bytes.Equal(now, then) {
		t.Errorf("written as %s, want %s (%v)", now, then, err)
	}
}

func TestOddKeyring(t *testing.T) {
	for name, change := range map[string]func(*membershipFile){
		"a generation too few": func(f *membershipFile) { f.Generations = f.Generations[:2] },
		"a key too few":        func(f *membershipFile) { f.GossipKeys = f.GossipKeys[:2] },
		"sends with none":      func(f *membershipFile) { f.Sends = 2 },
		"no keys":              func(f *membershipFile) { f.GossipKeys, f.Generations = nil, nil },
		"older first":          func(f *membershipFile) { f.Generations[0], f.Generations[1] = f.Generations[1], f.Generations[0] },
		"odd grace":            func(f *membershipFile) { f.Generations[0].Grace = "a day" },
	} {
		path, _ := create(t)
		m := open(t, path).Membership()
		m.Keyring = testKeyring()
		f := membershipFileOf(m)
		change(&f)
		if err := writeFile(path, fileMesh, fileMesh, f); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), filepath.Join(path, fileMesh)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSaveTunnelKey(t *testing.T) {
	path, keys := create(t)
	if len(keys.Possession()) == 0 {
		t.Error("a new node cannot prove its tunnel key")
	}
	d := open(t, path)
	next := NewTunnelKey()
	if err := d.SaveTunnelKey(next); err != nil {
		t.Fatal(err)
	}
	for who, got := range map[string]Keys{"who saved it": d.Keys(), "who reads it": open(t, path).Keys()} {
		if got.Tunnel != next.Scalar || got.Tunnel.Public() != next.Public || !bytes.Equal(got.Possession(), next.Prove(keys.ID())) {
			t.Errorf("%s has another tunnel key", who)
		}
		if !got.Identity.Equal(keys.Identity) || got.Seal != keys.Seal {
			t.Errorf("%s has other keys besides", who)
		}
	}
	raw, err := os.ReadFile(filepath.Join(path, fileKeys))
	if err != nil {
		t.Fatal(err)
	}
	before, err := encodeFile(fileKeys, keys.file())
	if err != nil || bytes.Equal(raw, before) {
		t.Errorf("the file is as before: %v", err)
	}
}

// Keys of before there were seeds are good, and prove nothing.
func TestKeysOfBefore(t *testing.T) {
	path, keys := create(t)
	f := keys.file()
	f.TunnelSeed = nil
	if err := writeFile(path, fileKeys, fileKeys, f); err != nil {
		t.Fatal(err)
	}
	if got := open(t, path).Keys(); got.Tunnel != keys.Tunnel || got.Possession() != nil {
		t.Errorf("another tunnel key, or a proof %x", got.Possession())
	}
	f.TunnelSeed = bytes.Repeat([]byte{5}, 32)
	if err := writeFile(path, fileKeys, fileKeys, f); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrDamaged) {
		t.Errorf("the seed of another key: %v", err)
	}
}

func TestSaveCertificate(t *testing.T) {
	path, _ := create(t)
	d := open(t, path)
	was := d.Membership()
	_, foreign := newNode(t)
	for name, c := range map[string][]byte{"nothing": nil, "junk": []byte("junk"), "of another mesh": foreign.Certificate} {
		if err := d.SaveCertificate(c); err == nil {
			t.Errorf("%s was saved", name)
		}
		if !reflect.DeepEqual(d.Membership(), was) || !reflect.DeepEqual(open(t, path).Membership(), was) {
			t.Fatalf("%s was refused, and yet the membership is another", name)
		}
	}
	if err := d.SaveCertificate(was.Certificate); err != nil {
		t.Errorf("the same again: %v", err)
	}
}

func FuzzMembership(f *testing.F) {
	keys, m := newNode(f)
	m.Keyring = testKeyring()
	for _, file := range []any{membershipFileOf(m), keys.file()} {
		content, err := encodeFile(fileMesh, file)
		if err != nil {
			f.Fatal(err)
		}
		_, body, _ := bytes.Cut(content, []byte("\n"))
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var file membershipFile
		if decodeFile(withKind(fileMesh, body), fileMesh, &file) == nil {
			if got, err := file.membership(); err == nil {
				again, err := membershipFileOf(got).membership()
				if err != nil && len(got.Keyring.Keys) > 0 || err == nil && !got.Keyring.Equal(again.Keyring) {
					t.Errorf("%+v is read back as %+v, %v", got, again, err)
				}
			}
		}
		var ks keysFile
		if decodeFile(withKind(fileKeys, body), fileKeys, &ks) == nil {
			if got, err := ks.keys(); err == nil {
				if again, err := got.file().keys(); err != nil || !reflect.DeepEqual(got, again) {
					t.Errorf("keys are read back as others: %v", err)
				}
			}
		}
	})
}
