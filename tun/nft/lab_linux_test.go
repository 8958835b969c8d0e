//go:build linux

package nft_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun"
	"meshd/tun/hostnet"
	"meshd/tun/netns"
	"meshd/tun/nft"
	"meshd/tun/rtnl"
)

// The networks of the lab, and each host's part of them by its number.
//
//	10.86.HOST.0/24  fd86:0:0:HOST::/64   web
//	10.87.HOST.0/24  fd87:0:0:HOST::/64   db
var networks = map[string]int{"web": 86, "db": 87}

func v4(network string, host, n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(networks[network]), byte(host), byte(n)})
}

func v6(network string, host, n int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd%d:0:0:%d::%d", networks[network], host, n))
}

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// machine is a namespace with a network of its own.
type machine struct {
	*testing.T
	ns *netns.NS
}

func newMachine(t *testing.T) machine { return machine{t, netns.ForTest(t)} }

func (m machine) in(fn func() error) {
	m.Helper()
	if err := m.ns.Do(fn); err != nil {
		m.Fatal(err)
	}
}

func (m machine) sysctl(key, value string) {
	m.Helper()
	m.in(func() error { return os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0) })
}

// link changes a link of the machine.
func (m machine) link(name string, change func(netlink.Link) error) {
	m.Helper()
	m.in(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		return change(l)
	})
}

func (m machine) address(link string, p netip.Prefix) {
	m.Helper()
	m.link(link, func(l netlink.Link) error {
		return netlink.AddrAdd(l, &netlink.Addr{IPNet: rtnl.IPNet(p), Flags: unix.IFA_F_NODAD})
	})
}

func (m machine) route(link, dst string, via netip.Addr) {
	m.Helper()
	m.link(link, func(l netlink.Link) error {
		r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: rtnl.IPNet(pfx(dst)), Gw: via.AsSlice()}
		if !via.IsValid() && pfx(dst).Addr().Is4() {
			r.Scope = netlink.SCOPE_LINK
		}
		return netlink.RouteAdd(r)
	})
}

// pair joins two machines by a pair of links, both up.
func pair(a machine, aName string, b machine, bName string, mac net.HardwareAddr) {
	a.Helper()
	f, err := os.Open(b.ns.Path())
	if err != nil {
		a.Fatal(err)
	}
	defer f.Close()
	a.in(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: aName, HardwareAddr: mac}, PeerName: bName, PeerHardwareAddr: mac,
			PeerNamespace: netlink.NsFd(f.Fd()),
		})
	})
	a.link(aName, netlink.LinkSetUp)
	b.link(bName, netlink.LinkSetUp)
}

// host is a machine with a bridge for each network and a firewall.
type host struct {
	machine
	number   int
	firewall *nft.Firewall
}

func newHost(t *testing.T, number int) host {
	m := newMachine(t)
	h := host{machine: m, number: number}
	h.firewall = newFirewall(h)
	for key, value := range map[string]string{
		"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1",
		"net/ipv6/conf/default/accept_dad": "0", // or nobody is found for a second
	} {
		h.sysctl(key, value)
	}
	for network := range networks {
		bridge := tun.BridgePrefix + network
		h.in(func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}) })
		h.link(bridge, netlink.LinkSetUp)
		h.address(bridge, netip.PrefixFrom(v4(network, number, 1), 24))
		h.address(bridge, netip.PrefixFrom(v6(network, number, 1), 64))
	}
	return h
}

// container makes one with the given number in a network.
func (h host) container(network string, n int) machine {
	h.Helper()
	c := newMachine(h.T)
	c.sysctl("net/ipv6/conf/default/accept_dad", "0")
	h.addPort(tun.Port{
		Kind: tun.PortBridge, Name: fmt.Sprintf("mv-%s%d", network, n), Peer: "mc-peer", Parent: tun.BridgePrefix + network,
		MAC: fmt.Sprintf("02:00:00:%02x:%02x:%02x", networks[network], h.number, n), MTU: 1500,
	})
	f, err := os.Open(c.ns.Path())
	if err != nil {
		h.Fatal(err)
	}
	defer f.Close()
	h.link("mc-peer", func(l netlink.Link) error { return netlink.LinkSetNsFd(l, int(f.Fd())) })
	c.link("mc-peer", func(l netlink.Link) error {
		return errors.Join(netlink.LinkSetName(l, "eth0"), netlink.LinkSetUp(l))
	})
	c.address("eth0", netip.PrefixFrom(v4(network, h.number, n), 24))
	c.address("eth0", netip.PrefixFrom(v6(network, h.number, n), 64))
	c.route("eth0", "0.0.0.0/0", v4(network, h.number, 1))
	c.route("eth0", "::/0", v6(network, h.number, 1))
	return c
}

// addPort does what the daemon does for a container.
func (h host) addPort(p tun.Port) {
	h.Helper()
	if err := hostnet.New(hostnet.Options{Namespace: h.ns.Do}).AddPort(h.Context(), p); err != nil {
		h.Fatal(err)
	}
}

