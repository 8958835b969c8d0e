//go:build linux

package nft_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun"
	"meshd/tun/nft"
)

// attack is what a container sends that it must not, and the rules that keep it
// from arriving: without them it does.
type attack struct {
	name  string
	frame []byte
	rules []ruleAt
}

// ruleAt is a rule of ours by its place in its chain; from the end if negative.
type ruleAt struct {
	family nftables.TableFamily
	chain  string
	at     int
}

func onBridge(chain string, at int) []ruleAt {
	return []ruleAt{{nftables.TableFamilyBridge, chain, at}}
}

// remove takes rules away, as nobody should.
func (h host) remove(rules ...ruleAt) {
	h.Helper()
	h.in(func() error {
		c := new(nftables.Conn)
		for _, r := range rules {
			table := &nftables.Table{Name: nft.TableName, Family: r.family}
			all, err := c.GetRules(table, &nftables.Chain{Name: r.chain})
			at := r.at
			if at < 0 {
				at += len(all)
			}
			if err == nil && (at < 0 || at >= len(all)) {
				err = fmt.Errorf("%s has %d rules", r.chain, len(all))
			}
			if err != nil {
				return err
			}
			all[at].Table = table
			if err := c.DelRule(all[at]); err != nil {
				return err
			}
		}
		return c.Flush()
	})
}

// packets is a socket that sends and sees frames.
type packets struct {
	*testing.T
	fd int
}

func (m machine) packets() packets {
	m.Helper()
	p := packets{T: m.T}
	m.in(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in the order of the network
		p.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
		if err != nil {
			return err
		}
		tick := unix.Timeval{Usec: 20_000}
		return errors.Join(unix.Bind(p.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index}),
			unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tick))
	})
	m.Cleanup(func() { unix.Close(p.fd) })
	return p
}

func (p packets) send(frame []byte) {
	p.Helper()
	if _, err := unix.Write(p.fd, frame); err != nil {
		p.Fatal(err)
	}
}

// sees tells which of the marks is the first to come in a frame; -1: none within
// the time.
func (p packets) sees(within time.Duration, marks ...[]byte) int {
	p.Helper()
	buffer := make([]byte, 2048)
	for until := time.Now().Add(within); time.Now().Before(until); {
		n, _, err := unix.Recvfrom(p.fd, buffer, 0)
		if err != nil {
			continue
		}
		if i := slices.IndexFunc(marks, func(m []byte) bool { return bytes.Contains(buffer[:n], m) }); i >= 0 {
			return i
		}
	}
	return -1
}

// marked puts something behind a frame by which it is known.
func marked(frame []byte, n int) (with, mark []byte) {
	mark = fmt.Appendf(nil, "<mark %08d>", n)
	return append(slices.Clone(frame), mark...), mark
}

// Frames and packets, as their standards have them.

func ether(dst, src net.HardwareAddr, kind uint16, payload ...byte) []byte {
	return append(binary.BigEndian.AppendUint16(slices.Concat(dst, src), kind), payload...)
}

// tagged puts a VLAN tag into a frame; IEEE 802.1Q.
func tagged(kind, tag uint16, frame []byte) []byte {
	head := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(slices.Clone(frame[:12]), kind), tag)
	return append(head, frame[12:]...)
}

func arp(operation byte, mac net.HardwareAddr, ip netip.Addr, target netip.Addr) []byte {
	return slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, operation}, mac, ip.AsSlice(), make([]byte, 6), target.AsSlice())
}

func sum(parts ...[]byte) uint16 {
	var s uint32
	all := append(slices.Concat(parts...), 0)
	for i := 0; i+1 < len(all); i += 2 {
		s += uint32(binary.BigEndian.Uint16(all[i:]))
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

// ip makes a packet of either family.
func ip(src, dst netip.Addr, protocol byte, payload []byte) []byte {
	if src.Is4() {
		head := []byte{0x45, 0, 0, byte(20 + len(payload)), 0, 0, 0, 0, 64, protocol, 0, 0}
		head = slices.Concat(head, src.AsSlice(), dst.AsSlice())
		binary.BigEndian.PutUint16(head[10:], sum(head))
		return append(head, payload...)
	}
	head := []byte{0x60, 0, 0, 0, 0, byte(len(payload)), protocol, 255}
	return slices.Concat(head, src.AsSlice(), dst.AsSlice(), payload)
}

func udp(src, dst uint16) []byte {
	u := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, src), dst)
	return append(u, 0, 8, 0, 0)
}

