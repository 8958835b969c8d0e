package lease

import (
	"math/bits"
	"net/netip"
	"slices"
	"time"

	"meshd/mesh"
)

// OnConflict says what a node does that loses its subnet.
type OnConflict string

// What a loser does.
const (
	Auto       OnConflict = "auto"       // quarantine while containers use the subnet, else renumber
	Renumber   OnConflict = "renumber"   // always take another subnet
	Quarantine OnConflict = "quarantine" // always keep it for local traffic and wait
)

// Config is fixed for the life of an allocator, but for what it has setters for.
type Config struct {
	Self       mesh.NodeID
	Network    mesh.Network
	Pins       []netip.Prefix                     // the only subnets that the certificate permits; one of a family stands for its slot; empty: any
	Ranges     []netip.Prefix                     // outside of which the certificate permits none; empty: it may anywhere
	Admitted   time.Time                          // this node's seniority
	Permit     func(prefixes []netip.Prefix) bool // what the certificate permits
	OnConflict OnConflict
	// Reserved tells of subnets that are not to be taken unless they are pinned; nil:
	// none is. Who has one already keeps it.
	Reserved func(prefixes []netip.Prefix) bool
}

// World is what an allocator is told at each step.
type World struct {
	MayClaim bool    // the node is admitted and knows the others' claims (or is the founder)
	Epoch    uint64  // of the running daemon
	Members  int     // how many nodes there are
	Others   []Claim // of every other node, in any order
	// Unproven are leases that somebody says to have, who may or may not be a
	// member: what proves it has not come yet.
	Unproven []mesh.Lease
	Asked    bool // others were asked what they know, since Asks was true
	InUse    bool // something local has addresses from the lease
}

// Allocator holds one node's lease in one network. It is a pure machine: the
// owner calls Step after every event and when Next is due, and publishes Lease
// whenever Step says that it changed.
type Allocator struct {
	cfg    Config
	lease  mesh.Lease // State 0: none
	probe  probe      // while pending
	state  mesh.State
	lost   bool           // had a subnet and lost it: renumbering rather than starting
	again  bool           // the claim is for a subnet that was in quarantine, where it goes back to if it is lost
	wish   []netip.Prefix // to claim first
	none   []Claim        // with these claims of others nothing was free
	lookAt time.Time      // when that is looked at again; zero: something was free
}

// probe is how far a claim has come that is not held yet:
//
//	claimed ── elders are told ──► the window ── elders are asked ──► held
//
// Who tells and who asks is told, so of two that want the same one hears of the other:
// between its telling and its asking the elders had time to take in what they were told.
type probe struct {
	told  bool      // elders were
	begun time.Time // when the claim was made, or told
	until time.Time // when the next step is due: telling is given up, or the window is over
	doubt bool      // somebody else was heard of who wants the same, or nobody could be told
	asks  bool      // nothing is to be done but to tell or ask others
}

// New makes an allocator. previous is the lease that the node last held, to be
// held again at once, or kept in quarantine; its zero value means there is none.
func New(cfg Config, previous mesh.Lease) *Allocator {
	a := &Allocator{cfg: cfg, state: mesh.WaitingForSeed}
	if !a.isSlot(previous.Prefixes) || !cfg.Permit(previous.Prefixes) {
		return a
	}
	switch previous.State {
	case mesh.Held:
		a.lease, a.state = previous, mesh.Ready
	case mesh.Quarantined:
		a.lease, a.state = previous, a.kept()
	case mesh.Pending, mesh.Released: // it was never ours, or is not any more
	}
	return a
}

// kept is the state of a node that keeps a subnet which belongs to another.
func (a *Allocator) kept() mesh.State {
	if len(a.cfg.Pins) > 0 {
		return mesh.Conflict
	}
	return mesh.Quarantine
}

// isSlot tells whether the prefixes are exactly one slot of the network, as it
// is now: a mesh that was made anew with other ranges makes old leases void.
func (a *Allocator) isSlot(prefixes []netip.Prefix) bool { return IsSlot(a.cfg.Network, prefixes) }

// IsSlot tells whether the prefixes are exactly one slot of the network.
func IsSlot(n mesh.Network, prefixes []netip.Prefix) bool {
	if len(prefixes) == 0 {
		return false
	}
	slot, err := n.SlotOf(prefixes[0])
	return err == nil && slices.Equal(n.Slot(slot), prefixes)
}

// SetOnConflict says what becomes of a subnet that is lost, or was and is still
// kept; it counts from the next Step on.
func (a *Allocator) SetOnConflict(p OnConflict) { a.cfg.OnConflict = p }

// SetRights says what the certificate permits, after it was renewed. A lease that
// it does not permit any more is given up with the next Step.
func (a *Allocator) SetRights(pins, ranges []netip.Prefix, admitted time.Time, permit func([]netip.Prefix) bool) {
	a.cfg.Pins, a.cfg.Ranges, a.cfg.Admitted, a.cfg.Permit = pins, ranges, admitted, permit
	a.lookAt = time.Time{}
}

