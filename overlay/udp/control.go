package udp

import (
	"encoding/binary"
	"math"
	"math/bits"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// word is the kernel's long.
const word = bits.UintSize / 8

var native = binary.NativeEndian

// meta is what the control messages say of a train.
type meta struct {
	local Source
	ecn   byte
	size  int // of a datagram; 0: there is only one
}

const ecnMask = 3 // RFC 3168, 5: of the byte that was called TOS

// parseControl reads the control messages of a train, cmsg(3), in the machine's
// byte order:
//
//	len: word | level: int32 | type: int32 | data, padded to a word
//
//	IP_PKTINFO    interface: uint32 | our address: 4 | destination: 4
//	IPV6_PKTINFO  our address: 16 | interface: uint32
//	IP_TOS        byte
//	IPV6_TCLASS   int32
//	UDP_GRO       int32
//
// It passes over what it does not know, and stops at what is not whole.
func parseControl(b []byte) (m meta) {
	for len(b) >= unix.SizeofCmsghdr {
		length := getWord(b)
		if length < unix.SizeofCmsghdr || length > len(b) {
			return m
		}
		level, kind := int(native.Uint32(b[word:])), int(native.Uint32(b[word+4:]))
		data := b[unix.SizeofCmsghdr:length]
		switch {
		case level == unix.IPPROTO_IP && kind == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			m.local = sourceOf(netip.AddrFrom4([4]byte(data[4:])), native.Uint32(data))
		case level == unix.IPPROTO_IPV6 && kind == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			m.local = sourceOf(netip.AddrFrom16([16]byte(data)), native.Uint32(data[16:]))
		case level == unix.IPPROTO_IP && kind == unix.IP_TOS && len(data) >= 1:
			m.ecn = data[0] & ecnMask
		case level == unix.IPPROTO_IPV6 && kind == unix.IPV6_TCLASS && len(data) >= 4:
			m.ecn = byte(native.Uint32(data) & ecnMask)
		case level == unix.SOL_UDP && kind == unix.UDP_GRO && len(data) >= 4:
			m.size = int(min(native.Uint32(data), math.MaxUint16))
		}
		b = b[min(unix.CmsgSpace(len(data)), len(b)):]
	}
	return m
}

// sourceOf leaves out an interface that answers need not leave by: what comes by
// two in turn is still one path.
func sourceOf(addr netip.Addr, index uint32) Source {
	if !addr.IsLinkLocalUnicast() {
		index = 0
	}
	return Source{Addr: addr, Interface: index}
}

// The control messages that go with a train; those of one family need no more
// room than this.
const controlRoom = 128

func appendSource(b []byte, s Source, v6 bool) []byte {
	if !v6 {
		var data [unix.SizeofInet4Pktinfo]byte // no interface: the route decides
		*(*[4]byte)(data[4:]) = s.Addr.As4()
		return appendMessage(b, unix.IPPROTO_IP, unix.IP_PKTINFO, data[:])
	}
	var data [unix.SizeofInet6Pktinfo]byte
	*(*[16]byte)(data[:]) = s.Addr.As16()
	if s.Addr.IsLinkLocalUnicast() {
		native.PutUint32(data[16:], s.Interface)
	}
	return appendMessage(b, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, data[:])
}

func appendECN(b []byte, ecn byte, v6 bool) []byte {
	var data [4]byte
	native.PutUint32(data[:], uint32(ecn&ecnMask))
	if v6 {
		return appendMessage(b, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, data[:])
	}
	return appendMessage(b, unix.IPPROTO_IP, unix.IP_TOS, data[:])
}

func appendSegment(b []byte, size int) []byte {
	var data [2]byte
	native.PutUint16(data[:], uint16(size))
	return appendMessage(b, unix.SOL_UDP, unix.UDP_SEGMENT, data[:])
}

func appendMessage(b []byte, level, kind int, data []byte) []byte {
	b = appendWord(b, unix.CmsgLen(len(data)))
	b = native.AppendUint32(b, uint32(level))
	b = native.AppendUint32(b, uint32(kind))
	b = append(b, data...)
	for len(b)%word != 0 {
		b = append(b, 0)
	}
	return b
}

func getWord(b []byte) int {
	if word == 4 {
		return int(min(native.Uint32(b), math.MaxInt32))
	}
	return int(min(native.Uint64(b), math.MaxInt))
}

func appendWord(b []byte, n int) []byte {
	if word == 4 {
		return native.AppendUint32(b, uint32(n))
	}
	return native.AppendUint64(b, uint64(n))
}

// Socket addresses, ip(7) and ipv6(7):
//
//	family: uint16 | port: 2, big endian | address: 4 | 8 zero
//	family: uint16 | port: 2, big endian | flow: 4 | address: 16 | interface: uint32

// parseAddress gives the zero value for an address of neither family.
func parseAddress(b []byte) netip.AddrPort {
	if len(b) < unix.SizeofSockaddrInet4 {
		return netip.AddrPort{}
	}
	port := binary.BigEndian.Uint16(b[2:])
	switch native.Uint16(b) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:])), port)
	case unix.AF_INET6:
		if len(b) < unix.SizeofSockaddrInet6 {
			break
		}
		addr := netip.AddrFrom16([16]byte(b[8:]))
		if scope := native.Uint32(b[24:]); scope != 0 {
			addr = addr.WithZone(strconv.FormatUint(uint64(scope), 10))
		}
		return netip.AddrPortFrom(addr, port)
	}
	return netip.AddrPort{}
}

// putAddress writes a.Addr(), of the family that v6 says. A zone is the number
// of an interface.
func putAddress(b *[unix.SizeofSockaddrInet6]byte, a netip.AddrPort, v6 bool) (length uint32, err error) {
	addr := a.Addr().Unmap()
	if !addr.IsValid() || addr.Is6() != v6 {
		return 0, unix.EAFNOSUPPORT
	}
	binary.BigEndian.PutUint16(b[2:], a.Port())
	if !v6 {
		native.PutUint16(b[:], unix.AF_INET)
		*(*[4]byte)(b[4:]) = addr.As4()
		clear(b[8:unix.SizeofSockaddrInet4])
		return unix.SizeofSockaddrInet4, nil
	}
	native.PutUint16(b[:], unix.AF_INET6)
	clear(b[4:8])
	*(*[16]byte)(b[8:]) = addr.As16()
	scope := uint64(0)
	if zone := addr.Zone(); zone != "" {
		if scope, err = strconv.ParseUint(zone, 10, 32); err != nil {
			return 0, unix.ENODEV
		}
	}
	native.PutUint32(b[24:], uint32(scope))
	return unix.SizeofSockaddrInet6, nil
}
