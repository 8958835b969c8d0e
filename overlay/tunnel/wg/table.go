package wg

import (
	"encoding/binary"
	"io"
	"sync/atomic"
)

// Table finds sessions by the index that their packets carry. Any goroutine may
// call Lookup, without a lock; the machine changes the table.
//
// The machine draws the indices, so it draws them such that the low bits are the
// slot, and no two share one: a lookup is one load and one compare, and a change
// is one store, where a copied map would cost its whole size at each handshake.
// Indices stay as unpredictable as their high bits.
type Table struct {
	slots atomic.Pointer[[]atomic.Pointer[Session]] // a power of two of them
	// owned by the machine
	taken []slot
	used  int
}

// slot says for whom an index is. Handshakes have indices, but no session.
type slot struct {
	index uint32 // zero: free
	peer  *peer
}

const firstSlots = 64

func newTable() *Table {
	t := &Table{taken: make([]slot, firstSlots)}
	slots := make([]atomic.Pointer[Session], firstSlots)
	t.slots.Store(&slots)
	return t
}

// Lookup gives the session with that index of ours, or nil.
func (t *Table) Lookup(index uint32) *Session {
	slots := *t.slots.Load()
	s := slots[index&uint32(len(slots)-1)].Load()
	if s == nil || s.local != index {
		return nil
	}
	return s
}

// reserve gives a new index to a peer.
func (t *Table) reserve(p *peer, rand io.Reader) uint32 {
	if t.used >= len(t.taken)/2 {
		t.grow()
	}
	var b [4]byte
	read(rand, b[:])
	index := binary.LittleEndian.Uint32(b[:])
	for index == 0 || t.slot(index).index != 0 {
		index++ // half are free, so the next is near
	}
	*t.slot(index) = slot{index, p}
	t.used++
	return index
}

func (t *Table) slot(index uint32) *slot { return &t.taken[index&uint32(len(t.taken)-1)] }

// peer tells to whom an index was given.
func (t *Table) peer(index uint32) *peer {
	if s := t.slot(index); index != 0 && s.index == index {
		return s.peer
	}
	return nil
}

// put makes a session known under its index.
func (t *Table) put(s *Session) {
	slots := *t.slots.Load()
	slots[s.local&uint32(len(slots)-1)].Store(s)
}

// release takes an index back. Zero is none.
func (t *Table) release(index uint32) {
	if s := t.slot(index); index != 0 && s.index == index {
		*s = slot{}
		t.used--
		slots := *t.slots.Load()
		slots[index&uint32(len(slots)-1)].Store(nil)
	}
}

// grow doubles the table: who had slots of their own then have them still. A
// reader that still looks into the old one misses only what came since.
func (t *Table) grow() {
	old, taken := *t.slots.Load(), t.taken
	slots := make([]atomic.Pointer[Session], 2*len(old))
	t.taken = make([]slot, 2*len(taken))
	for i := range taken {
		if taken[i].index == 0 {
			continue
		}
		*t.slot(taken[i].index) = taken[i]
		if s := old[i].Load(); s != nil {
			slots[s.local&uint32(len(slots)-1)].Store(s)
		}
	}
	t.slots.Store(&slots)
}
