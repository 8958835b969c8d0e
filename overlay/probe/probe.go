// Package probe measures peers through the tunnel: round trip, loss, whether
// they answer at all. It is a small echo over UDP between the daemons' control
// addresses, so it sees what traffic sees and needs no raw socket.
//
//	 0        4        5                13
//	+--------+--------+----------------+
//	| "mshP" | 1 or 2 | id, big endian |    1 asks, 2 answers
//	+--------+--------+----------------+
//
// Nothing in a packet is believed but the id: who sent it is known by the source
// address, which the tunnel has checked. An answer is as long as the question,
// so there is nothing to amplify. Zeros may follow: questions of several sizes show
// how much the path carries, where nobody tells of what is too large.
package probe

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"meshd/mesh"
)

const (
	port    = 51882 // UDP, on every node's control address
	size    = 13    // at least
	maxSize = 9000  // the widest MTU that a TUN device may have
	magic   = "mshP"
	ask     = 1
	respond = 2
)

// Conn is what a prober speaks through; [net.UDPConn] is one. After Close it
// gives [net.ErrClosed].
type Conn interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
	Close() error
}

// Listen opens a socket at an address of this host.
type Listen func(netip.AddrPort) (Conn, error)

// sendWhole has a socket send what fits into the device, whatever routes say of the
// path: that is to be measured.
func sendWhole(fd uintptr) error {
	return syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_MTU_DISCOVER, syscall.IPV6_PMTUDISC_PROBE)
}

// listenUDP opens a socket of the kernel. Where that knows nothing of sending whole,
// as a few in sandboxes, no path is measured.
func (p *Prober) listenUDP(at netip.AddrPort) (Conn, error) {
	var refused error
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { refused = p.whole(fd) })
	}}
	c, err := config.ListenPacket(context.Background(), "udp6", at.String())
	if err != nil {
		return nil, err
	}
	if refused != nil {
		p.measureNothing(refused)
	}
	return c.(*net.UDPConn), nil
}

// measureNothing ends the measurement of paths, and says so once.
func (p *Prober) measureNothing(cause error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blind {
		return
	}
	p.blind = true
	p.schedule.setMTU(0)
	p.log.Warn("paths are not measured: the kernel does not send packets whole", "err", cause)
}

// Prober probes peers and answers their probes.
type Prober struct {
	log    *slog.Logger
	listen Listen
	paths  func()
	whole  func(fd uintptr) error // sendWhole
	wake   chan struct{}

	mu       sync.Mutex // guards all below
	self     netip.Addr // own control address; zero: not known yet
	control  netip.Prefix
	conn     Conn // nil while there is no socket
	schedule *schedule
	blind    bool // no path can be measured
	names    map[mesh.NodeID]string
	pings    map[uint64]ping
}

// ping is somebody who waits for an answer.
type ping struct {
	from netip.Addr
	at   chan time.Time
}

// New builds a prober; it does nothing before Run. listen may be nil: then it
// uses sockets of the kernel. paths is called, and must not wait, when a path
// carries less than before, or more: see [Prober.Paths].
func New(log *slog.Logger, listen Listen, paths func()) *Prober {
	p := &Prober{
		log: log, listen: listen, paths: paths, whole: sendWhole,
		wake: make(chan struct{}, 1), schedule: newSchedule(randomID()), pings: map[uint64]ping{},
	}
	if listen == nil {
		p.listen = p.listenUDP
	}
	return p
}

func randomID() uint64 {
	var raw [8]byte
	rand.Read(raw[:])
	return binary.BigEndian.Uint64(raw[:]) | 1 // never zero
}

// SetView tells whom to probe: every member that has a tunnel and has not left.
func (p *Prober) SetView(view *mesh.View) {
	var targets []target
	var self netip.Addr
	var at []netip.AddrPort
	names := map[mesh.NodeID]string{}
	for _, n := range view.Nodes {
		names[n.ID] = n.Name
		switch {
		case n.ID == view.Self:
			self, at = n.Control, n.Endpoints
		case !n.Left && !n.Key.IsZero() && !view.Withheld: // nobody loses anything where there are no tunnels
			targets = append(targets, target{n.ID, n.Control, n.Endpoints})
		}
	}
	p.mu.Lock()
	p.self, p.control, p.names = self, view.Control, names
	p.schedule.set(time.Now(), targets, at...)
	p.mu.Unlock()
	p.poke()
}

func (p *Prober) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Results lists what is known of the peers that were probed at least once.
func (p *Prober) Results() map[mesh.NodeID]Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.schedule.results()
}

// SetMTU says what the TUN device takes, in bytes. Before that no path is measured.
func (p *Prober) SetMTU(mtu int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.blind {
		p.schedule.setMTU(min(mtu, maxSize))
	}
}

// Paths lists the peers to which what the device sends is too large, where nobody
// tells of it, and how large packets may be.
func (p *Prober) Paths() map[mesh.NodeID]int {
	out := map[mesh.NodeID]int{}
	for id, r := range p.Results() {
		if r.MTU != 0 {
			out[id] = r.MTU
		}
	}
	return out
}

