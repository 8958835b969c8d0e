package native

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"meshd/overlay/tunnel/wg"
	"meshd/overlay/udp"
	"meshd/tun/device"
	"meshd/tun/packet"
)

// receiver takes trains from a socket to a TUN queue.
type receiver struct {
	// fixed at construction
	e      *Engine
	queue  *device.Queue
	socket *udp.Socket
	// room is where a train is received and opened. What the joiner holds points
	// into it, so it is written and forgotten before the next train comes.
	room []byte

	// owned by the worker
	joiner packet.Joiner
	known  lastRoute
	in     udp.Train
	bytes  int  // of the session's datagrams in this train
	data   bool // there was one with a packet
}

func newReceiver(e *Engine, q *device.Queue, s *udp.Socket) *receiver {
	r := &receiver{e: e, queue: q, socket: s, room: make([]byte, udp.MaxTrain)}
	r.joiner.UDP = e.options.TUN.USO()
	return r
}

// turn delivers what the socket has, and tells whether that was anything. It fails
// when the socket has ended.
func (r *receiver) turn() (busy bool, err error) {
	for left := turnBytes; left > 0; busy = true {
		err := r.socket.Receive(r.room, &r.in)
		switch {
		case err == nil:
			r.train()
			left -= max(len(r.in.Data), leastTurn)
		case errors.Is(err, unix.EAGAIN):
			return busy, nil
		case errors.Is(err, udp.ErrTruncated):
			r.e.drops.add(dropReceive, 1)
			left -= leastTurn
		case udp.Transient(err):
			r.e.drops.add(dropReceive, 1)
			time.Sleep(pauseAfterError)
			return busy, nil
		default:
			return busy, err
		}
	}
	return busy, nil
}

// train opens the datagrams of a train and writes what is in them.
func (r *receiver) train() {
	routes := r.e.routes.Load()
	if contains(routes.inside, r.in.Remote.Addr()) {
		r.e.drops.add(dropEndpoint, 1)
		return
	}
	now := time.Now()
	var session *wg.Session
	for d := range r.in.Datagrams() {
		index, ok := wg.SessionIndex(d)
		if !ok {
			r.handshake(d)
			continue
		}
		s := r.e.table.Lookup(index)
		if s == nil || !s.Alive(now) {
			r.e.drops.add(dropSession, 1)
			continue
		}
		inner, err := s.Open(d)
		if err != nil {
			r.refused(err)
			continue
		}
		if s != session {
			r.note(session, now)
			session = s
		}
		r.bytes += len(d)
		if len(inner) > 0 {
			r.data = true
			r.deliver(s.Handle().(*peer), routes, inner)
		}
	}
	r.note(session, now)
	r.drain()
}

// note tells the session what came by it.
func (r *receiver) note(s *wg.Session, now time.Time) {
	if s == nil {
		return
	}
	p := s.Handle().(*peer)
	p.rx.Add(uint64(r.bytes))
	p.came(r.in.Remote, r.in.Local)
	if s.NoteReceived(now, r.data, r.in.Remote) {
		r.e.signal()
	}
	r.bytes, r.data = 0, false
}

func (r *receiver) refused(err error) {
	switch {
	case errors.Is(err, wg.ErrReplay):
		r.e.drops.add(dropReplayed, 1)
	case errors.Is(err, wg.ErrForged):
		r.e.drops.add(dropForged, 1)
	case errors.Is(err, wg.ErrEnded):
		r.e.drops.add(dropSession, 1)
	default:
		r.e.drops.add(dropReceive, 1)
	}
}

// handshake is a message for control.
type handshake struct {
	size    int
	message [wg.MaxHandshake]byte
	from    netip.AddrPort
	local   udp.Source
}

// maxHandshakes is how many wait for control: those of a mesh that starts.
const maxHandshakes = 512

func (r *receiver) handshake(d []byte) {
	if !wg.IsHandshake(d) {
		r.e.drops.add(dropReceive, 1)
		return
	}
	h := handshake{from: r.in.Remote, local: r.in.Local}
	h.size = copy(h.message[:], d)
	select {
	case r.e.handshakes <- h:
	default:
		r.e.drops.add(dropHandshake, 1)
	}
}

// deliver gives a packet to the joiner, if its sender may send it and it is for
// us.
func (r *receiver) deliver(from *peer, routes *routes, inner []byte) {
	n, ok := packet.Length(inner)
	if !ok {
		r.e.drops.add(dropMalformed, 1)
		return
	}
	inner = inner[:n:n]
	if !r.permitted(from, routes, inner) {
		return
	}
	if outer := packet.ECN(r.in.ECN); outer != packet.NotECT {
		before := packet.GetECN(inner)
		mark, deliver := packet.Decapsulate(outer, before)
		if !deliver {
			r.e.drops.add(dropECN, 1)
			return
		}
		if mark != before {
			packet.SetECN(inner, mark)
		}
	}
	packet.ClampMSS(inner, from.carries(int(r.e.mtu.Load())))
	for !r.joiner.Add(inner) {
		r.drain()
	}
}

// permitted holds cryptokey routing for what arrives.
func (r *receiver) permitted(from *peer, routes *routes, p []byte) bool {
	f := lastRoute{routes, packet.PairOf(p), from}
	if f == r.known {
		return true
	}
	src, dst, _ := packet.Addresses(p)
	if routes.lookup(src) != from {
		r.e.drops.add(dropSpoofed, 1)
		return false
	}
	if !contains(routes.own, dst) {
		r.e.drops.add(dropDestination, 1)
		return false
	}
	r.known = f
	return true
}

// drain writes what the joiner holds.
func (r *receiver) drain() {
	for {
		parts, ok := r.joiner.Next()
		if !ok {
			return
		}
		if _, err := r.queue.WritePacket(parts); err != nil {
			r.e.drops.add(dropTUN, len(parts)-1)
		}
	}
}
