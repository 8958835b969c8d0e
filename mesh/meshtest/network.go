// Package meshtest is a network in memory for tests of membership: packets and
// streams between memberlist instances, with loss, latency, reordering,
// duplicates and partitions. Other packets of the hosts may travel along.
//
// Nothing in it touches the real network or the real clock, so it works inside
// a [testing/synctest] bubble; random choices come from a seed.
package meshtest

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
)

// queue is how many packets wait at a host, as in a socket's buffer; more are
// dropped.
const queue = 1024

// dialTimeout is how long a stream may take to open, as with gossip's sockets.
const dialTimeout = 3 * time.Second

// Network connects the hosts of a test. It is safe for concurrent use.
type Network struct {
	mu        sync.Mutex
	random    *rand.Rand
	hosts     map[netip.AddrPort]*host
	side      map[netip.AddrPort]int // of a partition; those not named are on side 0
	blocked   func(from, to netip.AddrPort) bool
	loss      float64
	duplicate float64
	latency   time.Duration
	jitter    time.Duration
}

// NewNetwork makes a network without hosts, loss or latency.
func NewNetwork(seed uint64) *Network {
	return &Network{
		random: rand.New(rand.NewPCG(seed, 0)), hosts: map[netip.AddrPort]*host{}, side: map[netip.AddrPort]int{},
		blocked: func(netip.AddrPort, netip.AddrPort) bool { return false },
	}
}

// SetLoss drops this share of packets, 0 to 1. Streams lose nothing.
func (n *Network) SetLoss(share float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = share
}

// SetLatency delays each packet, and the opening of each stream, by d.
func (n *Network) SetLatency(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.latency = d
}

// SetJitter delays each packet by up to d more, so that some overtake others.
func (n *Network) SetJitter(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.jitter = d
}

// SetDuplicates delivers this share of packets twice, 0 to 1.
func (n *Network) SetDuplicates(share float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.duplicate = share
}

// Block loses each packet for which blocked says so when it would arrive. A
// stream lives only while neither direction is blocked. blocked is called at any
// time, from any goroutine, and must not call the network.
func (n *Network) Block(blocked func(from, to netip.AddrPort) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.blocked = blocked
	n.breakLocked()
}

// Partition lets only hosts of one group reach each other; all hosts that are
// in none form one more group. Streams across are broken. Without groups it
// heals the network.
func (n *Network) Partition(groups ...[]netip.AddrPort) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.side = map[netip.AddrPort]int{}
	for i, group := range groups {
		for _, a := range group {
			n.side[a] = i + 1
		}
	}
	n.breakLocked()
}

// breakLocked breaks the streams that cannot go on.
func (n *Network) breakLocked() {
	for _, h := range n.hosts {
		for s := range h.streams {
			if !n.connects(s.from, s.to) {
				s.drop()
			}
		}
	}
}

// reaches tells whether packets get through; connects, whether streams do.
func (n *Network) reaches(from, to netip.AddrPort) bool {
	return n.side[from] == n.side[to] && !n.blocked(from, to)
}

func (n *Network) connects(a, b netip.AddrPort) bool { return n.reaches(a, b) && n.reaches(b, a) }

// Carry takes a packet of any other kind through the same weather: arrive is
// called, on a goroutine of its own, if and when the packet gets there, and once
// more for a duplicate.
func (n *Network) Carry(from, to netip.AddrPort, arrive func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.carryLocked(func() {
		n.mu.Lock()
		ok := n.reaches(from, to)
		n.mu.Unlock()
		if ok {
			arrive()
		}
	})
}

// carryLocked decides how often a packet arrives, and when.
func (n *Network) carryLocked(arrive func()) {
	copies := 1
	if n.duplicate > 0 && n.random.Float64() < n.duplicate {
		copies = 2
	}
	for range copies {
		if n.random.Float64() < n.loss {
			continue
		}
		delay := n.latency
		if n.jitter > 0 {
			delay += time.Duration(n.random.Int64N(int64(n.jitter)))
		}
		time.AfterFunc(delay, arrive)
	}
}

