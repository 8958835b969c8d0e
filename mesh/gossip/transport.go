package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
)

// ErrPortInUse says that another program listens where gossip should.
var ErrPortInUse = errors.New("gossip port is in use")

const (
	// dialTimeout bounds what one dead address costs. A member that takes
	// longer to accept is not worth waiting for.
	dialTimeout = 3 * time.Second
	// maxStreams bounds the streams that strangers can hold open, and with
	// maxStreamBytes the memory that they can fill: memberlist reads a whole
	// message before it can tell whether its key is right.
	maxStreams = 64
	// maxStreamsPerHost leaves room for others beside one bad host. Members
	// exchange over streams that last milliseconds.
	maxStreamsPerHost = 16
	// maxStreamBytes is above a whole table and memberlist's own list.
	maxStreamBytes = 2 * maxState
	// maxPacket is the largest UDP payload.
	maxPacket = 65535
	// receiveBuffer holds what arrives while memberlist is busy, in bytes; the
	// kernel may give less.
	receiveBuffer = 1 << 20
)

// sockets are the TCP and the UDP port. They are opened once and outlive the
// memberlist instances, so no other program can take the port in between.
type sockets struct {
	tcp *net.TCPListener
	udp *net.UDPConn
}

// listen opens both ports. Port 0 stands for one that is free on both.
func listen(bind netip.AddrPort) (*sockets, error) {
	for try := 0; ; try++ {
		s, err := listenOnce(bind)
		if errors.Is(err, syscall.EADDRINUSE) {
			if bind.Port() == 0 && try < 10 {
				continue // free on TCP, taken on UDP
			}
			return nil, fmt.Errorf("%w: %w: stop the other program, or change listen.gossip", ErrPortInUse, err)
		}
		if err != nil {
			return nil, err // says what and where
		}
		return s, nil
	}
}

func listenOnce(bind netip.AddrPort) (*sockets, error) {
	var ip net.IP // nil: all addresses of both families
	if bind.Addr().IsValid() && !(bind.Addr().IsUnspecified() && bind.Addr().Is6()) {
		ip = bind.Addr().AsSlice()
	}
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: ip, Port: int(bind.Port()), Zone: bind.Addr().Zone()})
	if err != nil {
		return nil, err
	}
	port := tcp.Addr().(*net.TCPAddr).Port
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: ip, Port: port, Zone: bind.Addr().Zone()})
	if err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	_ = udp.SetReadBuffer(receiveBuffer) // less will do
	return &sockets{tcp, udp}, nil
}

func (s *sockets) port() uint16 { return uint16(s.tcp.Addr().(*net.TCPAddr).Port) }

func (s *sockets) close() { _ = errors.Join(s.tcp.Close(), s.udp.Close()) }

// transport lends the sockets to one memberlist instance. Unlike memberlist's
// own it bounds what strangers can hold open, gives up its goroutines and
// streams at once on Shutdown, and leaves the sockets open.
type transport struct {
	sockets   *sockets
	advertise netip.AddrPort
	packets   chan *memberlist.Packet
	incoming  chan net.Conn
	ctx       context.Context // done on Shutdown
	stop      context.CancelFunc
	readers   sync.WaitGroup

	mu      sync.Mutex
	streams map[*stream]bool
	opened  uint64 // streams so far
}

// longAgo is a deadline that has passed: it wakes a reader.
var longAgo = time.Unix(1, 0)

func (s *sockets) transport(advertise netip.AddrPort) (*transport, error) {
	if err := errors.Join(s.tcp.SetDeadline(time.Time{}), s.udp.SetReadDeadline(time.Time{})); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	t := &transport{
		sockets: s, advertise: advertise, ctx: ctx, stop: stop,
		packets: make(chan *memberlist.Packet), incoming: make(chan net.Conn),
		streams: map[*stream]bool{},
	}
	t.readers.Go(t.accept)
	t.readers.Go(t.receive)
	return t, nil
}

// FinalAdvertiseAddr implements [memberlist.Transport].
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.advertise.Addr().AsSlice(), int(t.advertise.Port()), nil
}

