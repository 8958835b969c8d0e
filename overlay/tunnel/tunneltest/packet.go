package tunneltest

import (
	"encoding/binary"
	"net/netip"
)

// Packet makes an IP packet of the addresses' family with a payload of the
// protocol number that RFC 3692 leaves for experiments.
func Packet(src, dst netip.Addr, payload []byte) []byte {
	const experimental = 253
	if src.Is4() {
		p := make([]byte, 20, 20+len(payload))
		p[0] = 0x45
		binary.BigEndian.PutUint16(p[2:], uint16(20+len(payload)))
		p[8], p[9] = 64, experimental
		copy(p[12:], src.AsSlice())
		copy(p[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(p[10:], checksum(p))
		return append(p, payload...)
	}
	p := make([]byte, 40, 40+len(payload))
	p[0] = 0x60
	binary.BigEndian.PutUint16(p[4:], uint16(len(payload)))
	p[6], p[7] = experimental, 64
	copy(p[8:], src.AsSlice())
	copy(p[24:], dst.AsSlice())
	return append(p, payload...)
}

// checksum is the Internet checksum (RFC 1071) of a header of even length.
func checksum(header []byte) uint16 {
	var sum uint32
	for i := 0; i < len(header); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(header[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// isUnreachable tells whether a packet is ICMP "destination unreachable", of
// either family.
func isUnreachable(packet []byte) bool {
	switch {
	case len(packet) > 20 && packet[0] == 0x45:
		return packet[9] == 1 && packet[20] == 3
	case len(packet) > 40 && packet[0]>>4 == 6:
		return packet[6] == 58 && packet[40] == 1
	}
	return false
}
