//go:build linux

package hostnet_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun"
	"meshd/tun/inside"
	"meshd/tun/netns"
	"meshd/tun/nft"
)

// machine is a namespace that sends and receives.
type machine struct {
	name string
	in   func(func() error) error
}

// into moves the other end of a port into a new container and sets it up as the
// doors do.
func (h host) into(p tun.Port, gateways ...netip.Addr) machine {
	h.Helper()
	c := netns.ForTest(h.TB)
	want := inside.Link{Peer: p.Peer, Name: "eth0", MAC: p.MAC, MTU: p.MTU, Gateways: gateways, Default: true}
	for _, a := range p.Addresses {
		want.Addresses = append(want.Addresses, netip.PrefixFrom(a, a.BitLen()))
	}
	h.in(func() error { return inside.Put(h.Context(), c.Path(), want) })
	return machine{p.Peer, c.Do}
}

func (h host) itself() machine { return machine{"the host", h.ns.Do} }

// wantEcho fails unless a packet gets from one machine to the other and an answer
// comes back.
func (h host) wantEcho(src machine, from netip.Addr, dst machine, to netip.Addr) {
	h.Helper()
	var err error
	for range tries {
		if err = echo(src, from, dst, to); err == nil {
			return
		}
	}
	h.Errorf("from %s (%s) to %s (%s): %v", src.name, from, dst.name, to, err)
}

// A packet may be late on a busy machine, and be lost where the kernel asks for a
// neighbour again after a second.
const (
	tries = 5
	soon  = 1500 * time.Millisecond
)

var errLost = errors.New("the packet does not arrive")

func echo(src machine, from netip.Addr, dst machine, to netip.Addr) error {
	listen := func(m machine, a netip.Addr) (c net.PacketConn, err error) {
		err = m.in(func() error { c, err = net.ListenPacket("udp", netip.AddrPortFrom(a, 0).String()); return err })
		return c, err
	}
	server, err := listen(dst, to)
	if err != nil {
		return err
	}
	defer server.Close()
	client, err := listen(src, from)
	if err != nil {
		return err
	}
	defer client.Close()
	deadline := time.Now().Add(soon)
	err = errors.Join(server.SetDeadline(deadline), client.SetDeadline(deadline))
	if _, sendErr := client.WriteTo([]byte("ping"), server.LocalAddr()); err == nil {
		err = sendErr
	}
	if err != nil {
		return err
	}
	buffer := make([]byte, 8)
	_, seen, err := server.ReadFrom(buffer)
	if err != nil {
		return errors.Join(errLost, err)
	}
	if seen.String() != client.LocalAddr().String() {
		return errors.New("the packet comes as " + seen.String())
	}
	if _, err := server.WriteTo([]byte("pong"), seen); err != nil {
		return err
	}
	if _, _, err = client.ReadFrom(buffer); errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("the answer does not arrive")
	}
	return err
}

// gateways are the host's addresses in the subnet of full.
func gateways() []netip.Addr { return []netip.Addr{addr("10.86.17.1"), addr("fd12:3456:789a:11::1")} }

// A container without a bridge finds its host, and through it others, though it
// shares no subnet with it, whatever the host's defaults are.
func TestReachPTP(t *testing.T) {
	for name, set := range map[string]map[string]string{
		"defaults": {},
		"hardened": {
			"net/ipv4/conf/all/arp_ignore": "1", "net/ipv4/conf/all/rp_filter": "1",
			"net/ipv6/conf/default/disable_ipv6": "1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			for key, value := range set {
				h.setSysctl(key, value)
			}
			h.addTUN("mesh0")
			h.apply(full())
			a, b := port("a", tun.PortPTP, ""), port("b", tun.PortPTP, "")
			a.Gateways, b.Gateways = gateways(), gateways()
			b.MAC, b.Addresses = "02:00:0a:56:11:06", []netip.Addr{addr("10.86.17.6"), addr("fd12:3456:789a:11::6")}
			h.addPort(a)
			h.addPort(b)
			h.addPort(b)
			inA, inB := h.into(a, gateways()...), h.into(b, gateways()...)
			for i, gateway := range gateways() {
				h.wantEcho(inA, a.Addresses[i], h.itself(), gateway)
				h.wantEcho(h.itself(), gateway, inB, b.Addresses[i])
				h.wantEcho(inA, a.Addresses[i], inB, b.Addresses[i])
			}
			void := a
			void.Addresses, void.Gateways = nil, nil
			h.addPort(void)
			for i, gateway := range gateways() {
				if err := echo(h.itself(), gateway, inA, a.Addresses[i]); err == nil {
					t.Errorf("the host leads to %s, which may be another host's", a.Addresses[i])
				}
			}
			h.addPort(a)
			for i, gateway := range gateways() {
				h.wantEcho(h.itself(), gateway, inA, a.Addresses[i])
			}
			h.delPort(a)
			for i, gateway := range gateways() {
				h.wantEcho(inB, b.Addresses[i], h.itself(), gateway) // that has lost it on one link
			}
			h.apply(full())
			h.in(func() error {
				_, err := netlink.LinkByName("mv-a")
				if err == nil {
					t.Error("the removed port is there")
				}
				return nil
			})
		})
	}
}

