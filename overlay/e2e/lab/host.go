//go:build linux

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun/hostnet"
	"meshd/tun/netns"
	"meshd/tun/nft"
)

// Host is a machine of the lab. Its methods may be called from any goroutine.
type Host struct {
	Name       string
	IPv4, IPv6 netip.Addr // on the switch, as the host was built

	lab  *Lab      // fixed at construction
	ns   *netns.NS // fixed at construction
	port string    // fixed at construction: its link on the switch
}

// Do runs fn in the host's network. What it opens stays there. Calls run one
// after the other: fn should not wait.
func (h *Host) Do(fn func() error) error { return h.ns.Do(fn) }

// Path names the host's network namespace, for nsenter --net=PATH.
func (h *Host) Path() string { return h.ns.Path() }

// aside runs fn in the host's network on a thread of its own, so it may wait.
func (h *Host) aside(fn func() error) error { return netns.Run(h.ns.Path(), fn) }

// Dial connects from the host. The address is numeric; networks as in net.Dial.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var c net.Conn
	err := h.aside(func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Listen listens on the host. The address is numeric; networks as in net.Listen.
func (h *Host) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = new(net.ListenConfig).Listen(ctx, network, address)
		return err
	})
	return l, err
}

// ListenPacket opens a datagram socket on the host, as net.ListenPacket does.
func (h *Host) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	var c net.PacketConn
	err := h.Do(func() (err error) {
		c, err = new(net.ListenConfig).ListenPacket(ctx, network, address)
		return err
	})
	return c, err
}

// onNIC runs fn with the host's network card, in the host's network.
func (h *Host) onNIC(fn func(netlink.Link) error) error {
	return h.Do(func() error {
		eth, err := netlink.LinkByName(nic)
		if err != nil {
			return err
		}
		return fn(eth)
	})
}

// AddAddress gives the host another address on the switch, usable at once.
func (h *Host) AddAddress(p netip.Prefix) error {
	a := address(p)
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	err := h.onNIC(func(eth netlink.Link) error { return netlink.AddrAdd(eth, a) })
	if err == nil && p.Addr().Is6() {
		err = h.waitSolicited(p.Addr())
	}
	if err != nil {
		return fmt.Errorf("add address %s to %s: %w", p, h.Name, err)
	}
	return nil
}

// waitSolicited waits until the host listens to those who look for the address.
// The kernel begins with that some time after the address was added, and who
// asked before would ask again only a second later.
func (h *Host) waitSolicited(a netip.Addr) error {
	raw := a.As16()
	group := fmt.Sprintf("ff0200000000000000000001ff%x", raw[13:]) // RFC 4291, 2.7.1
	return poll(context.Background(), func() (bool, error) {
		var groups []byte
		err := h.Do(func() (err error) {
			groups, err = os.ReadFile("/proc/thread-self/net/igmp6")
			return err
		})
		return bytes.Contains(groups, []byte(group)), err
	})
}

// RemoveAddress takes an address from the host.
func (h *Host) RemoveAddress(p netip.Prefix) error {
	if err := h.onNIC(func(eth netlink.Link) error { return netlink.AddrDel(eth, address(p)) }); err != nil {
		return fmt.Errorf("remove address %s from %s: %w", p, h.Name, err)
	}
	return nil
}

// ReplaceAddress moves the host to another address, as a new DHCP lease does.
func (h *Host) ReplaceAddress(old, new netip.Prefix) error {
	// In this order: with an address, the kernel drops those that were added to
	// the same subnet later.
	return errors.Join(h.RemoveAddress(old), h.AddAddress(new))
}

func address(p netip.Prefix) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{
		IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}}
}

// addresses lists the host's addresses on the switch, link-local ones too.
func (h *Host) addresses() ([]netip.Prefix, error) {
	var out []netip.Prefix
	err := h.onNIC(func(eth netlink.Link) error {
		addrs, err := netlink.AddrList(eth, netlink.FAMILY_ALL)
		for _, a := range addrs {
			ip, _ := netip.AddrFromSlice(a.IP)
			bits, _ := a.Mask.Size()
			out = append(out, netip.PrefixFrom(ip.Unmap(), bits))
		}
		return err
	})
	return out, err
}

// LinkDown pulls the host's cable: it keeps its addresses and loses carrier.
func (h *Host) LinkDown() error { return h.onPort(netlink.LinkSetDown) }

// LinkUp plugs the cable in again.
func (h *Host) LinkUp() error { return h.onPort(netlink.LinkSetUp) }

// onPort runs fn with the host's port, in the switch's network.
func (h *Host) onPort(fn func(netlink.Link) error) error {
	if h.lab.sw == nil {
		return fmt.Errorf("host %s is on a cable, not on a switch", h.Name)
	}
	return h.lab.sw.Do(func() error {
		port, err := netlink.LinkByName(h.port)
		if err != nil {
			return err
		}
		return fn(port)
	})
}

// DisableIPv6 turns IPv6 off on the host's network card and on links to come.
func (h *Host) DisableIPv6() error {
	return h.Do(func() error {
		return errors.Join(
			setSysctl("net/ipv6/conf/"+nic+"/disable_ipv6", "1"),
			setSysctl("net/ipv6/conf/default/disable_ipv6", "1"))
	})
}

// Leftovers lists what a mesh daemon leaves in the host's network: links but
// for the host's own, routes with our protocol, tables of the firewall, running
// programs. With no daemon running it should be empty.
func (h *Host) Leftovers() ([]string, error) {
	var out []string
	err := h.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if name := l.Attrs().Name; name != "lo" && name != nic {
				out = append(out, "link "+name)
			}
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL,
			&netlink.Route{Protocol: hostnet.RouteProtocol, Table: unix.RT_TABLE_UNSPEC},
			netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		for _, r := range routes {
			out = append(out, "route "+r.Dst.String())
		}
		if err != nil {
			return err
		}
		tables, err := new(nftables.Conn).ListTables()
		for _, t := range tables {
			if t.Name == nft.TableName {
				out = append(out, "table "+t.Name)
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look for leftovers on %s: %w", h.Name, err)
	}
	strays, err := h.strays()
	for _, s := range strays {
		out = append(out, fmt.Sprintf("process %d (%s)", s.pid, s.name))
	}
	slices.Sort(out)
	return out, err
}