// WriteTo implements [memberlist.Transport].
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, err
	}
	_, err = t.sockets.udp.WriteToUDPAddrPort(b, to)
	return time.Now(), err
}

// PacketCh implements [memberlist.Transport].
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh implements [memberlist.Transport].
func (t *transport) StreamCh() <-chan net.Conn { return t.incoming }

// DialTimeout implements [memberlist.Transport].
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	dialer := net.Dialer{Timeout: min(timeout, dialTimeout)}
	conn, err := dialer.DialContext(t.ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	s, ok := t.hold(conn, netip.Addr{})
	if !ok {
		return nil, net.ErrClosed
	}
	return s, nil
}

// Shutdown implements [memberlist.Transport]: it ends the readers and closes
// every stream.
func (t *transport) Shutdown() error {
	t.stop()
	err := errors.Join(t.sockets.tcp.SetDeadline(longAgo), t.sockets.udp.SetReadDeadline(longAgo))
	t.mu.Lock()
	for s := range t.streams {
		_ = s.Conn.Close()
	}
	t.mu.Unlock()
	t.readers.Wait()
	return err
}

func (t *transport) receive() {
	buf := make([]byte, maxPacket)
	for {
		n, from, err := t.sockets.udp.ReadFromUDP(buf)
		if !t.goOn(err) {
			return
		}
		if n == 0 || err != nil {
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: from, Timestamp: time.Now()}
		select {
		case t.packets <- p:
		case <-t.ctx.Done():
			return
		}
	}
}

func (t *transport) accept() {
	for {
		conn, err := t.sockets.tcp.AcceptTCP()
		if !t.goOn(err) {
			return
		}
		if err != nil {
			continue
		}
		s, ok := t.hold(conn, conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
		if !ok {
			continue
		}
		select {
		case t.incoming <- s:
		case <-t.ctx.Done():
			_ = s.Close()
			return
		}
	}
}

// goOn tells whether a reader should go on. An error that is not the end, such
// as too many open files, passes; it must not become a busy loop.
func (t *transport) goOn(err error) bool {
	if err != nil && t.ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-t.ctx.Done():
		}
	}
	return t.ctx.Err() == nil && !errors.Is(err, net.ErrClosed)
}

// stream is a connection that is closed with its transport.
type stream struct {
	net.Conn
	t      *transport
	host   netip.Addr   // that opened it; zero: we did
	number uint64       // in order of opening
	read   atomic.Int64 // bytes
}

// hold takes a connection in. If too many came in, the oldest one that has not
// said anything yet makes room: members speak at once. If there is none, the
// connection is closed.
func (t *transport) hold(conn net.Conn, host netip.Addr) (*stream, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil || host.IsValid() && !t.makeRoom(host) {
		_ = conn.Close()
		return nil, false
	}
	t.opened++
	s := &stream{Conn: conn, t: t, host: host, number: t.opened}
	t.streams[s] = true
	return s, true
}

func (t *transport) makeRoom(host netip.Addr) bool {
	all, same := 0, 0
	var silent, silentSame *stream
	older := func(s, than *stream) bool { return s.read.Load() == 0 && (than == nil || s.number < than.number) }
	for s := range t.streams {
		if !s.host.IsValid() {
			continue
		}
		all++
		if older(s, silent) {
			silent = s
		}
		if s.host != host {
			continue
		}
		same++
		if older(s, silentSame) {
			silentSame = s
		}
	}
	switch {
	case same >= maxStreamsPerHost:
		silent = silentSame
	case all < maxStreams:
		return true
	}
	if silent == nil {
		return false
	}
	delete(t.streams, silent)
	_ = silent.Conn.Close()
	return true
}

// Read implements [net.Conn] and ends after maxStreamBytes.
func (s *stream) Read(b []byte) (int, error) {
	left := maxStreamBytes - s.read.Load()
	if left <= 0 {
		return 0, errors.New("stream is too long")
	}
	n, err := s.Conn.Read(b[:min(int64(len(b)), left)])
	s.read.Add(int64(n))
	return n, err
}

// Close implements [net.Conn].
func (s *stream) Close() error {
	s.t.mu.Lock()
	delete(s.t.streams, s)
	s.t.mu.Unlock()
	return s.Conn.Close()
}
