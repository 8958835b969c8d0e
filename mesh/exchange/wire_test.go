package exchange

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"meshd/mesh/trust"
)

// texts are what a node has. One that begins with "on " rests on the text after
// that, which is not among what nodes compare.
type texts []string

func (s texts) set() *Set {
	var hashes []trust.Hash
	for _, t := range s {
		hashes = append(hashes, hashOf(t))
	}
	return NewSet(hashes)
}

func hashOf(text string) trust.Hash { return sha256.Sum256([]byte(text)) }

func (s texts) get(hashes []trust.Hash) (out [][]byte, err error) {
	for _, t := range s {
		if slices.Contains(hashes, hashOf(t)) {
			if below, ok := strings.CutPrefix(t, "on "); ok {
				out = append(out, []byte(below))
			}
			out = append(out, []byte(t))
		}
	}
	return out, nil
}

// texts is what an exchange has brought.
func (o outcome) texts() string { return string(bytes.Join(o.got, []byte(" "))) }

// wire is one end of a stream that counts.
type wire struct {
	net.Conn
	wrote int
}

func (w *wire) Write(b []byte) (int, error) {
	n, err := w.Conn.Write(b)
	w.wrote += n
	return n, err
}

// between has two nodes exchange, and gives what each got and said.
func between(t *testing.T, a, b texts, ofA, ofB *memory) (asked, answered outcome, bytes [2]int) {
	t.Helper()
	near, far := net.Pipe()
	asker, other := &wire{Conn: near}, &wire{Conn: far}
	done := make(chan error, 1)
	go func() {
		var err error
		answered, err = answer(other, b.set(), b.get, ofB)
		_ = far.Close()
		done <- err
	}()
	asked, err := ask(asker, a.set(), a.get, ofA)
	_ = near.Close()
	if err := errors.Join(err, <-done); err != nil {
		t.Fatal(err)
	}
	return asked, answered, [2]int{asker.wrote, other.wrote}
}

func TestExchange(t *testing.T) {
	for _, c := range []struct {
		name       string
		a, b       string
		toA, toB   string
		sentA      int
		sayA, sayB int // bytes
	}{
		{"same", "x y", "x y", "", "", 0, 29, 1},
		{"same in another order", "x y", "y x", "", "", 0, 29, 1},
		{"nothing", "", "", "", "", 0, 29, 1},
		{"the asker lacks", "x", "x y z", "y z", "", 0, 29 + 4 + 16 + 4 + 3, 1 + 4 + 24 + 4 + 2*3 + 3},
		{"the other lacks", "x y z", "y", "", "x z", 2, 29 + 4 + 4 + 16 + 2*3 + 3, 1 + 4 + 8 + 4 + 3},
		{"both lack", "x y", "y z", "z", "x", 1, 29 + 4 + 8 + 4 + 8 + 3 + 3, 1 + 4 + 16 + 4 + 3 + 3},
		{"one is new", "", "x y", "x y", "", 0, 29 + 4 + 16 + 4 + 3, 1 + 4 + 16 + 4 + 2*3 + 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked, answered, said := between(t, strings.Fields(c.a), strings.Fields(c.b), new(memory), new(memory))
			if asked.texts() != c.toA || answered.texts() != c.toB {
				t.Errorf("the asker got %q and the other %q, want %q and %q", asked.texts(), answered.texts(), c.toA, c.toB)
			}
			if asked.sent != c.sentA || !asked.whole || !answered.whole {
				t.Errorf("asker %+v, other %+v", asked, answered)
			}
			if said != [2]int{c.sayA, c.sayB} {
				t.Errorf("they said %v bytes, want %d and %d", said, c.sayA, c.sayB)
			}
		})
	}
}

// What does not fit into one exchange comes with the next ones.
func TestExchangeOfMuch(t *testing.T) {
	var all []string
	for i := range 2*maxBytes/trust.MaxObject + 10 {
		all = append(all, fmt.Sprintf("%0*d", trust.MaxObject, i))
	}
	got := map[string]bool{}
	for round := 1; ; round++ {
		have := []string{}
		for _, o := range all {
			if got[o] {
				have = append(have, o)
			}
		}
		asked, _, said := between(t, have, all, new(memory), new(memory))
		if most := maxBytes + 1 + 4 + 8*len(all) + 4 + 3; said[1] > most {
			t.Fatalf("%d bytes in one exchange, want at most %d", said[1], most)
		}
		for _, o := range asked.got {
			got[string(o)] = true
		}
		if asked.whole != (len(got) == len(all)) {
			t.Fatalf("round %d: whole is %v with %d of %d", round, asked.whole, len(got), len(all))
		}
		if asked.whole {
			if round != 3 {
				t.Errorf("it took %d rounds, want 3", round)
			}
			return
		}
	}
}

