//go:build linux

package nft_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"

	"meshd/tun"
)

// lab is two hosts in a mesh, with containers, and a third machine that is none
// of it.
type lab struct {
	a, b         host
	webA, webA2  machine // of host a: 10.86.17.5 and .6
	dbA          machine // 10.87.17.5
	webB, dbB    machine // of host b: 10.86.80.5, 10.87.80.5
	outside      machine // 192.0.2.99 on the wire of host a, and knows the way to its containers
	none, out, o netip.Addr
}

func newLab(t *testing.T) lab {
	l := lab{a: newHost(t, 17), b: newHost(t, 80), outside: newMachine(t)}
	l.webA, l.webA2, l.dbA = l.a.container("web", 5), l.a.container("web", 6), l.a.container("db", 5)
	l.webB, l.dbB = l.b.container("web", 5), l.b.container("db", 5)
	mesh(l.a, l.b)
	pair(l.a.machine, "eth0", l.outside, "eth0", nil)
	l.a.address("eth0", pfx("192.0.2.1/24"))
	l.a.address("eth0", pfx("2001:db8::1/64"))
	l.outside.address("eth0", pfx("192.0.2.99/24"))
	l.outside.address("eth0", pfx("2001:db8::99/64"))
	for _, r := range []string{"10.86.0.0/16", "10.87.0.0/16"} {
		l.outside.route("eth0", r, netip.MustParseAddr("192.0.2.1"))
	}
	for _, r := range []string{"fd86::/48", "fd87::/48"} {
		l.outside.route("eth0", r, netip.MustParseAddr("2001:db8::1"))
	}
	l.out, l.o = netip.MustParseAddr("192.0.2.99"), netip.MustParseAddr("2001:db8::99")
	return l
}

// within is what passes whatever else is forbidden.
func (l lab) within() []trip {
	var all []trip
	for _, at := range []func(string, int, int) netip.Addr{v4, v6} {
		all = append(all,
			trip{"on one bridge", l.webA, at("web", 17, 5), l.webA2, at("web", 17, 6), at("web", 17, 5)},
			trip{"across the mesh", l.webA, at("web", 17, 5), l.webB, at("web", 80, 5), at("web", 17, 5)},
			trip{"across, the other network", l.dbB, at("db", 80, 5), l.dbA, at("db", 17, 5), at("db", 80, 5)},
			trip{"to its host", l.webA, at("web", 17, 5), l.a.machine, at("web", 17, 1), at("web", 17, 5)},
			trip{"from its host", l.a.machine, at("web", 17, 1), l.webA, at("web", 17, 5), at("web", 17, 1)},
			trip{"from the host of another network", l.a.machine, at("db", 17, 1), l.dbA, at("db", 17, 5), at("db", 17, 1)},
			trip{"from a host across", l.a.machine, at("web", 17, 1), l.webB, at("web", 80, 5), at("web", 17, 1)},
			trip{"to a host across", l.webA, at("web", 17, 5), l.b.machine, at("web", 80, 1), at("web", 17, 5)},
		)
	}
	return all
}

func TestIsolation(t *testing.T) {
	l := newLab(t)
	l.a.apply(l.a.rules())
	l.b.apply(l.b.rules())
	trips := l.within()
	for _, at := range []func(string, int, int) netip.Addr{v4, v6} {
		trips = append(trips,
			trip{"between networks on one host", l.webA, at("web", 17, 5), l.dbA, at("db", 17, 5), l.none},
			trip{"between networks, back", l.dbA, at("db", 17, 5), l.webA, at("web", 17, 5), l.none},
			trip{"between networks across", l.webA, at("web", 17, 5), l.dbB, at("db", 80, 5), l.none},
			trip{"to the host's address elsewhere", l.webA, at("web", 17, 5), l.a.machine, at("db", 17, 1), l.none},
			trip{"to a host's address elsewhere, across", l.webA, at("web", 17, 5), l.b.machine, at("db", 80, 1), l.none},
			trip{"from a host's wrong address across", l.a.machine, at("web", 17, 1), l.dbB, at("db", 80, 5), l.none},
		)
	}
	run(t, trips)
}

// Each side alone forbids it: a node need not trust the others.
func TestIsolationOnEachSide(t *testing.T) {
	for _, side := range []string{"sender", "receiver"} {
		t.Run(side, func(t *testing.T) {
			l := newLab(t)
			open := trip{"without rules", l.webA, v4("web", 17, 5), l.dbB, v4("db", 80, 5), v4("web", 17, 5)}
			run(t, []trip{open})
			h := l.a
			if side == "receiver" {
				h = l.b
			}
			h.apply(h.rules())
			trips := l.within()
			for _, at := range []func(string, int, int) netip.Addr{v4, v6} {
				trips = append(trips, trip{"between networks", l.webA, at("web", 17, 5), l.dbB, at("db", 80, 5), l.none})
			}
			run(t, trips)
		})
	}
}

