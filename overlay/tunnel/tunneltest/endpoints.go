package tunneltest

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"meshd/overlay/tunnel"
)

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
