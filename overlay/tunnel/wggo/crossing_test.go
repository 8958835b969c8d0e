package wggo

import (
	"bytes"
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"meshd/mesh"
	"meshd/overlay/tunnel"
	"meshd/overlay/tunnel/tunneltest"
)

func TestCrossings(t *testing.T) {
	lesser, stranger := netip.MustParseAddrPort("192.0.2.1:9"), netip.MustParseAddrPort("192.0.2.3:9")
	greater := netip.MustParseAddrPort("192.0.2.2:9")
	packet := func(kind byte, size int) []byte { return append([]byte{kind}, make([]byte, size-1)...) }
	initiation := packet(device.MessageInitiationType, device.MessageInitiationSize)
	response := packet(device.MessageResponseType, device.MessageResponseSize)

	// run plays with a bind of the middle key. initiate sends to a peer, arrives
	// tells whether the device gets the packet; what comes late is in the result.
	run := func(t *testing.T, play func(initiate func(netip.AddrPort), arrives func([]byte, netip.AddrPort) bool)) (late []netip.AddrPort) {
		synctest.Test(t, func(t *testing.T) {
			b := newBind(func(p []byte, from netip.AddrPort) {
				if !bytes.Equal(p, initiation) {
					t.Errorf("%x came late", p)
				}
				late = append(late, from)
			})
			b.Bind = sentAt{b.Bind, make(chan time.Time, 10)}
			b.yield(mesh.Key{5}, map[mesh.Key]*peer{
				{9}: {want: tunnel.Peer{Endpoints: []netip.AddrPort{greater}}},
				{1}: {want: tunnel.Peer{Endpoints: []netip.AddrPort{lesser}}},
			})
			var now []byte
			var from netip.AddrPort
			receive := b.keepReceiving(func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
				sizes[0], eps[0] = copy(bufs[0], now), &conn.StdNetEndpoint{AddrPort: from}
				return 1, nil
			}, nil)
			play(func(to netip.AddrPort) {
				if err := b.Send([][]byte{initiation}, &conn.StdNetEndpoint{AddrPort: to}); err != nil {
					t.Fatal(err)
				}
			}, func(p []byte, of netip.AddrPort) bool {
				now, from = p, of
				sizes := make([]int, 1)
				if _, err := receive([][]byte{make([]byte, 2000)}, sizes, make([]conn.Endpoint, 1)); err != nil {
					t.Fatal(err)
				}
				return sizes[0] > 0
			})
			time.Sleep(time.Minute) // virtual
			synctest.Wait()
		})
		return late
	}
	type arrive = func([]byte, netip.AddrPort) bool
	for _, tt := range []struct {
		name string
		play func(t *testing.T, initiate func(netip.AddrPort), arrives arrive)
		late int
	}{
		{"ours is answered, the peer's is dropped", func(t *testing.T, initiate func(netip.AddrPort), arrives arrive) {
			initiate(lesser)
			if arrives(initiation, lesser) {
				t.Error("it is not put aside")
			}
			if !arrives(response, lesser) {
				t.Error("the response is put aside")
			}
			if !arrives(initiation, lesser) {
				t.Error("an initiation after the response is put aside")
			}
		}, 0},
		{"ours is lost, the peer's counts in the end", func(t *testing.T, initiate func(netip.AddrPort), arrives arrive) {
			initiate(lesser)
			if arrives(initiation, lesser) {
				t.Error("it is not put aside")
			}
			if !arrives(initiation, lesser) {
				t.Error("two are put aside")
			}
		}, 1},
		{"ours is old", func(t *testing.T, initiate func(netip.AddrPort), arrives arrive) {
			initiate(lesser)
			time.Sleep(asideFor)
			if !arrives(initiation, lesser) {
				t.Error("it is put aside")
			}
		}, 0},
		{"we have not initiated", func(t *testing.T, _ func(netip.AddrPort), arrives arrive) {
			if !arrives(initiation, lesser) {
				t.Error("it is put aside")
			}
		}, 0},
		{"the peer goes first", func(t *testing.T, initiate func(netip.AddrPort), arrives arrive) {
			initiate(greater)
			if !arrives(initiation, greater) {
				t.Error("it is put aside")
			}
		}, 0},
		{"nobody knows who goes first", func(t *testing.T, initiate func(netip.AddrPort), arrives arrive) {
			initiate(stranger)
			if !arrives(initiation, stranger) {
				t.Error("it is put aside")
			}
		}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			late := run(t, func(initiate func(netip.AddrPort), arrives func([]byte, netip.AddrPort) bool) {
				tt.play(t, initiate, arrives)
			})
			if len(late) != tt.late {
				t.Errorf("%d were taken in late, want %d", len(late), tt.late)
			}
		})
	}
}

