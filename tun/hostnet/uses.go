//go:build linux

package hostnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun"
	"meshd/tun/rtnl"
)

// Uses lists what this host has in the given ranges, ours left out: destinations
// of routes, then gateways, then addresses of its own. Default routes are among
// them. It looks into the main table, and into those to which rules send packets
// for whatever sender: not into those of a VRF, of one source address, of one
// user or of marked packets.
func (n *Net) Uses(ctx context.Context, ranges ...netip.Prefix) ([]tun.Use, error) {
	var out []tun.Use
	err := n.with(func(k kernel) error {
		tables, err := k.tables()
		if err != nil {
			return err
		}
		n.tables.Store(&tables)
		out, err = k.uses(tables, ranges)
		return err
	})
	if err == nil {
		err = ctx.Err()
	}
	return out, err
}

// looksInto tells whether the kernel may look into a table for our packets.
func (n *Net) looksInto(table int) bool {
	switch tables := n.tables.Load(); {
	case table == unix.RT_TABLE_LOCAL:
		return false // it follows the addresses, of which other messages tell
	case tables == nil:
		return table == unix.RT_TABLE_MAIN || table == unix.RT_TABLE_DEFAULT
	default:
		return slices.Contains(*tables, table)
	}
}

// tables lists the tables that matter to packets in general, main first.
func (k kernel) tables() ([]int, error) {
	rules, err := k.rules()
	if err != nil {
		return nil, err
	}
	out := []int{unix.RT_TABLE_MAIN}
	for _, r := range rules {
		if r.Table != 0 && concernsAll(r) && !slices.Contains(out, r.Table) {
			out = append(out, r.Table)
		}
	}
	return out, nil
}

// concernsAll tells whether a rule may send any of this host's own packets to
// its table. One that is turned round concerns all but a few.
func concernsAll(r netlink.Rule) bool {
	return r.Invert || r.Src == nil && r.Mark == 0 && r.Tos == 0 && r.TunID == 0 &&
		(r.IifName == "" || r.IifName == "lo") && r.OifName == "" &&
		r.UIDRange == nil && r.IPProto == 0 && r.Sport == nil && r.Dport == nil
}

func (k kernel) uses(tables []int, ranges []netip.Prefix) ([]tun.Use, error) {
	touches := func(p netip.Prefix) bool { return slices.ContainsFunc(ranges, p.Overlaps) }
	links, err := k.links()
	if err != nil {
		return nil, err
	}
	var ours map[int]bool
	var routes, gateways, addresses []tun.Use
	for _, table := range tables {
		all, err := k.tableRoutes(table)
		if err != nil {
			return nil, err
		}
		if table == unix.RT_TABLE_MAIN { // comes first
			ours = ourLinks(links, all)
		}
		for _, r := range all {
			if r.Protocol == RouteProtocol || ours[r.LinkIndex] {
				continue
			}
			for _, gw := range gatewaysOf(r) {
				if touches(gw) {
					gateways = append(gateways, tun.Use{Prefix: gw, What: k.describeGateway(gw.Addr(), r)})
				}
			}
			dst := rtnl.Destination(r)
			switch {
			case !touches(dst):
			case r.Type == unix.RTN_LOCAL:
				addresses = append(addresses, tun.Use{Prefix: dst, What: fmt.Sprintf("the address %s%s of this host", short(dst), k.by(r))})
			case r.Type == unix.RTN_UNICAST:
				routes = append(routes, tun.Use{Prefix: dst, What: k.describe(r)})
			case kinds[r.Type] != "":
				routes = append(routes, tun.Use{Prefix: dst, What: k.describe(r), Discards: true})
			} // else one to all, which comes with an address
		}
	}
	return slices.Concat(routes, gateways, addresses), nil
}

// gatewaysOf lists the next hops of a route that have an address.
func gatewaysOf(r netlink.Route) []netip.Prefix {
	var out []netip.Prefix
	add := func(gw net.IP, via netlink.Destination) {
		if v, ok := via.(*netlink.Via); ok { // of the other family
			gw = v.Addr
		}
		if a, ok := netip.AddrFromSlice(gw); ok && !a.IsUnspecified() {
			a = a.Unmap()
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	add(r.Gw, r.Via)
	for _, hop := range r.MultiPath {
		add(hop.Gw, hop.Via)
	}
	return out
}

func (k kernel) describe(r netlink.Route) string {
	return fmt.Sprintf("this host's %sroute to %s%s", kinds[r.Type], short(rtnl.Destination(r)), k.by(r))
}

func (k kernel) describeGateway(gw netip.Addr, r netlink.Route) string {
	if rtnl.Destination(r).Bits() == 0 {
		return fmt.Sprintf("the default gateway %s%s", gw, k.by(r))
	}
	return fmt.Sprintf("the gateway %s of %s", gw, k.describe(r))
}

// by says by which link a route leads, and in which table it stands.
func (k kernel) by(r netlink.Route) (text string) {
	index := r.LinkIndex
	if len(r.MultiPath) > 0 {
		index = r.MultiPath[0].LinkIndex
	}
	if l, err := k.LinkByIndex(index); index != 0 && err == nil && (r.Type == unix.RTN_UNICAST || r.Type == unix.RTN_LOCAL) {
		text = " on " + l.Attrs().Name
	}
	if r.Table != unix.RT_TABLE_MAIN && r.Table != unix.RT_TABLE_LOCAL {
		text += fmt.Sprintf(" in table %d", r.Table)
	}
	return text
}

// short leaves out the length of what is a single address.
func short(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// Connections lists the TCP connections, such as somebody's SSH session, with
// addresses in the given ranges. Those that come from there too are left out:
// they go through the mesh.
func (n *Net) Connections(ctx context.Context, ranges ...netip.Prefix) ([]tun.Use, error) {
	inside := func(a netip.Addr) bool {
		return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	var out []tun.Use
	err := n.with(func(k kernel) error {
		all, err := k.connections()
		for _, c := range all {
			local, _ := netip.AddrFromSlice(c.ID.Source)
			remote, _ := netip.AddrFromSlice(c.ID.Destination)
			local, remote = local.Unmap(), remote.Unmap()
			if inside(remote) && !inside(local) {
				out = append(out, tun.Use{
					Prefix: netip.PrefixFrom(remote, remote.BitLen()),
					What:   fmt.Sprintf("the TCP connection of %s with %s, perhaps your SSH session", netip.AddrPortFrom(local, c.ID.SourcePort), netip.AddrPortFrom(remote, c.ID.DestinationPort)),
				})
			}
		}
		return err
	})
	if err == nil {
		err = ctx.Err()
	}
	return out, err
}
