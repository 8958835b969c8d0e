package packet

// Bounds of a [Joiner].
const (
	JoinerPackets = 128 // packets between two drains: two full trains
	maxParts      = 64  // packets in a group; UDP_GRO_CNT_MAX of Linux
)

// MaxParts bounds the slices that [Joiner.Next] returns: the offload header, a
// packet with its headers, and payloads.
const MaxParts = 1 + maxParts

// Joiner joins packets of one flow that follow each other into super-packets,
// the reverse of a [Splitter] and the likeness of the kernel's GRO.
//
//	for each train received:
//	    for each packet in it:
//	        for !j.Add(packet) { drain() }
//	    drain()
//	drain: for { parts, ok := j.Next(); if !ok { break }; writev(parts) }
//
// TCP packets join when they carry payload, in sequence, with the same headers
// but for length, IPv4 ID, checksums, PSH and FIN; UDP packets when the kernel
// takes them so (UDP). All have the size of the first but for the last, which
// may be smaller. IPv4 IDs count up, unless fragmentation is forbidden: then
// they mean nothing (RFC 6864). A packet with PSH or FIN is the last of its
// group.
//
// The checksums of all that join have been verified, and only these groups are
// given to the kernel with a checksum to complete. A packet with a wrong one
// goes alone and untouched: the kernel judges it. So goes whatever is malformed,
// a fragment, has options, is of another protocol, or found none to join.
//
// The order within a flow is kept. Groups come in the order of their first
// packets.
//
// A packet that was added belongs to the Joiner until its group has been taken
// from Next and written; its headers may be edited. The zero value is ready.
type Joiner struct {
	// UDP: the kernel takes UDP super-packets (TUN_F_USO4 and TUN_F_USO6). Set
	// it before the first packet.
	UDP bool

	packets, groups int // used of the two tables
	closed          int // the groups before this one take nothing more
	next            int // group to hand out; not 0: emptying

	packet [JoinerPackets]member
	group  [JoinerPackets]group // in the order of first packets
	// slots finds the last group of a flow, by hash and linear probing: its
	// index plus one. At most half of it is used.
	slots [256]uint8

	offload [OffloadLen]byte
	parts   [MaxParts][]byte
}

// member is a packet that joined a group, without its headers.
type member struct {
	payload []byte
	next    uint8 // of the same group
}

// group is a super-packet in the making.
type group struct {
	segment           // the first packet
	closed       bool // takes nothing more
	verified     bool // the first packet's checksums are right
	flags        uint8
	count, total int    // packets, bytes
	seq          uint32 // that the next one must have
	head, tail   uint8  // members behind the first packet
}

// flow is what packets of one flow have in common.
type flow struct {
	// ports and protocol, and the version in the top byte: the quickest to differ.
	id  uint64
	src [2]uint64
	dst [2]uint64
}

// segment is a view of a TCP or UDP packet.
type segment struct {
	packet     []byte
	flow       flow
	l4, header int // the lengths of IP, of all headers
}

func (p *segment) v4() bool     { return p.packet[0]>>4 == 4 }
func (p *segment) tcp() bool    { return uint8(p.flow.id) == protoTCP }
func (p *segment) payload() int { return len(p.packet) - p.header }

// Add takes a packet, an IP packet without padding. It returns false, and has
// not taken it, when the tables are full or Next has begun to empty them: the
// groups are to be taken first.
func (j *Joiner) Add(packet []byte) bool {
	if j.packets == JoinerPackets || j.next != 0 {
		return false
	}
	var p segment
	is := j.look(packet, &p)
	if is == foreign || is == opaque {
		if is == opaque {
			j.closed = j.groups
		}
		j.alone(packet)
		return true
	}
	slot := j.find(&p.flow)
	if i := int(j.slots[slot]) - 1; i >= j.closed {
		if g := &j.group[i]; !g.closed {
			if is == joinable && g.fits(&p) && g.valid() && valid(&p) {
				j.join(g, &p)
				return true
			}
			g.closed = true
		}
	}
	if is == joinable {
		j.start(&p, slot)
	} else {
		j.alone(packet)
	}
	return true
}

