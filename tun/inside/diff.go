//go:build linux

package inside

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun"
	"meshd/tun/rtnl"
)

// state is what a link is like.
type state struct {
	kind      tun.PortKind // as the kernel calls it, "veth" too
	name, mac string
	mtu       int
	up        bool
	addrs     []netip.Prefix // but for link-local ones
	routes    []hop
}

// hop is one route by the link.
type hop struct {
	dst  netip.Prefix
	by   netip.Addr // zero: on link
	ours bool
}

func (k kernel) read(l netlink.Link) (state, error) {
	l, err := k.LinkByIndex(l.Attrs().Index)
	if err != nil {
		return state{}, err
	}
	a := l.Attrs()
	s := state{kind: tun.PortKind(l.Type()), name: a.Name, mac: a.HardwareAddr.String(), mtu: a.MTU, up: a.Flags&net.FlagUp != 0}
	addrs, err := k.addrs(l)
	if err != nil {
		return s, err
	}
	for _, addr := range addrs {
		if p := rtnl.Prefix(addr.IPNet); !p.Addr().IsLinkLocalUnicast() {
			s.addrs = append(s.addrs, p)
		}
	}
	routes, err := k.routes()
	for _, r := range routes {
		if r.LinkIndex == a.Index {
			by, _ := netip.AddrFromSlice(r.Gw)
			s.routes = append(s.routes, hop{rtnl.Destination(r), by.Unmap(), r.Protocol == RouteProtocol})
		}
	}
	return s, err
}

// op is one thing to do to a link.
type op struct {
	what  string // as an error names it
	lacks string // what is not so, if that is not just too much
	do    func(k kernel, l netlink.Link) error
}

// diff lists what makes the link as wanted, in an order in which it works.
func diff(have state, want Link, routes []netip.Prefix) []op {
	var ops []op
	add := func(what, lacks string, do func(k kernel, l netlink.Link) error) {
		ops = append(ops, op{what, lacks, do})
	}
	if have.name != want.Name {
		add("name it "+want.Name, fmt.Sprintf("it is named %s", have.name), func(k kernel, l netlink.Link) error {
			if err := k.LinkSetDown(l); err != nil {
				return err
			}
			return k.LinkSetName(l, want.Name)
		})
		// What goes when a link goes down.
		have.up, have.routes = false, nil
		have.addrs = slices.DeleteFunc(have.addrs, func(a netip.Prefix) bool { return a.Addr().Is6() })
	}
	if mac, err := net.ParseMAC(want.MAC); err == nil && mac.String() != have.mac {
		add("set MAC address "+mac.String(), "the MAC address is "+have.mac, func(k kernel, l netlink.Link) error {
			return k.LinkSetHardwareAddr(l, mac)
		})
	}
	// What is on a physical link has no more than that.
	if want.MTU != 0 && have.mtu != want.MTU && (!have.kind.IsLAN() || have.mtu > want.MTU) {
		add(fmt.Sprintf("set MTU %d", want.MTU), fmt.Sprintf("the MTU is %d", have.mtu), func(k kernel, l netlink.Link) error {
			return k.LinkSetMTU(l, want.MTU)
		})
	}
	add("set sysctls", "", func(kernel, netlink.Link) error { return want.sysctls() })
	for _, a := range have.addrs {
		if !slices.Contains(want.Addresses, a) {
			add("remove address "+a.String(), "", func(k kernel, l netlink.Link) error {
				return k.AddrDel(l, &netlink.Addr{IPNet: rtnl.IPNet(a)})
			})
		}
	}
	for _, a := range want.Addresses {
		if !slices.Contains(have.addrs, a) {
			add("add address "+a.String(), "the address "+a.String()+" is missing", func(k kernel, l netlink.Link) error {
				// Nobody else has it: who gives addresses keeps count.
				return k.AddrAdd(l, &netlink.Addr{IPNet: rtnl.IPNet(a), Flags: unix.IFA_F_NODAD, Broadcast: net.IPv4zero})
			})
		}
	}
	if !have.up {
		add("set it up", "", func(k kernel, l netlink.Link) error { return k.LinkSetUp(l) })
	}
	return append(ops, routeDiff(have.routes, want, routes)...)
}

// routeDiff is the part of diff for the routes by the link.
func routeDiff(have []hop, want Link, routes []netip.Prefix) []op {
	var ops []op
	wanted := map[hop]bool{}
	for _, dst := range routes {
		wanted[hop{dst, want.gateway(dst.Addr()), true}] = true
	}
	for _, h := range have {
		if h.ours && !wanted[h] {
			ops = append(ops, op{"remove route to " + h.dst.String(), "", func(k kernel, l netlink.Link) error {
				return k.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: rtnl.IPNet(h.dst), Protocol: RouteProtocol})
			}})
		}
	}
	for _, dst := range routes {
		by := want.gateway(dst.Addr())
		if !slices.Contains(have, hop{dst, by, true}) {
			ops = append(ops, op{"add route to " + dst.String(), "the route to " + dst.String() + " is missing", func(k kernel, l netlink.Link) error {
				return k.RouteAdd(&netlink.Route{
					LinkIndex: l.Attrs().Index, Dst: rtnl.IPNet(dst), Gw: by.AsSlice(), Protocol: RouteProtocol, Flags: int(netlink.FLAG_ONLINK),
				})
			}})
		}
	}
	return ops
}

// sysctls sets those of the link, as far as the kernel has them. The thread is in
// the namespace, and so is what it sees of /proc/sys/net.
func (w Link) sysctls() error {
	settings := []string{
		// A neighbour that had the address before is told of the new one.
		"ipv4/arp_notify=1", "ipv6/ndisc_notify=1",
		// No router of the mesh announces itself, and who else does is not to have a
		// say on where the container's packets go.
		"ipv6/accept_ra=0", "ipv6/autoconf=0",
	}
	if slices.ContainsFunc(w.Addresses, func(a netip.Prefix) bool { return a.Addr().Is6() }) {
		settings = append(settings, "ipv6/disable_ipv6=0") // runtimes disable it where they give no address
	}
	for _, s := range settings {
		key, value, _ := strings.Cut(s, "=")
		family, key, _ := strings.Cut(key, "/")
		path := filepath.Join("/proc/sys/net", family, "conf", w.Name, key)
		have, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(have)) == value {
			continue
		}
		if err == nil {
			err = os.WriteFile(path, []byte(value), 0)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
