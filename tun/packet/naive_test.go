package packet

// The twins: slow, obvious implementations that the real ones are compared with,
// and a builder of packets.

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
)

// naiveSum is RFC 1071 word by word.
func naiveSum(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for i := 0; i < len(b); i += 2 {
			word := uint32(b[i]) << 8
			if i+1 < len(b) {
				word |= uint32(b[i+1])
			}
			sum += word
			if sum > 0xffff {
				sum -= 0xffff
			}
		}
	}
	return uint16(sum)
}

func word(n int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(n)) }

// spec describes a packet. The zero value is a valid empty TCP segment over IPv4.
type spec struct {
	v6, udp      bool
	flow         byte // last byte of the source
	tos, ttl     byte
	id           uint16
	df           bool
	frag         uint16 // flags and offset beside DF
	ipOptions    []byte
	extension    []byte // of IPv6; its first header is firstExt
	firstExt     byte
	seq, ack     uint32
	flags        byte
	reserved     byte // the four bits beside the data offset
	window       uint16
	tcpOptions   []byte
	payload      []byte
	dport        uint16
	noUDPSum     bool
	wrongSum     bool
	wrongIPv4Sum bool
	partial      bool // the checksum field has the sum of the pseudo-header only
}

func (s spec) protocol() byte {
	if s.udp {
		return protoUDP
	}
	return protoTCP
}

func (s spec) l4() int {
	if s.v6 {
		return ipv6Len + len(s.extension)
	}
	return ipv4Len + len(s.ipOptions)
}

func (s spec) header() int {
	if s.udp {
		return s.l4() + udpLen
	}
	return s.l4() + tcpLen + len(s.tcpOptions)
}

func (s spec) build() []byte {
	var src, dst, l4 []byte
	if s.v6 {
		src = append(bytes.Repeat([]byte{0xfd}, 15), s.flow)
		dst = append(bytes.Repeat([]byte{0xfd}, 15), 99)
	} else {
		src, dst = []byte{10, 9, 0, s.flow}, []byte{10, 9, 0, 99}
	}
	ports := append(word(40000), word(443+int(s.dport))...)
	field := udpChecksum
	if s.udp {
		l4 = slices.Concat(ports, word(udpLen+len(s.payload)), word(0), s.payload)
	} else {
		field = tcpChecksum
		l4 = slices.Concat(ports, binary.BigEndian.AppendUint32(nil, s.seq), binary.BigEndian.AppendUint32(nil, s.ack),
			[]byte{byte(5+len(s.tcpOptions)/4)<<4 | s.reserved, s.flags}, word(int(s.window)), word(0), word(0), s.tcpOptions, s.payload)
	}
	pseudo := [][]byte{src, dst, word(int(s.protocol())), word(len(l4))}
	sum := ^naiveSum(append(pseudo, l4)...)
	if s.udp && sum == 0 {
		sum = 0xffff
	}
	switch {
	case s.partial:
		sum = naiveSum(pseudo...)
	case s.noUDPSum:
		sum = 0
	case s.wrongSum:
		sum ^= 0x5a5a
	}
	copy(l4[field:], word(int(sum)))

	ttl := 64 - s.ttl
	if s.v6 {
		next := s.protocol()
		if s.extension != nil {
			next = s.firstExt
		}
		return slices.Concat([]byte{0x60 | s.tos>>4, s.tos << 4, 0, 0}, word(len(s.extension)+len(l4)), []byte{next, ttl}, src, dst, s.extension, l4)
	}
	frag := s.frag
	if s.df {
		frag |= dontFragment
	}
	ip := slices.Concat([]byte{0x45 + byte(len(s.ipOptions)/4), s.tos}, word(ipv4Len+len(s.ipOptions)+len(l4)), word(int(s.id)), word(int(frag)),
		[]byte{ttl, s.protocol()}, word(0), src, dst, s.ipOptions)
	sum = ^naiveSum(ip)
	if s.wrongIPv4Sum {
		sum ^= 0x5a5a
	}
	copy(ip[10:], word(int(sum)))
	return append(ip, l4...)
}

