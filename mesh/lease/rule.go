// Package lease decides who owns which subnet, without a server.
//
// [Resolve] is the conflict rule: a pure function of signed facts, so every node
// that knows the same records names the same owners, in whatever order they
// arrived. [Allocator] is one node's side: it picks a subnet, announces it,
// waits for objections, holds it, and withdraws when it loses.
//
//	          choose            probe window over         lost
//	(none) ───────────► pending ───────────────► held ───────────┐
//	   ▲                   │ lost                  ▲             │
//	   └───────────────────┴───── renumber ────────┼─────────────┤
//	                                  winner gone  │             ▼ in use
//	                                               └──────── quarantined
package lease

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"meshd/mesh"
)

// Claim is a lease with what the conflict rule reads of its owner. All of it is
// signed: by the owner, or by who made the owner's certificate.
type Claim struct {
	Owner    mesh.NodeID
	Pinned   bool      // the owner's certificate names exactly this subnet
	Admitted time.Time // the owner's seniority; a lease counts no earlier
	Void     bool      // a tombstone voids it: it is in nobody's way, see [Routed]
	Freed    time.Time // when that was signed
	mesh.Lease
}

// compare is the total order of claims; the smaller one wins a conflict: pinned
// before free, held before pending, earlier before later, then the smaller ID.
// Claims of one owner go by their network's name.
//
// Held goes before older because a fresh node with a slow clock would otherwise
// evict an old one while it still probes. No tolerance and no local fact enters,
// or nodes would disagree.
func (c Claim) compare(o Claim) int {
	if c.Pinned != o.Pinned {
		return first(c.Pinned)
	}
	if held := c.State == mesh.Held; held != (o.State == mesh.Held) {
		return first(held)
	}
	if d := c.since().Compare(o.since()); d != 0 {
		return d
	}
	return cmp.Or(c.Owner.Compare(o.Owner), cmp.Compare(c.Network, o.Network))
}

func first(yes bool) int {
	if yes {
		return -1
	}
	return 1
}

// since counts no earlier than the owner was admitted, so a newcomer cannot date
// itself before the others. Seconds, as on the wire.
func (c Claim) since() time.Time {
	if c.Since.Before(c.Admitted) {
		return c.Admitted.Truncate(time.Second)
	}
	return c.Since.Truncate(time.Second)
}

// candidate tells whether the claim takes part in conflicts at all.
func (c Claim) candidate() bool {
	return !c.Void && (c.State == mesh.Pending || c.State == mesh.Held)
}

func (c Claim) overlaps(prefixes []netip.Prefix) bool {
	return slices.ContainsFunc(c.Prefixes, func(p netip.Prefix) bool {
		return slices.ContainsFunc(prefixes, p.Overlaps)
	})
}

// Resolve picks the winners: claims are taken greedily in their order, each one
// unless it overlaps one already taken. The result is sorted by that order.
func Resolve(claims []Claim) []Claim {
	var taken subnets
	return taken.take(sorted(claims, Claim.candidate))
}

// Routed picks the claims to whose owners packets are sent: the winners that are
// held, and then those void ones that none of these covers. For a tombstone is
// cheap: if a void lease lost its route at once, then a long silence of gossip
// would have all members take down each other's traffic.
func Routed(claims []Claim) []Claim {
	routed := slices.DeleteFunc(Resolve(claims), func(c Claim) bool { return c.State != mesh.Held })
	void := sorted(claims, func(c Claim) bool { return c.Void && c.State == mesh.Held })
	if len(void) == 0 {
		return routed // nearly always
	}
	var taken subnets
	return append(taken.take(routed), taken.take(void)...)
}

// sorted gives those of the claims that are meant, in their order.
func sorted(claims []Claim, meant func(Claim) bool) []Claim {
	claims = slices.DeleteFunc(slices.Clone(claims), func(c Claim) bool { return !meant(c) })
	slices.SortFunc(claims, Claim.compare)
	return claims
}

// subnets are those that are taken: sorted, and none overlaps another, so that one is
// found without looking at all of them.
type subnets []netip.Prefix

// take picks those of the claims that overlap none before them.
func (s *subnets) take(claims []Claim) []Claim {
	return slices.DeleteFunc(claims, func(c Claim) bool {
		if slices.ContainsFunc(c.Prefixes, s.overlaps) {
			return true
		}
		for _, p := range c.Prefixes {
			s.add(p)
		}
		return false
	})
}

func (s *subnets) overlaps(p netip.Prefix) bool {
	_, found := s.find(p)
	return found
}

// add takes p, in place of those that are in it.
func (s *subnets) add(p netip.Prefix) {
	p = p.Masked()
	i, _ := s.find(p)
	end := i
	for end < len(*s) && (*s)[end].Overlaps(p) {
		if (*s)[end].Bits() < p.Bits() {
			return // it is in that one
		}
		end++
	}
	*s = slices.Replace(*s, i, end, p)
}

// find gives the first that overlaps p, or before which p belongs.
func (s *subnets) find(p netip.Prefix) (int, bool) {
	i, _ := slices.BinarySearchFunc(*s, p.Masked().Addr(), func(q netip.Prefix, a netip.Addr) int { return q.Addr().Compare(a) })
	if i > 0 && (*s)[i-1].Overlaps(p) {
		return i - 1, true
	}
	return i, i < len(*s) && (*s)[i].Overlaps(p)
}

// wins tells whether own is among the winners beside others.
func wins(own Claim, others []Claim) bool {
	rival := func(c Claim) bool { return c.candidate() && c.overlaps(own.Prefixes) }
	if !slices.ContainsFunc(others, rival) {
		return true // nearly always: no need to sort the whole mesh
	}
	for _, w := range Resolve(append(slices.Clone(others), own)) {
		if w.Owner == own.Owner && w.Network == own.Network {
			return true
		}
	}
	return false
}
