package member

import (
	"maps"
	"slices"
	"time"

	"meshd/mesh"
	"meshd/mesh/lease"
	"meshd/mesh/registry"
	"meshd/mesh/trust"
)

// How long things live. All follow from the TTL of leases, since what is renewed
// must be renewed often enough not to end, and what is taken for gone must have
// had every chance to say that it is not:
//
//	renewal   every TTL/24         23 lost ones in a row still leave slack
//	expiry    TTL, then two looks at least TTL/24 apart, each after a sync with
//	          another node: one renewal must have come in between; two members
//	          have to find so, each for itself
const (
	// defaultTTL is that of a node which is not told any.
	defaultTTL = 24 * time.Hour
	renewals   = 24 // per TTL
	// quietFor is how long a node that starts listens before it speaks: what the
	// others know of it may be newer than its disk, which may be a backup's. It is as
	// long as a sync takes where somebody answers, and short for one where nobody does.
	quietFor = 1500 * time.Millisecond
	// bumpEvery limits how often a node answers to tombstones of itself.
	bumpEvery = 10 * time.Second
	// accusedFor is how long a node tells who took it for gone.
	accusedFor = time.Hour
)

// renewEvery is how often a record is said anew although nothing in it has changed.
func (m *Member) renewEvery() time.Duration { return m.cfg.TTL / renewals }

// watch is when the others were heard, as far as this run knows.
type watch struct {
	heard map[mesh.NodeID]hearing
	lots  map[mesh.NodeID]time.Time // when it is our turn to say that one is gone
	sync  bool                      // one was made since the last Step
	syncs time.Time                 // the last one
}

// hearing is of the newest record of a node.
type hearing struct {
	version mesh.Version
	at      time.Time // when it came, by our clock
	look    time.Time // when it was first found too old; zero: it was not
}

// listen notes which records are new.
func (m *Member) listen(now time.Time) {
	gone := maps.Clone(m.watch.heard)
	for _, n := range m.reg.Members(anyTime) {
		if n.Record == nil {
			continue
		}
		delete(gone, n.ID)
		if h, ok := m.watch.heard[n.ID]; !ok || h.version != n.Record.Version {
			m.watch.heard[n.ID] = hearing{version: n.Record.Version, at: now}
		}
	}
	for id := range gone {
		delete(m.watch.heard, id)
	}
}

// anyTime is for those who ask for all members, whatever the time.
func anyTime(*trust.Certificate) bool { return true }

// silent tells whether a node was not heard of for as long as a lease lasts.
func (m *Member) silent(now time.Time, id mesh.NodeID) bool {
	h, ok := m.watch.heard[id]
	return ok && now.Sub(h.at) >= m.cfg.TTL
}

// overdue tells whether a sync is worth a look at somebody.
func (m *Member) overdue(now time.Time) bool {
	for id, h := range m.watch.heard {
		if id != m.id && m.silent(now, id) && (h.look.IsZero() || now.Sub(h.look) >= m.renewEvery()) {
			return true
		}
	}
	return false
}

// expire says of members that they are gone, whose turn it is to be said so of.
func (m *Member) expire(now time.Time) {
	lots := m.watch.lots
	m.watch.lots = map[mesh.NodeID]time.Time{} // another member may have been quicker, or a node is back
	if !m.vouches(now) {
		return
	}
	for _, n := range m.members(now) {
		if n.ID == m.id || !m.silent(now, n.ID) {
			continue
		}
		h := m.watch.heard[n.ID]
		from, again := h.look.Add(m.renewEvery()), !h.look.IsZero()
		if !again {
			from = h.at.Add(m.cfg.TTL)
		}
		if m.watch.syncs.Before(from) {
			continue // nobody who could have heard more was asked since
		}
		if !again || !m.holdsAny(n) || m.hasBuried(n) {
			h.look = now
			m.watch.heard[n.ID] = h
			continue
		}
		at, drawn := lots[n.ID]
		if !drawn {
			at = now.Add(m.lot(n.Record.Hash, n.ID, now))
		}
		if now.Before(at) {
			m.watch.lots[n.ID] = at
		} else {
			m.bury(n, trust.Expired, now)
		}
	}
}

// vouches tells whether others would believe what we say of somebody else now.
func (m *Member) vouches(now time.Time) bool {
	admitted, _ := m.ownCertificate()
	return admitted && !m.state.Left && m.cert.ValidAt(m.clock(now))
}

