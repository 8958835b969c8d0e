package packet

import "net/netip"

// AnswerLen is the room that [TooBig] and [Unreachable] need.
const AnswerLen = 1280

// How much of the answer there is at most, with its own headers.
const (
	maxAnswer4 = 576  // RFC 1812 4.3.2.3
	maxAnswer6 = 1280 // RFC 4443 3.1: the minimum MTU
)

const (
	icmpLen = 8

	icmp4Unreachable   = 3
	icmp4NetUnreach    = 0 // code
	icmp4FragNeeded    = 4 // code
	icmp6Unreachable   = 1
	icmp6NoRoute       = 0 // code
	icmp6PacketTooBig  = 2
	icmp6Informational = 128
	icmp6Redirect      = 137

	answerTOS  = 0xc0 // internetwork control (RFC 1812 4.3.2.5)
	answerHops = 64
)

// TooBig makes the answer to the sender of a packet longer than mtu: ICMP
// "fragmentation needed" (RFC 1191) or ICMPv6 "packet too big", from an address
// that the sender's kernel takes for another host's. IPv4 gets it without DF, too: nobody on the way cuts the packet.
//
// The answer is written to the beginning of dst, which has a capacity of
// AnswerLen, and must not overlap packet. It is nil when none may be sent (RFC
// 1122 3.2.2, RFC 4443 2.4): to ICMP errors, to fragments but the first, to what
// was sent to or came from anything but a single host, to broken headers, and
// when from is of the other family. The owner limits the rate. A super-packet
// may be answered before or after it is split.
func TooBig(dst []byte, packet []byte, mtu int, from netip.Addr) []byte {
	if from.Is4() {
		return answer4(dst, packet, from, icmp4FragNeeded, uint32(min(max(mtu, 0), 0xffff)))
	}
	return answer6(dst, packet, from, icmp6PacketTooBig, 0, uint32(max(mtu, 0)))
}

// Unreachable makes the answer to the sender of a packet for which there is no
// route: ICMP "net unreachable" or ICMPv6 "no route to destination". The rules
// are those of [TooBig].
func Unreachable(dst []byte, packet []byte, from netip.Addr) []byte {
	if from.Is4() {
		return answer4(dst, packet, from, icmp4NetUnreach, 0)
	}
	return answer6(dst, packet, from, icmp6Unreachable, icmp6NoRoute, 0)
}

// answer4 builds "destination unreachable".
//
//	| IPv4, 20 bytes | 3 | code | checksum | value | as much of packet as fits |
func answer4(dst, packet []byte, from netip.Addr, code uint8, value uint32) []byte {
	h, err := walk(packet)
	if err != nil || h.version != 4 || !answerable(packet, h) {
		return nil
	}
	quote := packet[:min(len(packet), maxAnswer4-ipv4Len-icmpLen)]
	b := room(dst, ipv4Len+icmpLen+len(quote))
	b[0], b[1] = 0x45, answerTOS
	be.PutUint16(b[2:], uint16(len(b)))
	be.PutUint16(b[6:], dontFragment)
	b[8], b[9] = answerHops, protoICMP
	source := from.As4()
	copy(b[12:], source[:])
	copy(b[16:], packet[12:16])
	be.PutUint16(b[10:], Checksum(b[:ipv4Len], 0))
	icmp := b[ipv4Len:]
	icmp[0], icmp[1] = icmp4Unreachable, code
	be.PutUint32(icmp[4:], value)
	copy(icmp[icmpLen:], quote)
	be.PutUint16(icmp[2:], Checksum(icmp, 0))
	return b
}

// answer6 builds an ICMPv6 error.
//
//	| IPv6, 40 bytes | kind | code | checksum | value | as much of packet as fits |
func answer6(dst, packet []byte, from netip.Addr, kind, code uint8, value uint32) []byte {
	h, err := walk(packet)
	if err != nil || h.version != 6 || !from.Is6() || !answerable(packet, h) {
		return nil
	}
	quote := packet[:min(len(packet), maxAnswer6-ipv6Len-icmpLen)]
	b := room(dst, ipv6Len+icmpLen+len(quote))
	b[0] = 0x60
	be.PutUint16(b[4:], uint16(icmpLen+len(quote)))
	b[6], b[7] = protoICMPv6, answerHops
	source := from.As16()
	copy(b[8:], source[:])
	copy(b[24:], packet[8:24])
	icmp := b[ipv6Len:]
	icmp[0], icmp[1] = kind, code
	be.PutUint32(icmp[4:], value)
	copy(icmp[icmpLen:], quote)
	be.PutUint16(icmp[2:], Checksum(icmp, fold(pseudoSum(b, 6, protoICMPv6)+uint64(len(icmp)))))
	return b
}

// room is the first n bytes of dst, headers zeroed.
func room(dst []byte, n int) []byte {
	if cap(dst) < n {
		dst = make([]byte, n)
	}
	dst = dst[:n]
	clear(dst[:min(n, ipv6Len+icmpLen)])
	return dst
}

// answerable tells whether an ICMP error may be sent about the packet.
func answerable(packet []byte, h headers) bool {
	src, dst, _ := Addresses(packet)
	if !h.first || !host(src) || !host(dst) {
		return false
	}
	var kind uint8
	switch {
	case h.version == 4 && h.protocol == protoICMP, h.version == 6 && h.protocol == protoICMPv6:
		if len(packet) <= h.l4 {
			return false
		}
		kind = packet[h.l4]
	default:
		return true
	}
	if h.version == 6 {
		return kind >= icmp6Informational && kind != icmp6Redirect
	}
	switch kind {
	case 0, 8, 13, 14, 15, 16, 17, 18: // questions and answers
		return true
	}
	return false
}

// host tells whether an address can be that of a single host elsewhere.
func host(a netip.Addr) bool {
	if a.Is4() && a.As4()[0] >= 240 { // reserved, and broadcast
		return false
	}
	return !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && !a.Is4In6()
}