// Redate says that the lease counts as claimed in another epoch. It is for an owner
// that has held it all the time while others took it for gone.
func (a *Allocator) Redate(epoch uint64) {
	if a.lease.State != 0 {
		a.lease.ClaimEpoch = epoch
	}
}

// Reclaim gives up a lease that counts no more, and wishes for it first when it is
// claimed afresh. While something local has addresses of it, it is kept for local
// traffic.
func (a *Allocator) Reclaim(inUse bool) {
	if a.lease.State == 0 || a.lease.State == mesh.Released {
		return // there is nothing to give up
	}
	a.wish, a.state = a.lease.Prefixes, mesh.WaitingForSeed
	if (a.lease.State != mesh.Pending || a.again) && a.quarantines(World{InUse: inUse}) {
		a.lease.State = mesh.Quarantined
		return
	}
	a.lease = mesh.Lease{}
}

// Renumber gives the lease up for another subnet, which is claimed with the next
// Step. It tells whether there is one; if not, nothing changes.
func (a *Allocator) Renumber(w World) bool {
	if a.lease.State == 0 || a.lease.State == mesh.Released || len(a.cfg.Pins) > 0 {
		return false
	}
	old := a.lease.Prefixes
	other := func(prefixes []netip.Prefix) bool { return !slices.Equal(prefixes, old) && a.mayTake(prefixes) }
	next, ok := choose(a.cfg.Network, a.cfg.Self, nil, a.cfg.Ranges, other, w.Others)
	if ok {
		a.lease, a.lost, a.wish, a.state = mesh.Lease{}, true, next, mesh.Renumbering
	}
	return ok
}

// mayTake tells whether a subnet may be chosen, if it is free.
func (a *Allocator) mayTake(prefixes []netip.Prefix) bool {
	return a.cfg.Permit(prefixes) && (a.cfg.Reserved == nil || !a.cfg.Reserved(prefixes))
}

// Lease is the lease to publish; false: none.
func (a *Allocator) Lease() (mesh.Lease, bool) { return a.lease, a.lease.State != 0 }

// State says what the node is doing.
func (a *Allocator) State() mesh.State { return a.state }

// Next is the moment at which Step has something to do even if nothing happens.
func (a *Allocator) Next() (time.Time, bool) {
	next := a.probe.until
	if a.probe.asks && a.probe.told {
		next = next.Add(proofWait)
	}
	return next, a.lease.State == mesh.Pending
}

// Asks tells that other members are to be asked now, and told of the claim: they may have
// heard of one that has not come here. That is so twice for each claim.
func (a *Allocator) Asks() bool { return a.lease.State == mesh.Pending && a.probe.asks }

// Step takes the world as it is and moves on. It reports whether the lease
// changed.
func (a *Allocator) Step(now time.Time, w World) (changed bool) {
	if a.state == mesh.Left {
		return false
	}
	if a.lease.State != 0 && a.lease.State != mesh.Released && !a.cfg.Permit(a.lease.Prefixes) {
		a.lease, a.lost, changed = mesh.Lease{}, true, true
	}
	switch a.lease.State {
	case mesh.Pending, mesh.Held:
		if !wins(a.claim(a.lease), w.Others) {
			a.lose(w)
			changed = true
		} else if a.lease.State == mesh.Pending && a.advance(now, w) {
			a.lease.State, a.state, a.lost, a.again = mesh.Held, mesh.Ready, false, false
			return true
		}
	case mesh.Released: // Release has ended it
	case mesh.Quarantined:
		if !a.quarantines(w) {
			a.lease, a.lost, changed = mesh.Lease{}, true, true // what used it has gone
		} else if again := a.pending(a.lease.Prefixes, now, w); w.MayClaim && a.free(again, w.Others) {
			a.start(again, now)
			a.again = true
			return true
		} else if w.MayClaim {
			a.state = a.kept()
		}
	}
	if a.lease.State == 0 {
		return a.claimNext(now, w) || changed
	}
	return changed
}

// Release gives the lease back for good, when the node leaves the mesh.
func (a *Allocator) Release(now time.Time) {
	a.state = mesh.Left
	if a.lease.State != 0 {
		a.lease.State, a.lease.Since = mesh.Released, now
	}
}