// withLAN is full, with containers that have links of their own on eth0.
func withLAN(containers ...tun.Port) tun.HostState {
	s := withBridge()
	l := tun.LAN{Kind: containers[0].Kind, Name: "mv-lan-x", Parent: "eth0", MTU: 1420, Addresses: gateways()}
	for _, p := range containers {
		l.Containers = append(l.Containers, p.Addresses...)
	}
	s.LANs = []tun.LAN{l}
	return s
}

// rulesFor are those of a host with withLAN.
func rulesFor(containers ...tun.Port) tun.Rules {
	r := tun.Rules{Link: "mesh0", Masquerade: true, Segments: []tun.Segment{{
		Name: "default", Ranges: prefixes("10.86.0.0/16", "fd12:3456:789a::/48"),
		Own: prefixes("10.86.17.0/24", "fd12:3456:789a:11::/64"), Links: []string{"mbr-default", "mv-lan-x"},
	}}}
	for _, p := range containers {
		if p.Kind == tun.PortMACVLAN || p.Kind == tun.PortIPVLAN {
			p.Name = "mv-lan-x"
		}
		r.Ports = append(r.Ports, p)
	}
	return r
}

// joined is a host on a wire, by eth0, and in a mesh with another, by something
// like a TUN device.
func joined(t *testing.T) (h host, wire, member machine) {
	h = newHost(t)
	pair := func(name string, mac net.HardwareAddr) (other *netns.NS) {
		other = netns.ForTest(t)
		f, err := os.Open(other.Path())
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		h.in(func() error {
			v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: mac}, PeerName: name, PeerHardwareAddr: mac, PeerNamespace: netlink.NsFd(f.Fd())}
			return errors.Join(netlink.LinkAdd(v), netlink.LinkSetUp(v))
		})
		return other
	}
	set := func(in func(func() error) error, name string, addrs, routes []string) {
		err := in(func() error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			err = netlink.LinkSetUp(l)
			for _, a := range addrs {
				parsed, parseErr := netlink.ParseAddr(a)
				if parseErr != nil {
					return parseErr
				}
				parsed.Flags = unix.IFA_F_NODAD
				err = errors.Join(err, netlink.AddrAdd(l, parsed))
			}
			for _, r := range routes {
				_, dst, parseErr := net.ParseCIDR(r)
				err = errors.Join(err, parseErr, netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst}))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	onWire, inMesh := pair("eth0", nil), pair("mesh0", net.HardwareAddr{2, 0, 0, 0, 0, 1})
	for _, in := range []func(func() error) error{h.ns.Do, inMesh.Do} {
		err := in(func() error {
			l, err := netlink.LinkByName("mesh0")
			return errors.Join(err, netlink.LinkSetARPOff(l))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	set(h.ns.Do, "eth0", []string{"192.0.2.1/24", "2001:db8::1/64"}, nil)
	set(onWire.Do, "eth0", []string{"192.0.2.99/24", "2001:db8::99/64"}, nil)
	set(inMesh.Do, "mesh0", []string{"10.86.80.1/32", "fd12:3456:789a:50::1/128"}, []string{"10.86.0.0/16", "fd12:3456:789a::/48"})
	return h, machine{"the wire", onWire.Do}, machine{"a member", inMesh.Do}
}

// A container with a link of its own on a physical one is in the mesh all the
// same, beside a bridge of the same network.
func TestReachLAN(t *testing.T) {
	for _, kind := range []tun.PortKind{tun.PortMACVLAN, tun.PortIPVLAN} {
		t.Run(string(kind), func(t *testing.T) { reachLAN(t, kind) })
	}
}

// requireKind skips where the kernel has no such links.
func (h host) requireKind(kind tun.PortKind) {
	h.Helper()
	if kind != tun.PortIPVLAN {
		return
	}
	parent := h.find("eth0").Attrs().Index
	err := h.ns.Do(func() error {
		l := &netlink.IPVlan{LinkAttrs: netlink.LinkAttrs{Name: "try", ParentIndex: parent}}
		if err := netlink.LinkAdd(l); err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		h.Skip("the kernel has no ipvlan (module ipvlan)")
	}
	if err != nil {
		h.Fatal(err)
	}
}

func reachLAN(t *testing.T, kind tun.PortKind) {
	h, wire, member := joined(t)
	h.requireKind(kind)
	a, b := port("a", kind, "eth0"), port("b", kind, "eth0")
	b.MAC, b.Addresses = "02:00:0a:56:11:06", []netip.Addr{addr("10.86.17.6"), addr("fd12:3456:789a:11::6")}
	firewall := nft.New(nft.Options{Namespace: h.ns.Do})
	if err := firewall.Apply(t.Context(), rulesFor(a, b)); err != nil {
		t.Fatal(err)
	}
	h.apply(withLAN(a, b))
	h.addPort(a)
	h.addPort(b)
	inA, inB := h.into(a, gateways()...), h.into(b, gateways()...)
	there := []netip.Addr{addr("10.86.80.1"), addr("fd12:3456:789a:50::1")}
	onWire, host := []netip.Addr{addr("192.0.2.99"), addr("2001:db8::99")}, []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")}
	all := func() {
		t.Helper()
		for i, gateway := range gateways() {
			h.wantEcho(member, there[i], inA, a.Addresses[i])
			h.wantEcho(inB, b.Addresses[i], member, there[i])
			h.wantEcho(inA, a.Addresses[i], h.itself(), gateway)
			h.wantEcho(h.itself(), gateway, inB, b.Addresses[i])
			h.wantEcho(inA, a.Addresses[i], inB, b.Addresses[i])
			h.wantEcho(wire, onWire[i], h.itself(), host[i])
			h.wantEcho(h.itself(), host[i], wire, onWire[i])
		}
	}
	all()
	before := h.show()
	h.apply(withLAN(a, b))
	if again := h.show(); again != before {
		t.Errorf("applied again it is\n%swas\n%s", again, before)
	}
	// Who is on the wire finds the host by its own link, however often it asks: the
	// other one takes nothing but what comes from containers.
	if v := h.sysctl("net/ipv4/conf/mv-lan-x/arp_ignore"); v != "1" {
		t.Errorf("arp_ignore = %s", v)
	}
	eth0 := h.find("eth0").Attrs().HardwareAddr.String()
	for range 5 {
		err := wire.in(func() error {
			all, err := netlink.NeighList(0, netlink.FAMILY_ALL)
			for _, n := range all {
				if (n.IP.Equal(host[0].AsSlice()) || n.IP.Equal(host[1].AsSlice())) && n.HardwareAddr.String() != eth0 {
					t.Errorf("on the wire %s is at %s, want %s", n.IP, n.HardwareAddr, eth0)
				}
				err = errors.Join(err, netlink.NeighDel(&n))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		h.wantEcho(wire, onWire[0], h.itself(), host[0])
	}
	// Who is on the wire gets no further by that link.
	mac := h.find("mv-lan-x").Attrs().HardwareAddr
	err := wire.in(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for i, gateway := range gateways() {
			_, dst, parseErr := net.ParseCIDR([...]string{"10.86.0.0/16", "fd12:3456:789a::/48"}[i])
			err = errors.Join(err, parseErr,
				netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: gateway.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT}),
				netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Gw: gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, gateway := range gateways() {
		for _, to := range []struct {
			machine
			netip.Addr
		}{{h.itself(), gateway}, {member, there[i]}} {
			if err := echo(wire, onWire[i], to.machine, to.Addr); !errors.Is(err, errLost) {
				t.Errorf("from the wire (%s) to %s (%s): %v, want %v", onWire[i], to.name, to.Addr, err, errLost)
			}
		}
	}
	// What others undo is repaired.
	h.in(func() error {
		l, err := netlink.LinkByName("mv-lan-x")
		return errors.Join(err, netlink.LinkSetDown(l))
	})
	h.apply(withLAN(a, b))
	all()
	if err := netlinkDel(h, "mv-lan-x"); err != nil {
		t.Fatal(err)
	}
	h.apply(withLAN(a, b))
	all()

	h.apply(withBridge())
	if h.find("mv-lan-x") != nil {
		t.Error("a link stays that nobody wants")
	}
	h.apply(withLAN(a, b))
	removed := h.cleanup()
	if !slices.Contains(removed, "ip link del mv-lan-x") || h.find("mv-lan-x") != nil || h.find("eth0") == nil {
		t.Errorf("cleanup removed %q", removed)
	}
}

func netlinkDel(h host, name string) error {
	return h.ns.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
}

// A parent that is not there is no reason to leave the rest.
func TestLANWithoutParent(t *testing.T) {
	h := newHost(t)
	h.addTUN("mesh0")
	h.apply(withLAN(port("a", tun.PortMACVLAN, "eth0")))
	if h.find("mv-lan-x") != nil || h.find("mbr-default") == nil {
		t.Error("not the link alone is missing")
	}
}

// Containers of one network find each other however they hang on the host.
func TestReachBesideBridge(t *testing.T) {
	h, _, _ := joined(t)
	bridged, alone, lan := port("a", tun.PortBridge, "mbr-default"), port("b", tun.PortPTP, ""), port("c", tun.PortMACVLAN, "eth0")
	alone.MAC, alone.Addresses = "02:00:0a:56:11:06", []netip.Addr{addr("10.86.17.6"), addr("fd12:3456:789a:11::6")}
	lan.MAC, lan.Addresses = "02:00:0a:56:11:07", []netip.Addr{addr("10.86.17.7"), addr("fd12:3456:789a:11::7")}
	alone.Gateways = gateways()
	rules := rulesFor(bridged, alone, lan)
	rules.Segments[0].Links = append(rules.Segments[0].Links, alone.Name)
	if err := nft.New(nft.Options{Namespace: h.ns.Do}).Apply(t.Context(), rules); err != nil {
		t.Fatal(err)
	}
	want := withLAN(lan)
	want.Bridges[0].Beside = slices.Concat(alone.Addresses, lan.Addresses)
	want.LANs[0].Beside = slices.Concat(bridged.Addresses, alone.Addresses)
	h.apply(want)
	ports := []tun.Port{bridged, alone, lan}
	var in []machine
	for _, p := range ports {
		h.addPort(p)
		m := h.into(p, gateways()...)
		in = append(in, m)
		if p.Kind == tun.PortPTP {
			continue
		}
		// As some doors do it: the subnet is on the link.
		err := m.in(func() error {
			l, err := netlink.LinkByName("eth0")
			for i, a := range p.Addresses {
				bits := []int{24, 64}[i]
				dst := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
				dst.IP = dst.IP.Mask(dst.Mask)
				err = errors.Join(err, netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range gateways() {
		for a, from := range in {
			for b, to := range in {
				if a != b {
					h.wantEcho(from, ports[a].Addresses[i], to, ports[b].Addresses[i])
				}
			}
		}
	}
	beside := func() (n int) {
		h.in(func() error {
			for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
				all, err := netlink.NeighProxyList(0, family)
				if err != nil {
					return err
				}
				n += len(all)
			}
			return nil
		})
		return n
	}
	if n := beside(); n != 8 {
		t.Errorf("the host answers for %d addresses, want 8", n)
	}
	h.apply(withLAN(lan))
	if n := beside(); n != 0 {
		t.Errorf("the host answers for %d addresses, want none", n)
	}
}
