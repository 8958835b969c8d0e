package tunneltest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"meshd/mesh"
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

func bothWays(t *testing.T, l *lab) {
	a, b := l.pair(t)
	for range 3 {
		passes(t, a, b, marker(a.v4(), b.v4()))
		passes(t, b, a, marker(b.v4(), a.v4()))
		passes(t, a, b, marker(a.v6(), b.v6()))
		passes(t, b, a, marker(b.v6(), a.v6()))
	}
}

func largePackets(t *testing.T, l *lab) {
	a, b := l.pair(t)
	passes(t, a, b, Packet(a.v4(), b.v4(), bytes.Repeat([]byte("4"), MTU-20)))
	passes(t, a, b, Packet(a.v6(), b.v6(), bytes.Repeat([]byte("6"), MTU-40)))
	passes(t, b, a, Packet(b.v4(), a.v4(), bytes.Repeat([]byte("4"), MTU-21)))
}

func foreignSource(t *testing.T, l *lab) {
	a, b := l.pair(t)
	a.pipe.Send(marker(netip.MustParseAddr("192.0.2.1"), b.v4()))
	a.pipe.Send(marker(netip.MustParseAddr("2001:db8::1"), b.v6()))
	a.pipe.Send(marker(b.v4(), b.v4()))
	passes(t, a, b, marker(a.v4(), b.v4()))
	dropped(t, a, tunnel.DropSource, 3)
}

func foreignDestination(t *testing.T, l *lab) {
	a, b := l.pair(t)
	// To a, the third subnet is behind b; to b it is not its own. Delivering it
	// would make b a router.
	third := netip.MustParsePrefix("10.99.77.0/24")
	p := b.peer()
	p.AllowedIPs = append([]netip.Prefix{third}, p.AllowedIPs...)
	a.apply(t, p)
	a.pipe.Send(marker(a.v4(), third.Addr().Next()))
	passes(t, a, b, marker(a.v4(), b.v4()))
	dropped(t, b, tunnel.DropDestination, 1)
}

func spoofedSource(t *testing.T, l *lab) {
	a, b := l.pair(t)
	// a believes that it owns more than b grants it.
	more := netip.MustParsePrefix("10.99.77.0/24")
	a.configure(t, tunnel.Config{Own: append([]netip.Prefix{more}, a.own...), Peers: a.config.Peers})
	a.pipe.Send(marker(more.Addr().Next(), b.v4()))
	passes(t, a, b, marker(a.v4(), b.v4()))
	if n := a.Stats().Drops[tunnel.DropSource]; n != 0 {
		t.Errorf("the sender dropped %d packets, so the receiver was not tested", n)
	}
}

func malformed(t *testing.T, l *lab) {
	a, b := l.pair(t)
	whole := marker(a.v4(), b.v4())
	a.pipe.Send(whole[:19])
	a.pipe.Send(marker(a.v6(), b.v6())[:39])
	a.pipe.Send(append([]byte{0x55}, whole[1:]...)) // IP version 5
	a.pipe.Send([]byte{0x45})
	passes(t, a, b, marker(a.v4(), b.v4()))
	dropped(t, a, tunnel.DropMalformed, 4)
}

func unknownDestination(t *testing.T, l *lab) {
	a, b := l.pair(t)
	a.pipe.Send(marker(a.v4(), netip.MustParseAddr("10.99.200.1")))
	passes(t, a, b, marker(a.v4(), b.v4()))
	silence(t, a)
}

func removedPeer(t *testing.T, l *lab) {
	a, b := l.pair(t)
	passes(t, a, b, marker(a.v4(), b.v4()))
	passes(t, b, a, marker(b.v4(), a.v4()))
	a.apply(t)
	a.pipe.Send(marker(a.v4(), b.v4()))
	b.pipe.Send(marker(b.v4(), a.v4()))
	silence(t, a)
	silence(t, b)
	if n := len(a.Stats().Peers); n != 0 {
		t.Errorf("%d peers in the statistics, want none", n)
	}
	a.apply(t, b.peer())
	passes(t, a, b, marker(a.v4(), b.v4()))
}