// hasBuried tells whether this node has said so already of all that it has heard of a
// member: it is another one's turn then to confirm it, who has looked for itself.
func (m *Member) hasBuried(n registry.Member) bool {
	return slices.ContainsFunc(m.reg.Accusations(n.ID), func(a registry.Accusation) bool {
		return a.By.ID() == m.id && a.Version == n.Record.Version
	})
}

// holdsAny tells whether a member has leases that no tombstone voids.
func (m *Member) holdsAny(n registry.Member) bool {
	return slices.ContainsFunc(n.Leases(), func(l mesh.Lease) bool {
		_, void := n.Void(l)
		return l.State != mesh.Released && !void
	})
}

// bury says that a member is gone, as far as it was heard of.
func (m *Member) bury(n registry.Member, why trust.Reason, now time.Time) {
	t := trust.Tombstone{Node: n.ID, Version: n.Record.Version, Reason: why, At: m.clock(now), Issuer: m.cert.Hash}
	raw, err := t.Sign(m.cfg.Identity)
	if err == nil && m.Receive(raw) == nil {
		m.todo.outBound = append(m.todo.outBound, raw)
	}
}

// burial is what others have said of this node: that it is gone.
type burial struct {
	roseAt  time.Time // when a tombstone of this node was answered last
	since   uint64    // the epoch in which this run began
	accused map[trust.Hash]accused
}

// rise answers to tombstones of this node itself: we live.
//
// Who runs on in the epoch that one is of was only not heard, and keeps its leases:
// it goes on in a new epoch, and dates its claims by that one, or its next restart
// would void them. What was claimed before that, or what the CA has voided, is
// claimed afresh: nobody else could tell a lease that was held all the time from
// one that somebody else has had meanwhile.
func (m *Member) rise(now time.Time) {
	m.noteAccusers(now)
	if m.state.Left {
		return
	}
	for _, t := range m.reg.Tombstones(m.id) {
		m.riseFrom(t, now)
	}
	m.redate()
}

// noteAccusers remembers who says of this node that it is gone while it runs: their
// gossip is broken, or they lie. What was said of an epoch before is nobody's fault.
func (m *Member) noteAccusers(now time.Time) {
	all := m.reg.Accusations(m.id)
	for _, a := range all {
		if _, known := m.buried.accused[a.Hash]; !known && a.Version.Epoch >= m.buried.since && m.own.published != nil {
			if m.buried.accused == nil {
				m.buried.accused = map[trust.Hash]accused{}
			}
			m.buried.accused[a.Hash] = accused{now, a.By.Name}
		}
	}
	maps.DeleteFunc(m.buried.accused, func(h trust.Hash, _ accused) bool {
		return !slices.ContainsFunc(all, func(a registry.Accusation) bool { return a.Hash == h })
	})
}

// accused is a tombstone of this node in this run.
type accused struct {
	at time.Time // when it came
	by string
}

// accusers lists who has issued such ones lately.
func (m *Member) accusers(now time.Time) []string {
	var out []string
	for _, a := range m.buried.accused {
		if now.Sub(a.at) < accusedFor {
			out = append(out, a.by)
		}
	}
	return slices.Compact(slices.Sorted(slices.Values(out)))
}

// redate dates the leases that are held by the running epoch, once it is known that
// nobody has taken this node for gone: what members say later of the epochs before,
// of which it has seen the end, is of no lease then that it holds. Since stays.
func (m *Member) redate() {
	if !m.contact.exchanged || m.away.off || !m.twin.heard.IsZero() || len(m.reg.Tombstones(m.id)) > 0 {
		return
	}
	for _, h := range m.nets.holdings {
		if l, ok := h.alloc.Lease(); ok && l.State == mesh.Held && l.ClaimEpoch < m.state.Epoch {
			h.alloc.Redate(m.state.Epoch)
		}
	}
}

