package native

import (
	"errors"
	"os"
	"time"

	"meshd/overlay/tunnel/wg"
	"meshd/overlay/udp"
	"meshd/tun/packet"
)

const (
	// maxTrains is how many peers' packets are gathered at a time. With more
	// peers at once trains get shorter, not lost.
	maxTrains = 8
	// maxDatagrams of a train, and its bytes: what crosses the kernel in one call.
	maxDatagrams = udp.MaxDatagrams
	trainSize    = udp.MaxPayload
)

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
