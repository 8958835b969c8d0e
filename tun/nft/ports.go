//go:build linux

package nft

import (
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"meshd/tun"
)

// bridged is our table for what passes a bridge, where neighbours talk without
// their host: a port sends as its container, and as nobody else.
var bridged = &nftables.Table{Name: TableName, Family: nftables.TableFamilyBridge}

// Names of sets: what may be said to come from a port.
const (
	macs, addresses4, addresses6 = "macs", "addresses4", "addresses6"
	internal4, internal6         = "internal4", "internal6"
)

// Fields of packets: IEEE 802.3; RFC 791; RFC 826, for Ethernet and IPv4; RFC
// 8200; RFC 4861.
var (
	etherSource = field{expr.PayloadBaseLLHeader, 6, 6, "ether saddr"}
	etherType   = field{expr.PayloadBaseLLHeader, 12, 2, "ether type"}
	ipSource    = field{expr.PayloadBaseNetworkHeader, 12, 4, "ip saddr"}
	arpMAC      = field{expr.PayloadBaseNetworkHeader, 8, 6, "arp saddr ether"}
	arpIP       = field{expr.PayloadBaseNetworkHeader, 14, 4, "arp saddr ip"}
	arpTarget   = field{expr.PayloadBaseNetworkHeader, 24, 4, "arp daddr ip"}
	ip6Source   = field{expr.PayloadBaseNetworkHeader, 8, 16, "ip6 saddr"}
	ip6Target   = field{expr.PayloadBaseNetworkHeader, 24, 1, "ip6 daddr"} // its first byte
	icmp6Type   = field{expr.PayloadBaseTransportHeader, 0, 1, "icmpv6 type"}
	icmp6Target = field{expr.PayloadBaseTransportHeader, 8, 16, "icmpv6 taddr"}
	ports       = field{expr.PayloadBaseTransportHeader, 0, 4, "udp"} // source and destination
)

var (
	fromLinkLocal = is{field{ip6Source.base, ip6Source.offset, 2, ip6Source.text}, []byte{0xfe, 0x80}, "fe80::/16"} // RFC 4291, 2.5.6
	fromNobody    = is{ip6Source, make([]byte, 16), "::"}
	toMany        = is{ip6Target, []byte{0xff}, "ff00::/8"}
)

const (
	overIP   = protocol(unix.ETH_P_IP)
	overIPv6 = protocol(unix.ETH_P_IPV6)
	udp      = carries(unix.IPPROTO_UDP)
	icmp6    = carries(unix.IPPROTO_ICMPV6)
)

var (
	protocols  = map[protocol]string{overIP: "ip", overIPv6: "ip6"}
	transports = map[carries]string{udp: "udp", icmp6: "ipv6-icmp"}
)

// What a frame carries, by its own word. The kernel's, which is protocol, is that
// of what a VLAN tag covers.
var (
	frameOfIP   = is{etherType, []byte{0x08, 0x00}, "ip"}
	frameOfARP  = is{etherType, []byte{0x08, 0x06}, "arp"}
	frameOfIPv6 = is{etherType, []byte{0x86, 0xdd}, "ip6"}
)

// What servers send to clients that ask for an address; RFC 2131, RFC 9915.
var (
	fromDHCP  = is{ports, []byte{0, 67, 0, 68}, "sport 67 udp dport 68"}
	fromDHCP6 = is{ports, []byte{2, 35, 2, 34}, "sport 547 udp dport 546"}
)

var arrivingAtBridge = &hook{nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -300, "dstnat"}

// held are the sets of what belongs to ports.
func held(ports []tun.Port) (mac, of4, of6 set) {
	mac, of4, of6 = set{name: macs, also: nftables.TypeEtherAddr}, set{name: addresses4, also: nftables.TypeIPAddr}, set{name: addresses6, also: nftables.TypeIP6Addr}
	for _, p := range ports {
		if m := macOf(p); m != nil { // else it sends nothing
			mac.elements = append(mac.elements, element{p.Name, m})
		}
		for _, a := range append(linkLocalOf(p), p.Addresses...) {
			of := &of4
			if a.Is6() {
				of = &of6
			}
			of.elements = append(of.elements, element{p.Name, a.AsSlice()})
		}
	}
	return mac, of4, of6
}