// Objects whose hashes begin alike, as who signs them may prepare, tell sets apart and
// go by keys of their own, which the next exchange changes.
func TestHashesThatBeginAlike(t *testing.T) {
	one, two := hashOf("x"), hashOf("x")
	two[31]++
	both := NewSet([]trust.Hash{one, two})
	if both.Digest() == NewSet([]trust.Hash{one}).Digest() {
		t.Error("who lacks one of them has the same digest")
	}
	a, b := both.keyed(newSalt()), both.keyed(newSalt())
	if len(a.keys) != 2 || slices.ContainsFunc(a.keys, func(k uint64) bool { return slices.Contains(b.keys, k) }) {
		t.Errorf("their keys are %x, and then %x", a.keys, b.keys)
	}
}

// Sets are the same in whatever order they were heard.
func TestDigestKnowsNoOrder(t *testing.T) {
	if a, b := (texts{"x", "y", "z", "y"}).set().Digest(), (texts{"z", "y", "x"}).set().Digest(); a != b {
		t.Errorf("%x and %x", a, b)
	}
}

// What one of two does not believe is carried once, not with each exchange.
func TestExchangeOfTheRefused(t *testing.T) {
	a, b := texts{"x", "bad for b"}, texts{"x", "bad for a"}
	var ofA, ofB memory
	asked, answered, _ := between(t, a, b, &ofA, &ofB)
	ofA.note(asked.by.among(asked.named, asked.got))
	ofB.note(answered.by.among(answered.named, answered.got))
	if asked.texts() != "bad for a" || answered.texts() != "bad for b" {
		t.Fatalf("first they got %q and %q", asked.texts(), answered.texts())
	}
	asked, answered, _ = between(t, a, b, &ofA, &ofB)
	if len(asked.got)+len(answered.got) != 0 || !asked.whole {
		t.Errorf("then they got %q and %q", asked.texts(), answered.texts())
	}
	// One that is believed by now is told to others as any other.
	if later := (texts{"x", "bad for a", "bad for b"}); len(ofA.refused(later.set())) != 0 {
		t.Error("what is believed counts as refused")
	}
}

// Who names what it does not bring cannot keep it from coming from another.
func TestNamedAndNotBrought(t *testing.T) {
	by := newSalt()
	x, y, z := hashOf("x"), hashOf("y"), hashOf("z")
	var m memory
	m.note(by.among(by.keys([]trust.Hash{x, y}), [][]byte{[]byte("y"), []byte("z")}))
	if got := m.refused(texts{}.set()); len(got) != 1 || got[0] != y {
		t.Errorf("%x count as refused, want only what was named and came; %x was not named", got, z)
	}
}

// What an object rests on comes with it, and before it.
func TestWhatItRestsOn(t *testing.T) {
	asked, answered, _ := between(t, texts{"on a"}, texts{"on b"}, new(memory), new(memory))
	if asked.texts() != "b on b" || answered.texts() != "a on a" {
		t.Errorf("they got %q and %q", asked.texts(), answered.texts())
	}
}

// asks is what an asker says first, whose set is not that of anybody else.
func asks() []byte { return hello{salt{1}, Digest{1}}.encode() }

