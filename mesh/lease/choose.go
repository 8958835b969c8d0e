package lease

import (
	"encoding/binary"
	"net/netip"
	"time"

	"meshd/mesh"
)

// choose picks the subnet to claim next: the one wished for, if it is free; else
// the slot that ranks first by rendezvous hash among the free and never used ones;
// if there is none, the one that was freed the longest ago. Ranking by a hash of the node and the slot spreads nodes
// that start together over different slots; what is known to be taken is left out,
// so it is not the bare hash that would collide with 16 % at 10 nodes of 256 slots.
func choose(n mesh.Network, self mesh.NodeID, wish []netip.Prefix, permit func([]netip.Prefix) bool, others []Claim) ([]netip.Prefix, bool) {
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
	for slot := range n.Slots() {
		if taken[slot] {
			continue
		}
		rank, since := mix(seed^uint64(slot)), freed[slot] // zero: never used, earlier than any
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

// mix is the finalizer of SplitMix64: every input bit moves every output bit.
// Ranking needs spread, not secrecy, and a network may have 2^24 slots.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
