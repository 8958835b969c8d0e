package wggo

import (
	"net/netip"
)

// Where the addresses stand.
//
//	IPv4 (RFC 791)    0 version|IHL  ...  12 source       16 destination      20
//	IPv6 (RFC 8200)   0 version      ...   8 source       24 destination      40
const (
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
)

// addresses reads source and destination of an IP packet. ok is false for
// whatever is neither IPv4 nor IPv6 or is shorter than its header.
func addresses(packet []byte) (src, dst netip.Addr, ok bool) {
	if len(packet) == 0 {
		return src, dst, false
	}
	switch packet[0] >> 4 {
	case 4:
		headerLen := int(packet[0]&0x0f) * 4
		if headerLen < ipv4HeaderLen || len(packet) < headerLen {
			return src, dst, false
		}
		return netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20])), true
	case 6:
		if len(packet) < ipv6HeaderLen {
			return src, dst, false
		}
		return netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40])), true
	}
	return src, dst, false
}

// prefixes is a handful of prefixes: a node has one or two per network, for
// which a scan is faster than any table.
type prefixes []netip.Prefix

func (ps prefixes) contains(a netip.Addr) bool {
	for _, p := range ps {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
