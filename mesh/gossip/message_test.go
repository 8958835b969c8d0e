package gossip

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"meshd/mesh/exchange"
	"meshd/mesh/trust"
)

func TestMessages(t *testing.T) {
	objects := [][]byte{[]byte("one"), bytes.Repeat([]byte{2}, trust.MaxObject)}
	m, err := parseMessage(encodeObjects(math.MaxInt, objects...))
	if err != nil || m.kind != msgObjects || !slices.EqualFunc(m.objects, objects, bytes.Equal) {
		t.Errorf("objects: %v, %v", m, err)
	}
	name := newName([20]byte{1})
	m, err = parseMessage(encodeState(name, trust.KeyID{7}, objects))
	if err != nil || m.kind != msgState || m.from != name || m.key != (trust.KeyID{7}) || !slices.EqualFunc(m.objects, objects, bytes.Equal) {
		t.Errorf("state: %v, %v", m, err)
	}
	hashes := []trust.Hash{{1}, {2}}
	m, err = parseMessage(encodeWant(name, hashes))
	if err != nil || m.kind != msgWant || m.from != name || !slices.Equal(m.hashes, hashes) {
		t.Errorf("want: %v, %v", m, err)
	}
	m, err = parseMessage(encodeDigest(name, exchange.Digest{1, 15: 2}))
	if err != nil || m.kind != msgDigest || m.from != name || m.digest != (exchange.Digest{1, 15: 2}) {
		t.Errorf("digest: %v, %v", m, err)
	}
}

func TestMalformedMessages(t *testing.T) {
	for name, raw := range map[string][]byte{
		"empty":             {},
		"unknown type":      {9, 1, 1},
		"truncated object":  {msgObjects, 5, 1, 2},
		"empty object":      {msgObjects, 0},
		"object too large":  encodeObjects(math.MaxInt, make([]byte, trust.MaxObject+1)),
		"length overflow":   {msgObjects, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01},
		"endless length":    append([]byte{msgObjects}, bytes.Repeat([]byte{0xff}, 20)...),
		"too many objects":  append([]byte{msgObjects}, bytes.Repeat([]byte{1, 1}, maxObjects+1)...),
		"no name":           {msgState},
		"name too long":     encodeState(strings.Repeat("n", maxName+1), trust.KeyID{}, nil),
		"no key":            appendString([]byte{msgState}, "n"),
		"half a digest":     encodeDigest("n", exchange.Digest{})[:11],
		"long digest":       append(encodeDigest("n", exchange.Digest{}), 0),
		"half a hash":       append(encodeWant("n", nil), 1),
		"too many hashes":   encodeWant("n", make([]trust.Hash, maxHashes+1)),
		"larger than state": make([]byte, maxState+1),
	} {
		if m, err := parseMessage(raw); !errors.Is(err, errMessage) {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
}

// A table that is too large is cut, not refused by those who get it.
func TestLargeTableIsCut(t *testing.T) {
	table := make([][]byte, 2*maxState/trust.MaxObject)
	for i := range table {
		table[i] = bytes.Repeat([]byte{byte(i)}, trust.MaxObject)
	}
	raw := encodeState(newName([20]byte{}), trust.KeyID{}, table)
	m, err := parseMessage(raw)
	if err != nil {
		t.Fatal(err)
	}
	if want := maxState/trust.MaxObject - 1; len(m.objects) < want {
		t.Errorf("%d objects are left, want %d or more", len(m.objects), want)
	}
}

func FuzzMessage(f *testing.F) {
	f.Add(encodeObjects(math.MaxInt, []byte("one"), []byte("two")))
	f.Add(encodeWant(newName([20]byte{}), []trust.Hash{{1}, {2}}))
	f.Add(encodeState(newName([20]byte{}), trust.KeyID{1}, [][]byte{[]byte("one")}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := parseMessage(raw)
		if err != nil {
			return
		}
		var again []byte
		switch m.kind {
		case msgObjects:
			again = encodeObjects(math.MaxInt, m.objects...)
		case msgWant:
			again = encodeWant(m.from, m.hashes)
		case msgState:
			again = encodeState(m.from, m.key, m.objects)
		}
		if n, err := parseMessage(again); err != nil || n.kind != m.kind || n.from != m.from || n.key != m.key ||
			!slices.EqualFunc(n.objects, m.objects, bytes.Equal) || !slices.Equal(n.hashes, m.hashes) {
			t.Errorf("%x is read back as %v, %v", again, n, err)
		}
		parseName(m.from)
	})
}

func TestNames(t *testing.T) {
	id := [20]byte{1, 2, 3}
	a, b := newName(id), newName(id)
	if a == b {
		t.Error("two instances have one name")
	}
	if got, ok := parseName(a); !ok || got != id {
		t.Errorf("%s is read as %s, %t", a, got, ok)
	}
	for _, bad := range []string{"", "x", a + "0", a[:len(a)-1], a[1:], strings.Replace(a, ".", "-", 1), a[:33] + "zzzzzzzz"} {
		if _, ok := parseName(bad); ok {
			t.Errorf("%q passes as a name", bad)
		}
	}
}
