package packet

// TailRoom is how many bytes of capacity a packet must have behind its end to be
// given to a [Splitter]: a segment can be padded there to a multiple of 16, as
// WireGuard does, and more.
const TailRoom = 16

// How many segments one packet may ask for. A few bytes of header must not make
// the engine send without end.
const (
	maxTCPSegments = 8192 // Linux makes none of less than 8 bytes (TCP_MIN_GSO_SIZE)
	maxUDPSegments = 128  // UDP_MAX_SEGMENTS of Linux
)

// Splitter cuts a super-packet into segments, in place: the header of a segment
// is written just before its payload, over the end of the segment before.
//
//	[header|payload 0    |payload 1    |payload 2 ]tail room
//	[      segment 0     ]pad                            first call of Next
//	               [header|payload 1   ]pad              second
//	                             [header|payload 2]pad   third
//
// It does what the kernel's segmentation does: total length, IPv4 ID counting
// up, TCP sequence number, FIN and PSH on the last segment only, CWR on the
// first only, UDP length, all checksums complete.
//
// A segment is the caller's until the next call of Next: all of it may be
// overwritten, and so may TailRoom bytes behind it, which are the capacity of
// the slice; what lies beneath is saved and put back. Nothing before or beyond
// may be touched. The whole packet belongs to the Splitter until Next has said
// that there is no more, or Reset.
//
// The zero value has no segments.
type Splitter struct {
	packet []byte // the whole of it, with the tail room
	end    int    // of the payload in packet

	count, index int // segments; those handed out
	payload      int // where that of the next segment begins
	size         int // payload of each segment but the last; 0: the packet goes as it is

	version, l4, header int // the latter two: lengths of IP, of all headers
	protocol            uint8
	flags               uint8  // of TCP
	id                  uint16 // of IPv4
	seq                 uint32 // of TCP
	ipSum               uint64 // of the IPv4 header, without total length and ID
	l4Sum               uint64 // of pseudo and transport header, without what differs between segments

	template [maxHeaders]byte // the headers; what differs is zero in it
	saved    [TailRoom]byte   // what was behind the segment last handed out
}

const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpPSH = 0x08
	tcpACK = 0x10
	tcpURG = 0x20
	tcpECE = 0x40
	tcpCWR = 0x80
)

// Reset takes a packet and the header that came with it. A packet that needs no
// segmentation is one segment, of which at most the checksum is completed; with
// the zero Offload any bytes pass. The packet needs [TailRoom] bytes of
// capacity behind it, and no room before it. After an error there are no
// segments.
func (s *Splitter) Reset(packet []byte, o Offload) error {
	s.count, s.index = 0, 0
	if cap(packet)-len(packet) < TailRoom {
		return ErrRoom
	}
	if err := o.check(); err != nil {
		return err
	}
	n := len(packet)
	s.packet, s.end = packet[:n+TailRoom:n+TailRoom], n
	if o.Type != SegmentNone {
		return s.segment(packet, o)
	}
	if o.Flags&NeedsChecksum != 0 {
		if err := complete(packet, o); err != nil {
			return err
		}
	}
	s.size, s.count = 0, 1
	return nil
}

// complete sums what is behind ChecksumStart, as the kernel's skb_checksum_help.
func complete(packet []byte, o Offload) error {
	l3 := ipv6Len
	switch Version(packet) {
	case 4:
		l3 = int(packet[0]&0x0f) * 4
	case 6:
	default:
		return ErrVersion
	}
	start, field := int(o.ChecksumStart), int(o.ChecksumStart)+int(o.ChecksumOffset)
	// In the IP header it would rewrite addresses that have been looked at.
	if start < l3 || field+2 > len(packet) {
		return ErrChecksum
	}
	sum := Checksum(packet[start:], 0)
	if sum == 0 {
		sum = 0xffff // zero means none to UDP, and is the same number to others
	}
	be.PutUint16(packet[field:], sum)
	return nil
}

