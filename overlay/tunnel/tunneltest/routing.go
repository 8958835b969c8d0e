package tunneltest

import (
	"bytes"
	"net/netip"
	"testing"

	"meshd/overlay/tunnel"
)

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
