//go:build linux

package hostnet

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"meshd/tun"
	"meshd/tun/rtnl"
)

// bridge is a network's bridge on this host. Whatever bridge is named like ours
// is ours.
type bridge struct {
	name   string
	mtu    int
	up     bool
	addrs  []netip.Prefix // but for link-local ones
	beside []netip.Addr   // for which the host answers there
	ports  int            // not counted while the bridge is wanted
}

func (k kernel) bridges(want []tun.Bridge) ([]bridge, error) {
	var all []bridge
	links, err := k.linksNamed(tun.BridgePrefix)
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		a := l.Attrs()
		if l.Type() != "bridge" {
			continue
		}
		b := bridge{name: a.Name, mtu: a.MTU, up: a.Flags&net.FlagUp != 0}
		if !slices.ContainsFunc(want, func(w tun.Bridge) bool { return w.Name == b.name }) {
			ports, err := k.portsOf(l)
			if err != nil {
				return nil, err
			}
			b.ports = len(ports)
		}
		if b.addrs, err = k.fixedAddrs(l); err != nil {
			return nil, err
		}
		if b.beside, err = k.proxies(l); err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}

// fixedAddrs lists the addresses on a link but for those that the kernel gives it.
func (k kernel) fixedAddrs(l netlink.Link) ([]netip.Prefix, error) {
	addrs, err := k.addrs(l)
	var all []netip.Prefix
	for _, a := range addrs {
		if p := rtnl.Prefix(a.IPNet); !p.Addr().IsLinkLocalUnicast() {
			all = append(all, p)
		}
	}
	return all, err
}

// bridgeDiff lists what makes the bridges as wanted, and what removes others. One
// that has ports is kept, or they would be on none when it is wanted again, but the
// host leaves it: its subnet may be elsewhere. Whoever removes the ports wants it
// gone, or wants nothing at all.
func bridgeDiff(have state, want tun.HostState) (ops, deletions []op) {
	there := map[string]bridge{}
	for _, b := range have.bridges {
		there[b.name] = b
	}
	nothing := want.Link == "" && len(want.Routes) == 0 && len(want.Bridges) == 0
	wanted := map[string]bool{}
	for _, w := range want.Bridges {
		wanted[w.Name] = true
		b, ok := there[w.Name]
		if !ok {
			ops = append(ops, addBridge{w.Name})
		}
		l := link{name: w.Name}
		if w.MTU != 0 && b.mtu != w.MTU {
			ops = append(ops, setLink{l, "mtu", w.MTU})
		}
		if !b.up {
			ops = append(ops, setLink{l, "up", 1})
		}
		for _, a := range w.Addresses {
			if !slices.Contains(b.addrs, a) {
				ops = append(ops, addSubnet{l, a})
			}
		}
		for _, a := range b.addrs {
			if !slices.Contains(w.Addresses, a) {
				deletions = append(deletions, delAddr{l, a})
			}
		}
		add, del := besideDiff(l, b.beside, w.Beside)
		ops, deletions = append(ops, add...), append(deletions, del...)
	}
	for _, b := range have.bridges {
		switch l := (link{name: b.name}); {
		case wanted[b.name]:
		case b.ports == 0 || nothing:
			deletions = append(deletions, delBridge{b.name})
		default:
			for _, a := range b.addrs {
				deletions = append(deletions, delAddr{l, a})
			}
			_, del := besideDiff(l, b.beside, nil)
			deletions = append(deletions, del...)
		}
	}
	return ops, deletions
}

type (
	addBridge struct{ name string }
	delBridge struct{ name string }
	addSubnet struct {
		link
		addr netip.Prefix
	}
)

func (o addBridge) String() string { return "ip link add " + o.name + " type bridge mcast_snooping 0" }
func (o delBridge) String() string { return "ip link del " + o.name }
func (o addSubnet) String() string { return fmt.Sprintf("ip addr add %s dev %s", o.addr, o.name) }

func (o addBridge) do(k kernel) error {
	snooping := false // nobody queries, and neighbours of IPv6 are found by multicast
	b := &netlink.Bridge{LinkAttrs: attributes(o.name), MulticastSnooping: &snooping}
	// Its own address, or it takes the lowest of its ports, and containers have
	// learned another one.
	b.HardwareAddr = macOf(o.name)
	if err := k.LinkAdd(b); err != nil {
		return err
	}
	// It needs a link-local address to find its neighbours, at once, and has no
	// router there.
	return k.configure6(o.name, "accept_dad=0", "accept_ra=0", "autoconf=0")
}

func (o delBridge) do(k kernel) error {
	return k.LinkDel(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: o.name}})
}

// do adds the address with the route to its subnet. Nobody else has it there:
// containers get others from the same daemon.
func (o addSubnet) do(k kernel) error {
	flags := 0
	if o.addr.Addr().Is6() {
		flags = noDAD
	}
	return k.AddrAdd(o.link.netlink(), &netlink.Addr{IPNet: rtnl.IPNet(o.addr), Flags: flags, Broadcast: net.IPv4zero})
}

// macOf gives a locally administered MAC address that is the same each time.
func macOf(name string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(name))
	return append(net.HardwareAddr{0x02}, sum[:5]...)
}
