//go:build linux

package hostnet

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"meshd/tun"
	"meshd/tun/rtnl"
)

// op is one change of the kernel; it prints as the command that would make it.
type op interface {
	fmt.Stringer
	do(kernel) error
}

// diff lists the changes that lead from have to want, and what of want the host
// lacks the means for. Sysctls and the link come first, then additions, then
// deletions: at no moment is a destination without a route that had one.
func diff(have state, want tun.HostState) ([]op, error) {
	want, lacking := possible(have, want)
	ops := sysctlOps(have, want)
	ops = append(ops, linkOps(have, want)...)
	bridgeOps, deletions := bridgeDiff(have, want)
	lanOps, lanDeletions, last := lanDiff(have, want)
	ops = slices.Concat(ops, bridgeOps, lanOps)
	deletions = append(deletions, lanDeletions...)

	if have.link.name != "" {
		for _, a := range want.Addresses {
			if !slices.Contains(have.addrs, a) {
				ops = append(ops, addAddr{have.link, a})
			}
		}
		for _, a := range have.addrs {
			if !slices.Contains(want.Addresses, a) {
				deletions = append(deletions, delAddr{have.link, a})
			}
		}
	}

	there := map[key]route{}
	for _, r := range have.routes {
		there[r.key] = r
	}
	wanted := map[key]bool{}
	for _, r := range wantRoutes(want, have) {
		wanted[r.key] = true
		if old, ok := there[r.key]; !ok {
			ops = append(ops, addRoute{r})
		} else if old != r {
			ops = append(ops, replaceRoute{r})
		}
	}
	for _, r := range have.routes {
		if !wanted[r.key] {
			deletions = append(deletions, delRoute{r})
		}
	}
	return slices.Concat(ops, deletions, last), lacking
}

// possible leaves out what the host has no means for, in canonical order.
func possible(have state, want tun.HostState) (tun.HostState, error) {
	want = want.Normal()
	var errs []error
	if want.Link != "" && have.link.name == "" {
		errs = append(errs, fmt.Errorf("find link %s: %w", want.Link, ErrNoLink))
		want.Addresses = nil
		want.Routes = slices.DeleteFunc(want.Routes, func(r tun.Route) bool { return !r.Unreachable })
	}
	want.LANs = slices.DeleteFunc(want.LANs, func(l tun.LAN) bool { _, there := have.parents[l.Parent]; return !there })
	_, ipv6 := have.sysctl[forward6]
	off := conf("ipv6", have.link.name, "disable_ipv6")
	if !ipv6 || have.sysctl[off] == "1" && have.stuck[off] {
		before := len(want.Addresses) + len(want.Routes)
		want = want.WithoutIPv6()
		if len(want.Addresses)+len(want.Routes) != before {
			errs = append(errs, ErrNoIPv6)
		}
	}
	return want, errors.Join(errs...)
}

func sysctlOps(have state, want tun.HostState) []op {
	var ops []op
	set := func(key, value string) {
		if old, ok := have.sysctl[key]; ok && old != value && !have.stuck[key] {
			ops = append(ops, setSysctl{key, value})
		}
	}
	if want.Link != "" {
		// Distributions turn IPv6 off by default for new interfaces.
		set(conf("ipv6", want.Link, "disable_ipv6"), "0")
	}
	if !want.Forwarding {
		return ops
	}
	if have.sysctl[forward6] == "0" && !have.stuck[forward6] {
		// A router ignores router advertisements unless accept_ra is 2: without
		// this, forwarding would cost the host its own IPv6 default route.
		for _, key := range slices.Sorted(maps.Keys(have.sysctl)) {
			link, ok := strings.CutSuffix(strings.TrimPrefix(key, ipv6Conf+"/"), "/accept_ra")
			if !ok || link == "all" || link == "lo" || link == want.Link {
				continue // accept_ra of "all" does nothing; the mesh has no routers
			}
			if have.sysctl[key] == "1" && have.sysctl[conf("ipv6", link, "forwarding")] == "0" {
				set(key, "2")
			}
		}
	}
	set(forward4, "1")
	set(forward6, "1")
	if want.Link != "" {
		// Set with those above, unless somebody took it back for this interface
		// or for new ones.
		if have.sysctl[forward4] == "1" {
			set(conf("ipv4", want.Link, "forwarding"), "1")
		}
		if have.sysctl[forward6] == "1" {
			set(conf("ipv6", want.Link, "forwarding"), "1")
		}
	}
	return ops
}