// offload is the header that comes with a super-packet of the given size.
func (s spec) offload(size int) Offload {
	o := Offload{Flags: NeedsChecksum, HeaderLen: uint16(s.header()), SegmentSize: uint16(size), ChecksumStart: uint16(s.l4())}
	switch {
	case s.udp:
		o.Type, o.ChecksumOffset = SegmentUDP, udpChecksum
	case s.v6:
		o.Type, o.ChecksumOffset = SegmentTCP6, tcpChecksum
	default:
		o.Type, o.ChecksumOffset = SegmentTCP4, tcpChecksum
	}
	return o
}

// naiveSplit cuts a super-packet that a Splitter has accepted.
func naiveSplit(packet []byte, o Offload) [][]byte {
	if o.Type == SegmentNone {
		out := bytes.Clone(packet)
		if o.Flags&NeedsChecksum != 0 {
			start := int(o.ChecksumStart)
			sum := ^naiveSum(out[start:])
			if sum == 0 {
				sum = 0xffff
			}
			copy(out[start+int(o.ChecksumOffset):], word(int(sum)))
		}
		return [][]byte{out}
	}
	l4, header := naiveHeaders(packet)
	v4, udp := packet[0]>>4 == 4, o.Type == SegmentUDP
	field := l4 + tcpChecksum
	if udp {
		field = l4 + udpChecksum
	}
	// The pseudo-header without the length.
	pseudo := naiveSum(packet[field:field+2], word(^(len(packet) - l4)))
	if o.Flags&NeedsChecksum == 0 {
		pseudo = naiveSum(naiveAddresses(packet), word(map[bool]int{false: protoTCP, true: protoUDP}[udp]))
	}
	var out [][]byte
	payloads := slices.Collect(slices.Chunk(packet[header:], int(o.SegmentSize)))
	if len(payloads) == 0 {
		payloads = [][]byte{nil}
	}
	for i, payload := range payloads {
		seg := slices.Concat(packet[:header], payload)
		if v4 {
			copy(seg[2:], word(len(seg)))
			copy(seg[4:], word(int(binary.BigEndian.Uint16(packet[4:]))+i))
			copy(seg[10:], word(0))
			copy(seg[10:], word(int(^naiveSum(seg[:l4]))))
		} else {
			copy(seg[4:], word(len(seg)-ipv6Len))
		}
		if udp {
			copy(seg[l4+4:], word(len(seg)-l4))
		} else {
			seq := binary.BigEndian.Uint32(packet[l4+4:]) + uint32(i*int(o.SegmentSize))
			binary.BigEndian.PutUint32(seg[l4+4:], seq)
			if i > 0 {
				seg[l4+13] &^= 0x80 // CWR
			}
			if i < len(payloads)-1 {
				seg[l4+13] &^= 0x09 // PSH, FIN
			}
		}
		copy(seg[field:], word(0))
		sum := ^naiveSum(word(int(pseudo)), word(len(seg)-l4), seg[l4:])
		if udp && sum == 0 {
			sum = 0xffff
		}
		copy(seg[field:], word(int(sum)))
		out = append(out, seg)
	}
	return out
}

// naiveAddresses gives source and destination, as they stand in the pseudo-header.
func naiveAddresses(packet []byte) []byte {
	if packet[0]>>4 == 4 {
		return packet[12:20]
	}
	return packet[8:40]
}

// naiveHeaders finds the lengths of the IP header and of all headers of a sound
// TCP or UDP packet.
func naiveHeaders(packet []byte) (l4, header int) {
	protocol := packet[9]
	l4 = int(packet[0]&15) * 4
	if packet[0]>>4 == 6 {
		protocol, l4 = packet[6], 40
		for protocol != protoTCP && protocol != protoUDP {
			protocol, l4 = packet[l4], l4+8+8*int(packet[l4+1])
		}
	}
	if protocol == protoUDP {
		return l4, l4 + 8
	}
	return l4, l4 + int(packet[l4+12]>>4)*4
}

