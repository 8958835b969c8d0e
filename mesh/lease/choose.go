package lease

import (
	"encoding/binary"
	"iter"
	"net/netip"
	"time"

	"meshd/mesh"
)

// choose picks the subnet to claim next: the one wished for, if it is free; else
// the slot that ranks first by rendezvous hash among the free and never used ones;
// if there is none, the one that was freed the longest ago. Ranking by a hash of the
// node and the slot spreads nodes that start together over different slots; what is
// known to be taken is left out, so it is not the bare hash that would collide with
// 16 % at 10 nodes of 256 slots. permit permits nothing outside of ranges, unless there
// are none.
func choose(n mesh.Network, self mesh.NodeID, wish, ranges []netip.Prefix, permit func([]netip.Prefix) bool, others []Claim) ([]netip.Prefix, bool) {
	taken, freed := map[int]bool{}, map[int]time.Time{}
	for _, c := range others {
		if c.Owner == self {
			continue
		}
		for _, p := range c.Prefixes {
			slot, err := n.SlotOf(p)
			switch at := c.Since; {
			case err != nil:
			case c.State == mesh.Released, c.Void:
				if c.Void {
					at = c.Freed
				}
				if at.After(freed[slot]) {
					freed[slot] = at
				}
			default:
				taken[slot] = true
			}
		}
	}
	if IsSlot(n, wish) && permit(wish) {
		if slot, err := n.SlotOf(wish[0]); err == nil && !taken[slot] {
			return wish, true
		}
	}
	seed := binary.BigEndian.Uint64(self[:8])
	best, bestRank, bestFreed, found := 0, uint64(0), time.Time{}, false
	for slot := range slotsIn(n, ranges) {
		rank := mix(seed ^ uint64(slot))
		if found && bestFreed.IsZero() && rank <= bestRank || taken[slot] {
			continue
		}
		since := freed[slot] // zero: never used, earlier than any
		if found && (since.After(bestFreed) || since.Equal(bestFreed) && rank <= bestRank) {
			continue
		}
		if permit(n.Slot(slot)) {
			best, bestRank, bestFreed, found = slot, rank, since, true
		}
	}
	if !found {
		return nil, false
	}
	return n.Slot(best), true
}

// slotsIn gives the slots of which a subnet lies in ranges, or all of them if there are
// none: of the family that leaves fewer, since a network may have 2^24 slots, and to ask
// for each of them takes seconds.
func slotsIn(n mesh.Network, ranges []netip.Prefix) iter.Seq[int] {
	spans, fewest := [][2]int{{0, n.Slots()}}, n.Slots()
	for _, family := range n.Ranges() {
		var in [][2]int
		size := 0
		for _, r := range ranges {
			if r.Addr().Is4() == family.Addr().Is4() {
				first, end := n.SlotsIn(r)
				in, size = append(in, [2]int{first, end}), size+end-first
			}
		}
		if in != nil && size < fewest {
			spans, fewest = in, size
		}
	}
	return func(yield func(int) bool) {
		for _, s := range spans {
			for slot := s[0]; slot < s[1]; slot++ {
				if !yield(slot) {
					return
				}
			}
		}
	}
}

// mix is the finalizer of SplitMix64: every input bit moves every output bit.
// Ranking needs spread, not secrecy, and a network may have 2^24 slots.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