// internals are the sets of the addresses that get no further than their segment,
// each with the link by which its packets come to the host.
func internals(ports []tun.Port) (of4, of6 set) {
	of4, of6 = set{name: internal4, also: nftables.TypeIPAddr}, set{name: internal6, also: nftables.TypeIP6Addr}
	for _, p := range ports {
		link := p.Name
		if p.Kind == tun.PortBridge {
			link = p.Parent
		}
		for _, a := range p.Addresses {
			switch {
			case !p.Internal:
			case a.Is4():
				of4.elements = append(of4.elements, element{link, a.AsSlice()})
			default:
				of6.elements = append(of6.elements, element{link, a.AsSlice()})
			}
		}
	}
	return of4, of6
}

// macOf gives a port's MAC address, nil if it has none.
func macOf(p tun.Port) net.HardwareAddr {
	if m, err := net.ParseMAC(p.MAC); err == nil && len(m) == 6 {
		return m
	}
	return nil
}

// linkLocalOf gives the address that the kernel gives a link by its MAC address; RFC
// 4291, appendix A.
func linkLocalOf(p tun.Port) []netip.Addr {
	m := macOf(p)
	if m == nil {
		return nil
	}
	return []netip.Addr{netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})}
}

func interfaces(name string, links []string) set {
	s := set{name: name}
	for _, l := range links {
		s.elements = append(s.elements, element{name: l})
	}
	return s
}

// portIn is for what comes from a port that is on no bridge. Of a physical link we do
// not know who is there.
func portIn() chain {
	return chain{name: fromPort, rules: []rule{
		back(overIP, holder{ipSource, addresses4}),
		back(overIPv6, holder{ip6Source, addresses6}), back(in(tun.LANPrefix+"*"), from(linkLocal)), back(from(unspecified)),
		drop(),
	}}
}

// compileBridge is for what containers send on bridges. No host pays for it that has
// never had any.
func compileBridge(want tun.Rules) ruleset {
	if len(want.Ports) == 0 {
		return ruleset{table: bridged}
	}
	return bridgeFor(want.Ports)
}

// bridgeFor says in rules of the kernel what ports may send; what is on a bridge and
// none of them sends nothing.
func bridgeFor(senders []tun.Port) ruleset {
	mac, of4, of6 := held(senders)
	kind := func(code byte, name string) match { return is{icmp6Type, []byte{code}, name} }
	nobody4 := is{arpIP, make([]byte, 4), "0.0.0.0"}
	return ruleset{table: bridged, sets: []set{mac, of4, of6}, chains: []chain{
		{name: "prerouting", hook: arrivingAtBridge, rules: []rule{jump(fromPort, in(tun.PortPrefix+"*"))}},
		{name: fromPort, rules: []rule{
			jump("ethernet", holder{etherSource, macs}), drop(),
		}},
		{name: "ethernet", rules: []rule{
			jump("ip", frameOfIP), jump("arp", frameOfARP), jump("ip6", frameOfIPv6), drop(),
		}},
		{name: "ip", rules: []rule{
			drop(udp, fromDHCP), // nobody is to learn a way from a neighbour
			accept(holder{ipSource, addresses4}), drop(),
		}},
		{name: "arp", rules: []rule{
			jump("arp_ip", holder{arpMAC, macs}), drop(),
		}},
		{name: "arp_ip", rules: []rule{
			accept(holder{arpIP, addresses4}),
			accept(nobody4, holder{arpTarget, addresses4}), // who asks whether its address is free; RFC 5227
			drop(),
		}},
		{name: "ip6", rules: []rule{
			drop(icmp6, kind(134, "nd-router-advert")), drop(icmp6, kind(137, "nd-redirect")), drop(udp, fromDHCP6),
			jump("neighbour", all{icmp6, kind(136, "nd-neighbor-advert")}),
			jump("neighbour", all{fromNobody, icmp6, kind(135, "nd-neighbor-solicit")}), // the same of IPv6; RFC 4862, 5.4
			// Neighbours and routers are found in one piece (RFC 6980), and in a part
			// of it nothing of this would be seen.
			drop(fragment, fromLinkLocal), drop(fragment, fromNobody), drop(fragment, toMany),
			accept(found, holder{ip6Source, addresses6}), accept(found, fromNobody), drop(),
		}},
		{name: "neighbour", rules: []rule{
			accept(holder{icmp6Target, addresses6}), drop(),
		}},
	}}
}
