package packet

const (
	tcpOptionEnd = 0
	tcpOptionNop = 1
	tcpOptionMSS = 2
)

// ClampMSS lowers the maximum segment size that a SYN announces to what fits
// into packets of mtu bytes, and tells whether it did. Other packets, and
// broken ones, stay as they are. The checksum must be complete: run it on what
// a [Splitter] hands out.
func ClampMSS(packet []byte, mtu int) bool {
	if !MayBeSYN(packet) {
		return false
	}
	h, err := walk(packet)
	if err != nil || h.protocol != protoTCP || !h.first || len(packet) < h.l4+tcpLen {
		return false
	}
	tcp := packet[h.l4:]
	header := int(tcp[12]>>4) * 4
	if tcp[13]&tcpSYN == 0 || header < tcpLen || header > len(tcp) {
		return false
	}
	limit := mtu - ipv4Len - tcpLen
	if h.version == 6 {
		limit = mtu - ipv6Len - tcpLen
	}
	limit = max(limit, 1)
	for i := tcpLen; i < header; {
		switch tcp[i] {
		case tcpOptionEnd:
			return false
		case tcpOptionNop:
			i++
			continue
		}
		if i+2 > header {
			return false
		}
		n := int(tcp[i+1])
		if n < 2 || i+n > header {
			return false
		}
		if tcp[i] == tcpOptionMSS && n == 4 {
			return lowerMSS(tcp, i+2, limit)
		}
		i += n
	}
	return false
}

// MayBeSYN is false of most packets, at a glance: those that [ClampMSS] has nothing
// to do with.
func MayBeSYN(packet []byte) bool {
	n := len(packet)
	switch {
	case n >= ipv4Len+tcpLen && packet[0] == 0x45:
		return packet[9] == protoTCP && packet[ipv4Len+13]&tcpSYN != 0
	case n >= ipv6Len+tcpLen && packet[0]>>4 == 6 && packet[6] == protoTCP:
		return packet[ipv6Len+13]&tcpSYN != 0
	case n >= ipv6Len && packet[0]>>4 == 6:
		return packet[6] != protoUDP
	}
	return true
}

func lowerMSS(tcp []byte, at, limit int) bool {
	before := be.Uint16(tcp[at:])
	if int(before) <= limit {
		return false
	}
	after := uint16(limit)
	be.PutUint16(tcp[at:], after)
	if at%2 == 1 { // it lies across two words, as if its bytes were swapped
		before, after = before<<8|before>>8, after<<8|after>>8
	}
	be.PutUint16(tcp[tcpChecksum:], updated(be.Uint16(tcp[tcpChecksum:]), before, after))
	return true
}
