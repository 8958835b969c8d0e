package wg

// window remembers which of the latest counters were seen (RFC 6479): a ring of
// bits, of which the oldest word is always being overwritten.
type window struct {
	last uint64
	ring [windowWords]uint64
}

const (
	windowWords = 256 // a power of two
	// windowSize is how far a counter may be behind the last one: enough for
	// hundreds of trains of 64 packets that overtake each other.
	windowSize = (windowWords - 1) * 64
)

// accept marks a counter, and tells whether it was new.
func (w *window) accept(counter uint64) bool {
	word := counter / 64
	switch {
	case counter > w.last:
		steps := min(word-w.last/64, windowWords)
		for i := range steps {
			w.ring[(word-i)%windowWords] = 0
		}
		w.last = counter
	case w.last-counter > windowSize:
		return false
	}
	bit := uint64(1) << (counter % 64)
	seen := w.ring[word%windowWords]&bit != 0
	w.ring[word%windowWords] |= bit
	return !seen
}