func TestSpoofedSource(t *testing.T) {
	l := newLab(t)
	for _, p := range []string{"10.86.80.6/32", "10.87.17.6/32", "10.86.17.77/32", "192.0.2.99/32", "fd86:0:0:80::6/128", "fd87:0:0:17::6/128"} {
		l.webA.address("lo", pfx(p))
	}
	for _, p := range []string{"10.86.80.5/32", "10.86.17.6/32", "fd86:0:0:80::5/128"} {
		l.outside.address("lo", pfx(p))
	}
	a := netip.MustParseAddr
	run(t, []trip{{"without rules", l.webA, a("10.87.17.6"), l.webB, v4("web", 80, 5), a("10.87.17.6")}})
	l.a.apply(l.a.rules())
	l.b.apply(l.b.rules())
	run(t, append(l.within(), []trip{
		{"of the other network", l.webA, a("10.87.17.6"), l.webB, v4("web", 80, 5), l.none},
		{"of the other network to itself", l.webA, a("10.87.17.6"), l.dbA, v4("db", 17, 5), l.none},
		{"of another host", l.webA, a("10.86.80.6"), l.a.machine, v4("web", 17, 1), l.none},
		{"of the internet", l.webA, l.out, l.webB, v4("web", 80, 5), l.none},
		{"of the other network, IPv6", l.webA, a("fd87:0:0:17::6"), l.webB, v6("web", 80, 5), l.none},
		{"of another host, IPv6", l.webA, a("fd86:0:0:80::6"), l.a.machine, v6("web", 17, 1), l.none},

		{"from the wire, of another host", l.outside, a("10.86.80.5"), l.webA, v4("web", 17, 5), l.none},
		{"from the wire, of our container", l.outside, a("10.86.17.6"), l.webA, v4("web", 17, 5), l.none},
		{"from the wire to the host", l.outside, a("10.86.80.5"), l.a.machine, a("192.0.2.1"), l.none},
		{"from the wire, IPv6", l.outside, a("fd86:0:0:80::5"), l.webA, v6("web", 17, 5), l.none},
	}...))
}

func TestMasquerade(t *testing.T) {
	l := newLab(t)
	l.a.apply(l.a.rules())
	run(t, append(l.within(), // not masqueraded
		trip{"to the outside", l.webA, v4("web", 17, 5), l.outside, l.out, netip.MustParseAddr("192.0.2.1")},
		trip{"to the outside, IPv6", l.webA, v6("web", 17, 5), l.outside, l.o, netip.MustParseAddr("2001:db8::1")},
		trip{"from the host", l.a.machine, netip.MustParseAddr("192.0.2.1"), l.outside, l.out, netip.MustParseAddr("192.0.2.1")},
	))
	echo(t, l.webA, v4("web", 17, 5), l.outside, l.out)
	echo(t, l.webA, v6("web", 17, 5), l.outside, l.o)

	without := l.a.rules()
	without.Masquerade = false
	l.a.apply(without)
	run(t, append(l.within(),
		trip{"to the outside, which knows the way back", l.webA, v4("web", 17, 5), l.outside, l.out, v4("web", 17, 5)},
		trip{"to the outside, IPv6", l.webA, v6("web", 17, 5), l.outside, l.o, v6("web", 17, 5)},
	))
	echo(t, l.webA, v4("web", 17, 5), l.outside, l.out)
}

// echo fails unless an answer comes back.
func echo(t *testing.T, src machine, from netip.Addr, dst machine, to netip.Addr) {
	t.Helper()
	var listener net.Listener
	dst.in(func() (err error) { listener, err = net.Listen("tcp", netip.AddrPortFrom(to, 0).String()); return err })
	defer listener.Close()
	go func() {
		if c, err := listener.Accept(); err == nil {
			_, _ = c.Write([]byte("!"))
			c.Close()
		}
	}()
	src.in(func() error {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: answerWithin}
		c, err := d.DialContext(t.Context(), "tcp", listener.Addr().String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
		return err
	})
}

