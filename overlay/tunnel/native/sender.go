package native

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"meshd/overlay/tunnel/wg"
	"meshd/overlay/udp"
	"meshd/tun/device"
	"meshd/tun/packet"
)

const (
	// maxTrains is how many peers' packets are gathered at a time. With more
	// peers at once trains get shorter, not lost.
	maxTrains = 8
	// maxDatagrams of a train, and its bytes: what crosses the kernel in one call.
	maxDatagrams = 64
	// maxPacket is the longest that the kernel makes.
	maxPacket = 65535
	trainSize = 65535 - 20 - 8
)

// sender takes packets from a TUN queue to the peers.
type sender struct {
	// fixed at construction
	e       *Engine
	queue   *device.Queue
	socket4 *udp.Socket
	socket6 *udp.Socket // nil: the host has no IPv6
	room    []byte      // offload header, packet, room for padding
	answer  []byte      // an ICMP message, behind an offload header

	// owned by run
	split   packet.Splitter
	trains  []train // the first open ones of them are in use
	open    int
	known   flowOut
	answers allowance
	out     udp.Train
}

// train is datagrams for one peer in the making. Its buffer is the sender's, and
// nobody else's: Send has copied it when it returns.
type train struct {
	peer    *peer
	session *wg.Session
	size    int // of each datagram but the last
	count   int
	ecn     packet.ECN
	buf     []byte
}

// flowOut remembers where packets of these addresses go.
type flowOut struct {
	routes  *routes
	version int
	pair    [32]byte
	peer    *peer
}

func newSender(e *Engine, q *device.Queue, g *udp.Group, queue int) *sender {
	s := &sender{
		e: e, queue: q, socket4: g.IPv4(queue), socket6: g.IPv6(queue),
		room:   make([]byte, packet.OffloadLen+maxPacket+packet.TailRoom),
		answer: make([]byte, packet.OffloadLen+packet.AnswerLen),
		trains: make([]train, maxTrains),
	}
	return s
}

// turn sends what the queue has, and tells whether that was anything. It fails when
// the queue has ended.
func (s *sender) turn() (busy bool, err error) {
	defer s.flushAll()
	for left := turnBytes; left > 0; {
		n, err := s.queue.ReadPacket(s.room[:packet.OffloadLen+maxPacket])
		switch {
		case err == nil && n > 0:
			s.take(n)
			busy = true
			left -= max(n, leastTurn)
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			return busy, nil
		case err == nil: // not of a TUN, which has no packets without bytes
			return busy, s.gone(io.EOF)
		case errors.Is(err, os.ErrClosed), errors.Is(err, unix.EBADFD), errors.Is(err, unix.EBADF):
			return busy, s.gone(err)
		default: // there is no memory, the link is down, or whatever else: it may pass
			s.e.drops.add(dropTUN, 1)
			time.Sleep(pauseAfterError)
			return busy, nil
		}
	}
	return busy, nil
}

func (s *sender) gone(err error) error {
	return fmt.Errorf("%w: read %s: %w", errTUNGone, s.e.options.TUN.Name(), err)
}

// take sends one packet, with its offload header, of n bytes in s.room.
func (s *sender) take(n int) {
	if n < packet.OffloadLen {
		s.e.drops.add(dropMalformed, 1)
		return
	}
	offload, err := packet.ParseOffload(s.room)
	p := s.room[packet.OffloadLen:n]
	if err != nil {
		s.e.drops.add(dropMalformed, 1)
		return
	}
	to := s.route(p)
	if to == nil {
		return
	}
	mtu := int(s.e.mtu.Load())
	if err := s.split.Reset(p[:len(p):len(p)+packet.TailRoom], offload); err != nil {
		s.e.drops.add(dropMalformed, 1)
		return
	}
	if s.split.Size() > mtu {
		s.e.drops.add(dropTooBig, 1)
		s.tell(packet.TooBig(s.answer[packet.OffloadLen:packet.OffloadLen], p, mtu, beyond(p)))
		return
	}
	session := to.session.Load()
	now := time.Now()
	if session == nil || !session.Alive(now) {
		s.stage(to, now, mtu)
		return
	}
	s.send(to, session, now, mtu)
}

// send seals the segments that s.split gives.
func (s *sender) send(to *peer, session *wg.Session, now time.Time, mtu int) {
	count := s.split.Segments()
	counter, ok := session.Reserve(count)
	if !ok {
		s.stage(to, now, mtu)
		return
	}
	ecn := packet.NotECT
	for first := true; ; first = false {
		segment, more := s.split.Next()
		if !more {
			break
		}
		if first {
			packet.ClampMSS(segment, mtu)
			ecn = packet.OuterECN(packet.GetECN(segment))
		}
		padded := wg.Padded(len(segment), mtu)
		clear(segment[len(segment):padded])
		t := s.train(to, padded+wg.Overhead, ecn)
		t.session = session
		t.buf = session.Seal(t.buf, counter, segment[:padded])
		counter++
		if t.count++; t.count == maxDatagrams || len(t.buf)-t.size*(t.count-1) < t.size {
			s.flush(t) // full, or its last datagram is shorter
		}
	}
}