func movedPrefix(t *testing.T, l *lab) {
	a, b, c := l.start(t), l.start(t), l.start(t)
	moving := netip.MustParsePrefix("10.99.77.0/24")
	b.own, c.own = append(b.own, moving), append(c.own, moving)
	b.apply(t, a.peer())
	c.apply(t, a.peer())
	with, without := b.peer(), b.peer()
	without.AllowedIPs = b.own[:2]
	cWith, cWithout := c.peer(), c.peer()
	cWithout.AllowedIPs = c.own[:2]

	packet := func() []byte { return marker(a.v4(), moving.Addr().Next()) }
	a.apply(t, with, cWithout)
	passes(t, a, b, packet())
	a.apply(t, without, cWith)
	passes(t, a, c, packet())
	passes(t, a, b, marker(a.v4(), b.v4()))
	a.apply(t, with, cWithout)
	passes(t, a, b, packet())
	passes(t, a, c, marker(a.v4(), c.v4()))
}

func ownChanges(t *testing.T, l *lab) {
	a, b := l.pair(t)
	passes(t, a, b, marker(a.v4(), b.v4()))
	old := b.v4()
	b.own[0] = netip.MustParsePrefix("10.99.78.0/24")
	b.configure(t, tunnel.Config{Own: b.own, Peers: b.config.Peers})
	grown := b.peer()
	grown.AllowedIPs = append([]netip.Prefix{netip.PrefixFrom(old, 32)}, grown.AllowedIPs...)
	a.apply(t, grown)
	a.pipe.Send(marker(a.v4(), old))
	passes(t, a, b, marker(a.v4(), b.v4()))
	dropped(t, b, tunnel.DropDestination, 1)
	passes(t, b, a, marker(b.v4(), a.v4()))
}

func applyAgain(t *testing.T, l *lab) {
	a, b := l.pair(t)
	passes(t, a, b, marker(a.v4(), b.v4()))
	passes(t, b, a, marker(b.v4(), a.v4()))
	before := a.Stats().Peers[b.id]
	for range 5 {
		a.apply(t, a.config.Peers...)
		passes(t, a, b, marker(a.v4(), b.v4()))
		passes(t, b, a, marker(b.v4(), a.v4()))
	}
	after := a.Stats().Peers[b.id]
	if !after.LastHandshake.Equal(before.LastHandshake) {
		t.Errorf("applying again led to another handshake: %v, before %v", after.LastHandshake, before.LastHandshake)
	}
	if after.Endpoint != before.Endpoint || after.RxBytes <= before.RxBytes {
		t.Errorf("applying again reset the peer: %+v, before %+v", after, before)
	}
}

// renews asks for it a few times: an engine may leave out a handshake that comes too
// soon after another.
func renews(t *testing.T, l *lab) {
	a, b := l.pair(t)
	passes(t, a, b, marker(a.v4(), b.v4()))
	passes(t, b, a, marker(b.v4(), a.v4()))
	first := a.Stats().Peers[b.id].LastHandshake
	shaken := func() bool { return a.Stats().Peers[b.id].LastHandshake.After(first) }
	for renewal := uint64(1); !shaken(); renewal++ {
		if renewal > 10 {
			t.Fatalf("the session is still that of %s", first)
		}
		a.configure(t, tunnel.Config{Own: a.own, Peers: a.config.Peers, Renewal: renewal})
		for range 20 { // of which none is lost
			if shaken() {
				break
			}
			passes(t, a, b, marker(a.v4(), b.v4()))
			passes(t, b, a, marker(b.v4(), a.v4()))
			pause(t, 50*time.Millisecond)
		}
	}
	second := a.Stats().Peers[b.id].LastHandshake
	a.configure(t, a.config)
	passes(t, a, b, marker(a.v4(), b.v4()))
	pause(t, 200*time.Millisecond)
	if third := a.Stats().Peers[b.id].LastHandshake; !third.Equal(second) {
		t.Errorf("applying again led to another handshake: %v, before %v", third, second)
	}
}

func learnedEndpoint(t *testing.T, l *lab) {
	a, b := l.start(t), l.start(t)
	p := b.peer()
	real := p.Endpoints[0]
	p.Endpoints = []netip.AddrPort{deadEnd(t)}
	a.apply(t, p)
	b.apply(t, a.peer())
	passes(t, b, a, marker(b.v4(), a.v4())) // this is how a learns
	for range 3 {
		a.apply(t, p)
		if got := a.Stats().Peers[b.id].Endpoint; got != real {
			t.Fatalf("endpoint is %v, want the learned %v", got, real)
		}
		passes(t, a, b, marker(a.v4(), b.v4()))
	}
	other := deadEnd(t)
	p.Endpoints = []netip.AddrPort{other}
	a.apply(t, p)
	if got := a.Stats().Peers[b.id].Endpoint; got != other {
		t.Errorf("endpoint is %v after the candidates changed, want %v", got, other)
	}
}

