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

	members atomic.Pointer[map[netip.Addr]bool] // addresses, not to be changed
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
	return &sockets{tcp: tcp, udp: udp}, nil
}

func (s *sockets) port() uint16 { return uint16(s.tcp.Addr().(*net.TCPAddr).Port) }

// know says from where members speak.
func (s *sockets) know(members ...[]netip.AddrPort) {
	known := map[netip.Addr]bool{}
	for _, list := range members {
		for _, m := range list {
			known[m.Addr().Unmap()] = true
		}
	}
	s.members.Store(&known)
}

// member tells whether a member is at an address.
func (s *sockets) member(a netip.Addr) bool {
	known := s.members.Load()
	return known != nil && (*known)[a]
}

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
	streams   *streams
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
		streams: newStreams(),
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
	s, ok := t.streams.dialed(conn, remote(conn))
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
	t.streams.close()
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
		host := remote(conn)
		s, ok := t.streams.accepted(conn, host, t.sockets.member(host))
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

// remote is the address at the other end.
func remote(conn net.Conn) netip.Addr {
	return conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().WithZone("")
}