// advance moves a claim on, and tells whether it may be held. In a mesh that starts,
// members become known while the window runs, a record can be here before the admission
// that makes it count, and news that nearly everybody has may not have come here.
func (a *Allocator) advance(now time.Time, w World) bool {
	p := &a.probe
	unproven := slices.ContainsFunc(w.Unproven, func(l mesh.Lease) bool {
		c := Claim{Lease: l}
		return c.candidate() && c.overlaps(a.lease.Prefixes)
	})
	rival := unproven || !a.free(a.lease, w.Others)
	if !p.told {
		p.doubt = p.doubt || rival
		if w.Asked || !now.Before(p.until) {
			p.told, p.asks, p.doubt, p.begun = true, false, p.doubt || !w.Asked, now
			p.until = now.Add(probeWindow(w.Members, p.doubt))
		}
		return false
	}
	if rival && !p.doubt {
		p.doubt, p.until = true, now.Add(probeWindow(w.Members, false)) // and others are asked again, if they were
	}
	p.until = latest(p.until, p.begun.Add(probeWindow(w.Members, p.doubt)))
	p.asks = !now.Before(p.until)
	return p.asks && w.Asked && !unproven || !now.Before(p.until.Add(proofWait))
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// lose withdraws from a subnet that belongs to another.
func (a *Allocator) lose(w World) {
	if a.quarantines(w) && (a.lease.State == mesh.Held || a.again) {
		a.lease.State, a.state = mesh.Quarantined, a.kept()
		return
	}
	a.lease, a.lost = mesh.Lease{}, true
}

// quarantines tells whether a lost subnet is kept for local traffic.
func (a *Allocator) quarantines(w World) bool {
	return a.cfg.OnConflict == Quarantine || a.cfg.OnConflict != Renumber && w.InUse
}

// claimNext announces the next candidate, if there is one.
func (a *Allocator) claimNext(now time.Time, w World) bool {
	if !w.MayClaim {
		a.state = mesh.WaitingForSeed
		return false
	}
	if len(a.cfg.Pins) > 0 {
		return a.claimPinned(now, w)
	}
	if now.Before(a.lookAt) && slices.EqualFunc(a.none, w.Others, sameClaim) {
		a.state = mesh.NoFreeSubnets
		return false
	}
	prefixes, ok := choose(a.cfg.Network, a.cfg.Self, a.wish, a.cfg.Ranges, a.mayTake, w.Others)
	if !ok {
		a.state, a.none, a.lookAt = mesh.NoFreeSubnets, slices.Clone(w.Others), now.Add(lookAgain)
		return false
	}
	a.none, a.lookAt = nil, time.Time{}
	a.start(a.pending(prefixes, now, w), now)
	return true
}

// lookAgain is how long it is believed that nothing is free, if nobody claims or gives
// up anything: a large network is searched slot by slot. What may be taken can change
// meanwhile, by a charter.
const lookAgain = 30 * time.Second

// sameClaim tells whether two claims are in the way of the same.
func sameClaim(a, b Claim) bool {
	return a.Owner == b.Owner && a.State == b.State && a.Void == b.Void && slices.Equal(a.Prefixes, b.Prefixes)
}

// claimPinned announces the first pinned slot that belongs to nobody else with
// the same pin.
func (a *Allocator) claimPinned(now time.Time, w World) bool {
	a.state = mesh.NoFreeSubnets
	for _, pin := range a.cfg.Pins {
		slot, err := a.cfg.Network.SlotOf(pin)
		if err != nil || !a.cfg.Permit(a.cfg.Network.Slot(slot)) {
			continue // a pin in another network
		}
		l := a.pending(a.cfg.Network.Slot(slot), now, w)
		if wins(a.claim(l), w.Others) {
			a.start(l, now)
			return true
		}
		a.state = mesh.Conflict
	}
	return false
}

func (a *Allocator) start(l mesh.Lease, now time.Time) {
	a.wish, a.again = nil, false
	a.lease, a.state = l, mesh.Probing
	a.probe = probe{begun: now, until: now.Add(proofWait), asks: true}
	if a.lost {
		a.state = mesh.Renumbering
	}
}

func (a *Allocator) pending(prefixes []netip.Prefix, now time.Time, w World) mesh.Lease {
	return mesh.Lease{
		Network: a.cfg.Network.Name, Prefixes: prefixes, State: mesh.Pending,
		Since: now.Round(0).UTC().Truncate(time.Second), ClaimEpoch: w.Epoch,
	}
}

func (a *Allocator) claim(l mesh.Lease) Claim {
	return Claim{Owner: a.cfg.Self, Pinned: len(a.cfg.Pins) > 0, Admitted: a.cfg.Admitted, Lease: l}
}

// free tells whether nobody else claims any part of the lease.
func (a *Allocator) free(l mesh.Lease, others []Claim) bool {
	for _, c := range others {
		if c.candidate() && c.overlaps(l.Prefixes) {
			return false
		}
	}
	return true
}

// proofWait is how much longer a claim waits for the proof of another, and for
// those who are told and asked. Admissions that many nodes make at once take two or three
// seconds to all; who has the gossip key can delay a new claim by twice that and no more.
const proofWait = 5 * time.Second

// probeWindow is how long a claim stands among n nodes, once elders were told of it, before
// they are asked whether it may count. A record crosses their gossip in about log2(n)
// rounds of 200 ms. Where nobody else is known to want the same, half of that has to do,
// as long as an elder takes to tell others what it was told. Else what may happen to a
// record, as loss, a repeated round and a slow host, has one and a half seconds.
func probeWindow(n int, doubt bool) time.Duration {
	rounds := time.Duration(bits.Len(uint(n))) * 200 * time.Millisecond
	if doubt {
		return 1500*time.Millisecond + rounds
	}
	return 400*time.Millisecond + rounds/2
}
