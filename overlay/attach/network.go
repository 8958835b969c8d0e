package attach

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"meshd/mesh"
	"meshd/tun"
)

// network is what a manager knows of one. What no other lock guards, the
// manager's does.
type network struct {
	name      string // fixed at construction
	delegated bool   // fixed at construction

	saving sync.Mutex // held while the document is written
	saved  uint64     // guarded by saving: the changes that are on disk

	changes uint64         // that were made to what is kept
	broken  error          // why nothing can be kept
	ranges  []netip.Prefix // nil: the charter does not have it
	lease   mesh.Lease     // this node's own; zero: none
	pools   []*pool        // of the lease, while addresses of it are given
	kept    []poolState    // of the pools before, while there are none

	entries  map[string]*entry // by ID
	holder   map[netip.Addr]*entry
	reserved map[netip.Addr]*reservation
	uses     map[string]bool // IDs

	waiting int                      // how many wait for a lease
	missing map[string]time.Time     // since when attachments were seen without a link in a container
	idle    map[netip.Addr]time.Time // since when reservations were seen without an attachment
}

func newNetwork(name string) *network {
	return &network{
		name: name, entries: map[string]*entry{}, holder: map[netip.Addr]*entry{}, reserved: map[netip.Addr]*reservation{},
		uses: map[string]bool{}, missing: map[string]time.Time{}, idle: map[netip.Addr]time.Time{},
	}
}

// fill takes what a document says.
func (n *network) fill(d *document) {
	n.kept = d.Pools
	for _, e := range d.Attachments {
		n.add(e)
	}
	for _, r := range d.Reserved {
		n.reserved[r.Address.Addr()] = r
	}
	for _, id := range d.Uses {
		n.uses[id] = true
	}
}

// document is what is to be kept.
func (n *network) document() *document {
	d := &document{Network: n.name, Pools: n.poolStates()}
	for _, e := range n.entries {
		if !e.making {
			d.Attachments = append(d.Attachments, e)
		}
	}
	for _, r := range n.reserved {
		d.Reserved = append(d.Reserved, r)
	}
	for id := range n.uses {
		d.Uses = append(d.Uses, id)
	}
	return d
}

// ids are those of attachments and uses.
func (d *document) ids() iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, e := range d.Attachments {
			if !yield(e.ID) {
				return
			}
		}
		for _, id := range d.Uses {
			if !yield(id) {
				return
			}
		}
	}
}

func (n *network) poolStates() []poolState {
	if n.pools == nil {
		return n.kept
	}
	var out []poolState
	for _, p := range n.pools {
		out = append(out, p.state())
	}
	return out
}

// setLease gives addresses of this lease from now on, if it is one to give
// addresses of.
func (n *network) setLease(l mesh.Lease, ranges []netip.Prefix) {
	n.ranges, n.lease = ranges, l
	var subnet []netip.Prefix
	if l.State == mesh.Held || l.State == mesh.Quarantined {
		subnet = l.Prefixes
	}
	if slices.Equal(subnet, n.subnet()) {
		return
	}
	n.kept = n.poolStates()
	n.pools = nil
	for _, prefix := range subnet {
		var before poolState
		for _, s := range n.kept {
			if s.Prefix == prefix {
				before = s
			}
		}
		var held []netip.Addr
		for a := range n.holder {
			held = append(held, a)
		}
		for a := range n.reserved {
			held = append(held, a)
		}
		n.pools = append(n.pools, newPool(prefix, held, before))
	}
}

// subnet is what addresses are given of.
func (n *network) subnet() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range n.pools {
		out = append(out, p.prefix)
	}
	return out
}

// empty tells that nobody uses the network or wants to.
func (n *network) empty() bool {
	return n.broken == nil && len(n.entries) == 0 && len(n.reserved) == 0 && len(n.uses) == 0
}

// pool gives that of an address's family.
func (n *network) pool(a netip.Addr) *pool {
	for _, p := range n.pools {
		if p.prefix.Addr().Is4() == a.Is4() {
			return p
		}
	}
	return nil
}

