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
	claims = slices.DeleteFunc(slices.Clone(claims), func(c Claim) bool { return !c.candidate() })
	slices.SortFunc(claims, Claim.compare)
	var winners []Claim
	for _, c := range claims {
		if !slices.ContainsFunc(winners, func(w Claim) bool { return w.overlaps(c.Prefixes) }) {
			winners = append(winners, c)
		}
	}
	return winners
}

// Routed picks the claims to whose owners packets are sent: the winners that are
// held, and then those void ones that none of these covers. For a tombstone is
// cheap: if a void lease lost its route at once, then a long silence of gossip
// would have all members take down each other's traffic.
func Routed(claims []Claim) []Claim {
	routed := slices.DeleteFunc(Resolve(claims), func(c Claim) bool { return c.State != mesh.Held })
	void := slices.DeleteFunc(slices.Clone(claims), func(c Claim) bool { return !c.Void || c.State != mesh.Held })
	slices.SortFunc(void, Claim.compare)
	for _, c := range void {
		if !slices.ContainsFunc(routed, func(w Claim) bool { return w.overlaps(c.Prefixes) }) {
			routed = append(routed, c)
		}
	}
	return routed
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
