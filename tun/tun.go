// Package tun is the vocabulary of this host's network: what the kernel should
// look like. Adapters below it make the kernel so.
package tun

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// HostState is everything that meshd wants of the kernel's network. The zero
// value wants nothing: applying it removes whatever is ours.
type HostState struct {
	Link       string         // name of the TUN device; empty: none
	MTU        int            // of the TUN device, in bytes
	Addresses  []netip.Prefix // on the TUN device
	Routes     []Route
	Bridges    []Bridge
	LANs       []LAN
	Forwarding bool // the kernel forwards packets between interfaces
}

// Bridge is what the containers of one network share.
type Bridge struct {
	Name string // starts with BridgePrefix
	MTU  int    // in bytes
	// Addresses are the host's own, with the length of the subnet that is on the
	// bridge: the kernel adds the route to that.
	Addresses []netip.Prefix
	// Beside are addresses in the subnet that other links of this host lead to:
	// who asks for them on the bridge finds the host.
	Beside []netip.Addr
}

// LAN is a physical link on which containers of a network have links of their own.
// Those talk to the wire and to each other, but never to the host by the link that
// they are on. So the host has one like theirs, and the mesh gets to them by it.
//
//	mesh ── host ── Name ──┐
//	     container ─ Peer ─┴─ Parent ── wire
type LAN struct {
	Kind       PortKind     // PortMACVLAN or PortIPVLAN
	Name       string       // of the host's link, starts with LANPrefix
	Parent     string       // without it there is no link either, and that is no error
	MTU        int          // in bytes; the link has no more than its parent
	Addresses  []netip.Addr // the host's own, by which containers find it
	Containers []netip.Addr // that are reached by the link
	Beside     []netip.Addr // that other links lead to, as those of a bridge
}

// RouteProtocol is the number that marks our routes, on the host and in containers.
const RouteProtocol = 109

// Route is one of our routes. All carry our route protocol number, which is how
// they are told from anybody else's.
type Route struct {
	Dst netip.Prefix
	// Unreachable: answer with ICMP "no route" instead of sending. Such a route
	// has the worst metric, needs no device and so outlives the TUN: it keeps
	// mesh traffic from leaving in clear text when the device is gone.
	Unreachable bool
	// Src is the source address that the kernel prefers for this destination;
	// zero: its own choice. Only for routes to the TUN device.
	Src netip.Addr
	// MTU is the longest packet that goes there, in bytes: senders are told, those on
	// this host and in its containers; 0: as long as the device takes.
	MTU int
}

// String prints the route as `ip route` would, with DEV for the TUN device.
func (r Route) String() string {
	if r.Unreachable {
		return "unreachable " + r.Dst.String()
	}
	s := r.Dst.String() + " dev DEV"
	if r.Src.IsValid() {
		s += " src " + r.Src.String()
	}
	if r.MTU != 0 {
		s += fmt.Sprintf(" mtu %d", r.MTU)
	}
	return s
}

// Compare orders routes by destination, reachable ones first.
func (r Route) Compare(o Route) int {
	if c := r.Dst.Compare(o.Dst); c != 0 {
		return c
	}
	switch {
	case r.Unreachable == o.Unreachable:
		return r.Src.Compare(o.Src)
	case o.Unreachable:
		return -1
	}
	return 1
}

