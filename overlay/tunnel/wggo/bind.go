package wggo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"meshd/mesh"
)

// bind is wireguard-go's socket pair, made to survive: the device ends a
// receiver for good after some errors.
type bind struct {
	conn.Bind

	port   atomic.Uint32            // in use, 0 before the first Open
	inside atomic.Pointer[prefixes] // no endpoint lies in them

	dropEndpoint atomic.Uint64

	delays atomic.Bool     // responses
	hurry  chan<- struct{} // capacity 1; fixed at construction

	mu      sync.Mutex    // guards the next two
	closed  chan struct{} // of the current Open; closed by Close
	delayed []func()

	crossings *crossings
	tries     tries
	yields    atomic.Pointer[map[netip.AddrPort]bool] // endpoints of peers, and whether the peer goes first
}

// A handshake is held back for a random time between these where the peer goes
// first. When both ends of a tunnel initiate at once, each answers the other and
// forgets its own handshake, so no session comes of it, and both try again 5 s
// later, at once. Two nodes do that easily: they hear of each other in the same
// moment. So the end with the smaller key lets the other's initiation arrive
// first, which works wherever a packet takes less time than that; crossings sees to
// the rest. Random, since others also do things after round times.
const (
	minYield = 100 * time.Millisecond // one way to the other side of the world
	maxYield = 200 * time.Millisecond // first packets wait no longer than a person notices
)

// newBind builds a bind; late takes in initiations that were put aside.
func newBind(late func(packet []byte, from netip.AddrPort)) *bind {
	b := &bind{
		Bind: conn.NewStdNetBind(), tries: tries{at: map[netip.AddrPort]time.Time{}},
		crossings: newCrossings(late),
	}
	b.inside.Store(&prefixes{})
	b.yields.Store(&map[netip.AddrPort]bool{})
	return b
}

// setInside swaps the ranges in which no endpoint lies.
func (b *bind) setInside(inside []netip.Prefix) {
	ps := prefixes(slices.Clone(inside))
	b.inside.Store(&ps)
}

// delay keeps a response until [bind.release]: what the peer sends then is taken
// only once its new key has its prefixes.
func (b *bind) delay(response []byte, ep conn.Endpoint) {
	b.mu.Lock()
	b.delayed = append(b.delayed, func() { _ = b.Bind.Send([][]byte{response}, ep) }) // lost like any packet
	b.mu.Unlock()
	select {
	case b.hurry <- struct{}{}:
	default:
	}
}

// release sends what was delayed.
func (b *bind) release() {
	b.mu.Lock()
	delayed := b.delayed
	b.delayed = nil
	b.mu.Unlock()
	for _, send := range delayed {
		send()
	}
}

// Open implements [conn.Bind].
func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	receivers, actual, err := b.Bind.Open(port)
	if err != nil {
		return nil, 0, err
	}
	if actual == 0 { // so says the bind below on a host without IPv6
		actual = port
	}
	b.port.Store(uint32(actual))
	closed := make(chan struct{})
	b.mu.Lock()
	b.closed = closed
	b.mu.Unlock()
	for i, receive := range receivers {
		receivers[i] = b.keepReceiving(receive, closed)
	}
	return receivers, actual, nil
}

// Close implements [conn.Bind].
func (b *bind) Close() error {
	b.mu.Lock()
	if b.closed != nil {
		close(b.closed)
		b.closed = nil
	}
	b.mu.Unlock()
	return b.Bind.Close()
}

// keepReceiving makes a receiver that fails only when the socket was closed. It
// forgets at which of our addresses a packet arrived: answers from there stop
// when the host loses that address, so the kernel chooses for each packet.
// (Where the kernel has UDP GRO, the bind below forgets it anyway.)
//
// A datagram that came through the mesh gets size 0, which the device skips. If
// it read one of a peer, it would learn an endpoint from it, and send what is
// for that peer back into the TUN.
func (b *bind) keepReceiving(receive conn.ReceiveFunc, closed <-chan struct{}) conn.ReceiveFunc {
	pause := firstPause // owned by the one goroutine that receives
	return func(bufs [][]byte, sizes []int, endpoints []conn.Endpoint) (int, error) {
		for {
			n, err := receive(bufs, sizes, endpoints)
			if err == nil {
				pause = firstPause
				inside := *b.inside.Load()
				for i := range n {
					if sizes[i] == 0 {
						continue
					}
					if inside.contains(endpoints[i].DstIP().Unmap()) {
						b.dropEndpoint.Add(1)
						sizes[i] = 0
						continue
					}
					endpoints[i].ClearSrc()
					if b.crosses(bufs[i][:sizes[i]], endpoints[i]) {
						sizes[i] = 0
					}
				}
				return n, nil
			}
			if errors.Is(err, net.ErrClosed) || !wait(closed, pause) {
				return 0, net.ErrClosed
			}
			pause = min(2*pause, maxPause)
		}
	}
}