// icmp6 makes a whole packet of it, by way of headers that are before it.
func icmp6(src, dst netip.Addr, before []byte, message ...byte) []byte {
	const protocol = protocolICMP6
	pseudo := slices.Concat(src.AsSlice(), dst.AsSlice(), []byte{0, 0, 0, byte(len(message)), 0, 0, 0, protocol})
	binary.BigEndian.PutUint16(message[2:], sum(pseudo, message))
	if len(before) == 0 {
		return ip(src, dst, protocol, message)
	}
	before = slices.Clone(before)
	first := before[0]
	before[0] = protocol
	return ip(src, dst, first, append(before, message...))
}

// target is a solicitation or an advertisement of a neighbour, with its MAC address
// as the option; RFC 4861, 4.3 and 4.4.
func target(kind byte, of netip.Addr, option byte, mac net.HardwareAddr) []byte {
	return slices.Concat([]byte{kind, 0, 0, 0, 0x20, 0, 0, 0}, of.AsSlice(), []byte{option, 1}, mac)
}

// router is the advertisement of one; RFC 4861, 4.2.
func router() []byte { return []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0} }

const (
	frameIP, frameARP, frameIPv6 = 0x0800, 0x0806, 0x86dd
	protocolUDP, protocolICMP6   = 17, 58
)