func TestMalformed(t *testing.T) {
	own := texts{"x", "y"}
	long := binary.BigEndian.AppendUint32(nil, maxKeys+1)
	none := make([]byte, 4)
	object := func(n int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(n)) }
	many := bytes.Repeat([]byte{0, 1, 'x'}, maxObjects+1)
	heavy := append([]byte(nil), bytes.Repeat(append(object(trust.MaxObject), make([]byte, trust.MaxObject)...), maxBytes/trust.MaxObject)...)
	for name, said := range map[string][]byte{
		"nothing":              nil,
		"cut hello":            asks()[:28],
		"HTTP":                 []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"another version":      append([]byte("mshX\x02"), make([]byte, 24)...),
		"no keys":              asks(),
		"too many keys":        append(asks(), long...),
		"fewer keys than said": append(asks(), 0, 0, 0, 2, 1, 2, 3),
		"one list of keys":     append(asks(), none...),
		"no objects":           slices.Concat(asks(), none, none),
		"too large an object":  slices.Concat(asks(), none, none, object(trust.MaxObject+1), make([]byte, trust.MaxObject+1)),
		"cut object":           slices.Concat(asks(), none, none, object(9), []byte("cut")),
		"no end":               slices.Concat(asks(), none, none, object(1), []byte("x")),
		"cut end":              slices.Concat(asks(), none, none, object(0)),
		"too many objects":     slices.Concat(asks(), none, none, many),
		"too heavy":            slices.Concat(asks(), none, none, heavy, object(0), []byte{1}),
	} {
		t.Run("asker says "+name, func(t *testing.T) {
			if out, err := answer(script{bytes.NewReader(said), new(bytes.Buffer)}, own.set(), own.get, new(memory)); err == nil || len(out.got) > 0 {
				t.Errorf("got %d objects, error %v", len(out.got), err)
			}
		})
	}
	for name, said := range map[string][]byte{
		"nothing":         nil,
		"another verdict": {7},
		"no keys":         {differ},
		"no refused keys": append([]byte{differ}, none...),
		"too many keys":   append([]byte{differ}, long...),
		"no objects":      slices.Concat([]byte{differ}, none, none),
		"too heavy":       slices.Concat([]byte{differ}, none, none, heavy, object(0), []byte{1}),
	} {
		t.Run("other says "+name, func(t *testing.T) {
			if out, err := ask(script{bytes.NewReader(said), new(bytes.Buffer)}, own.set(), own.get, new(memory)); err == nil || len(out.got) > 0 {
				t.Errorf("got %d objects, error %v", len(out.got), err)
			}
		})
	}
}

// Who does not speak our protocol hears nothing.
func TestNoAnswerToJunk(t *testing.T) {
	for _, said := range []string{"", "\x00", "GET / HTTP/1.1\r\n\r\n", "mshX", "mshX\x02------------------------", "mshP\x01------------------------"} {
		heard := new(bytes.Buffer)
		if _, err := answer(script{strings.NewReader(said), heard}, texts{"secret"}.set(), nil, new(memory)); err == nil || heard.Len() > 0 {
			t.Errorf("%q is answered with %q, error %v", said, heard, err)
		}
	}
}

// script is a stream whose other end says what it says, whatever it hears.
type script struct {
	io.Reader
	io.Writer
}

// Whatever an asker says, nothing breaks, and what is taken in is bounded.
func FuzzAnswer(f *testing.F) {
	own := texts{"x", "y"}
	f.Add(hello{salt{1}, own.set().digest}.encode())
	f.Add(slices.Concat(asks(), appendKeys(nil, own.set().keyed(salt{1}).keys), appendKeys(nil, []uint64{7}), []byte{0, 1, 'z', 0, 0, 1}))
	f.Add(append(asks(), 0xff, 0xff, 0xff, 0xff))
	f.Fuzz(func(t *testing.T, said []byte) {
		out, err := answer(script{bytes.NewReader(said), io.Discard}, own.set(), own.get, new(memory))
		checkOutcome(t, out, err, said)
	})
}

// The same of who answers.
func FuzzAsk(f *testing.F) {
	own := texts{"x", "y"}
	f.Add([]byte{same})
	f.Add(slices.Concat([]byte{differ}, appendKeys(nil, []uint64{1, 2}), appendKeys(nil, own.set().keyed(salt{1}).keys), []byte{0, 1, 'z', 0, 0, 0}))
	f.Add([]byte{differ, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, said []byte) {
		out, err := ask(script{bytes.NewReader(said), io.Discard}, own.set(), own.get, new(memory))
		checkOutcome(t, out, err, said)
	})
}

func checkOutcome(t *testing.T, out outcome, err error, said []byte) {
	t.Helper()
	size := 0
	for _, o := range out.got {
		if len(o) == 0 || len(o) > trust.MaxObject || !bytes.Contains(said, o) {
			t.Errorf("object %x was not said", o)
		}
		size += len(o)
	}
	if size > maxBytes || err != nil && len(out.got) > 0 {
		t.Errorf("%d bytes in %d objects, error %v", size, len(out.got), err)
	}
}