// take holds an address in the subnet: any if the wish is 0.0.0.0 or ::.
func (n *network) take(wish netip.Addr) (netip.Prefix, error) {
	p := n.pool(wish)
	if p == nil {
		family := "IPv6"
		if wish.Is4() {
			family = "IPv4"
		}
		return netip.Prefix{}, fmt.Errorf("%w: the network %s has no %s", ErrOutside, n.name, family)
	}
	if !wish.IsUnspecified() {
		return netip.PrefixFrom(wish, p.prefix.Bits()), p.wish(wish)
	}
	a, err := p.take()
	return netip.PrefixFrom(a, p.prefix.Bits()), err
}

// untake frees an address that nobody holds any more.
func (n *network) untake(a netip.Addr) {
	if p := n.pool(a); p != nil && n.holder[a] == nil && n.reserved[a] == nil {
		p.free(a)
	}
}

// admit makes the entry for an ask.
func (n *network) admit(ask Ask, mtu int) (*entry, error) {
	wishes := ask.Addresses
	if len(wishes) == 0 {
		for _, p := range n.pools {
			any := netip.IPv6Unspecified()
			if p.prefix.Addr().Is4() {
				any = netip.IPv4Unspecified()
			}
			wishes = append(wishes, any)
		}
	}
	if other := n.withMAC(ask.MAC); other != nil {
		return nil, fmt.Errorf("%w: the MAC address %s is that of %s", ErrTaken, ask.MAC, other.ID)
	}
	e := &entry{ID: ask.ID, Mode: ask.Mode, Parent: ask.Parent, Container: ask.Container, Internal: ask.Internal, MAC: ask.MAC, MTU: mtu, making: true}
	for _, wish := range wishes {
		a, err := n.takeFor(ask.ID, wish)
		if err != nil {
			for _, a := range e.Addresses {
				n.untake(a.Addr())
			}
			return nil, err
		}
		e.Addresses = append(e.Addresses, a)
	}
	if e.MAC == "" {
		e.MAC = macOf(e.Addresses[0].Addr())
	}
	n.add(e)
	return e, nil
}

// withMAC finds who has a MAC address; "" is nobody's.
func (n *network) withMAC(mac string) *entry {
	for _, e := range n.entries {
		if mac != "" && e.MAC == mac {
			return e
		}
	}
	return nil
}

// takeFor holds an address for an attachment, a reserved one too.
func (n *network) takeFor(id string, wish netip.Addr) (netip.Prefix, error) {
	r, p := n.reserved[wish], n.pool(wish)
	if r != nil && r.Door == door(id) && n.holder[wish] == nil && p != nil && p.usable(wish) {
		return r.Address, nil
	}
	return n.take(wish)
}

func (n *network) add(e *entry) {
	n.entries[e.ID] = e
	for _, a := range e.Addresses {
		n.holder[a.Addr()] = e
	}
}

// drop forgets an attachment and frees its addresses.
func (n *network) drop(e *entry) {
	delete(n.entries, e.ID)
	delete(n.missing, e.ID)
	for _, a := range e.Addresses {
		delete(n.holder, a.Addr())
		n.untake(a.Addr())
	}
	n.changes++
}

func (n *network) reserve(r *reservation) {
	n.reserved[r.Address.Addr()] = r
	n.changes++
}

func (n *network) release(a netip.Addr) {
	delete(n.reserved, a)
	delete(n.idle, a)
	n.untake(a)
	n.changes++
}

// stateOf says how far packets of an attachment get.
func (n *network) stateOf(e *entry) State {
	if n.ranges == nil {
		return Stale
	}
	if n.lease.State == 0 {
		return Local
	}
	in := false
	for _, a := range e.Addresses {
		for _, prefix := range n.lease.Prefixes {
			if prefix.Addr().Is4() != a.Addr().Is4() {
				continue
			}
			if prefix != a.Masked() {
				return Stale
			}
			in = true
		}
	}
	switch {
	case !in:
		return Stale
	case n.lease.State == mesh.Held:
		return Live
	}
	return Local
}