// crowdedBridge has three containers on host a with their ports checked: 5 is
// hostile, 6 is its neighbour.
func crowdedBridge(t *testing.T) (l lab, rules tun.Rules) {
	l = newLab(t)
	// Where br_netfilter is loaded, as Docker does, the host looks at these packets
	// a second time: here only what is checked on the bridge counts.
	l.a.in(func() error {
		for _, key := range []string{"iptables", "ip6tables", "arptables"} {
			err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+key, []byte("0"), 0)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	rules = l.a.rules()
	for name, c := range map[string]struct {
		m       machine
		network string
		n       int
	}{"mv-web5": {l.webA, "web", 5}, "mv-web6": {l.webA2, "web", 6}, "mv-db5": {l.dbA, "db", 5}} {
		rules.Ports = append(rules.Ports, tun.Port{
			Name: name, MAC: c.m.mac(), Addresses: []netip.Addr{v4(c.network, 17, c.n), v6(c.network, 17, c.n)},
		})
	}
	l.a.apply(rules)
	return l, rules
}

func (m machine) hardware(link string) (mac net.HardwareAddr) {
	m.Helper()
	m.link(link, func(l netlink.Link) error { mac = l.Attrs().HardwareAddr; return nil })
	return mac
}

// linkLocal gives the address of a container that the kernel made.
func (m machine) linkLocal() (local netip.Addr) {
	m.Helper()
	m.link("eth0", func(l netlink.Link) error {
		all, err := netlink.AddrList(l, netlink.FAMILY_V6)
		for _, a := range all {
			if a.IP.IsLinkLocalUnicast() {
				local, _ = netip.AddrFromSlice(a.IP)
			}
		}
		return err
	})
	return local
}

func TestHostileOnBridge(t *testing.T) {
	l, rules := crowdedBridge(t)
	evil, victim := l.webA.hardware("eth0"), l.webA2.hardware("eth0")
	everybody, allNodes := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	own, neighbour, gateway, stranger := v4("web", 17, 5), v4("web", 17, 6), v4("web", 17, 1), netip.MustParseAddr("198.51.100.7")
	own6, neighbour6, gateway6 := v6("web", 17, 5), v6("web", 17, 6), v6("web", 17, 1)
	nodes, local, none6 := netip.MustParseAddr("ff02::1"), l.webA.linkLocal(), netip.IPv6Unspecified()
	part := func(src, dst netip.Addr, of byte) []byte { // not the first; RFC 8200, 4.5
		return ether(victim, evil, frameIPv6, ip(src, dst, 44, []byte{of, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0})...)
	}
	none4 := netip.IPv4Unspecified()
	hello := func(src, dst netip.Addr) []byte { return ip(src, dst, protocolUDP, udp(9, 9)) }
	legit := ether(victim, evil, frameIP, hello(own, neighbour)...)
	behindOptions := []byte{60, 0, 1, 4, 0, 0, 0, 0} // destination options: padding

	attacks := []attack{
		{"source of a neighbour", ether(victim, evil, frameIP, hello(v4("web", 17, 9), neighbour)...), onBridge("ip", -1)},
		{"source of the gateway", ether(victim, evil, frameIP, hello(gateway, neighbour)...), onBridge("ip", -1)},
		{"source outside of the mesh", ether(victim, evil, frameIP, hello(stranger, neighbour)...), onBridge("ip", -1)},
		{"source of another host, IPv6", ether(victim, evil, frameIPv6, hello(v6("web", 80, 5), neighbour6)...), onBridge("ip6", -1)},
		{"source of the gateway, IPv6", ether(victim, evil, frameIPv6, hello(gateway6, neighbour6)...), onBridge("ip6", -1)},
		{"MAC address of a neighbour", ether(victim, l.a.hardware("mbr-web"), frameIP, hello(own, neighbour)...), onBridge("from_port", -1)},

		{"ARP answer for the gateway", ether(victim, evil, frameARP, arp(2, evil, gateway, neighbour)...), onBridge("arp_ip", -1)},
		{"ARP announcement for a neighbour", ether(everybody, evil, frameARP, arp(2, evil, v4("web", 17, 9), v4("web", 17, 9))...), onBridge("arp_ip", -1)},
		{"ARP question as the gateway", ether(everybody, evil, frameARP, arp(1, evil, gateway, neighbour)...), onBridge("arp_ip", -1)},
		{"ARP with a MAC address within", ether(victim, evil, frameARP, arp(2, victim, own, neighbour)...), onBridge("arp", -1)},
		{"ARP probe for a neighbour's address", ether(everybody, evil, frameARP, arp(1, evil, none4, neighbour)...), onBridge("arp_ip", -1)},

		{"advertisement of the gateway", ether(victim, evil, frameIPv6, icmp6(own6, neighbour6, nil, target(136, gateway6, 2, evil)...)...), onBridge("neighbour", -1)},
		{"advertisement of a neighbour", ether(allNodes, evil, frameIPv6, icmp6(local, nodes, nil, target(136, v6("web", 17, 9), 2, evil)...)...), onBridge("neighbour", -1)},
		{"advertisement behind options", ether(victim, evil, frameIPv6, icmp6(own6, neighbour6, behindOptions, target(136, gateway6, 2, evil)...)...), onBridge("neighbour", -1)},
		{"solicitation as the gateway", ether(victim, evil, frameIPv6, icmp6(gateway6, neighbour6, nil, target(135, neighbour6, 1, evil)...)...), onBridge("ip6", -1)},
		{"claim of a neighbour's address", ether(allNodes, evil, frameIPv6, icmp6(none6, nodes, nil, target(135, neighbour6, 1, evil)...)...), onBridge("neighbour", -1)},
		{"advertisement of a router", ether(allNodes, evil, frameIPv6, icmp6(local, nodes, nil, router()...)...), onBridge("ip6", 0)},
		{"advertisement of a router behind options", ether(allNodes, evil, frameIPv6, icmp6(local, nodes, behindOptions, router()...)...), onBridge("ip6", 0)},
		{"redirect", ether(victim, evil, frameIPv6, icmp6(local, neighbour6, nil, slices.Concat([]byte{137, 0, 0, 0, 0, 0, 0, 0}, own6.AsSlice(), gateway6.AsSlice())...)...), onBridge("ip6", 1)},

		{"link-local source of another", ether(victim, evil, frameIPv6, hello(netip.MustParseAddr("fe80::bad"), neighbour6)...), onBridge("ip6", -1)},
		{"advertisement of a link-local address", ether(victim, evil, frameIPv6, icmp6(own6, neighbour6, nil, target(136, l.webA2.linkLocal(), 2, evil)...)...), onBridge("neighbour", -1)},
		{"part of what a router says", part(local, neighbour6, protocolICMP6), onBridge("ip6", 5)},
		{"part of what nobody says", part(none6, neighbour6, protocolICMP6), onBridge("ip6", 6)},
		{"part for all nodes", part(own6, nodes, protocolICMP6), onBridge("ip6", 7)},
		{"part of options", part(own6, neighbour6, 60), onBridge("ip6", -1)},
		{"headers without an end", ether(victim, evil, frameIPv6, ip(own6, neighbour6, 60, []byte{60, 0, 1, 4, 0, 0, 0, 0})...), onBridge("ip6", -1)},

		{"answer of a DHCP server", ether(everybody, evil, frameIP, ip(own, netip.MustParseAddr("255.255.255.255"), protocolUDP, udp(67, 68))...), onBridge("ip", 0)},
		{"answer of a DHCPv6 server", ether(victim, evil, frameIPv6, ip(local, neighbour6, protocolUDP, udp(547, 546))...), onBridge("ip6", 2)},

		{"unknown protocol", ether(victim, evil, 0x88b5, make([]byte, 46)...), onBridge("ethernet", -1)},
		{"length instead of a protocol", ether(victim, evil, 46, make([]byte, 46)...), onBridge("ethernet", -1)},
		{"VLAN tag", tagged(0x8100, 5, legit), onBridge("ethernet", -1)},
		{"VLAN tag of nothing but a priority", tagged(0x8100, 7<<13, ether(victim, evil, frameIP, hello(gateway, neighbour)...)), onBridge("ethernet", -1)},
		{"VLAN tag of a provider", tagged(0x88a8, 5, legit), onBridge("ethernet", -1)},
		{"two VLAN tags", tagged(0x88a8, 5, tagged(0x8100, 6, legit)), onBridge("ethernet", -1)},
		{"IPv6 as IPv4", ether(victim, evil, frameIP, hello(own6, neighbour6)...), onBridge("ip", -1)},
		{"IPv4 as IPv6", ether(victim, evil, frameIPv6, append(hello(own, neighbour), make([]byte, 40)...)...), onBridge("ip6", -1)},
		{"IPv4 as ARP", ether(victim, evil, frameARP, hello(own, neighbour)...), onBridge("arp", -1)},
	}
	out, in := l.webA.packets(), l.webA2.packets()
	for i, frame := range [][]byte{
		part(own6, neighbour6, protocolUDP),
		ether(victim, evil, frameIPv6, icmp6(local, neighbour6, nil, target(135, neighbour6, 1, evil)...)...),
		ether(victim, evil, frameIPv6, icmp6(own6, neighbour6, nil, target(136, local, 2, evil)...)...),
	} {
		frame, mark := marked(frame, -i)
		out.send(frame)
		if in.sees(5*time.Second, mark) != 0 {
			t.Errorf("what may pass does not: %x", frame)
		}
	}
	n := 0
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			out, in := packets{t, out.fd}, packets{t, in.fd}
			// What is sent later comes later: when that is there, this will not come.
			n += 2
			frame, mark := marked(a.frame, n)
			after, end := marked(legit, n+1)
			out.send(frame)
			out.send(after)
			if got := in.sees(5*time.Second, mark, end); got != 1 {
				t.Errorf("it arrives: %t; what may pass arrives: %t", got == 0, got >= 0)
			}
			l.a.T = t
			l.a.remove(a.rules...)
			defer l.a.apply(rules)
			out.send(frame)
			if in.sees(5*time.Second, mark) != 0 {
				t.Errorf("it does not arrive without the rules %v either: they are not what keeps it off", a.rules)
			}
		})
	}
}

