package packet

import "encoding/binary"

// OffloadLen is the length of the header before each packet on a TUN device
// that was opened with IFF_VNET_HDR.
const OffloadLen = 10

// Offload is that header, struct virtio_net_hdr of linux/virtio_net.h. It says
// what is left to do before the packet may go on a wire.
//
//	0       1      2            4              6                8                 10
//	| flags | type | HeaderLen  | SegmentSize  | ChecksumStart  | ChecksumOffset  |
//
// Numbers are in the byte order of the host, which is what the kernel uses
// unless it is told otherwise (TUNSETVNETLE). The zero value means: nothing is
// left to do.
type Offload struct {
	Flags          uint8
	Type           uint8  // of segmentation
	HeaderLen      uint16 // a hint: the kernel may count payload in
	SegmentSize    uint16 // payload of each segment but the last
	ChecksumStart  uint16 // the sum begins here, over the pseudo-header's in the field
	ChecksumOffset uint16 // of the field, from ChecksumStart
}

// Flags of [Offload].
const (
	NeedsChecksum = 1 // the checksum is to be completed
	DataValid     = 2 // the checksum has been verified
)

// Types of segmentation.
const (
	SegmentNone = 0
	SegmentTCP4 = 1
	SegmentTCP6 = 4
	SegmentUDP  = 5    // UDP_L4: every segment is a datagram of its own
	SegmentECN  = 0x80 // a bit added to TCP: CWR belongs to the first segment only
)

// ParseOffload reads the header in front of a packet. It refuses flags and types
// that this package does not know, and a segmentation without a size.
func ParseOffload(b []byte) (Offload, error) {
	if len(b) < OffloadLen {
		return Offload{}, ErrShort
	}
	ne := binary.NativeEndian
	o := Offload{
		Flags:          b[0],
		Type:           b[1],
		HeaderLen:      ne.Uint16(b[2:]),
		SegmentSize:    ne.Uint16(b[4:]),
		ChecksumStart:  ne.Uint16(b[6:]),
		ChecksumOffset: ne.Uint16(b[8:]),
	}
	return o, o.check()
}

// check looks at what can be told without the packet.
func (o Offload) check() error {
	if o.Flags&^(NeedsChecksum|DataValid) != 0 {
		return ErrFlags
	}
	switch o.Type {
	case SegmentNone:
		return nil
	case SegmentTCP4, SegmentTCP6, SegmentTCP4 | SegmentECN, SegmentTCP6 | SegmentECN, SegmentUDP:
	default:
		return ErrType
	}
	if o.SegmentSize == 0 {
		return ErrSegmentSize
	}
	return nil
}

// Put writes the header to b[:OffloadLen].
func (o Offload) Put(b []byte) {
	_ = b[OffloadLen-1]
	ne := binary.NativeEndian
	b[0], b[1] = o.Flags, o.Type
	ne.PutUint16(b[2:], o.HeaderLen)
	ne.PutUint16(b[4:], o.SegmentSize)
	ne.PutUint16(b[6:], o.ChecksumStart)
	ne.PutUint16(b[8:], o.ChecksumOffset)
}
