package attach

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"meshd/mesh"
	"meshd/tun"
)

// entry is an attachment.
//
//	address held ─► link made ─► saved ─► the door is told ─► link moved into the container
//	                                                   link removed ─► saved, address free
//
// A crash on the way leaves a link that no document knows, or one that was never
// moved, or a document's entry without its link; the kernel's list tells all
// three. See [Manager.Load] and [Manager.Collect].
type entry struct {
	ID        string         `json:"id"`
	Mode      Mode           `json:"mode"`
	Parent    string         `json:"parent,omitempty"`
	Container string         `json:"container,omitempty"`
	Internal  bool           `json:"internal,omitempty"`
	MAC       string         `json:"mac"`
	MTU       int            `json:"mtu"`
	Addresses []netip.Prefix `json:"addresses"` // with the subnet's length
	// Of a link on a physical one the host sees nothing once it is in its container:
	// it counts as there from when it was moved until the host starts again.
	Moved bool   `json:"moved,omitempty"`
	Boot  string `json:"boot,omitempty"` // when its link was made

	making bool      // it is not saved, and nobody was told of it
	made   *tun.Port // how its link was made last; nil: not since the start
}

func (e *entry) check() error {
	mode := e.Mode
	if mode == IPVLAN {
		mode = MACVLAN // an entry has a MAC address that only of those may be asked for
	}
	_, err := Ask{ID: e.ID, Mode: mode, Parent: e.Parent, Container: e.Container, MAC: e.MAC}.normal()
	if _, bad := net.ParseMAC(e.MAC); err == nil {
		err = bad
	}
	switch {
	case err != nil:
		return err
	case e.Mode == "":
		return fmt.Errorf("%s has no mode", e.ID)
	case len(e.Addresses) == 0 || len(e.Addresses) > 2:
		return fmt.Errorf("%s has %d addresses", e.ID, len(e.Addresses))
	case len(e.Addresses) == 2 && family(e.Addresses[0].Addr()) == family(e.Addresses[1].Addr()):
		return fmt.Errorf("%s has two addresses of one family", e.ID)
	}
	for _, a := range e.Addresses {
		if err := checkHeld(a); err != nil {
			return err
		}
	}
	return nil
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