// Ping sends one probe and waits for its answer; without one until ctx is done,
// the error is that of ctx.
func (p *Prober) Ping(ctx context.Context, to netip.Addr) (time.Duration, error) {
	id, at := randomID(), make(chan time.Time, 1)
	p.mu.Lock()
	conn := p.conn
	p.pings[id] = ping{to, at}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.pings, id)
		p.mu.Unlock()
	}()
	if conn == nil {
		return 0, errors.New("ping: this node has no address in the mesh yet")
	}
	sent := time.Now()
	if err := send(conn, to, ask, id, size); err != nil {
		return 0, fmt.Errorf("ping: %w", err)
	}
	select {
	case t := <-at:
		return t.Sub(sent), nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// Run probes and answers until ctx is done. While the control address is not on
// the host, or the socket breaks, it tries again.
func (p *Prober) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		conn, at, err := p.open()
		if err == nil {
			p.serve(ctx, conn, at)
		}
		select {
		case <-ctx.Done():
		case <-time.After(250 * time.Millisecond): // the address comes with the first plan
		}
	}
	return nil
}

// open gives a socket at the control address, and the address.
func (p *Prober) open() (Conn, netip.Addr, error) {
	p.mu.Lock()
	self := p.self
	p.mu.Unlock()
	if !self.IsValid() {
		return nil, self, errors.New("no control address yet")
	}
	conn, err := p.listen(netip.AddrPortFrom(self, port))
	return conn, self, err
}

// serve runs sender and receiver on one socket, until either ends.
func (p *Prober) serve(ctx context.Context, conn Conn, at netip.Addr) {
	ctx, cancel := context.WithCancel(ctx)
	var receiver sync.WaitGroup
	receiver.Go(func() { defer cancel(); p.receive(ctx, conn) })
	p.mu.Lock()
	p.conn = conn
	p.mu.Unlock()
	p.sendDue(ctx, conn, at)
	p.mu.Lock()
	p.conn = nil
	p.mu.Unlock()
	cancel()
	conn.Close()
	receiver.Wait()
}

// sendDue sends probes as the schedule wants them, until the control address is
// another one.
func (p *Prober) sendDue(ctx context.Context, conn Conn, at netip.Addr) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-timer.C:
		}
		now := time.Now()
		p.mu.Lock()
		elsewhere := p.self != at
		due := p.schedule.step(now)
		next, ok := p.schedule.next()
		paths := p.tellLocked()
		p.mu.Unlock()
		if paths {
			p.paths()
		}
		if elsewhere {
			return
		}
		for _, o := range due {
			// A lost probe and one that could not be sent are the same finding, but about
			// the path.
			if err := send(conn, o.Addr, ask, o.ID, o.Size); err != nil {
				p.mu.Lock()
				p.schedule.refused(now, o)
				p.mu.Unlock()
			}
		}
		wait := every
		if ok {
			wait = max(next.Sub(now), time.Millisecond)
		}
		timer.Reset(wait)
	}
}

// tellLocked logs who went down and who came back, and what paths carry. It tells
// whether that is another size for any of them.
func (p *Prober) tellLocked() (paths bool) {
	for id, down := range p.schedule.changes() {
		if down {
			p.log.Warn("peer does not answer", "node", p.names[id], "id", id.String())
		} else {
			p.log.Info("peer answers again", "node", p.names[id], "id", id.String())
		}
	}
	for id, mtu := range p.schedule.narrowed() {
		paths = true
		if mtu != 0 {
			p.log.Warn("path carries small packets only, and nobody tells the senders", "node", p.names[id], "id", id.String(), "mtu", mtu)
		} else {
			p.log.Info("path carries packets of full size again", "node", p.names[id], "id", id.String())
		}
	}
	return paths
}

// receive answers questions and takes answers in.
func (p *Prober) receive(ctx context.Context, conn Conn) {
	buf := make([]byte, maxSize)
	for ctx.Err() == nil {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		now := time.Now()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// An ICMP error about an earlier probe, for example: it passes.
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		kind, id, ok := parse(buf[:n])
		if !ok || !p.inMesh(from.Addr()) {
			continue
		}
		switch {
		case kind == ask && from.Port() == port:
			_ = send(conn, from.Addr(), respond, id, n)
			p.questioned(now, from.Addr())
		case kind == respond:
			p.answered(now, from.Addr(), id, n)
		}
	}
}

func (p *Prober) inMesh(from netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.control.Contains(from)
}

func (p *Prober) questioned(now time.Time, from netip.Addr) {
	p.mu.Lock()
	sooner := p.schedule.question(now, from)
	p.mu.Unlock()
	if sooner {
		p.poke()
	}
}

func (p *Prober) answered(now time.Time, from netip.Addr, id uint64, n int) {
	p.mu.Lock()
	if w, ok := p.pings[id]; ok && w.from == from {
		w.at <- now
		delete(p.pings, id)
	}
	p.schedule.answer(now, from, id, n)
	p.mu.Unlock()
	p.poke()
}

// send sends a packet of n bytes.
func send(conn Conn, to netip.Addr, kind byte, id uint64, n int) error {
	packet := binary.BigEndian.AppendUint64(append(append(make([]byte, 0, n), magic...), kind), id)
	_, err := conn.WriteToUDPAddrPort(packet[:n], netip.AddrPortFrom(to, port))
	return err
}

// parse reads one packet.
func parse(packet []byte) (kind byte, id uint64, ok bool) {
	if len(packet) < size || string(packet[:4]) != magic || packet[4] != ask && packet[4] != respond {
		return 0, 0, false
	}
	return packet[4], binary.BigEndian.Uint64(packet[5:]), true
}