// A bridge takes notice of frames that it never forwards, and that no firewall sees,
// such as those of LLDP (IEEE 802.1Q, 8.6.3).
func TestHostileUnseen(t *testing.T) {
	l, _ := crowdedBridge(t)
	victim, gateway := l.webA2.hardware("eth0"), l.a.hardware("mbr-web")
	out, in := l.webA.packets(), l.webA2.packets()
	unseen := func(src net.HardwareAddr) []byte {
		return ether(net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, 0x0e}, src, 0x88cc, make([]byte, 46)...)
	}
	in.send(ether(gateway, victim, frameIP, ip(v4("web", 17, 6), v4("web", 17, 1), protocolUDP, udp(9, 9))...))
	sent(l.a.machine, v4("web", 17, 1), l.webA2, v4("web", 17, 6), patient)
	mark := []byte("<for the victim>")
	for range brief {
		out.send(unseen(victim))
		l.a.in(func() error {
			c, err := net.Dial("udp", netip.AddrPortFrom(v4("web", 17, 6), 9).String())
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write(mark)
			return err
		})
		if in.sees(time.Second, mark) != 0 {
			t.Error("what is for the victim does not arrive there")
		}
	}
	if out.sees(100*time.Millisecond, mark) == 0 {
		t.Error("what is for the victim arrives at its neighbour, which took its MAC address")
	}

	for n := range 100 {
		out.send(unseen(net.HardwareAddr{2, 0xee, 0, 0, 0, byte(n)}))
	}
	l.a.link("mbr-web", func(bridge netlink.Link) error {
		all, err := netlink.NeighList(0, unix.AF_BRIDGE)
		for _, n := range all {
			if n.MasterIndex == bridge.Attrs().Index && bytes.HasPrefix(n.HardwareAddr, []byte{2, 0xee}) {
				t.Errorf("the bridge has learned %s", n.HardwareAddr)
				break
			}
		}
		return err
	})
}

