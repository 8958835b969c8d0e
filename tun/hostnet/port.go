//go:build linux

package hostnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun"
	"meshd/tun/rtnl"
)

const noDAD = unix.IFA_F_NODAD

// AddPort makes a port, and a bare bridge for it if there is none, so. What is
// right stays as it is, wherever the other end has gone; half a port is completed.
// A pair whose other end is elsewhere keeps it.
func (n *Net) AddPort(ctx context.Context, p tun.Port) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	err := n.with(func(k kernel) error {
		switch p.Kind {
		case tun.PortMACVLAN, tun.PortIPVLAN:
			return k.addSlave(p)
		case tun.PortBridge, tun.PortPTP:
			return k.addPair(p)
		}
		return fmt.Errorf("kind %q is unknown", p.Kind)
	})
	if err != nil && p.Kind.IsLAN() {
		return fmt.Errorf("make a %s on %s: %w", p.Kind, p.Parent, err) // people know that name, and none of ours
	}
	if err != nil {
		return fmt.Errorf("add port %s: %w", p.Peer, err)
	}
	n.log.Debug("port added", "kind", p.Kind, "name", p.Name, "peer", p.Peer)
	return nil
}

// DelPort removes a port by the names of its ends, wherever the other end has
// gone. If there is none, that is fine. It waits for no other call: the kernel takes
// 20 ms for each, and waits for many at a time as long as for one.
func (n *Net) DelPort(ctx context.Context, p tun.Port) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return n.with(func(k kernel) error {
		for _, name := range []string{p.Name, p.Peer} {
			if name == "" {
				continue
			}
			// Both ends of a pair go at once. ENODEV: with its container, just now.
			l, err := k.find(name)
			if err == nil && l != nil {
				if err = k.LinkDel(l); errors.Is(err, unix.ENODEV) {
					err = nil
				}
			}
			if err != nil {
				return fmt.Errorf("remove port %s: %w", name, err)
			}
		}
		return nil
	})
}

// Ports lists all ports: Name where the host end is there, with the Parent that it
// is on and whether it is Down, and Peer where the other one is here as well, since nobody has moved it
// into a container. Nothing else is filled in.
func (n *Net) Ports(ctx context.Context) (ports []tun.Port, err error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	err = n.with(func(k kernel) error {
		links, err := k.links()
		byEnd := map[int]int{} // by index of the host end, where it is in ports
		names := map[int]string{}
		for _, l := range links {
			names[l.Attrs().Index] = l.Attrs().Name
		}
		for _, l := range links {
			if a := l.Attrs(); isPort(l) {
				byEnd[a.Index] = len(ports)
				ports = append(ports, tun.Port{Name: a.Name, Parent: names[a.MasterIndex], Down: a.Flags&net.FlagUp == 0})
			}
		}
		for _, l := range links {
			if !isPeer(l) {
				continue
			}
			if at, ok := byEnd[l.Attrs().ParentIndex]; ok && l.Type() == "veth" {
				ports[at].Peer = l.Attrs().Name
			} else {
				ports = append(ports, tun.Port{Peer: l.Attrs().Name})
			}
		}
		return err
	})
	return ports, err
}

// isPort tells whether a link is a host end.
func isPort(l netlink.Link) bool {
	return l.Type() == "veth" && strings.HasPrefix(l.Attrs().Name, tun.PortPrefix)
}

// isPeer tells whether a link is for a container.
func isPeer(l netlink.Link) bool {
	return (l.Type() == "veth" || tun.PortKind(l.Type()).IsLAN()) && strings.HasPrefix(l.Attrs().Name, tun.PeerPrefix)
}

// find gives the link of that name, nil if there is none.
func (k kernel) find(name string) (netlink.Link, error) {
	l, err := k.LinkByName(name)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return nil, nil
	}
	return l, err
}

