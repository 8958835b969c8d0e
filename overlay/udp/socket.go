package udp

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"meshd/tun/rawio"
)

const (
	// maxSegments of one call: UDP_MAX_SEGMENTS before Linux 6.9.
	maxSegments = 64
	// maxPayload of one call: an IPv4 packet's 65535 bytes without the headers.
	maxPayload = 65535 - 20 - 8
)

// Socket is a handle on a socket of one family, for one goroutine that receives
// and one that sends. Another one takes a [Socket.Clone].
type Socket struct {
	*shared
	in, out *message // owned by Receive and by Send
}

// shared is what the handles of one socket have in common.
type shared struct {
	file     *rawio.File
	v6       bool
	segments atomic.Bool                     // UDP_SEGMENT is of use
	sendmsg  func(*unix.Msghdr) (int, error) // fixed at construction: that of file
}

// message is a msghdr with what it points to. It keeps the caller's buffer alive
// until the next call.
type message struct {
	hdr     unix.Msghdr
	data    unix.Iovec
	address [unix.SizeofSockaddrInet6]byte
	control [controlRoom]byte
}

func newMessage() *message {
	m := new(message)
	m.hdr.Name = &m.address[0]
	m.hdr.Iov = &m.data
	m.hdr.SetIovlen(1)
	return m
}

func newSocket(s *shared) *Socket {
	return &Socket{shared: s, in: newMessage(), out: newMessage()}
}

// Clone gives another handle on the same socket.
func (s *Socket) Clone() *Socket { return newSocket(s.shared) }

// File is what a [rawio.Waiter] waits for.
func (s *Socket) File() *rawio.File { return s.file }

// Segments tells whether trains leave in one call. Send finds out when a train
// is refused.
func (s *Socket) Segments() bool { return s.segments.Load() }

// Receive reads a train into b and says in t what it is. It fails with EAGAIN
// when there is none. Trains are at most [MaxTrain] bytes long; with ErrTruncated
// what did not fit into b is lost.
func (s *Socket) Receive(b []byte, t *Train) error {
	if len(b) == 0 {
		return unix.EINVAL // Linux would take a datagram and say that it was empty
	}
	m := s.in
	m.data.Base = &b[0]
	m.data.SetLen(len(b))
	m.hdr.Namelen = uint32(len(m.address))
	m.hdr.Control = &m.control[0]
	m.hdr.SetControllen(len(m.control))
	n, err := s.file.Recvmsg(&m.hdr)
	if err != nil {
		return err
	}
	about := parseControl(m.control[:m.hdr.Controllen])
	*t = Train{
		Data:   b[:n],
		Size:   about.size,
		Remote: parseAddress(m.address[:m.hdr.Namelen]),
		Local:  about.local,
		ECN:    about.ecn,
	}
	if t.Size == 0 || t.Size > n {
		t.Size = n
	}
	if m.hdr.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return ErrTruncated
	}
	return nil
}

// Send sends a train of any length, in as few calls as possible, and gives the
// number of bytes that the kernel took; with an error the rest should be
// dropped. When t.Local is refused, the train leaves from another address, and
// Send says [ErrSource].
func (s *Socket) Send(t *Train) (sent int, err error) {
	m := s.out
	if m.hdr.Namelen, err = putAddress(&m.address, t.Remote, s.v6); err != nil {
		return 0, err
	}
	source := t.Local
	if source.Addr.IsValid() && source.Addr.Is6() != s.v6 {
		source = Source{} // of a path of the other family
	}
	size := t.Size
	if size <= 0 || size > len(t.Data) {
		size = len(t.Data)
	}
	segments := s.segments.Load()
	refused := false
	for rest := t.Data; ; {
		part := rest[:min(len(rest), s.unit(size, segments))]
		segment := 0
		if len(part) > size {
			segment = size
		}
		err := s.send(part, segment, source, t.ECN)
		if err != nil && source.Addr.IsValid() && refusesSource(err) {
			// A train may be refused for its segments with the same error.
			if s.send(part, segment, Source{}, t.ECN) == nil {
				source, refused, err = Source{}, true, nil
			}
		}
		if err != nil && segment != 0 {
			if refuses, forGood := refusesTrain(err); refuses {
				if forGood {
					s.segments.Store(false)
				}
				segments = false
				continue
			}
		}
		if err != nil {
			return sent, err
		}
		sent += len(part)
		if rest = rest[len(part):]; len(rest) > 0 {
			continue
		}
		if refused {
			return sent, ErrSource
		}
		return sent, nil
	}
}

// unit is how many bytes, in datagrams of size, go in one call.
func (s *Socket) unit(size int, segments bool) int {
	if !segments || size == 0 {
		return size
	}
	return size * max(1, min(maxSegments, maxPayload/size))
}

// send is one sendmsg to the address in s.out. Segment 0 is a single datagram.
func (s *Socket) send(b []byte, segment int, source Source, ecn byte) error {
	m := s.out
	m.data.Base = nil
	if len(b) > 0 {
		m.data.Base = &b[0]
	}
	m.data.SetLen(len(b))
	control := m.control[:0]
	if source.Addr.IsValid() {
		control = appendSource(control, source, s.v6)
	}
	if ecn != 0 {
		control = appendECN(control, ecn, s.v6)
	}
	if segment != 0 {
		control = appendSegment(control, segment)
	}
	m.hdr.Control = nil
	if len(control) > 0 {
		m.hdr.Control = &m.control[0]
	}
	m.hdr.SetControllen(len(control))
	_, err := s.sendmsg(&m.hdr)
	return err
}