// An initiation that was put aside makes a session all the same.
func TestTakeIn(t *testing.T) {
	type end struct {
		*Engine
		pipe *tunneltest.Pipe
		own  netip.Prefix
	}
	var ends [2]end
	for i := range ends {
		pipe := tunneltest.NewPipe()
		e := New(Options{TUN: pipe, PrivateKey: [32]byte{1: byte(i + 1)}})
		ends[i] = end{e, pipe, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, 0, byte(i + 1)}), 32)}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- e.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
		<-e.Ready()
	}
	first, then := ends[0], ends[1]
	if compareKeys(first.Engine.own.public, then.Engine.own.public) < 0 {
		first, then = then, first
	}
	at := func(e end) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), e.Port()) }
	for _, pair := range [][2]end{{first, then}, {then, first}} {
		err := pair[0].Apply(t.Context(), tunnel.Config{Own: []netip.Prefix{pair[0].own}, Peers: []tunnel.Peer{{
			ID: mesh.NodeID{1}, PublicKey: pair[1].Engine.own.public, Endpoints: []netip.AddrPort{at(pair[1])}, AllowedIPs: []netip.Prefix{pair[1].own},
		}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	first.bind.crossings.sent(at(then)) // and it gets lost
	then.pipe.Send(tunneltest.Packet(then.own.Addr(), first.own.Addr(), []byte("hello")))
	if _, ok := first.pipe.Receive(3 * time.Second); !ok {
		t.Fatal("no packet arrives")
	}
	// Only a repeated handshake would come later than that: after 5 s.
	if took := time.Since(start); took < asideFor {
		t.Errorf("a packet arrives after %s: the initiation was not put aside", took)
	}
}

// What we hold back is worth nothing once we have answered the peer.
func TestHeldInitiationIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBind(nil)
		socket := sentAt{b.Bind, make(chan time.Time, 10)}
		b.Bind = socket
		greater := netip.MustParseAddrPort("192.0.2.2:9")
		b.yield(mesh.Key{5}, map[mesh.Key]*peer{{9}: {want: tunnel.Peer{Endpoints: []netip.AddrPort{greater}}}})
		initiation, response := make([]byte, device.MessageInitiationSize), make([]byte, device.MessageResponseSize)
		initiation[0], response[0] = device.MessageInitiationType, device.MessageResponseType
		for _, packet := range [][]byte{initiation, response, initiation} {
			if err := b.Send([][]byte{packet}, &conn.StdNetEndpoint{AddrPort: greater}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute) // virtual
		if n := len(socket.at); n != 2 {
			t.Errorf("%d packets have left, want the response and the initiation after it", n)
		}
	})
}

// While the device is about to answer the peer, ours stays back, although we go
// first.
func TestInitiationWaitsForThePeers(t *testing.T) {
	lesser := netip.MustParseAddrPort("192.0.2.1:9")
	initiation, response := make([]byte, device.MessageInitiationSize), make([]byte, device.MessageResponseSize)
	initiation[0], response[0] = device.MessageInitiationType, device.MessageResponseType
	for _, answer := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			b := newBind(nil)
			socket := sentAt{b.Bind, make(chan time.Time, 10)}
			b.Bind = socket
			b.yield(mesh.Key{5}, map[mesh.Key]*peer{{1}: {want: tunnel.Peer{Endpoints: []netip.AddrPort{lesser}}}})
			to := &conn.StdNetEndpoint{AddrPort: lesser}
			start := time.Now()
			if b.crosses(initiation, to) {
				t.Fatal("it is put aside")
			}
			packets := [][]byte{initiation}
			if answer {
				packets = append(packets, response)
			}
			for _, p := range packets {
				if err := b.Send([][]byte{p}, to); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Minute) // virtual
			want := asideFor
			if answer {
				want = 0 // the response, and nothing else
			}
			if n := len(socket.at); n != 1 {
				t.Fatalf("answered %v: %d packets have left, want 1", answer, n)
			}
			if after := (<-socket.at).Sub(start); after != want {
				t.Errorf("answered %v: a packet left after %s, want %s", answer, after, want)
			}
		})
	}
}