func secondEndpoint(t *testing.T, l *lab) {
	a, b := l.start(t), l.start(t)
	p := b.peer()
	p.Endpoints = []netip.AddrPort{deadEnd(t), p.Endpoints[0]}
	a.apply(t, p)
	b.apply(t, a.silentPeer())
	passes(t, a, b, marker(a.v4(), b.v4()))
	passes(t, b, a, marker(b.v4(), a.v4()))
}

// deadEnd is a local endpoint that answers nothing.
func deadEnd(t *testing.T) netip.AddrPort {
	t.Helper()
	conn := listen(t)
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func listen(t *testing.T) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // nothing was written
	return conn
}

// endpointInside takes 127.0.0.2 for an address of the mesh, from where b's
// datagrams come to a.
func endpointInside(t *testing.T, l *lab) {
	a, b := l.start(t), l.start(t)
	inside := netip.MustParsePrefix("127.0.0.2/32")
	a.configure(t, tunnel.Config{Own: a.own, Peers: []tunnel.Peer{b.silentPeer()}, Inside: []netip.Prefix{inside}})
	viaMesh := a.peer()
	viaMesh.Endpoints = []netip.AddrPort{relay(t, inside.Addr(), a.peer().Endpoints[0])}
	b.apply(t, viaMesh)
	b.pipe.Send(marker(b.v4(), a.v4()))
	eventually(t, "datagram that came from inside the mesh", func() (bool, string) {
		drops := a.Stats().Drops
		return drops[tunnel.DropEndpoint] > 0, fmt.Sprint(drops)
	})
	if s := a.Stats().Peers[b.id]; s.Endpoint.IsValid() || s.RxBytes != 0 {
		t.Errorf("the datagram was taken: %+v", s)
	}

	both := b.peer()
	real := both.Endpoints[0]
	both.Endpoints = []netip.AddrPort{viaMesh.Endpoints[0], real}
	a.configure(t, tunnel.Config{Own: a.own, Peers: []tunnel.Peer{both}, Inside: []netip.Prefix{inside}})
	if got := a.Stats().Peers[b.id].Endpoint; got != real {
		t.Errorf("endpoint is %v, want %v, the first outside of the mesh", got, real)
	}
	passes(t, a, b, marker(a.v4(), b.v4()))
}

// relay passes datagrams on, from a socket that is bound to an address.
func relay(t *testing.T, from netip.Addr, to netip.AddrPort) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<16)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteToUDPAddrPort(buf[:n], to) // lost, if so
		}
	}()
	t.Cleanup(func() { _ = conn.Close(); <-done })
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func wrongKey(t *testing.T, l *lab) {
	a, b := l.start(t), l.start(t)
	_, other := newKey(t)
	wrong := b.peer()
	wrong.ID, wrong.PublicKey = mesh.NodeID{99}, other // what waits for one peer is not another's
	a.apply(t, wrong)
	b.apply(t, a.peer())
	a.pipe.Send(marker(a.v4(), b.v4()))
	b.pipe.Send(marker(b.v4(), a.v4()))
	silence(t, a)
	silence(t, b)
	for _, h := range []*host{a, b} {
		for id, s := range h.Stats().Peers {
			if !s.LastHandshake.IsZero() || s.RxBytes != 0 {
				t.Errorf("host %d has heard of peer %s: %+v", h.number, id.Short(), s)
			}
		}
	}
	a.apply(t, b.peer())
	passes(t, a, b, marker(a.v4(), b.v4()))
}

// noKey has a peer with a point of small order for a key, which any member can
// put into its record.
func noKey(t *testing.T, l *lab) {
	a, b := l.pair(t)
	bad := b.silentPeer()
	bad.ID, bad.PublicKey, bad.AllowedIPs = mesh.NodeID{99}, mesh.Key{1}, []netip.Prefix{netip.MustParsePrefix("10.99.99.0/24")}
	a.apply(t, b.peer(), bad)
	passes(t, a, b, marker(a.v4(), b.v4()))
	passes(t, b, a, marker(b.v4(), a.v4()))
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
