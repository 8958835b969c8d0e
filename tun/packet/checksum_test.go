package packet

import (
	"bytes"
	"testing"
)

func TestSum(t *testing.T) {
	for _, c := range []struct {
		name    string
		b       []byte
		initial uint16
		want    uint16
	}{
		{"nothing", nil, 0, 0},
		{"initial", nil, 0x1234, 0x1234},
		{"RFC 1071", []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}, 0, 0xddf2},
		{"odd", []byte{1, 2, 3}, 0, 0x0402},
		{"carry", []byte{0xff, 0xff, 0, 1}, 0, 1},
		{"all zero", make([]byte, 300), 0, 0},
		{"all ones", bytes.Repeat([]byte{0xff}, 300), 0, 0xffff},
		{"all ones and more", bytes.Repeat([]byte{0xff}, 300), 0xffff, 0xffff},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Sum(c.b, c.initial); got != c.want {
				t.Errorf("sum %#04x, want %#04x", got, c.want)
			}
			if got := Checksum(c.b, c.initial); got != ^c.want {
				t.Errorf("checksum %#04x, want %#04x", got, ^c.want)
			}
		})
	}
}

// Every length crosses the borders of the unrolled loops; ones make carries.
func TestSumOfEveryLength(t *testing.T) {
	for _, b := range [][]byte{text(400), bytes.Repeat([]byte{0xff}, 400), make([]byte, 400)} {
		for n := range b {
			if got, want := Sum(b[:n], 0xfff0), naiveSum([]byte{0xff, 0xf0}, b[:n]); got != want {
				t.Fatalf("%x, %d bytes: %#04x, want %#04x", b[:4], n, got, want)
			}
		}
	}
}

func TestUpdated(t *testing.T) {
	b := text(64)
	for _, after := range []uint16{0, 1, 0x1234, 0xfffe, 0xffff} {
		before := Checksum(b, 0)
		old := be.Uint16(b[10:])
		be.PutUint16(b[10:], after)
		if got, want := updated(before, old, after), Checksum(b, 0); got != want {
			t.Errorf("word %#04x -> %#04x: %#04x, want %#04x", old, after, got, want)
		}
	}
}

func FuzzChecksum(f *testing.F) {
	f.Add([]byte{}, uint16(0), 0)
	f.Add(text(257), uint16(0xffff), 130)
	f.Add(bytes.Repeat([]byte{0xff}, 131), uint16(1), 4)
	f.Fuzz(func(t *testing.T, b []byte, initial uint16, cut int) {
		want := naiveSum(word(int(initial)), b)
		if got := Sum(b, initial); got != want {
			t.Errorf("%d bytes from %#04x: %#04x, want %#04x", len(b), initial, got, want)
		}
		// The same in two parts, the first of even length.
		if cut = cut &^ 1; cut >= 0 && cut <= len(b) {
			if got := Sum(b[cut:], Sum(b[:cut], initial)); got != want {
				t.Errorf("%d bytes cut at %d: %#04x, want %#04x", len(b), cut, got, want)
			}
		}
	})
}
