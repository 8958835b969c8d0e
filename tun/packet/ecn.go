package packet

// ECN is the congestion mark of a packet (RFC 3168), two bits of the IP header.
type ECN uint8

// The four marks.
const (
	NotECT ECN = 0 // the transport does not know ECN
	ECT1   ECN = 1
	ECT0   ECN = 2
	CE     ECN = 3 // congestion experienced
)

// GetECN reads the mark of a packet of which [Version] is not 0.
func GetECN(packet []byte) ECN {
	if packet[0]>>4 == 4 {
		return ECN(packet[1] & 3)
	}
	return ECN(packet[1] >> 4 & 3)
}

// SetECN writes the mark of a packet of which [Version] is not 0.
func SetECN(packet []byte, e ECN) {
	before := be.Uint16(packet)
	if packet[0]>>4 == 4 {
		after := before&^3 | uint16(e&3)
		if after != before {
			be.PutUint16(packet, after)
			be.PutUint16(packet[10:], updated(be.Uint16(packet[10:]), before, after))
		}
		return
	}
	be.PutUint16(packet, before&^0x30|uint16(e&3)<<4)
}

// OuterECN is the mark of the datagram that carries a packet with the mark inner:
// the same (RFC 6040 4.1, normal mode).
func OuterECN(inner ECN) ECN { return inner }

// Decapsulate is the mark of a packet that comes out of the tunnel, from that of
// the datagram and its own (RFC 6040 4.2). deliver is false when it is to be
// dropped: the network asked to slow down a transport that does not listen to
// marks.
//
//	inner \ outer | NotECT   ECT0     ECT1     CE
//	NotECT        | NotECT   NotECT   NotECT   drop
//	ECT0          | ECT0     ECT0     ECT1     CE
//	ECT1          | ECT1     ECT1     ECT1     CE
//	CE            | CE       CE       CE       CE
func Decapsulate(outer, inner ECN) (mark ECN, deliver bool) {
	switch {
	case inner == NotECT:
		return NotECT, outer != CE
	case outer == CE:
		return CE, true
	case outer == ECT1 && inner == ECT0:
		return ECT1, true
	}
	return inner, true
}
