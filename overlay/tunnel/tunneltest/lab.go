package tunneltest

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/overlay/tunnel"
)

// lab starts hosts, numbered from 1, each with an engine.
type lab struct {
	factory Factory
	hosts   int
}

// host is one engine with what is around it.
type host struct {
	Engine
	pipe   *Pipe
	number int
	id     mesh.NodeID
	key    mesh.Key
	own    []netip.Prefix
	config tunnel.Config // applied last
	stop   context.CancelFunc
	ended  chan error
}

// start starts a host with one IPv4 and one IPv6 subnet and no peers.
func (l *lab) start(t *testing.T) *host {
	t.Helper()
	l.hosts++
	h := &host{pipe: NewPipe(), number: l.hosts, id: mesh.NodeID{byte(l.hosts)}, ended: make(chan error, 1)}
	h.own = []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.99.%d.0/24", h.number)),
		netip.MustParsePrefix(fmt.Sprintf("fd99:0:0:%d::/64", h.number)),
	}
	private, public := newKey(t)
	h.key = public
	h.Engine = l.factory(t, Setup{Pipe: h.pipe, PrivateKey: private, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	h.stop = cancel
	go func() {
		h.ended <- h.Run(ctx)
		close(h.ended)
	}()
	t.Cleanup(func() {
		cancel()
		for range h.ended { // until closed
		}
	})
	select {
	case <-h.Ready():
	case err := <-h.ended:
		t.Fatalf("run: %v", err)
	case <-time.After(beginning):
		t.Fatal("the engine does not become ready")
	}
	if h.Name() == "" || h.Port() == 0 {
		t.Fatalf("engine %q listens on port %d", h.Name(), h.Port())
	}
	h.apply(t)
	return h
}

func newKey(t *testing.T) (private [32]byte, public mesh.Key) {
	t.Helper()
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return [32]byte(k.Bytes()), mesh.Key(k.PublicKey().Bytes())
}

// apply gives the host these peers and its own subnets.
func (h *host) apply(t *testing.T, peers ...tunnel.Peer) {
	t.Helper()
	h.configure(t, tunnel.Config{Own: h.own, Peers: peers})
}

func (h *host) configure(t *testing.T, want tunnel.Config) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), beginning)
	defer cancel()
	if err := h.Apply(ctx, want); err != nil {
		t.Fatalf("apply: %v", err)
	}
	h.config = want
}

// peer is how others see the host.
func (h *host) peer() tunnel.Peer {
	return tunnel.Peer{
		ID:         h.id,
		PublicKey:  h.key,
		Endpoints:  []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), h.Port())},
		AllowedIPs: h.own,
		Suite:      tunnel.ChaCha20Poly1305,
	}
}

// silentPeer is the host without a known endpoint.
func (h *host) silentPeer() tunnel.Peer {
	p := h.peer()
	p.Endpoints = nil
	return p
}

func (h *host) v4() netip.Addr { return h.own[0].Addr().Next() }
func (h *host) v6() netip.Addr { return h.own[1].Addr().Next() }

// pair starts two hosts that know each other.
func (l *lab) pair(t *testing.T) (a, b *host) {
	t.Helper()
	a, b = l.start(t), l.start(t)
	a.apply(t, b.peer())
	b.apply(t, a.peer())
	return a, b
}

// marker makes a packet that differs from every other.
func marker(src, dst netip.Addr) []byte { return Packet(src, dst, []byte(rand.Text())) }

// passes sends a packet from one host and fails unless it arrives at the other
// as the very next one: whatever was sent before on that way was dropped.
func passes(t *testing.T, from, to *host, packet []byte) {
	t.Helper()
	from.pipe.Send(packet)
	got, ok := to.receive(arrival)
	if !ok {
		t.Fatalf("packet of %d bytes from host %d did not arrive at host %d", len(packet), from.number, to.number)
	}
	if !bytes.Equal(got, packet) {
		t.Fatalf("host %d got another packet:\n got %x\nwant %x", to.number, got, packet)
	}
}

// receive waits for a packet that was delivered. Answers to what the host has
// sent itself, that it cannot go where it should, are passed over.
func (h *host) receive(timeout time.Duration) ([]byte, bool) {
	for end := time.Now().Add(timeout); ; {
		got, ok := h.pipe.Receive(time.Until(end))
		if !ok || !isUnreachable(got) {
			return got, ok
		}
	}
}

// taken waits until the engine has taken what the host has sent: it takes one packet
// after the other, and counts those of a foreign source.
func taken(t *testing.T, h *host) {
	t.Helper()
	before := h.Stats().Drops[tunnel.DropSource]
	h.pipe.Send(marker(netip.MustParseAddr("192.0.2.1"), h.v4()))
	dropped(t, h, tunnel.DropSource, before+1)
}

// silence fails if anything arrives.
func silence(t *testing.T, h *host) {
	t.Helper()
	if got, ok := h.receive(nonsense); ok {
		t.Fatalf("host %d got a packet: %x", h.number, got)
	}
}

// dropped waits until the host has counted n drops for a reason.
func dropped(t *testing.T, h *host, reason string, n uint64) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d drops for %s", n, reason), func() (bool, string) {
		drops := h.Stats().Drops
		return drops[reason] == n, fmt.Sprint(drops)
	})
}

func eventually(t *testing.T, what string, check func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(arrival)
	for {
		ok, got := check()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %s; at last %s", what, got)
		}
		select {
		case <-t.Context().Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}
