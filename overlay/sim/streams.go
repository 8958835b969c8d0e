package sim

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"meshd/mesh/exchange"
	"meshd/overlay/probe"
)

// knockAgain is how soon the opening of a stream is tried again, as TCP does after a
// second.
const knockAgain = 200 * time.Millisecond

// Ports of the world's own packets for this. Those of TCP it has not, and by UDP the
// prober is at one of them.
const (
	doorPort  = 8
	replyPort = 9
)

// streams open between control addresses when a packet gets there through the tunnel
// and another one back, and then carry what is written, whatever the weather: a
// stream lasts for a moment. They are an [exchange.Network] of one life.
type streams struct {
	l *life

	mu      sync.Mutex
	answers map[uint64]chan struct{} // by the number of a knock; closed when it is answered
}

// stream is one end.
type stream struct {
	net.Conn
	local, remote netip.AddrPort
}

func (s stream) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(s.local) }
func (s stream) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(s.remote) }

// doors listens to who knocks.
type doors struct {
	at       netip.AddrPort
	knocks   probe.Conn
	replies  probe.Conn
	incoming chan net.Conn
	once     sync.Once
	closed   chan struct{}
}

// Listen implements [exchange.Network].
func (s *streams) Listen(_ context.Context, at netip.Addr) (net.Listener, error) {
	knocks, err := s.l.listen(netip.AddrPortFrom(at, doorPort))
	if err != nil {
		return nil, err
	}
	replies, err := s.l.listen(netip.AddrPortFrom(at, replyPort))
	if err != nil {
		_ = knocks.Close()
		return nil, err
	}
	d := &doors{at: netip.AddrPortFrom(at, exchange.Port), knocks: knocks, replies: replies, incoming: make(chan net.Conn), closed: make(chan struct{})}
	go s.serve(d)
	go s.hear(replies)
	return d, nil
}

// serve opens to who knocks.
func (s *streams) serve(d *doors) {
	buf := make([]byte, 8)
	for {
		n, from, err := d.knocks.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if n != len(buf) {
			continue
		}
		w := s.l.h.w
		w.mu.Lock()
		number := binary.BigEndian.Uint64(buf)
		far := w.knocks[number]
		delete(w.knocks, number)
		w.mu.Unlock()
		_, _ = d.knocks.WriteToUDPAddrPort(buf, from)
		if far == nil {
			continue // it has opened, and its answer was lost
		}
		go func() {
			select {
			case d.incoming <- stream{far, d.at, netip.AddrPortFrom(from.Addr(), exchange.AskPort)}:
			case <-d.closed:
				_ = far.Close()
			}
		}()
	}
}

// hear takes the answers to our own knocks.
func (s *streams) hear(replies probe.Conn) {
	buf := make([]byte, 8)
	for {
		n, _, err := replies.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		s.mu.Lock()
		number := binary.BigEndian.Uint64(buf)
		if answered := s.answers[number]; n == len(buf) && answered != nil {
			close(answered)
			delete(s.answers, number)
		}
		s.mu.Unlock()
	}
}

// Dial implements [exchange.Network].
func (s *streams) Dial(ctx context.Context, from, to netip.Addr) (net.Conn, error) {
	h, w := s.l.h, s.l.h.w
	if !h.kernel.Local(from) || s.l.dead.Load() {
		return nil, fmt.Errorf("dial from %s: cannot assign requested address", from)
	}
	near, far := net.Pipe()
	w.mu.Lock()
	w.next++
	number := w.next
	w.knocks[number] = far
	w.mu.Unlock()
	answered := make(chan struct{})
	s.mu.Lock()
	s.answers[number] = answered
	s.mu.Unlock()
	knock := &socket{l: s.l, at: netip.AddrPortFrom(from, replyPort)}
	for {
		_, _ = knock.WriteToUDPAddrPort(binary.BigEndian.AppendUint64(nil, number), netip.AddrPortFrom(to, doorPort))
		select {
		case <-answered:
			return stream{near, netip.AddrPortFrom(from, exchange.AskPort), netip.AddrPortFrom(to, exchange.Port)}, nil
		case <-time.After(knockAgain):
			continue
		case <-ctx.Done():
		}
		s.mu.Lock()
		delete(s.answers, number)
		s.mu.Unlock()
		w.mu.Lock()
		delete(w.knocks, number)
		w.mu.Unlock()
		_, _ = near.Close(), far.Close()
		return nil, fmt.Errorf("dial %s: %w", to, ctx.Err())
	}
}

func (d *doors) Accept() (net.Conn, error) {
	select {
	case c := <-d.incoming:
		return c, nil
	case <-d.closed:
		return nil, net.ErrClosed
	}
}

func (d *doors) Close() error {
	d.once.Do(func() {
		close(d.closed)
		_, _ = d.knocks.Close(), d.replies.Close()
	})
	return nil
}

func (d *doors) Addr() net.Addr { return net.TCPAddrFromAddrPort(d.at) }