// Send implements [conn.Bind].
func (b *bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	if len(bufs) == 1 && isInitiation(bufs[0]) {
		b.tries.note(ep)
		std, ok := ep.(*conn.StdNetEndpoint)
		if !ok {
			return b.Bind.Send(bufs, ep)
		}
		to := plain(std.AddrPort)
		peerFirst, known := (*b.yields.Load())[to]
		wait := b.crossings.wait(to)
		if peerFirst {
			wait = max(wait, minYield+rand.N(maxYield-minYield))
		}
		if known && wait > 0 {
			// Both belong to the device, which goes on to use them.
			packet, ep := bytes.Clone(bufs[0]), &conn.StdNetEndpoint{AddrPort: std.AddrPort}
			b.crossings.hold(to, wait, func() {
				if !peerFirst {
					b.crossings.sent(to)
				}
				_ = b.Bind.Send([][]byte{packet}, ep) // lost like any packet if the socket is closed by then
			})
			return nil
		}
		if known {
			b.crossings.sent(to)
		}
	}
	if std, ok := ep.(*conn.StdNetEndpoint); ok && len(bufs) == 1 && isResponse(bufs[0]) {
		b.crossings.drop(plain(std.AddrPort))
		if b.delays.Load() {
			b.delay(bytes.Clone(bufs[0]), &conn.StdNetEndpoint{AddrPort: std.AddrPort})
			return nil
		}
	}
	return b.Bind.Send(bufs, ep)
}

// crosses tells whether a packet is an initiation that is put aside.
func (b *bind) crosses(packet []byte, ep conn.Endpoint) bool {
	std, ok := ep.(*conn.StdNetEndpoint)
	switch {
	case !ok:
		return false
	case isResponse(packet):
		b.crossings.answered(plain(std.AddrPort))
		return false
	}
	if !isInitiation(packet) {
		return false
	}
	from := plain(std.AddrPort)
	if b.crossings.putAside(packet, from) {
		return true
	}
	if _, known := (*b.yields.Load())[from]; known {
		b.crossings.arrived(from)
	}
	return false
}

// yield says which peers go first: those with a key that is greater than ours.
func (b *bind) yield(own mesh.Key, peers map[mesh.Key]*peer) {
	at := map[netip.AddrPort]bool{}
	for key, p := range peers {
		for _, ep := range p.want.Endpoints {
			at[ep] = compareKeys(own, key) < 0
		}
	}
	b.yields.Store(&at)
}

func isInitiation(packet []byte) bool {
	return len(packet) == device.MessageInitiationSize &&
		binary.LittleEndian.Uint32(packet) == device.MessageInitiationType
}

func isResponse(packet []byte) bool {
	return len(packet) == device.MessageResponseSize &&
		binary.LittleEndian.Uint32(packet) == device.MessageResponseType
}

// tries remembers to which endpoints handshakes were initiated. That is how the
// engine knows that it is trying to reach a peer: the device does not tell.
type tries struct {
	mu sync.Mutex
	at map[netip.AddrPort]time.Time // the last one
}

func (t *tries) note(ep conn.Endpoint) {
	std, ok := ep.(*conn.StdNetEndpoint)
	if !ok {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.at[std.AddrPort] = time.Now()
}

// last gives the time of the last initiation to an endpoint, zero if there was
// none that is worth remembering.
func (t *tries) last(ep netip.AddrPort) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.at[ep]
}

// forget drops what is older than the given time, which bounds the map by the
// number of peers that are being tried. It tells how many are left.
func (t *tries) forget(before time.Time) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	for ep, at := range t.at {
		if at.Before(before) {
			delete(t.at, ep)
		}
	}
	return len(t.at)
}
