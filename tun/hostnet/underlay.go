//go:build linux

package hostnet

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun"
	"meshd/tun/rtnl"
)

const (
	// As many as a record may carry.
	maxAddresses = 4
	// Of Ethernet; for a host that has no usable interface yet.
	defaultMTU = 1500
)

// Bridges and interfaces of containers and virtual machines, by the names that
// their makers give. Their addresses mean the same on many hosts and seldom
// lead back to this one.
var containerLinks = []string{
	"docker", "br-", "veth", "cni", "virbr", "podman", "lxcbr", "lxdbr", "cali", "flannel", "kube-",
}

// Underlay finds the addresses at which other hosts may reach this one, best
// first, at most 4: the source address of the default route of each family, then
// the other global addresses, private ones included, of interfaces that are
// up. Those inside exclude (the mesh's ranges) and on our own link are left out,
// and those of container bridges unless there is nothing else.
func (n *Net) Underlay(ctx context.Context, exclude ...netip.Prefix) (tun.Underlay, error) {
	var u tun.Underlay
	err := n.with(func(k kernel) error {
		links, err := k.links()
		if err != nil {
			return err
		}
		addrs, err := k.addrs(nil)
		if err != nil {
			return err
		}
		routes, err := k.mainRoutes()
		if err != nil {
			return err
		}
		u = underlay(links, addrs, routes, exclude)
		u.Bridges = containerBridges(links, routes)
		u.NoIPv6 = !n.sysctl.has(forward6) || n.sysctl.stuck(conf("ipv6", defaults, "disable_ipv6"), "1")
		u.NoForwarding = slices.ContainsFunc([]string{
			forward4, conf("ipv4", defaults, "forwarding"), forward6, conf("ipv6", defaults, "forwarding"),
		}, func(key string) bool { return n.sysctl.stuck(key, "0") })
		return ctx.Err()
	})
	return u, err
}

// candidate is an address that other hosts might reach.
type candidate struct {
	netip.Prefix
	link link
}

func underlay(links []netlink.Link, addrs []netlink.Addr, routes []netlink.Route, exclude []netip.Prefix) tun.Underlay {
	ours := ourLinks(links, routes)
	byIndex := map[int]link{}
	for _, l := range links {
		if a := l.Attrs(); a.Flags&net.FlagUp != 0 && !ours[a.Index] {
			byIndex[a.Index] = link{name: a.Name, index: a.Index, mtu: a.MTU}
		}
	}
	var all []candidate
	for _, a := range addrs {
		l, up := byIndex[a.LinkIndex]
		if p := rtnl.Prefix(a.IPNet); up && usable(a, p.Addr(), exclude) {
			all = append(all, candidate{p, l})
		}
	}
	// By interface, as the host numbers them, IPv4 first.
	slices.SortStableFunc(all, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.link.index, b.link.index), cmp.Compare(a.Addr().BitLen(), b.Addr().BitLen()))
	})

	var u tun.Underlay
	carries := func(l link) {
		if u.MTU == 0 || l.mtu < u.MTU {
			u.MTU = l.mtu
		}
	}
	var chosen []candidate
	for _, r := range defaultRoutes(routes) {
		if c, ok := source(r, all); ok && !slices.Contains(chosen, c) {
			chosen = append(chosen, c)
			if l, up := byIndex[r.LinkIndex]; up { // the address may be on lo
				carries(l)
			}
		}
	}
	var bridges []candidate
	for _, c := range all {
		switch {
		case slices.Contains(chosen, c):
		case isContainerLink(c.link.name):
			bridges = append(bridges, c)
		default:
			chosen = append(chosen, c)
		}
	}
	if len(chosen) == 0 {
		chosen = bridges
	}
	chosen = chosen[:min(len(chosen), maxAddresses)]

	for _, c := range chosen {
		u.Addresses = append(u.Addresses, c.Addr())
		carries(c.link)
	}
	u.MTU = cmp.Or(u.MTU, defaultMTU)
	return u
}

