package wg

import (
	"math/rand/v2"
	"testing"
)

// naive is the window in the simplest way.
type naive struct {
	seen map[uint64]bool
	last uint64
}

func (n *naive) accept(counter uint64) bool {
	if counter < n.last && n.last-counter > windowSize || n.seen[counter] {
		return false
	}
	n.seen[counter] = true
	n.last = max(n.last, counter)
	return true
}

func TestWindow(t *testing.T) {
	if windowSize < 8192 {
		t.Errorf("a window of %d bits", windowSize)
	}
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 0))
		w, n := &window{}, &naive{seen: map[uint64]bool{}}
		var next uint64
		for i := range 20000 {
			switch r.IntN(100) {
			case 0:
				next += r.Uint64N(3 * windowSize) // jumps, also beyond the window
			case 1:
				next += 64 * (r.Uint64N(4) + windowWords - 2)
			default:
				next++
			}
			counter := next
			if r.IntN(3) == 0 {
				counter -= min(counter, r.Uint64N(windowSize+200))
			}
			if got, want := w.accept(counter), n.accept(counter); got != want {
				t.Fatalf("seed %d, step %d: counter %d of %d: accepted %t, want %t", seed, i, counter, n.last, got, want)
			}
		}
	}
}

func FuzzWindow(f *testing.F) {
	f.Add([]byte{1, 0, 1, 0, 0, 0, 255, 255, 0, 64})
	f.Fuzz(func(t *testing.T, moves []byte) {
		w, n := &window{}, &naive{seen: map[uint64]bool{}}
		at := uint64(1 << 20)
		for ; len(moves) >= 2; moves = moves[2:] {
			at += uint64(int64(int8(moves[0])) * int64(moves[1])) // to and fro
			if got, want := w.accept(at), n.accept(at); got != want {
				t.Fatalf("counter %d of %d: accepted %t, want %t", at, n.last, got, want)
			}
		}
	})
}