// Transport adds a host. It fails if the address is taken; Shutdown frees it.
func (n *Network) Transport(address netip.AddrPort) (memberlist.Transport, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hosts[address] != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, syscall.EADDRINUSE)
	}
	h := &host{
		network: n, address: address, packets: make(chan *memberlist.Packet, queue), incoming: make(chan net.Conn),
		streams: map[*stream]bool{},
	}
	h.ctx, h.stop = context.WithCancel(context.Background())
	n.hosts[address] = h
	return h, nil
}

// host is one address; it implements [memberlist.Transport].
type host struct {
	network  *Network
	address  netip.AddrPort
	packets  chan *memberlist.Packet
	incoming chan net.Conn
	ctx      context.Context // done on Shutdown
	stop     context.CancelFunc
	streams  map[*stream]bool // guarded by network.mu
}

func (h *host) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return h.address.Addr().AsSlice(), int(h.address.Port()), nil
}

func (h *host) PacketCh() <-chan *memberlist.Packet { return h.packets }

func (h *host) StreamCh() <-chan net.Conn { return h.incoming }

func (h *host) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, err
	}
	n := h.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if h.ctx.Err() != nil {
		return time.Time{}, net.ErrClosed
	}
	packet := slices.Clone(b)
	n.carryLocked(func() { n.deliver(slices.Clone(packet), h.address, to) })
	return time.Now(), nil
}

func (n *Network) deliver(packet []byte, from, to netip.AddrPort) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hosts[to]
	if h == nil || !n.reaches(from, to) {
		return
	}
	select {
	case h.packets <- &memberlist.Packet{Buf: packet, From: net.UDPAddrFromAddrPort(from), Timestamp: time.Now()}:
	default: // the buffer is full
	}
}

func (h *host) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(h.ctx, min(timeout, dialTimeout))
	defer cancel()
	n := h.network
	n.mu.Lock()
	latency := n.latency
	n.mu.Unlock()
	select {
	case <-time.After(latency):
	case <-ctx.Done():
		return nil, fmt.Errorf("dial %s: %w", to, ctx.Err())
	}
	near, far, peer, err := n.connect(h, to)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", to, err)
	}
	if peer == nil { // partitioned: nobody answers
		<-ctx.Done()
		return nil, fmt.Errorf("dial %s: %w", to, ctx.Err())
	}
	select {
	case peer.incoming <- far:
		return near, nil
	case <-peer.ctx.Done():
		err = syscall.ECONNREFUSED
	case <-ctx.Done():
		err = ctx.Err()
	}
	near.drop()
	return nil, fmt.Errorf("dial %s: %w", to, err)
}

// connect makes both ends of a stream; peer is nil across a partition.
func (n *Network) connect(h *host, to netip.AddrPort) (near, far *stream, peer *host, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.connects(h.address, to) {
		return nil, nil, nil, nil
	}
	if peer = n.hosts[to]; peer == nil || h.ctx.Err() != nil {
		return nil, nil, nil, syscall.ECONNREFUSED
	}
	a, b := net.Pipe()
	near = &stream{Conn: a, host: h, from: h.address, to: to}
	far = &stream{Conn: b, host: peer, from: to, to: h.address}
	near.other, far.other = far, near
	h.streams[near], peer.streams[far] = true, true
	return near, far, peer, nil
}

// Shutdown frees the address and breaks what is open.
func (h *host) Shutdown() error {
	h.stop()
	h.network.mu.Lock()
	open := slices.Collect(maps.Keys(h.streams))
	if h.network.hosts[h.address] == h {
		delete(h.network.hosts, h.address)
	}
	h.network.mu.Unlock()
	for _, s := range open {
		s.drop()
	}
	return nil
}

// stream is one end of a connection.
type stream struct {
	net.Conn
	host     *host
	from, to netip.AddrPort
	other    *stream
}

// drop breaks both ends, as a reset does.
func (s *stream) drop() {
	_ = s.Conn.Close()
	_ = s.other.Conn.Close()
}

func (s *stream) Close() error {
	s.host.network.mu.Lock()
	delete(s.host.streams, s)
	s.host.network.mu.Unlock()
	return s.Conn.Close()
}

func (s *stream) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(s.from) }
func (s *stream) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(s.to) }