// Normal gives the same state in one canonical order, so that states compare
// and print alike.
func (s HostState) Normal() HostState {
	s.Addresses = slices.Clone(s.Addresses)
	slices.SortFunc(s.Addresses, netip.Prefix.Compare)
	s.Routes = slices.Clone(s.Routes)
	slices.SortFunc(s.Routes, Route.Compare)
	s.Bridges = slices.Clone(s.Bridges)
	for i := range s.Bridges {
		b := &s.Bridges[i]
		b.Addresses = slices.Clone(b.Addresses)
		slices.SortFunc(b.Addresses, netip.Prefix.Compare)
		b.Beside = slices.Clone(b.Beside)
		slices.SortFunc(b.Beside, netip.Addr.Compare)
	}
	slices.SortFunc(s.Bridges, func(a, b Bridge) int { return strings.Compare(a.Name, b.Name) })
	s.LANs = slices.Clone(s.LANs)
	for i := range s.LANs {
		l := &s.LANs[i]
		l.Addresses, l.Containers = slices.Clone(l.Addresses), slices.Clone(l.Containers)
		slices.SortFunc(l.Addresses, netip.Addr.Compare)
		slices.SortFunc(l.Containers, netip.Addr.Compare)
		l.Beside = slices.Clone(l.Beside)
		slices.SortFunc(l.Beside, netip.Addr.Compare)
	}
	slices.SortFunc(s.LANs, func(a, b LAN) int { return strings.Compare(a.Name, b.Name) })
	return s
}

// WithoutIPv6 gives what is left of the state on a host that has none, in canonical
// order.
func (s HostState) WithoutIPv6() HostState {
	s = s.Normal()
	is6 := func(p netip.Prefix) bool { return p.Addr().Is6() }
	s.Addresses = slices.DeleteFunc(s.Addresses, is6)
	s.Routes = slices.DeleteFunc(s.Routes, func(r Route) bool { return is6(r.Dst) })
	for i := range s.Bridges {
		b := &s.Bridges[i]
		b.Addresses = slices.DeleteFunc(b.Addresses, is6)
		b.Beside = slices.DeleteFunc(b.Beside, netip.Addr.Is6)
	}
	for i := range s.LANs {
		l := &s.LANs[i]
		for _, addrs := range []*[]netip.Addr{&l.Addresses, &l.Containers, &l.Beside} {
			*addrs = slices.DeleteFunc(*addrs, netip.Addr.Is6)
		}
	}
	return s
}

// String prints the state as the commands that would make it.
func (s HostState) String() string {
	s = s.Normal()
	var b strings.Builder
	if s.Link != "" {
		fmt.Fprintf(&b, "link set %s up mtu %d\n", s.Link, s.MTU)
	}
	for _, a := range s.Addresses {
		fmt.Fprintf(&b, "addr add %s dev %s\n", a, s.Link)
	}
	for _, r := range s.Routes {
		fmt.Fprintf(&b, "route add %s\n", strings.ReplaceAll(r.String(), "DEV", s.Link))
	}
	for _, br := range s.Bridges {
		fmt.Fprintf(&b, "link set %s type bridge up mtu %d\n", br.Name, br.MTU)
		for _, a := range br.Addresses {
			fmt.Fprintf(&b, "addr add %s dev %s\n", a, br.Name)
		}
		for _, a := range br.Beside {
			fmt.Fprintf(&b, "neigh add proxy %s dev %s\n", a, br.Name)
		}
	}
	for _, l := range s.LANs {
		fmt.Fprintf(&b, "link set %s link %s type %s up mtu %d\n", l.Name, l.Parent, l.Kind, l.MTU)
		for _, a := range l.Addresses {
			fmt.Fprintf(&b, "addr add %s dev %s\n", a, l.Name)
		}
		for _, a := range l.Containers {
			fmt.Fprintf(&b, "route add %s dev %s\n", a, l.Name)
		}
		for _, a := range l.Beside {
			fmt.Fprintf(&b, "neigh add proxy %s dev %s\n", a, l.Name)
		}
	}
	if s.Forwarding {
		b.WriteString("sysctl forwarding=1\n")
	}
	return b.String()
}

// Underlay is what the host offers to carry the tunnels.
type Underlay struct {
	Addresses []netip.Addr // usable to reach this host, best first
	MTU       int          // smallest MTU of the interfaces that carry them
	// NoIPv6: the kernel has no IPv6, or none for new links and no leave for us
	// to change that.
	NoIPv6 bool
	// NoForwarding: packets are not forwarded between interfaces, and we may not
	// change that. The host itself is on the mesh, and nobody behind it.
	NoForwarding bool
	// Bridges are those of containers and virtual machines that are not on the mesh,
	// sorted by name.
	Bridges []string
}