// A host that knows the way to the containers gets no further than one that does
// not: to what they publish.
func TestFromOutside(t *testing.T) {
	l := newLab(t)
	run(t, []trip{{"without rules", l.outside, l.out, l.webA, v4("web", 17, 5), l.out}})
	l.a.apply(l.a.rules())
	run(t, []trip{
		{"to a container", l.outside, l.out, l.webA, v4("web", 17, 5), l.none},
		{"to a container, IPv6", l.outside, l.o, l.webA, v6("web", 17, 5), l.none},
		{"into the mesh", l.outside, l.out, l.webB, v4("web", 80, 5), l.none},
	})

	// As Docker publishes a port: host:8080 is 10.86.17.5, whichever port in
	// listens on.
	var in net.PacketConn
	l.webA.in(func() (err error) { in, err = net.ListenPacket("udp4", "10.86.17.5:8080"); return err })
	defer in.Close()
	l.a.publish(8080, v4("web", 17, 5))
	for _, p := range []struct {
		name string
		src  machine
		from netip.Addr
		to   string
	}{
		{"from outside", l.outside, l.out, "192.0.2.1:8080"},
		{"from another host", l.b.machine, v4("web", 80, 1), "10.86.17.1:8080"},
		{"from a container across", l.webB, v4("web", 80, 5), "10.86.17.1:8080"},
		{"from a host by the other network's address", l.b.machine, v4("db", 80, 1), "10.87.17.1:8080"},
	} {
		if got := sentTo(p.src, p.from, in, netip.MustParseAddrPort(p.to), patient); got != p.from {
			t.Errorf("published port %s: arrives from %s, want %s", p.name, got, p.from)
		}
	}
	if got := sentTo(l.webB, v4("web", 80, 5), in, netip.MustParseAddrPort("10.87.17.1:8080"), brief); got.IsValid() {
		t.Error("a published port leads from one network to another")
	}
}

// publish leads a UDP port of all of the host's addresses to a container.
func (h host) publish(port uint16, to netip.Addr) {
	h.Helper()
	h.in(func() error {
		c := new(nftables.Conn)
		table := c.AddTable(&nftables.Table{Name: "publish", Family: nftables.TableFamilyIPv4})
		chain := c.AddChain(&nftables.Chain{
			Name: "prerouting", Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Payload{Base: expr.PayloadBaseTransportHeader, DestRegister: 1, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(port >> 8), byte(port)}},
			&expr.Immediate{Register: 1, Data: to.AsSlice()},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(nftables.TableFamilyIPv4), RegAddrMin: 1},
		}})
		return c.Flush()
	})
}

// What is named as ours and belongs to no network carries nothing.
func TestUnassignedLink(t *testing.T) {
	l := newLab(t)
	stray := newMachine(t)
	pair(l.a.machine, "mv-stray", stray, "eth0", nil)
	l.a.address("mv-stray", pfx("198.51.100.1/24"))
	stray.address("eth0", pfx("198.51.100.5/24"))
	stray.route("eth0", "0.0.0.0/0", netip.MustParseAddr("198.51.100.1"))
	from := netip.MustParseAddr("198.51.100.5")
	run(t, []trip{{"without rules", stray, from, l.webA, v4("web", 17, 5), from}})
	l.a.apply(l.a.rules())
	run(t, []trip{
		{"to a container", stray, from, l.webA, v4("web", 17, 5), l.none},
		{"to its host", stray, from, l.a.machine, netip.MustParseAddr("198.51.100.1"), l.none},
		{"from a container", l.webA, v4("web", 17, 5), stray, from, l.none},
	})

	// ... until it does.
	rules := l.a.rules()
	for i := range rules.Segments {
		if s := &rules.Segments[i]; s.Name == "web" {
			s.Links = append(s.Links, "mv-stray")
		}
	}
	rules.Ports = append(rules.Ports, tun.Port{Name: "mv-stray", Addresses: []netip.Addr{netip.MustParseAddr("10.86.17.9")}})
	stray.address("eth0", pfx("10.86.17.9/32"))
	stray.address("eth0", pfx("10.86.17.5/32"))
	l.a.route("mv-stray", "10.86.17.9/32", netip.Addr{})
	l.a.apply(rules)
	at := netip.MustParseAddr("10.86.17.9")
	run(t, []trip{{"of the network", stray, at, l.webB, v4("web", 80, 5), at}, {"to it", l.webB, v4("web", 80, 5), stray, at, v4("web", 80, 5)},
		{"as another of the network", stray, v4("web", 17, 5), l.webB, v4("web", 80, 5), l.none}})
}

