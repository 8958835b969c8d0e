package tunneltest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"meshd/overlay/tunnel"
)

// Engine is what the contract asks of an engine.
type Engine interface {
	// Run carries packets until ctx is done and then returns nil.
	Run(ctx context.Context) error
	// Ready is closed once Apply may be called and Port is known.
	Ready() <-chan struct{}
	// Apply configures; it waits until the engine is ready.
	Apply(ctx context.Context, want tunnel.Config) error
	Stats() tunnel.Stats
	Name() string
	Port() uint16 // in use
}

// Setup is what a factory makes an engine of. The engine uses the inner side of
// Pipe, which has an MTU of [MTU], and real UDP sockets.
type Setup struct {
	Pipe       *Pipe
	PrivateKey [32]byte
	Port       uint16 // 0: any
	Log        *slog.Logger
}

// Factory makes an engine that is not running. It should be impatient: the
// contract waits at most 30 s for the second endpoint of a peer to be tried.
type Factory func(t *testing.T, s Setup) Engine

// MTU of the inner side.
const MTU = 1420

// Timeouts of the contract. A packet that should arrive may wait for a lost
// handshake to be repeated; one that should not arrive is waited for as long as
// local delivery could possibly take.
const (
	arrival   = 30 * time.Second
	nonsense  = 500 * time.Millisecond
	beginning = 10 * time.Second
)

// Contract tests an engine against what package tunnel promises. Subtests that
// do not count goroutines run in parallel.
func Contract(t *testing.T, factory Factory) {
	t.Run("run ends with its context", func(t *testing.T) { endsClean(t, factory) })
	for _, c := range []struct {
		name string
		test func(*testing.T, *lab)
	}{
		{"data both ways", bothWays},
		{"large packets", largePackets},
		{"source not ours is not sent", foreignSource},
		{"destination not ours is not delivered", foreignDestination},
		{"inner source outside the peer's prefixes is not delivered", spoofedSource},
		{"malformed packets are dropped", malformed},
		{"unknown destination is dropped", unknownDestination},
		{"removed peer is cut off both ways", removedPeer},
		{"prefix moves from peer to peer", movedPrefix},
		{"own prefixes change", ownChanges},
		{"applying again keeps sessions", applyAgain},
		{"sessions are made anew when asked for", renews},
		{"learned endpoint survives applying again", learnedEndpoint},
		{"second endpoint is used when the first is dead", secondEndpoint},
		{"no endpoint lies inside the mesh", endpointInside},
		{"wrong key delivers nothing", wrongKey},
		{"a peer whose key is none keeps nobody out", noKey},
		{"junk changes nothing", junk},
		{"statistics", statistics},
		{"own key changes", ownKeyChanges},
		{"both keys change", bothKeysChange},
		{"former key is not the peer's", keyBeforeIsForgotten},
		{"port in use", portInUse},
		{"inner side gone", innerGone},
		{"apply without run", applyWithoutRun},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, &lab{factory: factory})
		})
	}
}

func junk(t *testing.T, l *lab) {
	a, b := l.pair(t)
	passes(t, a, b, marker(a.v4(), b.v4()))
	passes(t, b, a, marker(b.v4(), a.v4()))
	before := b.Stats().Peers[a.id]
	conn, to := listen(t), net.UDPAddrFromAddrPort(b.peer().Endpoints[0])
	sizes := []int{1, 4, 31, 32, 64, 92, 148, 149, 1400} // among them those of every WireGuard message
	for i := range 1000 {
		datagram := make([]byte, sizes[i%len(sizes)])
		_, _ = rand.Read(datagram) // never fails
		if i%2 == 0 {
			copy(datagram, []byte{byte(i/2%5 + 1), 0, 0, 0})
		}
		if _, err := conn.WriteTo(datagram, to); err != nil {
			t.Fatal(err)
		}
	}
	passes(t, a, b, marker(a.v4(), b.v4()))
	passes(t, b, a, marker(b.v4(), a.v4()))
	after := b.Stats().Peers[a.id]
	if after.Endpoint != before.Endpoint || !after.LastHandshake.Equal(before.LastHandshake) {
		t.Errorf("junk changed the peer: %+v, before %+v", after, before)
	}
}

func statistics(t *testing.T, l *lab) {
	begin := time.Now()
	a, b := l.pair(t)
	if s := a.Stats().Peers[b.id]; s.RxBytes != 0 || !s.LastHandshake.IsZero() || s.Endpoint != b.peer().Endpoints[0] {
		t.Errorf("statistics before any packet: %+v", s)
	}
	const size, count = 1000, 10
	for range count {
		passes(t, a, b, Packet(a.v4(), b.v4(), bytes.Repeat([]byte{1}, size)))
	}
	eventually(t, "bytes and handshake on both sides", func() (bool, string) {
		sent, got := a.Stats().Peers[b.id], b.Stats().Peers[a.id]
		ok := sent.TxBytes >= size*count && sent.TxBytes < 2*size*count &&
			got.RxBytes >= size*count && got.RxBytes < 2*size*count &&
			sent.LastHandshake.After(begin) && got.LastHandshake.After(begin) &&
			got.Endpoint == a.peer().Endpoints[0]
		return ok, fmt.Sprintf("%+v and %+v", sent, got)
	})
}

func portInUse(t *testing.T, l *lab) {
	taken := listen(t).LocalAddr().(*net.UDPAddr).AddrPort().Port()
	private, _ := newKey(t)
	pipe := NewPipe()
	e := l.factory(t, Setup{Pipe: pipe, PrivateKey: private, Port: taken, Log: slog.New(slog.DiscardHandler)})
	err := e.Run(t.Context())
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("run with port %d taken: %v", taken, err)
	}
	if err != nil && !strings.Contains(err.Error(), fmt.Sprint(taken)) {
		t.Errorf("the error does not name the port %d: %v", taken, err)
	}
	if !pipe.Closed() {
		t.Error("the inner side is still open")
	}
}

func innerGone(t *testing.T, l *lab) {
	a := l.start(t)
	_ = a.pipe.Close() // never fails
	select {
	case err := <-a.ended:
		if err == nil {
			t.Error("run returned without an error")
		}
	case <-time.After(arrival):
		t.Fatal("run goes on")
	}
	if err := a.Apply(t.Context(), a.config); err == nil {
		t.Error("apply on an engine that has ended succeeded")
	}
	a.Stats() // must not hang or panic
}

func applyWithoutRun(t *testing.T, l *lab) {
	private, _ := newKey(t)
	e := l.factory(t, Setup{Pipe: NewPipe(), PrivateKey: private, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Apply(ctx, tunnel.Config{}); err == nil {
		t.Error("apply without run succeeded")
	}
	if s := e.Stats(); len(s.Peers) != 0 {
		t.Errorf("statistics without run: %+v", s)
	}
}

// endsClean looks at the whole process, so nothing may run beside it.
func endsClean(t *testing.T, factory Factory) {
	before := runtime.NumGoroutine()
	l := &lab{factory: factory}
	a, b := l.pair(t)
	passes(t, a, b, marker(a.v4(), b.v4()))
	for _, h := range []*host{a, b} {
		h.stop()
		select {
		case err := <-h.ended:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(arrival):
			t.Fatal("run goes on after its context is done")
		}
		if !h.pipe.Closed() {
			t.Error("the inner side is still open")
		}
	}
	eventually(t, "return to as many goroutines as before", func() (bool, string) {
		n := runtime.NumGoroutine()
		stacks := make([]byte, 1<<20)
		return n <= before, fmt.Sprintf("%d, before %d\n%s", n, before, stacks[:runtime.Stack(stacks, true)])
	})
}
