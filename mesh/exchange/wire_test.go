package exchange

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/mesh/trust"
)

// setOf makes a set of texts.
func setOf(texts ...string) *Set {
	var objects [][]byte
	var keys []uint64
	for _, t := range texts {
		objects, keys = append(objects, []byte(t)), append(keys, Key([]byte(t)))
	}
	return NewSet(objects, keys)
}

// texts lists what an exchange has brought.
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
func between(t *testing.T, a, b *Set, ofA, ofB *memory) (asked, answered outcome, bytes [2]int) {
	t.Helper()
	near, far := net.Pipe()
	asker, other := &wire{Conn: near}, &wire{Conn: far}
	done := make(chan error, 1)
	go func() {
		var err error
		answered, err = answer(other, b, ofB)
		_ = far.Close()
		done <- err
	}()
	asked, err := ask(asker, a, ofA)
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
		{"same", "x y", "x y", "", "", 0, 13, 1},
		{"same in another order", "x y", "y x", "", "", 0, 13, 1},
		{"nothing", "", "", "", "", 0, 13, 1},
		{"the asker lacks", "x", "x y z", "y z", "", 0, 13 + 4 + 16 + 3, 1 + 4 + 24 + 4 + 2*3 + 3},
		{"the other lacks", "x y z", "y", "", "x z", 2, 13 + 4 + 2*3 + 3, 1 + 4 + 8 + 4 + 3},
		{"both lack", "x y", "y z", "z", "x", 1, 13 + 4 + 8 + 3 + 3, 1 + 4 + 16 + 4 + 3 + 3},
		{"one is new", "", "x y", "x y", "", 0, 13 + 4 + 16 + 3, 1 + 4 + 16 + 4 + 2*3 + 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked, answered, said := between(t, setOf(strings.Fields(c.a)...), setOf(strings.Fields(c.b)...), new(memory), new(memory))
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
		asked, _, said := between(t, setOf(have...), setOf(all...), new(memory), new(memory))
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

// What one of two does not believe is carried once, not with each exchange.
func TestExchangeOfTheRefused(t *testing.T) {
	a, b := setOf("x", "bad for b"), setOf("x", "bad for a")
	var ofA, ofB memory
	asked, answered, _ := between(t, a, b, &ofA, &ofB)
	ofA.note(asked.got)
	ofB.note(answered.got)
	if asked.texts() != "bad for a" || answered.texts() != "bad for b" {
		t.Fatalf("first they got %q and %q", asked.texts(), answered.texts())
	}
	asked, answered, _ = between(t, a, b, &ofA, &ofB)
	if len(asked.got)+len(answered.got) != 0 || !asked.whole {
		t.Errorf("then they got %q and %q", asked.texts(), answered.texts())
	}
	// One that is believed by now is told to others as any other.
	if later := setOf("x", "bad for a", "bad for b"); len(ofA.refused(later)) != 0 {
		t.Error("what is believed counts as refused")
	}
}

// Two nodes that heard different witnesses have the same to say; one that heard none
// gets them all.
func TestAdmissionsAreAlike(t *testing.T) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	admission := func(of, by byte) []byte {
		a := trust.Admission{Certificate: trust.Hash{of}, Admitter: trust.Hash{by}, Seen: time.Unix(1, 0)}
		return a.Sign(key)
	}
	one, two, other := admission(1, 1), admission(1, 2), admission(2, 1)
	if Key(one) != Key(two) || Key(one) == Key(other) {
		t.Errorf("keys %x, %x of one certificate, %x of another", Key(one), Key(two), Key(other))
	}
	a := NewSet([][]byte{one}, []uint64{Key(one)})
	b := NewSet([][]byte{two, one}, []uint64{Key(two), Key(one)})
	if a.Digest() != b.Digest() {
		t.Error("the digests differ")
	}
	asked, _, _ := between(t, setOf(), b, new(memory), new(memory))
	if len(asked.got) != 2 || !bytes.Equal(asked.got[0], two) {
		t.Errorf("got %d admissions, want both, in order", len(asked.got))
	}
}

// hello is what an asker says first.
func hello(digest uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte("mshX\x01"), digest)
}

func TestMalformed(t *testing.T) {
	own := setOf("x", "y")
	long := binary.BigEndian.AppendUint32(nil, maxKeys+1)
	none := make([]byte, 4)
	object := func(n int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(n)) }
	many := append(slices.Clone(none), bytes.Repeat([]byte{0, 1, 'x'}, maxKeys+1)...)
	heavy := append(slices.Clone(none), bytes.Repeat(append(object(trust.MaxObject), make([]byte, trust.MaxObject)...), maxBytes/trust.MaxObject)...)
	for name, said := range map[string][]byte{
		"nothing":              nil,
		"cut hello":            hello(1)[:12],
		"HTTP":                 []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"another version":      append([]byte("mshX\x02"), make([]byte, 8)...),
		"no keys":              hello(1),
		"too many keys":        append(hello(1), long...),
		"fewer keys than said": append(hello(1), 0, 0, 0, 2, 1, 2, 3),
		"no objects":           append(hello(1), none...),
		"too large an object":  slices.Concat(hello(1), none, object(trust.MaxObject+1), make([]byte, trust.MaxObject+1)),
		"cut object":           slices.Concat(hello(1), none, object(9), []byte("cut")),
		"no end":               slices.Concat(hello(1), none, object(1), []byte("x")),
		"cut end":              slices.Concat(hello(1), none, object(0)),
		"too many objects":     append(hello(1), many...),
		"too heavy":            slices.Concat(hello(1), heavy, object(0), []byte{1}),
	} {
		t.Run("asker says "+name, func(t *testing.T) {
			if out, err := answer(script{bytes.NewReader(said), new(bytes.Buffer)}, own, new(memory)); err == nil || len(out.got) > 0 {
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
		"too heavy":       slices.Concat([]byte{differ}, none, heavy, object(0), []byte{1}),
	} {
		t.Run("other says "+name, func(t *testing.T) {
			if out, err := ask(script{bytes.NewReader(said), new(bytes.Buffer)}, own, new(memory)); err == nil || len(out.got) > 0 {
				t.Errorf("got %d objects, error %v", len(out.got), err)
			}
		})
	}
}

// Who does not speak our protocol hears nothing.
func TestNoAnswerToJunk(t *testing.T) {
	for _, said := range []string{"", "\x00", "GET / HTTP/1.1\r\n\r\n", "mshX", "mshX\x02--------", "mshP\x01--------"} {
		heard := new(bytes.Buffer)
		if _, err := answer(script{strings.NewReader(said), heard}, setOf("secret"), new(memory)); err == nil || heard.Len() > 0 {
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
	own := setOf("x", "y")
	f.Add(hello(own.digest))
	f.Add(slices.Concat(hello(1), appendKeys(nil, own.keys), []byte{0, 1, 'z', 0, 0, 1}))
	f.Add(append(hello(1), 0xff, 0xff, 0xff, 0xff))
	f.Fuzz(func(t *testing.T, said []byte) {
		out, err := answer(script{bytes.NewReader(said), io.Discard}, own, new(memory))
		checkOutcome(t, out, err, said)
	})
}

// The same of who answers.
func FuzzAsk(f *testing.F) {
	own := setOf("x", "y")
	f.Add([]byte{same})
	f.Add(slices.Concat([]byte{differ}, appendKeys(nil, []uint64{1, 2}), appendKeys(nil, own.keys), []byte{0, 1, 'z', 0, 0, 0}))
	f.Add([]byte{differ, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, said []byte) {
		out, err := ask(script{bytes.NewReader(said), io.Discard}, own, new(memory))
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
