package native

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"meshd/overlay/tunnel/wg"
	"meshd/overlay/udp"
	"meshd/tun/device"
	"meshd/tun/packet"
)

// maxPacket is the longest that the kernel makes.
const maxPacket = 65535

// sender takes packets from a TUN queue to the peers.
type sender struct {
	// fixed at construction
	e       *Engine
	queue   *device.Queue
	socket4 *udp.Socket
	socket6 *udp.Socket // nil: the host has no IPv6
	room    []byte      // offload header, packet, room for padding
	answer  []byte      // an ICMP message, behind an offload header

	// owned by the worker
	split   packet.Splitter
	trains  []train // the first open ones of them are in use
	open    int
	known   lastRoute
	answers allowance
	out     udp.Train
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
			s.flushAll()
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
			packet.ClampMSS(segment, to.carries(mtu))
			ecn = packet.OuterECN(packet.GetECN(segment))
		}
		s.put(to, session, counter, segment, mtu, ecn)
		counter++
	}
}

// put appends one packet to a train, sealed. It is padded first, into the room
// that is behind each segment.
func (s *sender) put(to *peer, session *wg.Session, counter uint64, segment []byte, mtu int, ecn packet.ECN) {
	padded := wg.Padded(len(segment), mtu)
	clear(segment[len(segment):padded])
	t := s.train(to, padded+wg.Overhead, ecn)
	t.session = session
	t.buf = session.Seal(t.buf, counter, segment[:padded])
	if t.count++; t.count == maxDatagrams || len(t.buf) < t.size*t.count {
		s.flush(t) // full, or its last datagram is shorter
	}
}

// stage keeps what s.split gives until there is a session.
func (s *sender) stage(to *peer, now time.Time, mtu int) {
	for {
		segment, more := s.split.Next()
		if !more {
			break
		}
		packet.ClampMSS(segment, to.carries(mtu))
		session, dropped, ask := to.stage(segment, now)
		if ask {
			s.e.wake(to)
		}
		switch {
		case dropped:
			s.e.drops.add(dropWaiting, 1)
		case session != nil: // was made meanwhile
			if counter, ok := session.Reserve(1); ok {
				s.put(to, session, counter, segment, mtu, packet.OuterECN(packet.GetECN(segment)))
			} else {
				s.e.drops.add(dropWaiting, 1)
			}
		}
	}
}

// route finds the peer that a packet is for; nil: it was dropped.
func (s *sender) route(p []byte) *peer {
	r, pair := s.e.routes.Load(), packet.PairOf(p)
	if s.known.routes == r && s.known.pair == pair {
		return s.known.peer
	}
	src, dst, ok := packet.Addresses(p)
	if !ok {
		s.e.drops.add(dropMalformed, 1)
		return nil
	}
	if !contains(r.own, src) {
		s.e.drops.add(dropSource, 1)
		return nil
	}
	to := r.lookup(dst)
	if to == nil {
		s.e.drops.add(dropNoRoute, 1)
		s.tell(packet.Unreachable(s.answer[packet.OffloadLen:packet.OffloadLen], p, beyond(p)))
		return nil
	}
	s.known = lastRoute{r, pair, to}
	return to
}