// mesh joins two hosts by what is like a TUN device on both: nobody resolves
// addresses there.
func mesh(a, b host) {
	a.Helper()
	pair(a.machine, "mesh0", b.machine, "mesh0", net.HardwareAddr{2, 0, 0, 0, 0, 1})
	for _, h := range []host{a, b} {
		h.link("mesh0", netlink.LinkSetARPOff)
		for _, dst := range []string{"10.86.0.0/16", "10.87.0.0/16", "fd86::/48", "fd87::/48"} {
			h.route("mesh0", dst, netip.Addr{})
		}
	}
}

// rules are those of a host of the lab.
func (h host) rules() tun.Rules {
	r := tun.Rules{Link: "mesh0", Masquerade: true, Segments: []tun.Segment{{Name: "control", Ranges: []netip.Prefix{pfx("fdcc::/48")}}}}
	for network, number := range networks {
		r.Segments = append(r.Segments, tun.Segment{
			Name:   network,
			Ranges: []netip.Prefix{pfx(fmt.Sprintf("10.%d.0.0/16", number)), pfx(fmt.Sprintf("fd%d::/48", number))},
			Own:    []netip.Prefix{netip.PrefixFrom(v4(network, h.number, 0), 24), netip.PrefixFrom(v6(network, h.number, 0), 64)},
			Links:  []string{tun.BridgePrefix + network},
		})
	}
	return r
}

func (h host) apply(want tun.Rules) {
	h.Helper()
	if err := h.firewall.Apply(h.Context(), want); err != nil {
		h.Fatal(err)
	}
}

// How often a packet is sent, a tenth of a second apart: what is to arrive may be
// late on a busy machine.
const patient, brief = 50, 3

// sent tells from which address a packet of src arrives at dst, zero if it does
// not arrive. Some are sent, since the first may wait for an address of the link.
func sent(src machine, from netip.Addr, dst machine, to netip.Addr, tries int) netip.Addr {
	src.Helper()
	var in, out net.PacketConn
	dst.in(func() (err error) {
		in, err = net.ListenPacket("udp", netip.AddrPortFrom(to, 0).String())
		return err
	})
	defer in.Close()
	_, port, _ := net.SplitHostPort(in.LocalAddr().String())
	return send(src, &out, from, in, net.JoinHostPort(to.String(), port), tries)
}

// sentTo is sent for a destination that is translated on the way to where in
// listens.
func sentTo(src machine, from netip.Addr, in net.PacketConn, to netip.AddrPort, tries int) netip.Addr {
	src.Helper()
	var out net.PacketConn
	return send(src, &out, from, in, to.String(), tries)
}

func send(src machine, out *net.PacketConn, from netip.Addr, in net.PacketConn, to string, tries int) netip.Addr {
	src.Helper()
	src.in(func() (err error) {
		*out, err = net.ListenPacket("udp", netip.AddrPortFrom(from, 0).String())
		return err
	})
	defer (*out).Close()
	addr, err := net.ResolveUDPAddr("udp", to)
	if err != nil {
		src.Fatal(err)
	}
	for range tries {
		_, _ = (*out).WriteTo([]byte("hello"), addr) // may be refused, which is as good as lost
		if err := in.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			src.Fatal(err)
		}
		_, seen, err := in.ReadFrom(make([]byte, 16))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			src.Fatal(err)
		}
		return netip.MustParseAddrPort(seen.String()).Addr().Unmap()
	}
	return netip.Addr{}
}

// trip is a packet, and whether it should arrive.
type trip struct {
	name string
	src  machine
	from netip.Addr
	dst  machine
	to   netip.Addr
	want netip.Addr // as which it arrives; zero: it does not
}

func run(t *testing.T, trips []trip) {
	t.Helper()
	// Those that arrive go first: they show that there is a way.
	slices.SortStableFunc(trips, func(a, b trip) int {
		switch {
		case a.want.IsValid() == b.want.IsValid():
			return 0
		case a.want.IsValid():
			return -1
		}
		return 1
	})
	for _, p := range trips {
		tries := brief
		if p.want.IsValid() {
			tries = patient
		}
		if got := sent(p.src, p.from, p.dst, p.to, tries); got != p.want {
			t.Errorf("%s: a packet from %s to %s arrives from %s, want %s", p.name, p.from, p.to, got, p.want)
		}
	}
}

func newFirewall(h host) *nft.Firewall { return nft.New(nft.Options{Namespace: h.ns.Do}) }

// mac gives the MAC address of a container.
func (m machine) mac() (mac string) {
	m.Helper()
	m.link("eth0", func(l netlink.Link) error { mac = l.Attrs().HardwareAddr.String(); return nil })
	return mac
}

func forgetNeighbours() error {
	all, err := netlink.NeighList(0, netlink.FAMILY_ALL)
	for _, n := range all {
		err = errors.Join(err, netlink.NeighDel(&n))
	}
	return err
}

// announce tells everybody that an address is at a MAC address, as a gratuitous
// answer of ARP does.
func announce(mac string, a netip.Addr) error {
	own, err := net.ParseMAC(mac)
	if err != nil {
		return err
	}
	l, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	const arp = 0x0806
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	everybody := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	frame := slices.Concat(everybody, own, []byte{arp >> 8, arp & 0xff}, // RFC 826
		[]byte{0, 1, 8, 0, 6, 4, 0, 2}, own, a.AsSlice(), everybody, a.AsSlice())
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index})
}
