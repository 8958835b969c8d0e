package member

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"meshd/mesh"
	"meshd/mesh/lease"
	"meshd/mesh/trust"
)

// home is the network from which every node leases, from its first day.
const home = mesh.DefaultNetwork

// networks are those from which this node leases.
type networks struct {
	charter  trust.Hash // that the holdings are by, and the owner was given to be saved
	used     []string   // besides the home network, sorted; the charter may lack some
	inUse    []string   // by something local
	holdings []*holding // home first, then by name

	ask, asked uint64 // number of the last question, of the last one that was answered
}

// holding is this node's part in one network.
type holding struct {
	network mesh.Network
	alloc   *lease.Allocator
	ask     uint64 // the question that is out about the claim that stands; 0: none
}

// Use names the networks from which this node leases besides the default one,
// which it always does. One that the charter does not have waits until it does; a
// lease in one that is no longer named is given back. It fails, and changes
// nothing, if so many leases do not fit a record.
func (m *Member) Use(now time.Time, networks []string) error {
	used := besidesHome(networks)
	for _, name := range used {
		if err := mesh.CheckName(name); err != nil {
			return fmt.Errorf("use network: %w", err)
		}
	}
	if err := m.tryRecord(now, m.cfg.Labels, used); err != nil {
		return fmt.Errorf("use networks %s: %w", used, err)
	}
	m.nets.used, m.todo.dirty = used, true
	m.arrange(now)
	return nil
}

// besidesHome gives the networks sorted, each once.
func besidesHome(networks []string) []string {
	networks = slices.Compact(slices.Sorted(slices.Values(networks)))
	return slices.DeleteFunc(networks, func(name string) bool { return name == home })
}

// SetInUse names the networks in which something local has addresses from the
// lease: what becomes of one that is lost depends on that.
func (m *Member) SetInUse(networks []string) {
	m.nets.inUse, m.todo.dirty = slices.Clone(networks), true
}

// SetCharter takes the charter that follows the newest one from this node's
// operator, and spreads it with the next Step. It fails with [trust.ErrNotNext] if
// another has come meanwhile.
func (m *Member) SetCharter(raw []byte) error {
	newest := m.reg.Charter()
	c, err := trust.ParseCharter(raw, newest.ID())
	if err != nil {
		return err
	}
	if c.Hash == newest.Hash {
		return nil // who asks again did not hear that all went well
	}
	if err := c.Follows(newest); err != nil {
		return err
	}
	if _, ok := c.Network(home); !ok {
		return fmt.Errorf("charter: %w: it has no network %q", trust.ErrForbidden, home)
	}
	if err := m.Receive(raw); err != nil {
		return err
	}
	m.todo.outBound = append(m.todo.outBound, c.Raw)
	return nil
}

// followCharter makes the newest charter count. raw is not nil if it is to be
// saved.
func (m *Member) followCharter(now time.Time) (raw []byte) {
	c := m.reg.Charter()
	if c.Hash == m.nets.charter {
		return nil
	}
	m.nets.charter = c.Hash
	m.own.endpoints = m.usable(m.own.offered)
	m.arrange(now)
	return c.Raw
}

// arrange makes a holding for each network in use that the charter has. One whose
// ranges are others now was deleted and made anew: its lease is void.
func (m *Member) arrange(now time.Time) {
	charter, old := m.reg.Charter(), m.nets.holdings
	m.nets.holdings = nil
	for _, name := range append([]string{home}, m.nets.used...) {
		network, ok := charter.Network(name)
		i := slices.IndexFunc(old, func(h *holding) bool { return h.network.Name == name })
		switch {
		case i >= 0 && ok && old[i].network == network:
			m.nets.holdings = append(m.nets.holdings, old[i])
		case i >= 0 && !ok && name == home:
			m.nets.holdings = append(m.nets.holdings, old[i]) // the CA's mistake; no peer routes to it until that is mended
		case ok:
			m.nets.holdings = append(m.nets.holdings, m.newHolding(network, now))
		}
	}
}

// newHolding takes up the lease that was last held in the network, if any.
func (m *Member) newHolding(network mesh.Network, now time.Time) *holding {
	var previous mesh.Lease
	for _, l := range m.state.Leases {
		if l.Network == network.Name {
			previous = l
		}
	}
	h := &holding{network: network, alloc: lease.New(lease.Config{
		Self: m.id, Network: network, Pins: m.cert.Rights.Pins, Ranges: m.cert.Rights.Ranges, Admitted: m.cert.Admitted,
		Permit: m.cert.Rights.Permit, OnConflict: m.cfg.OnConflict,
		Reserved: func(prefixes []netip.Prefix) bool { return m.reg.Charter().IsReserved(prefixes) },
	}, previous)}
	if m.state.Left {
		h.alloc.Release(now) // a restart does not un-leave
	}
	return h
}

// leases lists this node's own, of all networks, as they are to be published.
func (m *Member) leases() []mesh.Lease {
	var out []mesh.Lease
	for _, h := range m.nets.holdings {
		if l, ok := h.alloc.Lease(); ok {
			out = append(out, l)
		}
	}
	return out
}

// nextAsk gives the number of another question.
func (n *networks) nextAsk() uint64 {
	n.ask++
	return n.ask
}

// allocate steps every lease, and remembers those that are held for the next
// start. Ask is not 0 when others are to be asked before claims are held; one
// question serves all claims that need one now.
func (m *Member) allocate(now time.Time) (ask uint64) {
	others := m.claims(now)
	m.state.Leases = nil
	for _, h := range m.nets.holdings {
		if m.away.reclaims {
			h.alloc.Reclaim(m.isInUse(h.network.Name))
		}
		h.alloc.Step(now, m.worldOf(h, others[h.network.Name], now))
		if l, ok := h.alloc.Lease(); ok && (l.State == mesh.Held || l.State == mesh.Quarantined) {
			m.state.Leases = append(m.state.Leases, l)
		}
		switch {
		case !h.alloc.Asks():
			h.ask = 0
		case h.ask == 0:
			if ask == 0 {
				ask = m.nets.nextAsk()
			}
			h.ask = ask
		}
	}
	m.away.reclaims = false
	return ask
}

// worldOf is what the allocator of a holding is told.
func (m *Member) worldOf(h *holding, others []lease.Claim, now time.Time) lease.World {
	admitted, _ := m.ownCertificate()
	return lease.World{
		MayClaim: m.contact.synced && admitted,
		Epoch:    m.state.Epoch,
		Members:  len(m.members(now)),
		Others:   others,
		Unproven: m.reg.Unproven(),
		Asked:    h.ask != 0 && m.nets.asked >= h.ask,
		InUse:    m.isInUse(h.network.Name),
	}
}

// claims lists what the other members claim, by network. Ranges of two networks
// never overlap, so each is decided by itself.
func (m *Member) claims(now time.Time) map[string][]lease.Claim {
	out := map[string][]lease.Claim{}
	if !m.believes() {
		return out
	}
	for _, n := range m.members(now) {
		if n.ID == m.id {
			continue
		}
		for _, c := range claimsOf(n, m.reg.Charter()) {
			out[c.Network] = append(out[c.Network], c)
		}
	}
	return out
}
