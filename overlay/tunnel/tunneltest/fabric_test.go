package tunneltest

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"meshd/mesh"
	"meshd/overlay/tunnel"
)

// wire is an underlay that loses nothing but what goes to a dead address, and
// delivers all twice.
type wire struct{ dead netip.Addr }

func (w *wire) Carry(_, to netip.AddrPort, arrive func()) {
	if to.Addr() != w.dead {
		go arrive()
		go arrive()
	}
}

// machine is a host of the fabric.
type machine struct {
	n         byte
	addresses []netip.Addr
	got       chan Inner
}

func (m *machine) Addresses() []netip.Addr         { return m.addresses }
func (m *machine) Deliver(from mesh.Key, in Inner) { m.got <- in }

func outside(n byte) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, n}) }
func inside(n byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 86, n, 1}), 7)
}
func subnet(n byte) netip.Prefix { return netip.PrefixFrom(inside(n).Addr(), 24).Masked() }

// peering is the configuration of host n that has the others for peers.
func peering(n byte, others ...byte) tunnel.Config {
	c := tunnel.Config{Own: []netip.Prefix{subnet(n)}, Inside: []netip.Prefix{netip.MustParsePrefix("10.86.0.0/16")}}
	for _, o := range others {
		c.Peers = append(c.Peers, tunnel.Peer{
			ID: mesh.NodeID{o}, PublicKey: mesh.Key{o}, AllowedIPs: []netip.Prefix{subnet(o)},
			Endpoints: []netip.AddrPort{netip.AddrPortFrom(outside(o), 51820)},
		})
	}
	return c
}

func inFabric(t *testing.T, test func(*testing.T, *wire, []*machine, []*Simulated)) {
	synctest.Test(t, func(t *testing.T) {
		w := new(wire)
		f := NewFabric(w)
		var machines []*machine
		var engines []*Simulated
		for n := range byte(3) {
			m := &machine{n, []netip.Addr{outside(n)}, make(chan Inner, 16)}
			e := f.Engine(m, mesh.Key{n}, 51820)
			go func() { _ = e.Run(t.Context()) }()
			<-e.Ready()
			machines, engines = append(machines, m), append(engines, e)
		}
		test(t, w, machines, engines)
	})
}

func arrivals(m *machine) (got []Inner) {
	synctest.Wait()
	for len(m.got) > 0 {
		got = append(got, <-m.got)
	}
	return got
}

func TestFabricCarriesByKeyAndAddress(t *testing.T) {
	inFabric(t, func(t *testing.T, _ *wire, m []*machine, e []*Simulated) {
		for n := range byte(3) {
			others := slices.DeleteFunc([]byte{0, 1, 2}, func(o byte) bool { return o == n })
			if err := e[n].Apply(t.Context(), peering(n, others...)); err != nil {
				t.Fatal(err)
			}
		}
		for _, tt := range []struct {
			name  string
			send  func()
			at    int
			count int
		}{
			{"to its owner, once", func() { e[0].Send(Inner{Src: inside(0), Dst: inside(1)}) }, 1, 1},
			{"to nobody", func() { e[0].Send(Inner{Src: inside(0), Dst: inside(9)}) }, 1, 0},
			{"not with a foreign source", func() { e[0].Send(Inner{Src: inside(2), Dst: inside(1)}) }, 1, 0},
			{"nor if the engine lets it out", func() {
				e[0].Forge(mesh.Key{1}, netip.AddrPortFrom(outside(1), 51820), Inner{Src: inside(2), Dst: inside(1)})
			}, 1, 0},
			{"nor to somebody behind the peer", func() {
				e[0].Forge(mesh.Key{1}, netip.AddrPortFrom(outside(1), 51820), Inner{Src: inside(0), Dst: inside(2)})
			}, 1, 0},
			{"nobody opens what is for another", func() {
				e[0].Forge(mesh.Key{2}, netip.AddrPortFrom(outside(1), 51820), Inner{Src: inside(0), Dst: inside(1)})
			}, 1, 0},
		} {
			tt.send()
			if got := arrivals(m[tt.at]); len(got) != tt.count {
				t.Errorf("%s: %d arrived, want %d", tt.name, len(got), tt.count)
			}
		}
		if err := e[1].Apply(t.Context(), peering(1, 2)); err != nil {
			t.Fatal(err)
		}
		e[0].Send(Inner{Src: inside(0), Dst: inside(1)})
		if got := arrivals(m[1]); len(got) != 0 {
			t.Error("a packet arrived from who is no peer any more")
		}
	})
}

func TestFabricFollowsEndpoints(t *testing.T) {
	inFabric(t, func(t *testing.T, w *wire, m []*machine, e []*Simulated) {
		apply := func(e *Simulated, c tunnel.Config) {
			t.Helper()
			if err := e.Apply(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		apply(e[0], peering(0, 1))
		apply(e[1], peering(1, 0))
		m[1].addresses = []netip.Addr{outside(77)} // host 1 moves, and nobody says so
		e[0].Send(Inner{Src: inside(0), Dst: inside(1)})
		if got := arrivals(m[1]); len(got) != 0 {
			t.Error("a packet arrived at an address that is gone")
		}
		e[1].Send(Inner{Src: inside(1), Dst: inside(0)})
		arrivals(m[0])
		e[0].Send(Inner{Src: inside(0), Dst: inside(1)})
		if got := arrivals(m[1]); len(got) != 1 {
			t.Error("the endpoint was not learned")
		}

		c := peering(0, 2)
		c.Peers[0].Endpoints = []netip.AddrPort{netip.AddrPortFrom(outside(66), 51820), netip.AddrPortFrom(outside(2), 51820)}
		apply(e[0], c)
		apply(e[2], peering(2, 0))
		w.dead = outside(66)
		for range 12 {
			e[0].Send(Inner{Src: inside(0), Dst: inside(2)})
			time.Sleep(time.Second)
		}
		if got := arrivals(m[2]); len(got) == 0 {
			t.Error("the second endpoint was not tried")
		}
	})
}

func TestFabricEngineThatBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := NewFabric(new(wire)).Engine(&machine{addresses: []netip.Addr{outside(1)}}, mesh.Key{1}, 51820)
		ended := make(chan error, 1)
		go func() { ended <- e.Run(t.Context()) }()
		<-e.Ready()
		e.Break()
		if err := <-ended; err != ErrNoTUN {
			t.Errorf("Run: %v, want ErrNoTUN", err)
		}
		if err := e.Apply(t.Context(), tunnel.Config{}); err != ErrNoTUN {
			t.Errorf("Apply: %v, want ErrNoTUN", err)
		}
	})
}