// addPair makes a pair of links whose host end is on the bridge, or routed to.
func (k kernel) addPair(p tun.Port) error {
	mac, err := net.ParseMAC(p.MAC)
	if err != nil {
		return err
	}
	if err := k.makePair(p, mac); err != nil {
		return err
	}
	l, err := k.LinkByName(p.Name)
	if err != nil {
		return err
	}
	if err := k.quiet(p); err != nil {
		return err
	}
	if p.Kind == tun.PortBridge {
		if p.MAC == macOf(p.Parent).String() {
			return fmt.Errorf("the MAC address %s is that of the bridge %s: %w", p.MAC, p.Parent, unix.EADDRINUSE)
		}
		if err := k.putOn(l, p.Parent); err != nil {
			return err
		}
		if err := k.pin(l, mac); err != nil {
			return err
		}
	}
	if p.Kind == tun.PortPTP && len(p.Addresses) == 0 {
		return errors.Join(k.answerFor(l, nil), k.LinkSetDown(l)) // with which its routes go
	}
	if err := k.LinkSetUp(l); err != nil {
		return fmt.Errorf("set %s up: %w", p.Name, err)
	}
	if p.Kind == tun.PortPTP {
		if err := k.answerFor(l, p.Gateways); err != nil {
			return err
		}
		return k.routeTo(l, p.Addresses)
	}
	return nil
}

// answerFor makes these addresses of the host, and no others, be found on the link.
// Other links have them too: for IPv4 that would do, unless arp_ignore is set, while
// neighbours of IPv6 are told only of what is on their own link.
func (k kernel) answerFor(l netlink.Link, addrs []netip.Addr) error {
	on := link{name: l.Attrs().Name, index: l.Attrs().Index}
	for _, a := range addrs {
		add := addAddr{on, netip.PrefixFrom(a, a.BitLen())}
		if err := add.do(k); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%s: %w", add, err)
		}
	}
	have, err := k.fixedAddrs(l)
	for _, p := range have {
		if !slices.Contains(addrs, p.Addr()) {
			err = errors.Join(err, delAddr{on, p}.do(k))
		}
	}
	return err
}

func (k kernel) makePair(p tun.Port, mac net.HardwareAddr) error {
	l, err := k.find(p.Name)
	switch {
	case err != nil:
		return err
	case l != nil && l.Type() != "veth":
		return fmt.Errorf("%s is there and is a %s: %w", p.Name, l.Type(), unix.EEXIST)
	case l != nil:
		return nil
	}
	attrs := attributes(p.Name)
	attrs.MTU = p.MTU
	if p.Kind == tun.PortBridge {
		// A port with the lowest address would give it to a bridge that has none.
		attrs.HardwareAddr = macOf(p.Name)
	}
	err = k.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: p.Peer, PeerHardwareAddr: mac, PeerMTU: uint32(p.MTU)})
	if err != nil {
		return err
	}
	return k.limitPeer(p)
}

// limitPeer has the container send super-packets that the TUN device takes: the
// kernel cuts a longer one into single packets on its way.
func (k kernel) limitPeer(p tun.Port) error {
	l, err := k.find(p.Peer)
	if err != nil || l == nil || l.Attrs().GSOMaxSegs == 0 { // 0: the kernel does not say
		return err
	}
	return k.LinkSetGSOMaxSegs(l, superPacket(cmp.Or(p.MTU, l.Attrs().MTU)))
}

// quiet keeps the host end from having an address of its own: what a container
// says about routers and prefixes is not for its host.
func (k kernel) quiet(p tun.Port) error {
	settings := []string{"accept_ra=0", "autoconf=0"}
	switch {
	case p.Kind == tun.PortBridge:
		settings = append(settings, "disable_ipv6=1") // the bridge speaks for all
	case slices.ContainsFunc(p.Addresses, netip.Addr.Is6):
		// Distributions turn it off by default for new interfaces; and the container
		// is asked for its MAC address with the link-local address, at once.
		settings = append(settings, "accept_dad=0", "disable_ipv6=0")
	}
	return k.configure6(p.Name, settings...)
}