func linkOps(have state, want tun.HostState) []op {
	if have.link.name == "" {
		return nil
	}
	var ops []op
	set := func(attr string, old, value int) {
		if old != value {
			ops = append(ops, setLink{have.link, attr, value})
		}
	}
	if want.MTU != 0 {
		set("mtu", have.link.mtu, want.MTU)
	}
	set("txqueuelen", have.link.txq, txQueueLen)
	if mtu := cmp.Or(want.MTU, have.link.mtu); have.link.segs != 0 { // 0: the kernel does not say
		set("gso_max_segs", have.link.segs, superPacket(mtu))
	}
	// No link-local address: nobody on the link could answer its chatter.
	mode, ok := have.sysctl[conf("ipv6", have.link.name, "addr_gen_mode")]
	if ok && mode != fmt.Sprint(nl.IN6_ADDR_GEN_MODE_NONE) {
		ops = append(ops, setLink{have.link, "addrgenmode", nl.IN6_ADDR_GEN_MODE_NONE})
	}
	if !have.link.up {
		ops = append(ops, setLink{have.link, "up", 1})
	}
	return ops
}

// superPacket is how many packets of that MTU the kernel may hand over in one:
// as many as cross the underlay in one call, with what the tunnel adds to each.
// A super-packet of one more would cost a second call for the rest.
func superPacket(mtu int) int {
	const call, segments, overhead = 65535 - 20 - 8, 64, 32 // UDP_SEGMENT over IPv4; WireGuard
	return max(1, min(segments, call/(mtu+overhead)))
}

type (
	setSysctl struct{ key, value string }
	setLink   struct {
		link
		attr  string
		value int
	}
	addAddr struct {
		link
		addr netip.Prefix
	}
	delAddr struct {
		link
		addr netip.Prefix
	}
	addRoute     struct{ route }
	replaceRoute struct{ route }
	delRoute     struct{ route }
	delLink      struct{ netlink.Link }
)

func (o setSysctl) String() string    { return "sysctl -w " + o.key + "=" + o.value }
func (o addAddr) String() string      { return fmt.Sprintf("ip addr add %s dev %s", o.addr, o.name) }
func (o delAddr) String() string      { return fmt.Sprintf("ip addr del %s dev %s", o.addr, o.name) }
func (o addRoute) String() string     { return "ip route add " + o.route.String() }
func (o replaceRoute) String() string { return "ip route replace " + o.route.String() }
func (o delRoute) String() string     { return "ip route del " + o.route.String() }
func (o delLink) String() string      { return "ip link del " + o.Attrs().Name }

func (o setLink) String() string {
	switch o.attr {
	case "up":
		return fmt.Sprintf("ip link set %s up", o.name)
	case "addrgenmode":
		return fmt.Sprintf("ip link set %s addrgenmode none", o.name)
	}
	return fmt.Sprintf("ip link set %s %s %d", o.name, o.attr, o.value)
}

func (o setSysctl) do(k kernel) error { return k.sysctl.set(o.key, o.value) }

func (o setLink) do(k kernel) error {
	l := o.link.netlink()
	switch o.attr {
	case "mtu":
		return k.LinkSetMTU(l, o.value)
	case "txqueuelen":
		return k.LinkSetTxQLen(l, o.value)
	case "gso_max_segs":
		return k.LinkSetGSOMaxSegs(l, o.value)
	case "addrgenmode":
		return k.LinkSetIP6AddrGenMode(l, o.value)
	}
	return k.LinkSetUp(l)
}

func (o addAddr) do(k kernel) error {
	// The routes are ours to set. Nobody else is on the link, so duplicate
	// address detection would only keep the address unusable for a second.
	flags := unix.IFA_F_NOPREFIXROUTE
	if o.addr.Addr().Is6() {
		flags |= unix.IFA_F_NODAD
	}
	return k.AddrAdd(o.link.netlink(), &netlink.Addr{
		IPNet: rtnl.IPNet(o.addr), Flags: flags, Broadcast: net.IPv4zero, // zero: none
	})
}

func (o delAddr) do(k kernel) error {
	return k.AddrDel(o.link.netlink(), &netlink.Addr{IPNet: rtnl.IPNet(o.addr), Broadcast: net.IPv4zero})
}

func (o addRoute) do(k kernel) error {
	r := o.route.netlink()
	if o.dev != "" && o.index == 0 { // it was made since
		l, err := k.LinkByName(o.dev)
		if err != nil {
			return err
		}
		r.LinkIndex = l.Attrs().Index
	}
	err := k.RouteAdd(r)
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%w; remove the other program's route", err)
	}
	return err
}

func (o replaceRoute) do(k kernel) error { return k.RouteReplace(o.route.netlink()) }

func (o delRoute) do(k kernel) error {
	r := o.route.netlink()
	r.Scope = netlink.SCOPE_NOWHERE // whatever it has
	return k.RouteDel(r)
}

func (o delLink) do(k kernel) error { return k.LinkDel(o.Link) }

func (l link) netlink() netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: l.name, Index: l.index}}
}