// attachment is what a door is told of an entry.
func (n *network) attachment(e *entry) Attachment {
	p := e.port(n.name)
	a := Attachment{
		ID: e.ID, Network: n.name, Mode: e.Mode, Parent: e.Parent, Container: e.Container,
		Addresses: slices.Clone(e.Addresses), Routes: []netip.Prefix{}, HostLink: p.Name, Peer: p.Peer, MAC: e.MAC, MTU: e.MTU, State: n.stateOf(e),
	}
	if e.Mode == IPVLAN {
		a.MAC = ""
	}
	for i, addr := range e.Addresses {
		a.Gateways = append(a.Gateways, mesh.FirstHost(addr))
		if e.Mode == PTP {
			a.Addresses[i] = netip.PrefixFrom(addr.Addr(), addr.Addr().BitLen())
		}
		for _, r := range n.ranges {
			if r.Addr().Is4() == addr.Addr().Is4() {
				a.Routes = append(a.Routes, r)
			}
		}
	}
	return a
}

// port is the link of an entry, as it is to be now. A container without a bridge
// whose addresses may be another node's by now is cut off: the host must have no
// route to it.
func (n *network) port(e *entry) tun.Port {
	p := e.port(n.name)
	valid := func(a netip.Prefix) bool { return slices.Contains(n.subnet(), a.Masked()) }
	if e.Mode == PTP && !slices.ContainsFunc(e.Addresses, valid) {
		p.Addresses, p.Gateways = nil, nil
	}
	return p
}

// port is the link of an entry.
func (e *entry) port(network string) tun.Port {
	p := tun.Port{Kind: e.Mode, Parent: e.Parent, MAC: e.MAC, MTU: e.MTU, Internal: e.Internal}
	p.Name, p.Peer = links(e.ID, e.Mode)
	if e.Mode == Bridge {
		p.Parent = BridgeName(network)
	}
	for _, a := range e.Addresses {
		p.Addresses = append(p.Addresses, a.Addr())
		if e.Mode == PTP {
			p.Gateways = append(p.Gateways, mesh.FirstHost(a))
		}
	}
	return p
}

// fits tells whether an ask is the one that the entry was made for, as far as can
// be told: it wishes for nothing that the entry does not have.
func (e *entry) fits(ask Ask) bool {
	has := func(wish netip.Addr) bool {
		return slices.ContainsFunc(e.Addresses, func(a netip.Prefix) bool {
			return a.Addr() == wish || wish.IsUnspecified() && wish.Is4() == a.Addr().Is4()
		})
	}
	for _, wish := range ask.Addresses {
		if !has(wish) {
			return false
		}
	}
	return e.Mode == ask.Mode && e.Parent == ask.Parent && e.Internal == ask.Internal && (ask.MAC == "" || ask.MAC == e.MAC) &&
		(len(ask.Addresses) == 0 || len(ask.Addresses) == len(e.Addresses))
}

// mine is this node's part of the network.
func (n *network) mine(mtu int) Subnet {
	s := Subnet{Network: n.name, Prefixes: n.subnet(), Routes: slices.Clone(n.ranges), MTU: mtu, State: n.state()}
	for _, p := range s.Prefixes {
		s.Gateways = append(s.Gateways, mesh.FirstHost(p))
	}
	return s
}

// state is that of the subnet.
func (n *network) state() State {
	if n.pools != nil && n.lease.State == mesh.Held {
		return Live
	}
	return Local
}

// summary is what the rest of the node has to know.
func (n *network) summary(mtu int) Network {
	s := Network{Name: n.name, Subnet: n.mine(mtu), Delegated: n.delegated, Waiting: n.waiting > 0}
	if n.broken != nil { // it is not known who, and the lease must not become another node's
		s.InUse, s.Bridge = true, BridgeName(n.name)
	}
	s.InUse = s.InUse || n.delegated || len(n.holder) > 0 || len(n.reserved) > 0
	former := func(a netip.Prefix) {
		if !slices.Contains(s.Subnet.Prefixes, a.Masked()) {
			s.Former = append(s.Former, a.Masked())
		}
	}
	for _, e := range n.entries {
		s.Ports = append(s.Ports, n.port(e))
		if e.Mode == Bridge {
			s.Bridge = BridgeName(n.name)
		}
		for _, a := range e.Addresses {
			former(a)
		}
	}
	for _, r := range n.reserved {
		former(r.Address)
	}
	slices.SortFunc(s.Ports, func(a, b tun.Port) int { return strings.Compare(a.Peer, b.Peer) })
	slices.SortFunc(s.Former, netip.Prefix.Compare)
	s.Former = slices.Compact(s.Former)
	return s
}
