package tunneltest

import (
	"net/netip"
	"testing"
	"time"

	"meshd/overlay/tunnel"
)

func removedPeer(t *testing.T, l *lab) {
	a, b := l.pair(t)
	passes(t, a, b, marker(a.v4(), b.v4()))
	passes(t, b, a, marker(b.v4(), a.v4()))
	a.apply(t)
	a.pipe.Send(marker(a.v4(), b.v4()))
	b.pipe.Send(marker(b.v4(), a.v4()))
	taken(t, a)
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

// renews asks once, right after another handshake: an engine may take its time, but
// not forget it.
func renews(t *testing.T, l *lab) {
	a, b := l.pair(t)
	passes(t, a, b, marker(a.v4(), b.v4()))
	passes(t, b, a, marker(b.v4(), a.v4()))
	first := a.Stats().Peers[b.id].LastHandshake
	shaken := func() bool { return a.Stats().Peers[b.id].LastHandshake.After(first) }
	a.configure(t, tunnel.Config{Own: a.own, Peers: a.config.Peers, Renewal: 1})
	a.configure(t, a.config)              // another plan does not take it back
	for begin := time.Now(); !shaken(); { // of what passes meanwhile none is lost
		if time.Since(begin) > arrival {
			t.Fatalf("the session is still that of %s, %s after another was asked for", first, arrival)
		}
		passes(t, a, b, marker(a.v4(), b.v4()))
		passes(t, b, a, marker(b.v4(), a.v4()))
		pause(t, 50*time.Millisecond)
	}
	second := a.Stats().Peers[b.id].LastHandshake
	a.configure(t, a.config)
	passes(t, a, b, marker(a.v4(), b.v4()))
	pause(t, 200*time.Millisecond)
	if third := a.Stats().Peers[b.id].LastHandshake; !third.Equal(second) {
		t.Errorf("applying again led to another handshake: %v, before %v", third, second)
	}
}
