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

// Batch is how many trains SendMany and ReceiveMany give to one call. With 16
// single datagrams a call's fixed cost is next to nothing; 64 save 3 % more.
const Batch = 16

// Socket is a handle on a socket of one family, for one goroutine that receives
// and one that sends. Another one takes a [Socket.Clone].
type Socket struct {
	*shared
	in, out *messages // owned by Receive and ReceiveMany, and by Send and SendMany
}

// shared is what the handles of one socket have in common.
type shared struct {
	file     *rawio.File
	kernel   kernel // fixed at construction: file, but for tests
	v6       bool
	segments atomic.Bool // UDP_SEGMENT is of use
}

type kernel interface {
	Recvmsg(*unix.Msghdr) (int, error)
	Recvmmsg([]unix.Mmsghdr) (int, error)
	Sendmsg(*unix.Msghdr) (int, error)
	Sendmmsg([]unix.Mmsghdr) (int, error)
}

// messages are headers with what they point to. They keep the buffers of the
// last call alive.
type messages struct {
	headers [Batch]unix.Mmsghdr
	parts   [Batch]struct {
		data    unix.Iovec
		address [unix.SizeofSockaddrInet6]byte
		control [controlRoom]byte
	}
}

func newSocket(s *shared) *Socket {
	return &Socket{shared: s, in: newMessages(), out: newMessages()}
}

func newMessages() *messages {
	m := new(messages)
	for i := range m.headers {
		h, p := &m.headers[i].Hdr, &m.parts[i]
		h.Name = &p.address[0]
		h.Iov = &p.data
		h.SetIovlen(1)
	}
	return m
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
	s.in.expect(0, b)
	n, err := s.kernel.Recvmsg(&s.in.headers[0].Hdr)
	if err != nil {
		return err
	}
	return s.in.train(0, b[:n], t)
}

// ReceiveMany reads as many trains as have come, but not more than there are
// buffers, of which it uses [Batch], and says in ts what they are. With fewer,
// nothing more has come. It fails with EAGAIN when there is none. With ErrTruncated, those without Data are
// the ones that did not fit.
//
// For single datagrams it takes a third less time than Receive does.
func (s *Socket) ReceiveMany(bufs [][]byte, ts []Train) (n int, err error) {
	want := min(len(bufs), len(ts), Batch)
	for i, b := range bufs[:want] {
		if len(b) == 0 {
			return 0, unix.EINVAL
		}
		s.in.expect(i, b)
	}
	if n, err = s.kernel.Recvmmsg(s.in.headers[:want]); err != nil {
		return 0, err
	}
	for i := range n {
		if e := s.in.train(i, bufs[i][:s.in.headers[i].Len], &ts[i]); e != nil {
			ts[i].Data, err = nil, e
		}
	}
	return n, err
}

// expect prepares the i-th message for what comes.
func (m *messages) expect(i int, b []byte) {
	h, p := &m.headers[i].Hdr, &m.parts[i]
	p.data.Base = &b[0]
	p.data.SetLen(len(b))
	h.Namelen = uint32(len(p.address))
	h.Control = &p.control[0]
	h.SetControllen(len(p.control))
}

// train says what came as the i-th message.
func (m *messages) train(i int, data []byte, t *Train) error {
	h, p := &m.headers[i].Hdr, &m.parts[i]
	about := parseControl(p.control[:h.Controllen])
	*t = Train{
		Data:   data,
		Size:   about.size,
		Remote: parseAddress(p.address[:h.Namelen]),
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
	if err := s.out.address(0, t, s.v6); err != nil {
		return 0, err
	}
	source := s.source(t)
	size := t.size()
	segments := s.segments.Load()
	for rest := t.Data; ; {
		part := rest[:min(len(rest), unit(size, segments))]
		e := s.send(part, size, source, t.ECN)
		if e != nil && source.Addr.IsValid() && refusesSource(e) {
			// A train may be refused for its segments with the same error.
			if s.send(part, size, Source{}, t.ECN) == nil {
				source, e, err = Source{}, nil, ErrSource
			}
		}
		if e != nil && len(part) > size {
			if refuses, forGood := refusesTrain(e); refuses {
				if forGood {
					s.segments.Store(false)
				}
				segments = false
				continue
			}
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

// SendMany sends trains in order and gives the number of those that were sent as
// a whole. An error, as of Send, is about ts[sent]; those behind it were not
// tried.
//
// For single datagrams it takes a fifth less time than Send does.
func (s *Socket) SendMany(ts []Train) (sent int, err error) {
	for sent < len(ts) {
		n := s.prepare(ts[sent:])
		if n > 1 {
			if n, err = s.kernel.Sendmmsg(s.out.headers[:n]); err == nil {
				sent += n
				continue
			}
		}
		// It is alone, does not fit into a call, or was refused: all that is
		// Send's to deal with.
		if _, err := s.Send(&ts[sent]); err != nil {
			return sent, err
		}
		sent++
	}
	return sent, nil
}

// prepare makes messages of the first trains, as many as need one call each.
func (s *Socket) prepare(ts []Train) int {
	segments := s.segments.Load()
	for i := range ts {
		t := &ts[i]
		size := t.size()
		if i == Batch || len(t.Data) > unit(size, segments) || s.out.address(i, t, s.v6) != nil {
			return i
		}
		s.out.fill(i, t.Data, size, s.source(t), t.ECN, s.v6)
	}
	return len(ts)
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
	return size * max(1, min(maxSegments, maxPayload/size))
}

// send sends datagrams of size to the address in the first message.
func (s *Socket) send(b []byte, size int, source Source, ecn byte) error {
	s.out.fill(0, b, size, source, ecn, s.v6)
	_, err := s.kernel.Sendmsg(&s.out.headers[0].Hdr)
	return err
}

// address gives the i-th message the train's destination.
func (m *messages) address(i int, t *Train, v6 bool) (err error) {
	m.headers[i].Hdr.Namelen, err = putAddress(&m.parts[i].address, t.Remote, v6)
	return err
}

// fill gives the i-th message all but its destination.
func (m *messages) fill(i int, b []byte, size int, source Source, ecn byte, v6 bool) {
	h, p := &m.headers[i].Hdr, &m.parts[i]
	p.data.Base = nil
	if len(b) > 0 {
		p.data.Base = &b[0]
	}
	p.data.SetLen(len(b))
	control := p.control[:0]
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
		h.Control = &p.control[0]
	}
	h.SetControllen(len(control))
}
