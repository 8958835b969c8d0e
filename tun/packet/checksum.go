package packet

import (
	"encoding/binary"
	"math/bits"
)

// The Internet checksum (RFC 1071) is the complement of a sum of 16-bit words
// with end-around carry. Such a sum may be taken over wider words and in either
// byte order, as long as it is folded and turned round at the end. Here a sum is
// a folded big-endian value, so that header fields are simply added to it.

// Sum adds the bytes to a sum: the words are big-endian, an odd byte at the end
// is followed by a zero. A part of odd length must be the last.
func Sum(b []byte, initial uint16) uint16 {
	le := binary.LittleEndian
	// A chain of additions that hand the carry on, as one chain of ADC. It ends
	// below 2^64-1 whenever it leaves a carry, so that adding this overflows not.
	s, c := uint64(bits.ReverseBytes16(initial)), uint64(0)
	for len(b) >= 128 {
		s, c = bits.Add64(s, le.Uint64(b[0:8]), 0)
		s, c = bits.Add64(s, le.Uint64(b[8:16]), c)
		s, c = bits.Add64(s, le.Uint64(b[16:24]), c)
		s, c = bits.Add64(s, le.Uint64(b[24:32]), c)
		s, c = bits.Add64(s, le.Uint64(b[32:40]), c)
		s, c = bits.Add64(s, le.Uint64(b[40:48]), c)
		s, c = bits.Add64(s, le.Uint64(b[48:56]), c)
		s, c = bits.Add64(s, le.Uint64(b[56:64]), c)
		s, c = bits.Add64(s, le.Uint64(b[64:72]), c)
		s, c = bits.Add64(s, le.Uint64(b[72:80]), c)
		s, c = bits.Add64(s, le.Uint64(b[80:88]), c)
		s, c = bits.Add64(s, le.Uint64(b[88:96]), c)
		s, c = bits.Add64(s, le.Uint64(b[96:104]), c)
		s, c = bits.Add64(s, le.Uint64(b[104:112]), c)
		s, c = bits.Add64(s, le.Uint64(b[112:120]), c)
		s, c = bits.Add64(s, le.Uint64(b[120:128]), c)
		s += c
		b = b[128:]
	}
	for len(b) >= 32 {
		s, c = bits.Add64(s, le.Uint64(b[0:8]), 0)
		s, c = bits.Add64(s, le.Uint64(b[8:16]), c)
		s, c = bits.Add64(s, le.Uint64(b[16:24]), c)
		s, c = bits.Add64(s, le.Uint64(b[24:32]), c)
		s += c
		b = b[32:]
	}
	for len(b) >= 8 {
		s, c = bits.Add64(s, le.Uint64(b), 0)
		s += c
		b = b[8:]
	}
	var rest uint64
	if len(b) >= 4 {
		rest = uint64(le.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		rest += uint64(le.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		rest += uint64(b[0])
	}
	s, c = bits.Add64(s, rest, 0)
	return bits.ReverseBytes16(fold(s + c))
}

// Checksum is what stands in a checksum field: the complement of the sum.
func Checksum(b []byte, initial uint16) uint16 { return ^Sum(b, initial) }

// fold brings a sum of words down to 16 bits. Only zero gives zero.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff // at most 33 bits
	s = s>>16 + s&0xffff     // 18
	s = s>>16 + s&0xffff     // 17
	s = s>>16 + s&0xffff
	return uint16(s)
}

// pseudoSum is the sum of the pseudo-header (RFC 9293, RFC 8200 8.1) of a packet
// of which Version is version, without the length. Add it: fold(sum + length).
func pseudoSum(packet []byte, version int, protocol uint8) uint64 {
	if version == 4 {
		a, b := be.Uint32(packet[12:]), be.Uint32(packet[16:])
		return uint64(a) + uint64(b) + uint64(protocol)
	}
	return uint64(Sum(packet[8:40], uint16(protocol)))
}

// headerSum is the sum of an IPv4 header without options.
func headerSum(packet []byte) uint16 {
	b := packet[:ipv4Len]
	return fold(uint64(be.Uint32(b)) + uint64(be.Uint32(b[4:])) + uint64(be.Uint32(b[8:])) + uint64(be.Uint32(b[12:])) + uint64(be.Uint32(b[16:])))
}

// updated is a checksum after a 16-bit word under it changed (RFC 1624, eqn. 3).
func updated(checksum, before, after uint16) uint16 {
	return ^fold(uint64(^checksum) + uint64(^before) + uint64(after))
}