// train gives the open train to which a datagram of that size can be appended.
func (s *sender) train(to *peer, size int, ecn packet.ECN) *train {
	for i := range s.open {
		t := &s.trains[i]
		if t.peer != to {
			continue
		}
		if t.count > 0 && (size > t.size || ecn != t.ecn || len(t.buf)+size > trainSize) {
			s.flush(t)
		}
		if t.count == 0 {
			t.size, t.ecn = size, ecn
		}
		return t
	}
	if s.open == maxTrains {
		s.flushAll()
	}
	t := &s.trains[s.open]
	if t.buf == nil {
		t.buf = make([]byte, 0, trainSize+wg.Overhead)
	}
	s.open++
	t.peer, t.size, t.ecn = to, size, ecn
	return t
}

func (s *sender) flushAll() {
	for i := range s.open {
		s.flush(&s.trains[i])
		s.trains[i].peer, s.trains[i].session = nil, nil
	}
	s.open = 0
}

// flush sends a train, which stays open and empty.
func (s *sender) flush(t *train) {
	if t.count == 0 {
		return
	}
	if at := t.peer.path.Load(); at != nil {
		s.transmit(t, at)
	} else {
		s.e.drops.add(dropNoEndpoint, t.count)
	}
	t.buf, t.count = t.buf[:0], 0
}

func (s *sender) transmit(t *train, at *path) {
	socket := s.socket4
	if at.remote.Addr().Is6() {
		socket = s.socket6
	}
	if socket == nil {
		s.e.drops.add(dropSend, t.count)
		return
	}
	s.out = udp.Train{Data: t.buf, Size: t.size, Remote: at.remote, Local: at.local, ECN: byte(t.ecn)}
	sent, err := socket.Send(&s.out)
	switch {
	case errors.Is(err, udp.ErrSource):
		t.peer.path.CompareAndSwap(at, &path{remote: at.remote})
	case err != nil:
		s.e.drops.add(dropSend, (len(t.buf)-sent+t.size-1)/t.size)
		if !udp.Transient(err) && !errors.Is(err, os.ErrClosed) {
			s.e.fail(err)
		}
	}
	t.peer.tx.Add(uint64(sent))
	if t.session.NoteSent(time.Now(), true) {
		s.e.wake(t.peer)
	}
}

// stage keeps what s.split gives until there is a session.
func (s *sender) stage(to *peer, now time.Time, mtu int) {
	for {
		segment, more := s.split.Next()
		if !more {
			break
		}
		packet.ClampMSS(segment, mtu)
		session, dropped := to.stage(segment, now)
		switch {
		case dropped:
			s.e.drops.add(dropWaiting, 1)
		case session != nil:
			s.late(to, session, segment, mtu)
		}
	}
	s.e.wake(to)
}

// late sends one packet by a session that was made while it was to be staged.
func (s *sender) late(to *peer, session *wg.Session, segment []byte, mtu int) {
	counter, ok := session.Reserve(1)
	if !ok {
		s.e.drops.add(dropWaiting, 1)
		return
	}
	padded := wg.Padded(len(segment), mtu)
	clear(segment[len(segment):padded])
	t := s.train(to, padded+wg.Overhead, packet.GetECN(segment))
	t.session = session
	t.buf = session.Seal(t.buf, counter, segment[:padded])
	t.count++
	s.flush(t)
}

// route finds the peer that a packet is for; nil: it was dropped.
func (s *sender) route(p []byte) *peer {
	r := s.e.routes.Load()
	version := packet.Version(p)
	var pair [32]byte
	switch version {
	case 4:
		copy(pair[:8], p[12:20])
	case 6:
		copy(pair[:], p[8:40])
	default:
		s.e.drops.add(dropMalformed, 1)
		return nil
	}
	if k := &s.known; k.routes == r && k.version == version && k.pair == pair {
		return k.peer
	}
	src, _, _ := packet.Addresses(p)
	if !contains(r.own, src) {
		s.e.drops.add(dropSource, 1)
		return nil
	}
	var to *peer
	if version == 4 {
		to = r.peers4.lookup([4]byte(pair[4:]))
	} else {
		to = r.peers6.lookup([16]byte(pair[16:]))
	}
	if to == nil {
		s.e.drops.add(dropNoRoute, 1)
		s.tell(packet.Unreachable(s.answer[packet.OffloadLen:packet.OffloadLen], p, beyond(p)))
		return nil
	}
	s.known = flowOut{r, version, pair, to}
	return to
}

// beyond is from where a packet's sender is answered: its destination. The kernel
// takes no packet from a device whose source is an address of its own, and none
// (rp_filter) that it would not send there.
func beyond(p []byte) netip.Addr {
	_, dst, _ := packet.Addresses(p)
	return dst
}

// tell answers a packet's sender on this host, if not too often. message lies in
// s.answer; nil: there is none to send.
func (s *sender) tell(message []byte) {
	if message == nil || !s.answers.take(time.Now()) {
		return
	}
	packet.Offload{}.Put(s.answer)
	_, _ = s.queue.WritePacket([][]byte{s.answer[:packet.OffloadLen], message}) // as lost as its cause
}

// allowance bounds how many answers go out: a hundred a second.
type allowance struct {
	left int
	at   time.Time
}

const answersPerSecond = 100

func (a *allowance) take(now time.Time) bool {
	if now.Sub(a.at) >= time.Second {
		a.left, a.at = answersPerSecond, now
	}
	a.left--
	return a.left >= 0
}