// super is what a Joiner gives: the offload header and the packet in one piece.
type super struct {
	offload Offload
	packet  []byte
}

// naiveJoin is a Joiner that keeps everything in lists of whole packets.
func naiveJoin(packets [][]byte, udp bool) []super {
	type list struct {
		packets [][]byte
		open    bool
	}
	var lists []*list
	for _, p := range packets {
		if naiveFamily(p, udp) == "any" {
			for _, l := range lists {
				l.open = false
			}
		}
		var of *list
		for _, l := range lists {
			if l.open && naiveFlow(l.packets[0]) == naiveFlow(p) {
				of = l
			}
		}
		joinable := naiveFamily(p, udp) == "flow" && naiveJoinable(p)
		if naiveFamily(p, udp) == "flow" && of != nil {
			if joinable && naiveFits(of.packets, p) && naiveValid(of.packets[0]) {
				if naiveValid(p) {
					of.packets = append(of.packets, p)
					of.open = !naiveLast(of.packets, p)
					continue
				}
				joinable = false
			}
			of.open = false
		}
		lists = append(lists, &list{[][]byte{p}, joinable && !naiveLast([][]byte{p}, p)})
	}
	var out []super
	for _, l := range lists {
		out = append(out, naiveSuper(l.packets))
	}
	return out
}

// naiveFamily: "none" joins nothing, "any" may belong to every flow, "flow" is a
// TCP or UDP packet that can be read.
func naiveFamily(p []byte, udp bool) string {
	if len(p) < 20 {
		return "any"
	}
	var protocol byte
	switch p[0] >> 4 {
	case 4:
		if int(p[0]&15) < 5 || int(p[0]&15)*4 > len(p) || int(binary.BigEndian.Uint16(p[2:])) != len(p) {
			return "any"
		}
		protocol = p[9]
	case 6:
		if len(p) < 40 || int(binary.BigEndian.Uint16(p[4:])) != len(p)-40 {
			return "any"
		}
		protocol = p[6]
		if slices.Contains([]byte{0, 43, 44, 51, 60}, protocol) {
			return "any"
		}
	default:
		return "any"
	}
	if protocol != protoTCP && (protocol != protoUDP || !udp) {
		return "none"
	}
	l4 := 40
	if p[0]>>4 == 4 {
		l4 = 20
		if p[0] != 0x45 || binary.BigEndian.Uint16(p[6:])&0xbfff != 0 {
			return "any"
		}
	}
	if protocol == protoTCP && len(p) < l4+20 || protocol == protoUDP && len(p) < l4+8 {
		return "any"
	}
	if protocol == protoUDP && int(binary.BigEndian.Uint16(p[l4+4:])) != len(p)-l4 {
		return "any"
	}
	return "flow"
}

// naiveFlow is meaningful for family "flow" only.
func naiveFlow(p []byte) string {
	if len(p) >= 24 && p[0]>>4 == 4 {
		return "4" + string(p[9:10]) + string(p[12:24])
	}
	if len(p) >= 44 && p[0]>>4 == 6 {
		return "6" + string(p[6:7]) + string(p[8:44])
	}
	return "?"
}

func naiveTCP(p []byte) bool {
	return p[0]>>4 == 4 && p[9] == protoTCP || p[0]>>4 == 6 && p[6] == protoTCP
}

func naiveJoinable(p []byte) bool {
	l4, header := naiveHeaders(p)
	if header >= len(p) {
		return false
	}
	if !naiveTCP(p) {
		return p[l4+6] != 0 || p[l4+7] != 0
	}
	flags := p[l4+13]
	return header >= l4+20 && flags&0x10 != 0 && flags&(0x80|0x20|0x04|0x02) == 0
}