// Next gives the next super-packet to write to the TUN device in one piece: the
// offload header, a packet, and payloads that belong behind it. The slices are
// the Joiner's and hold until the next call. After the last one ok is false,
// and packets may be added again.
func (j *Joiner) Next() (parts [][]byte, ok bool) {
	if j.next == j.groups {
		j.packets, j.groups, j.closed, j.next = 0, 0, 0, 0
		clear(j.slots[:])
		return nil, false
	}
	g := &j.group[j.next]
	j.next++
	parts = append(j.parts[:0], j.offload[:], g.packet)
	var o Offload
	if g.count > 1 {
		for k := g.head; len(parts) <= g.count; k = j.packet[k].next {
			parts = append(parts, j.packet[k].payload)
		}
		o = g.finish()
	}
	o.Put(j.offload[:])
	return parts, true
}

// find gives the slot of the flow's last group, or the empty one that a new group
// gets.
func (j *Joiner) find(f *flow) (slot uint8) {
	slot = f.hash()
	for j.slots[slot] != 0 && j.group[j.slots[slot]-1].flow != *f {
		slot++ // from the last to the first
	}
	return slot
}

func (f *flow) hash() uint8 {
	// Odd numbers at random. Whoever sends flows that collide makes the search
	// one of 128 comparisons, no more.
	h := f.id*0x9e3779b97f4a7c15 ^ f.src[0]*0xbf58476d1ce4e5b9 ^ f.src[1]*0x94d049bb133111eb ^
		f.dst[0]*0xd6e8feb86659fd93 ^ f.dst[1]*0xa0761d6478bd642f
	return uint8((h ^ h>>32) * 0x9e3779b97f4a7c15 >> 56)
}

// alone adds a group that nothing joins.
func (j *Joiner) alone(packet []byte) {
	g := &j.group[j.groups]
	g.packet, g.count = packet, 1
	j.groups++
	j.packets++
}

// start makes the packet the first of a group.
func (j *Joiner) start(p *segment, slot uint8) {
	g := &j.group[j.groups]
	*g = group{segment: *p, count: 1, total: len(p.packet)}
	if p.tcp() {
		g.flags = p.packet[p.l4+13]
		g.seq = be.Uint32(p.packet[p.l4+4:]) + uint32(p.payload())
		g.closed = g.flags&(tcpPSH|tcpFIN) != 0
	}
	j.groups++
	j.packets++
	j.slots[slot] = uint8(j.groups)
}

func (j *Joiner) join(g *group, p *segment) {
	k := uint8(j.packets)
	j.packets++
	j.packet[k].payload = p.packet[p.header:]
	if g.count == 1 {
		g.head = k
	} else {
		j.packet[g.tail].next = k
	}
	g.tail = k
	g.count++
	g.total += p.payload()
	if p.tcp() {
		g.flags |= p.packet[p.l4+13] & (tcpPSH | tcpFIN)
		g.seq += uint32(p.payload())
	}
	g.closed = p.payload() < g.payload() || g.flags&(tcpPSH|tcpFIN) != 0 || g.count == maxParts
}

// valid verifies the first packet, once.
func (g *group) valid() bool {
	g.verified = g.verified || valid(&g.segment)
	return g.verified
}

// fits tells whether a packet of the flow continues the group, its checksums
// aside.
func (g *group) fits(p *segment) bool {
	a, b := g.packet, p.packet
	if p.payload() > g.payload() || g.total+p.payload() > maxPacket {
		return false
	}
	if p.v4() {
		// TOS with ECN, DF, TTL.
		if a[1] != b[1] || a[6] != b[6] || a[8] != b[8] {
			return false
		}
		id := be.Uint16(a[4:]) + uint16(g.count)
		if a[6]&(dontFragment>>8) == 0 && id != be.Uint16(b[4:]) {
			return false
		}
	} else if be.Uint32(a) != be.Uint32(b) || a[7] != b[7] { // class with ECN, flow label; hop limit
		return false
	}
	if !p.tcp() {
		return true
	}
	a, b = a[g.l4:g.header], b[p.l4:p.header]
	const differ = tcpPSH | tcpFIN
	return be.Uint32(b[4:]) == g.seq &&
		be.Uint32(a[8:]) == be.Uint32(b[8:]) && // acknowledgment
		a[12] == b[12] && // header length, reserved bits
		a[13]&^differ == b[13]&^differ &&
		be.Uint16(a[14:]) == be.Uint16(b[14:]) && // window
		string(a[18:]) == string(b[18:]) // urgent pointer, options
}

