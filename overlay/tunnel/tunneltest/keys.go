package tunneltest

import (
	"context"
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/overlay/tunnel"
)

const (
	// keyGap is for how long nothing may arrive while a key changes.
	keyGap = time.Second
	// keyTraffic is for how long traffic goes on after the change: an engine has
	// until then to go over.
	keyTraffic = 8 * time.Second
	keyPace    = 5 * time.Millisecond
)

// ownKeyChanges has packets going both ways while a gets another key, of which b
// hears a moment later, as it does from a's record.
func ownKeyChanges(t *testing.T, l *lab) {
	a, b := l.pair(t)
	passes(t, a, b, marker(a.v4(), b.v4()))
	passes(t, b, a, marker(b.v4(), a.v4()))
	to, back := stream(t, a, b), stream(t, b, a)
	pause(t, 100*time.Millisecond)
	rotate(t, a)
	pause(t, 300*time.Millisecond)
	b.apply(t, a.peer())
	pause(t, keyTraffic)
	to.check(t)
	back.check(t)
	// Whoever has no session makes one with the new key.
	c := l.start(t)
	c.apply(t, a.peer())
	a.apply(t, b.peer(), c.peer())
	passes(t, c, a, marker(c.v4(), a.v4()))
	passes(t, a, b, marker(a.v4(), b.v4()))
}

// bothKeysChange has the two change at once.
func bothKeysChange(t *testing.T, l *lab) {
	a, b := l.pair(t)
	passes(t, a, b, marker(a.v4(), b.v4()))
	passes(t, b, a, marker(b.v4(), a.v4()))
	to, back := stream(t, a, b), stream(t, b, a)
	pause(t, 100*time.Millisecond)
	rotate(t, a)
	rotate(t, b)
	pause(t, 300*time.Millisecond)
	a.configure(t, tunnel.Config{Own: a.own, Peers: []tunnel.Peer{b.peer()}})
	b.configure(t, tunnel.Config{Own: b.own, Peers: []tunnel.Peer{a.peer()}})
	pause(t, keyTraffic)
	to.check(t)
	back.check(t)
}

// keyBeforeIsForgotten has a peer with another key, whose former key somebody else
// shows then: that one gets none of its packets.
func keyBeforeIsForgotten(t *testing.T, l *lab) {
	a, b := l.pair(t)
	passes(t, a, b, marker(a.v4(), b.v4()))
	former := b.peer()
	rotate(t, b)
	former.ID, former.AllowedIPs = [len(former.ID)]byte{99}, nil
	a.apply(t, b.peer(), former)
	eventually(t, "packet with the new key", func() (bool, string) {
		b.pipe.Send(marker(b.v4(), a.v4()))
		_, ok := a.receive(nonsense)
		return ok, "silence"
	})
	eventually(t, "packet to the new key", func() (bool, string) {
		a.pipe.Send(marker(a.v4(), b.v4()))
		_, ok := b.receive(nonsense)
		return ok, "silence"
	})
	for _, h := range []*host{a, b} { // what was late
		for ok := true; ok; {
			_, ok = h.receive(nonsense)
		}
	}
	a.apply(t)
	a.pipe.Send(marker(a.v4(), b.v4()))
	b.pipe.Send(marker(b.v4(), a.v4()))
	silence(t, a)
	silence(t, b)
}

// rotate gives a host another key.
func rotate(t *testing.T, h *host) {
	t.Helper()
	private, public := newKey(t)
	h.key = public
	h.configure(t, tunnel.Config{Key: private, Own: h.own, Peers: h.config.Peers})
}

func pause(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

// flow is numbered packets from one host to another, at a steady pace.
type flow struct {
	from, to *host
	stop     context.CancelFunc
	tasks    sync.WaitGroup

	// owned by the tasks until they have ended
	sent    uint32
	arrived map[uint32]bool
	gap     time.Duration // the greatest between two that arrived
}

// stream starts a flow. Nobody else may receive at to until it was checked.
func stream(t *testing.T, from, to *host) *flow {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	f := &flow{from: from, to: to, stop: stop, arrived: map[uint32]bool{}}
	f.tasks.Go(func() {
		ticker := time.NewTicker(keyPace)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			payload := append([]byte("flow"), make([]byte, 60)...)
			binary.BigEndian.PutUint32(payload[4:], f.sent)
			from.pipe.Send(Packet(from.v4(), to.v4(), payload))
			f.sent++
		}
	})
	f.tasks.Go(func() {
		last := time.Now()
		for {
			got, ok := to.receive(nonsense)
			if !ok && ctx.Err() != nil {
				return
			}
			if ok && len(got) > 28 && string(got[20:24]) == "flow" {
				f.gap = max(f.gap, time.Since(last))
				last = time.Now()
				f.arrived[binary.BigEndian.Uint32(got[24:])] = true
			}
			if !ok {
				f.gap = max(f.gap, time.Since(last))
			}
		}
	})
	t.Cleanup(func() { stop(); f.tasks.Wait() })
	return f
}

// check ends the flow and fails if it was interrupted for long.
func (f *flow) check(t *testing.T) {
	t.Helper()
	f.stop()
	f.tasks.Wait()
	lost := int(f.sent) - len(f.arrived)
	t.Logf("host %d to %d: %d of %d lost, greatest gap %s", f.from.number, f.to.number, lost, f.sent, f.gap.Round(time.Millisecond))
	if f.gap > keyGap || len(f.arrived) == 0 {
		t.Errorf("host %d to %d: nothing arrived for %s, want at most %s", f.from.number, f.to.number, f.gap, keyGap)
	}
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
	taken(t, a) // or it would be for whoever is the peer when it is
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
