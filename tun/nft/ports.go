//go:build linux

package nft

import (
	"net"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"meshd/tun"
)

// bridged is our table for what passes a bridge, where neighbours talk without
// their host: a port sends as its container, and as nobody else.
var bridged = &nftables.Table{Name: TableName, Family: nftables.TableFamilyBridge}

// Names of sets: what may be said to come from a port.
const macs, addresses4, addresses6 = "macs", "addresses4", "addresses6"

// Fields of packets: IEEE 802.3; RFC 791; RFC 826, for Ethernet and IPv4; RFC
// 8200; RFC 4861.
var (
	etherSource = field{expr.PayloadBaseLLHeader, 6, 6, "ether saddr"}
	ipSource    = field{expr.PayloadBaseNetworkHeader, 12, 4, "ip saddr"}
	arpMAC      = field{expr.PayloadBaseNetworkHeader, 8, 6, "arp saddr ether"}
	arpIP       = field{expr.PayloadBaseNetworkHeader, 14, 4, "arp saddr ip"}
	ip6Source   = field{expr.PayloadBaseNetworkHeader, 8, 16, "ip6 saddr"}
	icmp6Type   = field{expr.PayloadBaseTransportHeader, 0, 1, "icmpv6 type"}
	icmp6Target = field{expr.PayloadBaseTransportHeader, 8, 16, "icmpv6 taddr"}
)

const (
	overIP   = protocol(unix.ETH_P_IP)
	overARP  = protocol(unix.ETH_P_ARP)
	overIPv6 = protocol(unix.ETH_P_IPV6)
	icmp6    = carries(unix.IPPROTO_ICMPV6)
)

var protocols = map[protocol]string{overIP: "ip", overARP: "arp", overIPv6: "ip6"}

var arrivingAtBridge = &hook{nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -300, "dstnat"}

// held are the sets of what belongs to ports.
func held(ports []tun.Port) (mac, of4, of6 set) {
	mac, of4, of6 = set{name: macs, also: nftables.TypeEtherAddr}, set{name: addresses4, also: nftables.TypeIPAddr}, set{name: addresses6, also: nftables.TypeIP6Addr}
	for _, p := range ports {
		if m, err := net.ParseMAC(p.MAC); err == nil && len(m) == 6 { // else it has none, and sends nothing
			mac.elements = append(mac.elements, element{p.Name, m})
		}
		for _, a := range p.Addresses {
			of := &of4
			if a.Is6() {
				of = &of6
			}
			of.elements = append(of.elements, element{p.Name, a.AsSlice()})
		}
	}
	return mac, of4, of6
}

func interfaces(name string, links []string) set {
	s := set{name: name}
	for _, l := range links {
		s.elements = append(s.elements, element{name: l})
	}
	return s
}

// portIn is for what comes from a port that is on no bridge.
func portIn() chain {
	return chain{name: fromPort, rules: []rule{
		back(overIP, holder{ipSource, addresses4}),
		back(overIPv6, holder{ip6Source, addresses6}), back(from(linkLocal)), back(from(unspecified)),
		drop(),
	}}
}

// isLinkLocal compares the beginning of an address; RFC 4291, 2.5.6.
func isLinkLocal(f field) match {
	f.size = 2
	return is{f, []byte{0xfe, 0x80}, "fe80::/16"}
}

// compileBridge says in rules of the kernel what ports on bridges may send.
func compileBridge(want tun.Rules) ruleset {
	if len(want.Ports) == 0 {
		return ruleset{table: bridged}
	}
	mac, of4, of6 := held(want.Ports)
	kind := func(code byte, name string) match { return is{icmp6Type, []byte{code}, name} }
	return ruleset{table: bridged, sets: []set{mac, of4, of6}, chains: []chain{
		{name: "prerouting", hook: arrivingAtBridge, rules: []rule{jump(fromPort, in(tun.PortPrefix+"*"))}},
		{name: fromPort, rules: []rule{
			jump("ethernet", holder{etherSource, macs}), drop(),
		}},
		{name: "ethernet", rules: []rule{
			accept(overIP, holder{ipSource, addresses4}),
			jump("arp", overARP), jump("ip6", overIPv6), drop(),
		}},
		{name: "arp", rules: []rule{
			jump("arp_ip", holder{arpMAC, macs}), drop(),
		}},
		{name: "arp_ip", rules: []rule{
			accept(holder{arpIP, addresses4}),
			accept(is{arpIP, make([]byte, 4), "0.0.0.0"}), // who asks whether an address is free; RFC 5227
			drop(),
		}},
		{name: "ip6", rules: []rule{
			drop(icmp6, kind(134, "nd-router-advert")), drop(icmp6, kind(137, "nd-redirect")),
			jump("neighbour", both{icmp6, kind(136, "nd-neighbor-advert")}),
			accept(holder{ip6Source, addresses6}), accept(isLinkLocal(ip6Source)), accept(is{ip6Source, make([]byte, 16), "::"}), drop(),
		}},
		{name: "neighbour", rules: []rule{
			accept(holder{icmp6Target, addresses6}),
			accept(isLinkLocal(icmp6Target)),
			drop(),
		}},
	}}
}