// A host knows so many neighbours and no more: none makes some up.
func TestHostileCrowd(t *testing.T) {
	l, rules := crowdedBridge(t)
	alone := newMachine(t)
	pair(l.a.machine, "mv-alone", alone, "eth0", nil)
	l.a.address("mv-alone", pfx("fd86:0:0:17::1/128"))
	ask := func(m machine, link string, src netip.Addr) {
		own, gateway := m.hardware("eth0"), v6("web", 17, 1)
		m.packets().send(ether(l.a.hardware(link), own, frameIPv6, icmp6(src, gateway, nil, target(135, gateway, 1, own)...)...))
	}
	knows := func(link string, a netip.Addr) (known bool) {
		l.a.link(link, func(l netlink.Link) error {
			all, err := netlink.NeighList(l.Attrs().Index, netlink.FAMILY_V6)
			known = slices.ContainsFunc(all, func(n netlink.Neigh) bool { return n.IP.String() == a.String() })
			return err
		})
		return known
	}
	none := netip.MustParseAddr("fe80::bad")
	l.a.apply(tun.Rules{})
	ask(alone, "mv-alone", none)
	for range patient {
		if knows("mv-alone", none) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if !knows("mv-alone", none) {
		t.Error("without rules the host does not learn of it either")
	}
	l.a.in(forgetNeighbours)

	for i := range rules.Segments {
		if s := &rules.Segments[i]; s.Name == "web" {
			s.Links = append(s.Links, "mv-alone")
		}
	}
	rules.Ports = append(rules.Ports, tun.Port{Name: "mv-alone", MAC: alone.mac()})
	l.a.apply(rules)
	for link, m := range map[string]machine{"mv-alone": alone, "mbr-web": l.webA} {
		ask(m, link, none)
		ask(m, link, m.linkLocal()) // what comes later is looked at later
		for range patient {
			if knows(link, m.linkLocal()) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if !knows(link, m.linkLocal()) || knows(link, none) {
			t.Errorf("of %s the host knows the container: %t, what it made up: %t", link, knows(link, m.linkLocal()), knows(link, none))
		}
	}
}

// What leaves the bridge or comes from a port that is on none is checked by the
// host, and in both directions.
func TestHostileThroughHost(t *testing.T) {
	l, rules := crowdedBridge(t)
	alone := newMachine(t)
	pair(l.a.machine, "mv-alone", alone, "eth0", nil)
	for i := range rules.Segments {
		if s := &rules.Segments[i]; s.Name == "web" {
			s.Links = append(s.Links, "mv-alone")
		}
	}
	rules.Ports = append(rules.Ports, tun.Port{Name: "mv-alone", MAC: alone.mac(), Addresses: []netip.Addr{v4("web", 17, 9), v6("web", 17, 9)}})
	l.a.route("mv-alone", "10.86.17.9/32", netip.Addr{})
	l.a.route("mv-alone", "fd86:0:0:17::9/128", netip.Addr{})
	l.a.apply(rules)
	inet := func(chain string, at int) ruleAt { return ruleAt{nftables.TableFamilyINet, chain, at} }
	hello := func(src, dst netip.Addr) []byte { return ip(src, dst, protocolUDP, udp(9, 9)) }
	send := func(m machine, link string, packet []byte) []byte {
		kind := uint16(frameIP)
		if packet[0]>>4 == 6 {
			kind = frameIPv6
		}
		return ether(l.a.hardware(link), m.hardware("eth0"), kind, packet...)
	}
	for _, a := range []struct {
		attack
		from, at machine
	}{
		{attack{"alone, as a neighbour", send(alone, "mv-alone", hello(v4("web", 17, 8), v4("web", 17, 6))), []ruleAt{inet("from_port", -1)}}, alone, l.webA2},
		{attack{"alone, as a neighbour, IPv6", send(alone, "mv-alone", hello(v6("web", 17, 8), v6("web", 17, 6))), []ruleAt{inet("from_port", -1)}}, alone, l.webA2},
		{attack{"alone, as a neighbour across", send(alone, "mv-alone", hello(v4("web", 17, 8), v4("web", 80, 5))), []ruleAt{inet("from_port", -1)}}, alone, l.webB},
		{attack{"scan of another network", send(l.webA, "mbr-web", hello(v4("web", 17, 5), v4("db", 17, 5))), []ruleAt{inet("from-web", 1), inet("to-db", -1)}}, l.webA, l.dbA},
		{attack{"scan of another network, IPv6", send(l.webA, "mbr-web", hello(v6("web", 17, 5), v6("db", 17, 5))), []ruleAt{inet("from-web", 2), inet("to-db", -1)}}, l.webA, l.dbA},
		{attack{"scan of another network across", send(l.webA, "mbr-web", hello(v4("web", 17, 5), v4("db", 80, 5))), []ruleAt{inet("from-web", 1), inet("to_mesh", -1)}}, l.webA, l.dbB},
	} {
		t.Run(a.name, func(t *testing.T) {
			l.a.T, a.from.T, a.at.T = t, t, t
			frame, mark := a.frame, []byte("<mark 0>")
			// Within the packet, or a router cuts it off.
			if head := 14; frame[head]>>4 == 4 {
				frame = slices.Clone(append(frame, mark...))
				frame[head+3] += byte(len(mark))
				frame[head+10], frame[head+11] = 0, 0
				binary.BigEndian.PutUint16(frame[head+10:], sum(frame[head:head+20]))
			} else {
				frame = slices.Clone(append(frame, mark...))
				frame[head+5] += byte(len(mark))
			}
			out, in := a.from.packets(), a.at.packets()
			for range brief {
				out.send(frame)
			}
			if in.sees(brief*100*time.Millisecond, mark) >= 0 {
				t.Error("it arrives")
			}
			l.a.remove(a.rules...)
			defer l.a.apply(rules)
			got := -1
			for range patient { // the host has to find the way
				if out.send(frame); got < 0 {
					got = in.sees(100*time.Millisecond, mark)
				}
				if got == 0 {
					return
				}
			}
			t.Errorf("it does not arrive without the rules %v either: they are not what keeps it off", a.rules)
		})
	}
}
