package attach

import (
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
