// Package packet knows the bytes of IP packets: what crosses the TUN device in
// super-packets of up to 64 KiB and the tunnel in packets of MTU size.
//
//	TUN -> Offload, Splitter -> segments with complete checksums -> tunnel
//	TUN <- Offload, Joiner   <- packets whose checksums are verified <- tunnel
//
// Everything here is pure: no system call, no clock, no lock, and no allocation
// per packet. Memory belongs to the caller; a Splitter writes into the packet
// that it was given, a Joiner refers to the packets that were added and edits
// their headers. Neither may be used by two goroutines at a time.
//
// No input makes it panic. What a header claims is checked against the bytes
// that are there, and what it claims wrongly is one of the errors below.
package packet

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// Reasons for which a packet is refused.
var (
	ErrShort       = errors.New("shorter than its headers")
	ErrVersion     = errors.New("neither IPv4 nor IPv6, or not what the offload header says")
	ErrLength      = errors.New("length field does not match the packet")
	ErrProtocol    = errors.New("protocol does not match the offload header")
	ErrFragment    = errors.New("fragment cannot be segmented")
	ErrHeaders     = errors.New("headers too long")
	ErrFlags       = errors.New("unknown flag in offload header")
	ErrType        = errors.New("unknown segmentation type in offload header")
	ErrSegmentSize = errors.New("segment size out of range")
	ErrChecksum    = errors.New("checksum field out of range")
	ErrUnvouched   = errors.New("super-packet whose checksum nobody vouches for")
	ErrRoom        = errors.New("no room behind the packet")
)

// Where the fields stand.
//
//	IPv4 (RFC 791)
//	 0 version|IHL  1 TOS        2 total length   4 ID             6 flags|offset
//	 8 TTL          9 protocol  10 checksum      12 source        16 destination    20
//	IPv6 (RFC 8200)
//	 0 version|class|label       4 payload length 6 next header    7 hop limit
//	 8 source      24 destination                                                   40
//	TCP (RFC 9293)
//	 0 source port  2 dest. port 4 sequence       8 acknowledgment
//	12 offset|res. 13 flags     14 window        16 checksum      18 urgent pointer 20
//	UDP (RFC 768)
//	 0 source port  2 dest. port 4 length         6 checksum                         8
const (
	ipv4Len = 20
	ipv6Len = 40
	tcpLen  = 20
	udpLen  = 8

	tcpChecksum = 16
	udpChecksum = 6

	maxPacket = 65535
	// maxHeaders bounds IP, extension and TCP headers together: 60 + 60 bytes
	// of IPv4, and more than anybody puts before a TCP header in IPv6. It bounds
	// as well the walk over extension headers.
	maxHeaders = 256
)

// Protocol numbers.
const (
	protoHopByHop = 0
	protoICMP     = 1
	protoTCP      = 6
	protoUDP      = 17
	protoRouting  = 43
	protoFragment = 44
	protoAH       = 51
	protoICMPv6   = 58
	protoDestOpts = 60
)

const (
	dontFragment  = 0x4000
	moreFragments = 0x2000
	offsetMask    = 0x1fff
)

var be = binary.BigEndian

// Version gives 4 or 6 for a packet that has a whole IP header, IPv4 options
// included, and 0 for any other.
func Version(packet []byte) int {
	if len(packet) < ipv4Len {
		return 0
	}
	switch packet[0] >> 4 {
	case 4:
		if n := int(packet[0]&0x0f) * 4; n >= ipv4Len && len(packet) >= n {
			return 4
		}
	case 6:
		if len(packet) >= ipv6Len {
			return 6
		}
	}
	return 0
}

// Length gives the length that the IP header claims. ok is false when the packet
// has no whole IP header or fewer bytes than that. What lies behind is padding.
func Length(packet []byte) (n int, ok bool) {
	switch Version(packet) {
	case 4:
		n = int(be.Uint16(packet[2:]))
		return n, n >= int(packet[0]&0x0f)*4 && n <= len(packet)
	case 6:
		n = ipv6Len + int(be.Uint16(packet[4:]))
		return n, n <= len(packet)
	}
	return 0, false
}

// Addresses reads source and destination. ok is false for a packet of which
// [Version] is 0.
func Addresses(packet []byte) (src, dst netip.Addr, ok bool) {
	switch Version(packet) {
	case 4:
		return netip.AddrFrom4([4]byte(packet[12:])), netip.AddrFrom4([4]byte(packet[16:])), true
	case 6:
		return netip.AddrFrom16([16]byte(packet[8:])), netip.AddrFrom16([16]byte(packet[24:])), true
	}
	return src, dst, false
}

// Pair is source and destination as they stand in a packet: fast to compare, for
// whoever need not look at the same pair again.
type Pair struct {
	version int
	bytes   [32]byte // of IPv4 the first 8
}

// PairOf gives the pair of a packet; the zero Pair if [Version] is 0.
func PairOf(packet []byte) (p Pair) {
	switch p.version = Version(packet); p.version {
	case 4:
		copy(p.bytes[:], packet[12:20])
	case 6:
		copy(p.bytes[:], packet[8:40])
	}
	return p
}

// headers is what a walk over the IP headers finds.
type headers struct {
	version  int
	l4       int   // where the transport header begins
	protocol uint8 // of it
	// fragment: part of a datagram; its first part has a transport header.
	fragment, first bool
}

// walk finds the transport header. Extension headers of IPv6 are passed over as
// long as they carry options; a fragment header is passed over as well.
func walk(packet []byte) (headers, error) {
	switch Version(packet) {
	case 4:
		frag := be.Uint16(packet[6:])
		return headers{
			version:  4,
			l4:       int(packet[0]&0x0f) * 4,
			protocol: packet[9],
			fragment: frag&(moreFragments|offsetMask) != 0,
			first:    frag&offsetMask == 0,
		}, nil
	case 6:
		return walk6(packet)
	}
	if len(packet) > 0 && packet[0]>>4 != 4 && packet[0]>>4 != 6 {
		return headers{}, ErrVersion
	}
	return headers{}, ErrShort
}

func walk6(packet []byte) (headers, error) {
	h := headers{version: 6, l4: ipv6Len, protocol: packet[6], first: true}
	for {
		length := 8
		switch h.protocol {
		case protoHopByHop, protoRouting, protoDestOpts:
			if len(packet) < h.l4+8 {
				return h, ErrShort
			}
			length += 8 * int(packet[h.l4+1])
		case protoFragment:
			if len(packet) < h.l4+8 {
				return h, ErrShort
			}
			h.fragment = true
			if be.Uint16(packet[h.l4+2:])&0xfff8 != 0 {
				h.first = false
				return h, nil // what follows is the middle of something
			}
		default:
			return h, nil
		}
		if h.l4+length > maxHeaders {
			return h, ErrHeaders
		}
		if len(packet) < h.l4+length {
			return h, ErrShort
		}
		h.protocol = packet[h.l4]
		h.l4 += length
	}
}