func (m *Member) riseFrom(t *trust.Tombstone, now time.Time) {
	void := slices.DeleteFunc(slices.Clone(m.nets.holdings), func(h *holding) bool {
		l, ok := h.alloc.Lease()
		return !ok || l.State == mesh.Quarantined || l.ClaimEpoch > t.Version.Epoch
	})
	keeps := t.Version.Epoch == m.state.Epoch && t.Version.Seq != trust.WholeEpoch
	if t.Version.Epoch > m.state.Epoch || t.Version.Epoch == m.state.Epoch && (!keeps || len(void) > 0) {
		if !m.buried.roseAt.IsZero() && now.Sub(m.buried.roseAt) < bumpEvery {
			m.wakeAt(m.buried.roseAt.Add(bumpEvery))
			return
		}
		m.buried.roseAt = now
		m.raise(t.Version.Epoch + 1)
	}
	for _, h := range void {
		if keeps {
			h.alloc.Redate(m.state.Epoch)
		} else {
			h.alloc.Reclaim(m.isInUse(h.network.Name))
		}
	}
}

// raise begins a new epoch.
func (m *Member) raise(epoch uint64) {
	m.state.Epoch, m.own.seq, m.own.again = min(epoch, trust.MaxEpoch), 0, true
}

// wakeAt asks for a Step at a time.
func (m *Member) wakeAt(at time.Time) {
	if m.todo.wake.IsZero() || at.Before(m.todo.wake) {
		m.todo.wake = at
	}
}

// version is that of the newest record of this run.
func (m *Member) version() mesh.Version { return mesh.Version{Epoch: m.state.Epoch, Seq: m.own.seq} }

// absence is when this node was away, asleep or off.
type absence struct {
	slept    time.Duration // since the start
	asleep   time.Duration // since the last renewal
	off      bool          // it was away for longer than a lease lasts
	offAt    time.Time
	reclaims bool // leases are to be claimed afresh
}

// Slept says that the host was suspended for so long: the monotonic clock stood
// still meanwhile.
func (m *Member) Slept(now time.Time, d time.Duration) {
	if d <= 0 {
		return
	}
	m.away.slept += d
	m.away.asleep += d
	m.own.renewAt, m.todo.dirty = now, true
	if !m.own.renewed.IsZero() && now.Sub(m.own.renewed)+m.away.asleep > m.cfg.TTL {
		m.raise(m.state.Epoch + 1)
		m.wasOff(now)
	}
}

// wasOff says that this node was away for longer than a lease lasts: others may
// have its subnets, and what it remembers of them may be long untrue. It asks
// before it claims, and until then they are no more than addresses to ask at.
func (m *Member) wasOff(now time.Time) {
	m.away.off, m.away.offAt, m.away.reclaims = true, now, true
	m.contact.exchanged, m.own.quietUntil = false, now.Add(quietFor)
	m.contact.synced = m.cfg.Founder && !m.expectsOthers()
	m.todo.tickAt = now.Add(complainAfter)
}

// expectsOthers tells whether there is somebody to be heard.
func (m *Member) expectsOthers() bool {
	if m.cfg.HasSeeds {
		return true
	}
	return slices.ContainsFunc(m.reg.Members(anyTime), func(n registry.Member) bool {
		return n.ID != m.id && n.Record != nil && !n.Record.Left
	})
}

// isAlone gives the founder leave to go on when nobody answers: somebody must, or a
// mesh that was off as a whole would stay so if one host of it is gone for good.
func (m *Member) isAlone(now time.Time) {
	if m.away.off && !m.contact.synced && m.cfg.Founder && now.Sub(m.away.offAt) >= complainAfter {
		m.contact.synced = true
	}
}

// believes tells whether what others lease counts.
func (m *Member) believes() bool { return !m.away.off || m.contact.synced }

// quiet tells whether it is too early to speak.
func (m *Member) quiet(now time.Time) bool {
	return !m.contact.exchanged && m.expectsOthers() && now.Before(m.own.quietUntil)
}

// isInUse tells whether something local has addresses in a network.
func (m *Member) isInUse(network string) bool { return slices.Contains(m.nets.inUse, network) }

// claimsOf lists a member's leases that are subnets of the charter's networks;
// what a record says beyond that counts for nothing.
func claimsOf(n registry.Member, charter *trust.Charter) []lease.Claim {
	out := make([]lease.Claim, 0, len(n.Leases()))
	for _, l := range n.Leases() {
		net, ok := charter.Network(l.Network)
		if !ok || !lease.IsSlot(net, l.Prefixes) {
			continue
		}
		c := lease.Claim{
			Owner: n.ID, Pinned: n.Certificate.Rights.Pinned(l.Prefixes),
			Admitted: n.Certificate.Admitted, Lease: l,
		}
		if t, void := n.Void(l); void {
			c.Void, c.Freed = true, t.At
		}
		out = append(out, c)
	}
	return out
}