func naiveValid(p []byte) bool {
	l4, _ := naiveHeaders(p)
	addresses, protocol := p[8:l4], p[6]
	if p[0]>>4 == 4 {
		if naiveSum(p[:20]) != 0xffff {
			return false
		}
		addresses, protocol = p[12:l4], p[9]
	}
	return naiveSum(addresses, word(int(protocol)), word(len(p)-l4), p[l4:]) == 0xffff
}

// naiveLast tells whether a group that ends with p takes no more.
func naiveLast(group [][]byte, p []byte) bool {
	l4, _ := naiveHeaders(p)
	return len(p) < len(group[0]) || len(group) == 64 || naiveTCP(p) && p[l4+13]&0x09 != 0
}

func naiveFits(group [][]byte, p []byte) bool {
	a, n := group[0], len(group)
	l4, header := naiveHeaders(a)
	pl4, pheader := naiveHeaders(p)
	if l4 != pl4 || header != pheader || len(p) > len(a) || header+(len(a)-header)*n+len(p)-header > 65535 {
		return false
	}
	// Everything in the headers is equal, but for what is blanked here.
	blank := func(p []byte) string {
		h := bytes.Clone(p[:header])
		if h[0]>>4 == 4 {
			copy(h[2:6], make([]byte, 4))
			copy(h[10:12], make([]byte, 2))
		} else {
			copy(h[4:6], make([]byte, 2))
		}
		if naiveTCP(p) {
			copy(h[l4+4:], make([]byte, 4))
			h[l4+13] &^= 0x09
			copy(h[l4+16:], make([]byte, 2))
		} else {
			copy(h[l4+4:], make([]byte, 4))
		}
		return string(h)
	}
	if blank(a) != blank(p) {
		return false
	}
	if a[0]>>4 == 4 && a[6]&0x40 == 0 && uint16(int(binary.BigEndian.Uint16(a[4:]))+n) != binary.BigEndian.Uint16(p[4:]) {
		return false
	}
	return !naiveTCP(a) || binary.BigEndian.Uint32(a[l4+4:])+uint32(n*(len(a)-header)) == binary.BigEndian.Uint32(p[l4+4:])
}

func naiveSuper(group [][]byte) super {
	if len(group) == 1 {
		return super{packet: bytes.Clone(group[0])}
	}
	l4, header := naiveHeaders(group[0])
	out := bytes.Clone(group[0])
	for _, p := range group[1:] {
		out = append(out, p[header:]...)
	}
	o := Offload{Flags: NeedsChecksum, HeaderLen: uint16(header), SegmentSize: uint16(len(group[0]) - header), ChecksumStart: uint16(l4)}
	if out[0]>>4 == 4 {
		copy(out[2:], word(len(out)))
		copy(out[10:], word(0))
		copy(out[10:], word(int(^naiveSum(out[:20]))))
	} else {
		copy(out[4:], word(len(out)-40))
	}
	protocol := protoUDP
	switch {
	case !naiveTCP(out):
		o.Type, o.ChecksumOffset = SegmentUDP, 6
		copy(out[l4+4:], word(len(out)-l4))
	case out[0]>>4 == 4:
		o.Type, o.ChecksumOffset, protocol = SegmentTCP4, 16, protoTCP
	default:
		o.Type, o.ChecksumOffset, protocol = SegmentTCP6, 16, protoTCP
	}
	if protocol == protoTCP {
		out[l4+13] |= group[len(group)-1][l4+13] & 0x09
	}
	copy(out[l4+int(o.ChecksumOffset):], word(int(naiveSum(naiveAddresses(out), word(protocol), word(len(out)-l4)))))
	return super{o, out}
}

// mustAddr is the destination of a packet.
func mustAddr(s spec) netip.Addr {
	_, dst, ok := Addresses(s.build())
	if !ok {
		panic("spec makes no packet")
	}
	return dst
}