// A bridge in our own subnet that somebody else made works as long as no network
// of ours has links there, such as Docker's with --bip.
func TestForeignBridge(t *testing.T) {
	l := newLab(t)
	l.a.link("mbr-web", func(link netlink.Link) error { return netlink.LinkSetDown(link) })
	l.a.link("mbr-web", func(link netlink.Link) error { return netlink.LinkSetName(link, "docker0") })
	l.a.link("docker0", netlink.LinkSetUp)
	l.a.address("docker0", netip.PrefixFrom(v6("web", 17, 1), 64)) // lost with the link
	rules := l.a.rules()
	for i := range rules.Segments {
		if s := &rules.Segments[i]; s.Name == "web" {
			s.Links = nil
		}
	}
	l.a.apply(rules)
	l.b.apply(l.b.rules())
	run(t, []trip{
		{"across", l.webA, v4("web", 17, 5), l.webB, v4("web", 80, 5), v4("web", 17, 5)},
		{"back", l.webB, v4("web", 80, 5), l.webA, v4("web", 17, 5), v4("web", 80, 5)},
		{"to another network", l.webA, v4("web", 17, 5), l.dbA, v4("db", 17, 5), l.none},
		{"to another network across", l.webA, v4("web", 17, 5), l.dbB, v4("db", 80, 5), l.none},
	})
}

// Neighbours on a bridge talk without their host, and one of them lies.
func TestHostileNeighbour(t *testing.T) {
	l := newLab(t)
	evil := l.webA
	victim, other := v4("web", 17, 6), v4("web", 17, 7)
	victim6 := v6("web", 17, 6)
	third := l.a.container("web", 7)
	rules := l.a.rules()
	for n, c := range map[int]machine{5: l.webA, 6: l.webA2, 7: third} {
		rules.Ports = append(rules.Ports, tun.Port{
			Name: fmt.Sprintf("mv-web%d", n), MAC: c.mac(), Addresses: []netip.Addr{v4("web", 17, n), v6("web", 17, n)},
		})
	}
	rules.Ports = append(rules.Ports, tun.Port{Name: "mv-db5", MAC: l.dbA.mac(), Addresses: []netip.Addr{v4("db", 17, 5), v6("db", 17, 5)}})
	evil.address("lo", netip.PrefixFrom(v4("web", 17, 9), 32))
	evil.address("lo", netip.PrefixFrom(v6("web", 17, 9), 128))
	run(t, []trip{
		{"without rules", evil, v4("web", 17, 9), third, other, v4("web", 17, 9)},
		{"to get acquainted", evil, v6("web", 17, 5), third, v6("web", 17, 7), v6("web", 17, 5)},
		{"without rules, IPv6", evil, v6("web", 17, 9), third, v6("web", 17, 7), v6("web", 17, 9)},
	})
	l.a.apply(rules)
	run(t, append(l.within(), []trip{
		{"another's address", evil, v4("web", 17, 9), third, other, l.none},
		{"another's address, IPv6", evil, v6("web", 17, 9), third, v6("web", 17, 7), l.none},
		{"another's address to the host", evil, v4("web", 17, 9), l.a.machine, v4("web", 17, 1), l.none},
	}...))

	// It takes the victim's addresses: whoever asks for them finds the victim.
	evil.address("eth0", netip.PrefixFrom(victim, 32))
	evil.address("eth0", netip.PrefixFrom(victim6, 128))
	third.in(forgetNeighbours)
	for range 3 {
		evil.in(func() error { return announce(evil.mac(), victim) })
	}
	run(t, []trip{
		{"to the victim", third, other, l.webA2, victim, other},
		{"to the victim, IPv6", third, v6("web", 17, 7), l.webA2, victim6, v6("web", 17, 7)},
	})
	third.in(func() error {
		all, err := netlink.NeighList(0, netlink.FAMILY_ALL)
		for _, n := range all {
			if n.HardwareAddr.String() == evil.mac() && (n.IP.String() == victim.String() || n.IP.String() == victim6.String()) {
				t.Errorf("a neighbour believes that %s is at the liar's %s", n.IP, n.HardwareAddr)
			}
		}
		return err
	})

	// It takes the victim's MAC address: the bridge does not learn it.
	mac, err := net.ParseMAC(l.webA2.mac())
	if err != nil {
		t.Fatal(err)
	}
	evil.link("eth0", func(link netlink.Link) error { return netlink.LinkSetHardwareAddr(link, mac) })
	run(t, []trip{
		{"with another's MAC address", evil, v4("web", 17, 5), third, other, l.none},
		{"to the victim", third, other, l.webA2, victim, other},
	})
}
