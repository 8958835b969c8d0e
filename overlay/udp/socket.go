package udp

import (
	"golang.org/x/sys/unix"

	"meshd/tun/rawio"
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
	kernel   kernel // fixed at construction: file, but for tests
	v6       bool
	segments bool // fixed at construction: the kernel knows UDP_SEGMENT
}

type kernel interface {
	Recvmsg(*unix.Msghdr) (int, error)
	Sendmsg(*unix.Msghdr) (int, error)
}

// message is a header with what it points to. It keeps the buffer of the last
// call alive.
type message struct {
	header  unix.Msghdr
	data    unix.Iovec
	address [unix.SizeofSockaddrInet6]byte
	control [controlRoom]byte
}

func newSocket(s *shared) *Socket {
	return &Socket{shared: s, in: newMessage(), out: newMessage()}
}

func newMessage() *message {
	m := new(message)
	m.header.Name, m.header.Iov = &m.address[0], &m.data
	m.header.SetIovlen(1)
	return m
}

// Clone gives another handle on the same socket.
func (s *Socket) Clone() *Socket { return newSocket(s.shared) }

// File is what a [rawio.Waiter] waits for.
func (s *Socket) File() *rawio.File { return s.file }

// Receive reads a train into b and says in t what it is. It fails with EAGAIN
// when there is none. Trains are at most [MaxTrain] bytes long; with ErrTruncated
// what did not fit into b is lost.
func (s *Socket) Receive(b []byte, t *Train) error {
	if len(b) == 0 {
		return unix.EINVAL // Linux would take a datagram and say that it was empty
	}
	s.in.expect(b)
	n, err := s.kernel.Recvmsg(&s.in.header)
	if err != nil {
		return err
	}
	return s.in.train(b[:n], t)
}

// expect prepares the message for what comes.
func (m *message) expect(b []byte) {
	h := &m.header
	m.data.Base = &b[0]
	m.data.SetLen(len(b))
	h.Namelen = uint32(len(m.address))
	h.Control = &m.control[0]
	h.SetControllen(len(m.control))
}

// train says what came.
func (m *message) train(data []byte, t *Train) error {
	h := &m.header
	about := parseControl(m.control[:h.Controllen])
	*t = Train{
		Data:   data,
		Size:   about.size,
		Remote: parseAddress(m.address[:h.Namelen]),
		Local:  about.local,
		ECN:    about.ecn,
	}
	if t.Size == 0 || t.Size > len(data) {
		t.Size = len(data)
	}
	if h.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return ErrTruncated
	}
	return nil
}

// Send sends a train of any length, in as few calls as possible, and gives the
// number of bytes that the kernel took; with an error the rest should be
// dropped. When t.Local is refused, the train leaves from another address, and
// Send says [ErrSource].
func (s *Socket) Send(t *Train) (sent int, err error) {
	s.out.header.Namelen, err = putAddress(&s.out.address, t.Remote, s.v6)
	if err != nil {
		return 0, err
	}
	source := s.source(t)
	size := t.size()
	segments := s.segments
	for rest := t.Data; ; {
		part := rest[:min(len(rest), unit(size, segments))]
		e := s.send(part, size, source, t.ECN)
		if e != nil && source.Addr.IsValid() && refusesSource(e) {
			// A train may be refused for its segments with the same error, or for both.
			switch again := s.send(part, size, Source{}, t.ECN); {
			case again == nil:
				source, e, err = Source{}, nil, ErrSource
			case refusesTrain(again):
				e = again // first the train, then its source
			}
		}
		if e != nil && len(part) > size && refusesTrain(e) {
			segments = false // for this train: the next may take another route
			continue
		}
		if e != nil {
			return sent, e
		}
		sent += len(part)
		if rest = rest[len(part):]; len(rest) == 0 {
			return sent, err
		}
	}
}

// size of a datagram, at most that of Data.
func (t *Train) size() int {
	if t.Size <= 0 || t.Size > len(t.Data) {
		return len(t.Data)
	}
	return t.Size
}

// source is where a train leaves from. One of the other family belongs to
// another path.
func (s *Socket) source(t *Train) Source {
	if t.Local.Addr.Is6() != s.v6 {
		return Source{}
	}
	return t.Local
}

// unit is how many bytes, in datagrams of size, go in one call.
func unit(size int, segments bool) int {
	if !segments || size == 0 {
		return size
	}
	return size * max(1, min(MaxDatagrams, MaxPayload/size))
}

// send sends datagrams of size to the address in the first message.
func (s *Socket) send(b []byte, size int, source Source, ecn byte) error {
	s.out.fill(b, size, source, ecn, s.v6)
	_, err := s.kernel.Sendmsg(&s.out.header)
	return err
}

// fill gives the message all but its destination.
func (m *message) fill(b []byte, size int, source Source, ecn byte, v6 bool) {
	h := &m.header
	m.data.Base = nil
	if len(b) > 0 {
		m.data.Base = &b[0]
	}
	m.data.SetLen(len(b))
	control := m.control[:0]
	if source.Addr.IsValid() {
		control = appendSource(control, source, v6)
	}
	if ecn != 0 {
		control = appendECN(control, ecn, v6)
	}
	if len(b) > size {
		control = appendSegment(control, size)
	}
	h.Control = nil
	if len(control) > 0 {
		h.Control = &m.control[0]
	}
	h.SetControllen(len(control))
}
