//go:build linux

package hostnet

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun"
	"meshd/tun/rtnl"
)

// state is what the kernel has of ours.
type state struct {
	link   link           // of the wanted name
	addrs  []netip.Prefix // on link
	routes []route        // with our protocol
	sysctl sysctls
	stuck  map[string]bool // the keys of sysctl that are not ours to change

	bridges []bridge          // all that are ours
	lans    []lan             // all that are ours
	parents map[string]parent // of the wanted LANs, by name
}

// link is the TUN device; zero: not there.
type link struct {
	name  string
	index int
	mtu   int
	txq   int
	segs  int // most in a super-packet
	up    bool
}

// route is one of our routes, as the kernel tells routes apart.
type route struct {
	key
	kind  int    // unix.RTN_UNICAST, ...
	dev   string // zero if unreachable
	index int    // of dev
	src   netip.Addr
	mtu   int // 0: that of dev
}

// key is what the kernel holds at most one route for.
type key struct {
	dst    netip.Prefix
	table  int
	metric int
}

var kinds = map[int]string{
	unix.RTN_UNREACHABLE: "unreachable ", unix.RTN_BLACKHOLE: "blackhole ",
	unix.RTN_PROHIBIT: "prohibit ", unix.RTN_THROW: "throw ",
}

// String prints the route as `ip route` takes it.
func (r route) String() string {
	s := kinds[r.kind] + r.dst.String()
	if r.dev != "" {
		s += " dev " + r.dev
	}
	if r.table != unix.RT_TABLE_MAIN {
		s += fmt.Sprintf(" table %d", r.table)
	}
	s += fmt.Sprintf(" proto %d metric %d", RouteProtocol, r.metric)
	if r.src.IsValid() {
		s += " src " + r.src.String()
	}
	if r.mtu != 0 {
		s += fmt.Sprintf(" mtu %d", r.mtu)
	}
	return s
}

func (r route) netlink() *netlink.Route {
	n := &netlink.Route{
		Dst: rtnl.IPNet(r.dst), Table: r.table, Priority: r.metric, Protocol: RouteProtocol,
		Type: r.kind, LinkIndex: r.index, Src: r.src.AsSlice(), MTU: r.mtu,
	}
	if r.kind == unix.RTN_UNICAST && r.dst.Addr().Is4() {
		n.Scope = netlink.SCOPE_LINK // there is no gateway
	}
	return n
}

// wantRoutes are all that should be there.
func wantRoutes(want tun.HostState, have state) []route {
	var all []route
	for _, r := range want.Routes {
		all = append(all, wantRoute(r, have.link))
	}
	for _, l := range want.LANs {
		on := link{name: l.Name, index: have.lan(l.Name).index}
		for _, a := range l.Containers {
			all = append(all, wantRoute(tun.Route{Dst: netip.PrefixFrom(a, a.BitLen())}, on))
		}
	}
	return all
}

func wantRoute(r tun.Route, l link) route {
	if r.Unreachable {
		return route{
			key:  key{r.Dst.Masked(), unix.RT_TABLE_MAIN, metricUnreachable},
			kind: unix.RTN_UNREACHABLE,
		}
	}
	return route{
		key:  key{r.Dst.Masked(), unix.RT_TABLE_MAIN, metricLink},
		kind: unix.RTN_UNICAST, dev: l.name, index: l.index, src: r.Src, mtu: r.MTU,
	}
}

// read takes the kernel's state, as far as it matters for what is wanted.
func (k kernel) read(want tun.HostState) (state, error) {
	var s state
	names := map[int]string{}
	if want.Link != "" {
		l, err := k.find(want.Link)
		if err != nil {
			return s, fmt.Errorf("find link %s: %w", want.Link, err)
		}
		if l != nil {
			a := l.Attrs()
			names[a.Index] = a.Name
			s.link = link{a.Name, a.Index, a.MTU, a.TxQLen, int(a.GSOMaxSegs), a.Flags&net.FlagUp != 0}
			addrs, err := k.addrs(l)
			if err != nil {
				return s, err
			}
			for _, a := range addrs {
				if a.Peer == nil { // we never set one
					s.addrs = append(s.addrs, rtnl.Prefix(a.IPNet))
				}
			}
		}
	}
	routes, err := k.ourRoutes()
	if err != nil {
		return s, err
	}
	for _, r := range routes {
		if _, known := names[r.LinkIndex]; !known {
			names[r.LinkIndex] = k.nameOf(r.LinkIndex)
		}
		s.routes = append(s.routes, fromNetlink(r, names))
	}
	if s.bridges, err = k.bridges(want.Bridges); err != nil {
		return s, err
	}
	if s.lans, err = k.lans(); err != nil {
		return s, err
	}
	if s.parents, err = k.parents(want.LANs); err != nil {
		return s, err
	}
	if s.sysctl, err = k.sysctl.read(s.link.name); err != nil {
		return s, err
	}
	s.stuck = map[string]bool{}
	for key, value := range s.sysctl {
		s.stuck[key] = k.sysctl.stuck(key, value)
	}
	return s, nil
}

// nameOf gives the name of a link, or none if it is gone, as its routes are then.
func (k kernel) nameOf(index int) string {
	if index == 0 {
		return ""
	}
	l, err := k.LinkByIndex(index)
	if err != nil {
		return ""
	}
	return l.Attrs().Name
}

func fromNetlink(r netlink.Route, names map[int]string) route {
	out := route{key: key{rtnl.Destination(r), r.Table, r.Priority}, kind: r.Type, mtu: r.MTU}
	if r.Type == unix.RTN_UNICAST { // the others of IPv6 show lo
		out.dev, out.index = names[r.LinkIndex], r.LinkIndex
	}
	if src, ok := netip.AddrFromSlice(r.Src); ok {
		out.src = src.Unmap()
	}
	return out
}