// segment prepares the template and the sums.
func (s *Splitter) segment(packet []byte, o Offload) error {
	h, err := walk(packet)
	if err != nil {
		return err
	}
	if n, ok := Length(packet); !ok || n != len(packet) {
		return ErrLength
	}
	if h.fragment {
		return ErrFragment
	}
	version, protocol, field := h.version, uint8(protoTCP), tcpChecksum
	switch o.Type {
	case SegmentTCP4, SegmentTCP4 | SegmentECN:
		version = 4
	case SegmentTCP6, SegmentTCP6 | SegmentECN:
		version = 6
	default:
		protocol, field = protoUDP, udpChecksum
	}
	if h.version != version {
		return ErrVersion
	}
	if h.protocol != protocol {
		return ErrProtocol
	}
	length := udpLen
	if protocol == protoTCP {
		if len(packet) < h.l4+tcpLen {
			return ErrShort
		}
		if length = int(packet[h.l4+12]>>4) * 4; length < tcpLen {
			return ErrShort
		}
	}
	s.version, s.protocol, s.l4, s.header = version, protocol, h.l4, h.l4+length
	if len(packet) < s.header {
		return ErrShort
	}
	if s.header > maxHeaders {
		return ErrHeaders
	}
	if protocol == protoUDP && int(be.Uint16(packet[h.l4+4:])) != len(packet)-h.l4 {
		return ErrLength
	}

	// What stands for the pseudo-header: the field, where it is to be completed.
	var pseudo uint64
	switch {
	case o.Flags&NeedsChecksum != 0:
		if int(o.ChecksumStart) != h.l4 || int(o.ChecksumOffset) != field {
			return ErrChecksum
		}
		pseudo = uint64(be.Uint16(packet[h.l4+field:])) + uint64(^uint16(len(packet)-h.l4))
	case o.Flags&DataValid != 0:
		pseudo = pseudoSum(packet, version, protocol)
	default:
		return ErrUnvouched
	}

	size := int(o.SegmentSize)
	payload := len(packet) - s.header
	count := max(1, (payload+size-1)/size)
	if protocol == protoTCP && count > maxTCPSegments || protocol == protoUDP && count > maxUDPSegments {
		return ErrSegmentSize
	}

	t := s.template[:s.header]
	copy(t, packet)
	if version == 4 {
		s.id = be.Uint16(t[4:])
		clear(t[2:6])
		clear(t[10:12])
		s.ipSum = uint64(Sum(t[:s.l4], 0))
	}
	l4 := t[s.l4:]
	clear(l4[field : field+2])
	if protocol == protoTCP {
		s.seq, s.flags = be.Uint32(l4[4:]), l4[13]
		clear(l4[4:8])
		l4[13] = 0
	} else {
		clear(l4[4:6])
	}
	s.l4Sum = pseudo + uint64(Sum(l4, 0))
	s.size, s.count, s.payload = size, count, s.header
	return nil
}

// Segments gives the number of segments of the packet.
func (s *Splitter) Segments() int { return s.count }

// Size gives the length of every segment but the last, which is not longer.
func (s *Splitter) Size() int {
	if s.count == 1 {
		return s.end
	}
	return s.header + s.size
}

// Next gives the next segment. ok is false after the last one.
func (s *Splitter) Next() (segment []byte, ok bool) {
	if s.index == s.count {
		return nil, false
	}
	first, last := s.index == 0, s.index == s.count-1
	s.index++
	if s.size == 0 {
		return s.packet[:s.end], true
	}
	begin, end := s.payload, s.end
	if !first {
		copy(s.packet[begin:begin+TailRoom], s.saved[:])
	}
	if !last {
		end = begin + s.size
		s.saved = [TailRoom]byte(s.packet[end:])
	}
	s.payload = end
	segment = s.packet[begin-s.header : end : end+TailRoom]
	copy(segment, s.template[:s.header])
	if s.version == 4 {
		s.finish4(segment)
	} else {
		be.PutUint16(segment[4:], uint16(len(segment)-ipv6Len))
	}
	if s.protocol == protoTCP {
		s.finishTCP(segment[s.l4:], first, last)
	} else {
		s.finishUDP(segment[s.l4:])
	}
	return segment, true
}

func (s *Splitter) finish4(packet []byte) {
	be.PutUint16(packet[2:], uint16(len(packet)))
	be.PutUint16(packet[4:], s.id)
	be.PutUint16(packet[10:], ^fold(s.ipSum+uint64(len(packet))+uint64(s.id)))
	s.id++
}

func (s *Splitter) finishTCP(l4 []byte, first, last bool) {
	flags := s.flags
	if !first {
		flags &^= tcpCWR
	}
	if !last {
		flags &^= tcpFIN | tcpPSH
	}
	be.PutUint32(l4[4:], s.seq)
	l4[13] = flags
	head := fold(s.l4Sum + uint64(len(l4)) + uint64(s.seq) + uint64(flags))
	be.PutUint16(l4[tcpChecksum:], Checksum(l4[s.header-s.l4:], head))
	s.seq += uint32(s.size)
}

func (s *Splitter) finishUDP(l4 []byte) {
	be.PutUint16(l4[4:], uint16(len(l4)))
	// The length counts twice: in the header and in the pseudo-header.
	sum := Checksum(l4[udpLen:], fold(s.l4Sum+2*uint64(len(l4))))
	if sum == 0 {
		sum = 0xffff // zero means none
	}
	be.PutUint16(l4[udpChecksum:], sum)
}
