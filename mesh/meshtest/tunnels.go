package meshtest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"meshd/mesh/exchange"
)

// Tunnels carry streams between the control addresses of nodes, as the tunnels of
// a mesh do once they are up. They implement [exchange.Network] for all nodes.
type Tunnels struct {
	mu        sync.Mutex
	listeners map[netip.Addr]*inside
	streams   map[*tunneled]bool
	blocked   func(from, to netip.Addr) bool
	bytes     int64
}

// NewTunnels makes tunnels between everybody.
func NewTunnels() *Tunnels {
	return &Tunnels{
		listeners: map[netip.Addr]*inside{}, streams: map[*tunneled]bool{},
		blocked: func(netip.Addr, netip.Addr) bool { return false },
	}
}

// Block breaks the streams for which blocked says so, in either direction, and lets
// no more of them open. blocked must not call the tunnels.
func (t *Tunnels) Block(blocked func(from, to netip.Addr) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.blocked = blocked
	for s := range t.streams {
		if !t.connectsLocked(s.from.Addr(), s.to.Addr()) {
			_ = s.Conn.Close()
		}
	}
}

func (t *Tunnels) connectsLocked(a, b netip.Addr) bool { return !t.blocked(a, b) && !t.blocked(b, a) }

// Bytes is what has been written to all streams.
func (t *Tunnels) Bytes() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.bytes
}

// Listen implements [exchange.Network].
func (t *Tunnels) Listen(_ context.Context, at netip.Addr) (net.Listener, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.listeners[at] != nil {
		return nil, fmt.Errorf("listen on %s: %w", at, syscall.EADDRINUSE)
	}
	l := &inside{tunnels: t, at: at, incoming: make(chan net.Conn), closed: make(chan struct{})}
	t.listeners[at] = l
	return l, nil
}

// Dial implements [exchange.Network].
func (t *Tunnels) Dial(ctx context.Context, from, to netip.Addr) (net.Conn, error) {
	return t.DialFrom(ctx, netip.AddrPortFrom(from, exchange.AskPort), to)
}

// DialFrom is Dial from any port, as programs other than a daemon do.
func (t *Tunnels) DialFrom(ctx context.Context, from netip.AddrPort, to netip.Addr) (net.Conn, error) {
	t.mu.Lock()
	l, connects := t.listeners[to], t.connectsLocked(from.Addr(), to)
	a, b := net.Pipe()
	at := netip.AddrPortFrom(to, exchange.Port)
	near, far := &tunneled{a, t, from, at}, &tunneled{b, t, at, from}
	t.streams[near], t.streams[far] = true, true
	t.mu.Unlock()
	err := error(syscall.ECONNREFUSED)
	switch {
	case !connects: // nobody answers
		<-ctx.Done()
		err = ctx.Err()
	case l != nil:
		select {
		case l.incoming <- far:
			return near, nil
		case <-l.closed:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	_, _ = near.Close(), far.Close()
	return nil, fmt.Errorf("dial %s: %w", to, err)
}

// inside is a listener in the tunnels.
type inside struct {
	tunnels  *Tunnels
	at       netip.Addr
	incoming chan net.Conn
	once     sync.Once
	closed   chan struct{}
}

func (l *inside) Accept() (net.Conn, error) {
	select {
	case c := <-l.incoming:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *inside) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.tunnels.mu.Lock()
		defer l.tunnels.mu.Unlock()
		delete(l.tunnels.listeners, l.at)
	})
	return nil
}

func (l *inside) Addr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(l.at, exchange.Port))
}

// tunneled is one end of a stream.
type tunneled struct {
	net.Conn
	tunnels  *Tunnels
	from, to netip.AddrPort
}

func (s *tunneled) Write(b []byte) (int, error) {
	n, err := s.Conn.Write(b)
	s.tunnels.mu.Lock()
	defer s.tunnels.mu.Unlock()
	s.tunnels.bytes += int64(n)
	return n, err
}

func (s *tunneled) Close() error {
	s.tunnels.mu.Lock()
	delete(s.tunnels.streams, s)
	s.tunnels.mu.Unlock()
	return s.Conn.Close()
}

func (s *tunneled) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(s.from) }
func (s *tunneled) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(s.to) }