// finish makes the first packet's headers those of the whole.
func (g *group) finish() Offload {
	length := g.total - g.l4
	o := Offload{
		Flags:         NeedsChecksum,
		HeaderLen:     uint16(g.header),
		SegmentSize:   uint16(g.payload()),
		ChecksumStart: uint16(g.l4),
	}
	version := 6
	if g.v4() {
		version = 4
		be.PutUint16(g.packet[2:], uint16(g.total))
		be.PutUint16(g.packet[10:], 0)
		be.PutUint16(g.packet[10:], ^headerSum(g.packet))
	} else {
		be.PutUint16(g.packet[4:], uint16(length))
	}
	protocol := uint8(g.flow.id)
	pseudo := fold(pseudoSum(g.packet, version, protocol) + uint64(length))
	l4 := g.packet[g.l4:]
	switch {
	case protocol == protoUDP:
		o.Type, o.ChecksumOffset = SegmentUDP, udpChecksum
		be.PutUint16(l4[4:], uint16(length))
	case version == 4:
		o.Type, o.ChecksumOffset = SegmentTCP4, tcpChecksum
	default:
		o.Type, o.ChecksumOffset = SegmentTCP6, tcpChecksum
	}
	if protocol == protoTCP {
		l4[13] = g.flags
	}
	be.PutUint16(l4[o.ChecksumOffset:], pseudo)
	return o
}

// What a packet is to a Joiner.
type kind int

const (
	foreign  kind = iota // of no flow that joins
	opaque               // of an unknown flow: may be any
	single               // of a flow, but must go alone
	joinable             // as far as its headers tell
)

// look sorts a packet; p is set for the latter two kinds.
func (j *Joiner) look(packet []byte, p *segment) kind {
	if n, ok := Length(packet); !ok || n != len(packet) {
		return opaque
	}
	var protocol uint8
	if packet[0]>>4 == 4 {
		protocol, p.l4 = packet[9], ipv4Len
		p.flow.src[0] = uint64(be.Uint32(packet[12:]))
		p.flow.dst[0] = uint64(be.Uint32(packet[16:]))
	} else {
		protocol, p.l4 = packet[6], ipv6Len
		p.flow.src = [2]uint64{be.Uint64(packet[8:]), be.Uint64(packet[16:])}
		p.flow.dst = [2]uint64{be.Uint64(packet[24:]), be.Uint64(packet[32:])}
	}
	switch protocol {
	case protoTCP:
		p.header = p.l4 + tcpLen
	case protoUDP:
		if !j.UDP {
			return foreign
		}
		p.header = p.l4 + udpLen
	case protoHopByHop, protoRouting, protoFragment, protoAH, protoDestOpts:
		if packet[0]>>4 == 6 {
			return opaque
		}
		return foreign
	default:
		return foreign
	}
	// Any flag but DF makes it a fragment or something unknown.
	if packet[0]>>4 == 4 && (packet[0] != 0x45 || be.Uint16(packet[6:])&^dontFragment != 0) || len(packet) < p.header {
		return opaque
	}
	p.packet = packet
	l4 := packet[p.l4:]
	p.flow.id = uint64(packet[0]>>4)<<56 | uint64(be.Uint32(l4))<<8 | uint64(protocol)
	if protocol == protoUDP {
		switch {
		case int(be.Uint16(l4[4:])) != len(l4):
			return opaque
		case be.Uint16(l4[udpChecksum:]) == 0 || len(l4) == udpLen:
			return single
		}
		return joinable
	}
	p.header = p.l4 + int(l4[12]>>4)*4
	const plain = tcpACK | tcpPSH | tcpFIN | tcpECE
	if p.header < p.l4+tcpLen || len(packet) <= p.header || l4[13]&^plain != 0 || l4[13]&tcpACK == 0 {
		return single
	}
	return joinable
}

// valid verifies the checksums of a joinable packet.
func valid(p *segment) bool {
	version := 6
	if p.v4() {
		version = 4
		if headerSum(p.packet) != 0xffff {
			return false
		}
	}
	l4 := p.packet[p.l4:]
	return Sum(l4, fold(pseudoSum(p.packet, version, uint8(p.flow.id))+uint64(len(l4)))) == 0xffff
}