// usable tells whether other hosts might reach the address.
func usable(a netlink.Addr, ip netip.Addr, exclude []netip.Prefix) bool {
	// Temporary ones change daily; deprecated ones are about to go; tentative
	// ones may be somebody else's.
	unfit := unix.IFA_F_DEPRECATED | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
	if ip.Is6() { // in IPv4 the same bit means "secondary"
		unfit |= unix.IFA_F_TEMPORARY
	}
	return a.Flags&unfit == 0 && ip.IsGlobalUnicast() &&
		!slices.ContainsFunc(exclude, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// defaultRoutes gives the best default route of each family, IPv4 first.
func defaultRoutes(routes []netlink.Route) []netlink.Route {
	best := map[int]netlink.Route{}
	for _, r := range routes {
		if rtnl.Destination(r).Bits() != 0 || r.Type != unix.RTN_UNICAST {
			continue
		}
		if b, ok := best[r.Family]; !ok || r.Priority < b.Priority {
			best[r.Family] = r
		}
	}
	var out []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if r, ok := best[family]; ok {
			out = append(out, r)
		}
	}
	return out
}

// source finds the address from which the kernel would send along the route:
// the preferred one, else one in the gateway's subnet, else any of the link.
func source(r netlink.Route, all []candidate) (candidate, bool) {
	index, gw := r.LinkIndex, r.Gw
	if len(r.MultiPath) > 0 {
		index, gw = r.MultiPath[0].LinkIndex, r.MultiPath[0].Gw
	}
	preferred, _ := netip.AddrFromSlice(r.Src)
	gateway, _ := netip.AddrFromSlice(gw)
	is4 := r.Family == netlink.FAMILY_V4
	for _, fits := range []func(candidate) bool{
		func(c candidate) bool { return c.Addr() == preferred.Unmap() },
		func(c candidate) bool { return c.link.index == index && c.Contains(gateway.Unmap()) },
		func(c candidate) bool { return c.link.index == index && c.Addr().Is4() == is4 },
	} {
		if i := slices.IndexFunc(all, fits); i >= 0 {
			return all[i], true
		}
	}
	return candidate{}, false
}

// containerBridges lists the bridges of containers and virtual machines that are not
// ours: by their names, or because nothing but such hangs on them.
func containerBridges(links []netlink.Link, routes []netlink.Route) []string {
	physical, virtual := map[int]bool{}, map[int]bool{} // masters of such links
	for _, l := range links {
		kind := virtual
		if !slices.Contains([]string{"veth", "tuntap"}, l.Type()) {
			kind = physical
		}
		kind[l.Attrs().MasterIndex] = true
	}
	ours, outward := ourLinks(links, routes), map[int]bool{}
	for _, r := range defaultRoutes(routes) {
		outward[r.LinkIndex] = true
	}
	var all []string
	for _, l := range links {
		a := l.Attrs()
		if l.Type() != "bridge" || ours[a.Index] || outward[a.Index] || physical[a.Index] {
			continue
		}
		if isContainerLink(a.Name) || virtual[a.Index] {
			all = append(all, a.Name)
		}
	}
	slices.Sort(all)
	return all
}

func isContainerLink(name string) bool {
	return slices.ContainsFunc(containerLinks, func(p string) bool { return strings.HasPrefix(name, p) })
}

// ourLinks finds the links that our routes lead to, and those of containers.
func ourLinks(links []netlink.Link, routes []netlink.Route) map[int]bool {
	ours := map[int]bool{}
	for _, l := range links {
		if a := l.Attrs(); strings.HasPrefix(a.Name, tun.BridgePrefix) || strings.HasPrefix(a.Name, tun.PortPrefix) {
			ours[a.Index] = true
		}
	}
	for _, r := range routes {
		if r.Protocol == RouteProtocol && r.Type == unix.RTN_UNICAST {
			ours[r.LinkIndex] = true
		}
	}
	return ours
}