// configure6 sets sysctls of a link's IPv6, as far as they are there and ours to
// change.
func (k kernel) configure6(link string, settings ...string) error {
	for _, s := range settings {
		key, value, _ := strings.Cut(s, "=")
		path := conf("ipv6", link, key)
		have := sysctls{}
		if err := k.sysctl.add(have, []string{path}); err != nil {
			return err
		}
		if old, ok := have[path]; !ok || old == value || k.sysctl.stuck(path, old) {
			continue
		}
		if err := k.sysctl.set(path, value); err != nil {
			return err
		}
	}
	return nil
}

// putOn makes the link a port of a bridge.
func (k kernel) putOn(l netlink.Link, name string) error {
	b, err := k.find(name)
	if err == nil && b == nil {
		if err = (addBridge{name}).do(k); err == nil || errors.Is(err, unix.EEXIST) {
			b, err = k.LinkByName(name)
		}
		if err == nil {
			err = k.LinkSetUp(b)
		}
	}
	switch {
	case err != nil:
		return fmt.Errorf("make bridge %s: %w", name, err)
	case b.Type() != "bridge":
		return fmt.Errorf("%s is a %s, no bridge: %w", name, b.Type(), unix.EEXIST)
	case l.Attrs().MasterIndex == b.Attrs().Index:
		return nil
	}
	err = k.LinkSetDown(l) // a bridge learns nothing from who is down
	if err == nil {
		err = k.LinkSetMaster(l, b)
	}
	if err != nil {
		return fmt.Errorf("put %s on %s: %w", l.Attrs().Name, name, err)
	}
	return nil
}

// pin tells the bridge who is behind a port, and that it learns nobody there: of
// frames that no bridge forwards, such as those of LLDP, it would learn senders that
// no firewall has seen.
func (k kernel) pin(l netlink.Link, mac net.HardwareAddr) error {
	if err := k.LinkSetLearning(l, false); err != nil {
		return fmt.Errorf("turn learning off on %s: %w", l.Attrs().Name, err)
	}
	err := k.NeighSet(&netlink.Neigh{
		LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, State: netlink.NUD_NOARP, HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("pin %s to %s: %w", mac, l.Attrs().Name, err)
	}
	return nil
}

// routeTo leads addresses to a link. These routes go with it, and without our protocol
// number Apply, which knows of no ports, leaves them alone.
func (k kernel) routeTo(l netlink.Link, addrs []netip.Addr) error {
	for _, a := range addrs {
		r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: rtnl.IPNet(netip.PrefixFrom(a, a.BitLen()))}
		if a.Is4() {
			r.Scope = netlink.SCOPE_LINK // there is no gateway
		}
		if err := k.RouteReplace(r); err != nil {
			return fmt.Errorf("route %s to %s: %w", a, l.Attrs().Name, err)
		}
	}
	return nil
}

// addSlave makes a link on a physical one. Once it is in its container nothing
// here tells whether it is there, and a second one of its name is made in vain.
func (k kernel) addSlave(p tun.Port) error {
	if l, err := k.find(p.Peer); err != nil || l != nil {
		return err
	}
	parent, err := k.LinkByName(p.Parent)
	if err != nil {
		return err
	}
	if p.MTU > parent.Attrs().MTU {
		p.MTU = parent.Attrs().MTU // it takes no more
	}
	attrs := attributes(p.Peer)
	attrs.ParentIndex, attrs.MTU, attrs.GSOMaxSegs = parent.Attrs().Index, p.MTU, uint32(superPacket(p.MTU))
	if p.Kind == tun.PortIPVLAN {
		return k.LinkAdd(&netlink.IPVlan{LinkAttrs: attrs, Mode: netlink.IPVLAN_MODE_L2})
	}
	if attrs.HardwareAddr, err = net.ParseMAC(p.MAC); err != nil {
		return err
	}
	return k.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE})
}

// attributes are those of a new link, with the kernel's own queue.
func attributes(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}
