package probe

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"meshd/mesh"
)

const deviceMTU = 1420

// wire is a path between us and beta.
type wire struct {
	s     *schedule
	now   time.Time
	limit int           // the longest packet that passes
	rtt   time.Duration // at which answers come
	lose  func(size int) bool
	sent  map[int]int

	coming []answer
}

type answer struct {
	at time.Time
	outgoing
}

func newWire(limit int) *wire {
	w := &wire{s: newSchedule(1), now: start, limit: limit, rtt: 5 * time.Millisecond, sent: map[int]int{}}
	w.s.setMTU(deviceMTU)
	w.s.set(w.now, []target{beta})
	return w
}

func (w *wire) mtu() int { return w.s.results()[beta.ID].MTU }

// run lets time pass.
func (w *wire) run(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); {
		for len(w.coming) > 0 && !w.coming[0].at.After(w.now) {
			a := w.coming[0]
			w.coming = w.coming[1:]
			w.s.answer(w.now, a.Addr, a.ID, a.Size)
		}
		for _, o := range w.s.step(w.now) {
			w.sent[o.Size]++
			if o.Size > size && o.Size+headers > w.limit || w.lose != nil && w.lose(o.Size) {
				continue
			}
			w.coming = append(w.coming, answer{w.now.Add(w.rtt), o})
		}
		next, _ := w.s.next()
		if len(w.coming) > 0 && w.coming[0].at.Before(next) {
			next = w.coming[0].at
		}
		w.now = later(next, w.now.Add(time.Millisecond))
		if w.now.After(end) {
			w.now = end
		}
	}
}

func TestWidePath(t *testing.T) {
	w := newWire(deviceMTU)
	w.run(3 * time.Hour)
	if w.mtu() != 0 {
		t.Errorf("MTU %d, and all passes", w.mtu())
	}
	if n := w.sent[deviceMTU-headers]; n < 6 || n > 8 || len(w.sent) != 2 {
		t.Errorf("sent %v, want one of full size each half an hour", w.sent)
	}
}

func TestNarrowPath(t *testing.T) {
	for limit, want := range map[int]int{1419: ipv6MTU, 1412: ipv6MTU, 1280: ipv6MTU, 1279: leastMTU, 1200: leastMTU} {
		w := newWire(limit)
		w.run(600 * time.Millisecond) // TCP then goes on soon
		if w.mtu() != want {
			t.Errorf("%d pass: MTU %d, want %d", limit, w.mtu(), want)
		}
		if told := w.s.narrowed(); len(told) != 1 || told[beta.ID] != want || len(w.s.narrowed()) != 0 {
			t.Errorf("%d pass: told %v, want %d, once", limit, told, want)
		}
		w.limit = deviceMTU // the hop is mended
		w.run(measureEvery)
		if w.mtu() != 0 || w.s.narrowed()[beta.ID] != 0 {
			t.Errorf("MTU %d %s after all passes again", w.mtu(), measureEvery)
		}
	}
}

func TestJumboFrames(t *testing.T) {
	w := newWire(plainMTU)
	w.s.setMTU(8920)
	w.run(2 * time.Second)
	if w.mtu() != plainMTU {
		t.Errorf("MTU %d between a host with jumbo frames and one without, want %d", w.mtu(), plainMTU)
	}
}

// Who answers no question of size, as an older daemon, says nothing of the path.
func TestNoAnswerAtAnySize(t *testing.T) {
	w := newWire(100)
	w.run(time.Hour)
	if w.mtu() != 0 {
		t.Errorf("MTU %d, and nothing was measured", w.mtu())
	}
	if n := w.sent[deviceMTU-headers]; n < 60 || n > 60*rounds {
		t.Errorf("%d of full size in an hour, want %d each minute at most", n, rounds)
	}
	// Nor does it take back what is known.
	w = newWire(leastMTU)
	w.run(2 * time.Second)
	w.limit = 0
	w.run(measureEvery)
	if w.mtu() != leastMTU {
		t.Errorf("MTU %d after nothing was answered any more, want %d still", w.mtu(), leastMTU)
	}
}

// A loss or two are no narrow path, nor is a slow one.
func TestLossOfLargeOnes(t *testing.T) {
	w := newWire(deviceMTU)
	lost := 0
	w.lose = func(n int) bool {
		if n == deviceMTU-headers && lost < rounds-1 {
			lost++
			return true
		}
		return false
	}
	w.run(5 * time.Second)
	if lost != rounds-1 || w.mtu() != 0 {
		t.Errorf("MTU %d after %d lost", w.mtu(), lost)
	}
	w = newWire(deviceMTU)
	w.run(time.Second)
	w.rtt = 900 * time.Millisecond // other traffic came meanwhile
	w.s.peers[beta.ID].path.due = w.now
	w.run(time.Minute)
	if w.mtu() != 0 {
		t.Errorf("MTU %d where all is answered after %s", w.mtu(), w.rtt)
	}
}

func TestPathMayBeAnother(t *testing.T) {
	elsewhere := beta
	elsewhere.At = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:51880")}
	for name, change := range map[string]func(w *wire){
		"the peer moves": func(w *wire) { w.s.set(w.now, []target{elsewhere}) },
		"we move":        func(w *wire) { w.s.set(w.now, []target{beta}, elsewhere.At...) },
		"it comes back": func(w *wire) {
			w.lose = func(int) bool { return true }
			w.run(time.Minute)
			w.lose = nil
			w.run(retry)
		},
	} {
		w := newWire(deviceMTU)
		w.run(time.Minute)
		w.limit = leastMTU
		change(w)
		if w.run(3 * time.Second); w.mtu() != leastMTU {
			t.Errorf("%s: MTU %d after 3 s, want %d", name, w.mtu(), leastMTU)
		}
	}
}

// A measurement that is under way when the path changes says nothing of the new one.
func TestPathChangesWhileMeasured(t *testing.T) {
	moved := beta
	moved.At = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:51880")}
	for _, tt := range []struct {
		name          string
		before, after int // what passes
		round         int // after which it changes
		want          int
	}{
		{"to wide", 1300, deviceMTU, rounds, 0},
		{"to narrow", deviceMTU, 1300, 1, ipv6MTU},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWire(tt.before)
			w.rtt = 100 * time.Millisecond
			path := &w.s.peers[beta.ID].path
			for range 5000 {
				if path.round < tt.round {
					w.run(time.Millisecond)
				}
			}
			if path.round != tt.round {
				t.Fatalf("in round %d, want %d", path.round, tt.round)
			}
			w.limit = tt.after // what is on its way is answered by the former one
			w.s.set(w.now, []target{moved})
			if w.run(3 * time.Second); w.mtu() != tt.want {
				t.Errorf("MTU %d 3 s after the peer has moved, want %d", w.mtu(), tt.want)
			}
		})
	}
}

// Each change is a new plan and a line in the log, so loss must not look like one.
func TestLossIsNoNarrowPath(t *testing.T) {
	const peers, most = 50, 20
	for _, loss := range []float64{0, 0.05, 0.2, 0.5} { // each way
		t.Run(fmt.Sprint(loss), func(t *testing.T) {
			changes, asked := 0, 0
			for seed := range uint64(peers) {
				r := rand.New(rand.NewPCG(seed, 7))
				w := newWire(deviceMTU)
				w.lose = func(int) bool { return r.Float64() < 1-(1-loss)*(1-loss) }
				for range 3600 {
					w.run(time.Second)
					changes += len(w.s.narrowed())
				}
				asked += w.sent[deviceMTU-headers]
			}
			t.Logf("%d changes, %d questions of full size in an hour", changes, asked)
			if changes > most {
				t.Errorf("%d changes of %d wide paths in an hour, want %d at most", changes, peers, most)
			}
		})
	}
}

// Nor does loss hide one for long.
func TestNarrowPathThatLoses(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 7))
		w := newWire(1300)
		w.lose = func(int) bool { return r.Float64() < 0.1 } // both ways together
		if w.run(5 * time.Minute); w.mtu() != ipv6MTU {
			t.Errorf("seed %d: MTU %d after five minutes, want %d", seed, w.mtu(), ipv6MTU)
		}
	}
}

// A tunnel that comes up loses what comes first, and hides no narrow path by that.
func TestNarrowPathBehindNewTunnel(t *testing.T) {
	w := newWire(1300)
	for w.sent[ipv6MTU-headers] < 5 && w.now.Sub(start) < time.Second {
		w.lose = func(n int) bool { return n != size }
		w.run(time.Millisecond)
	}
	w.lose = nil
	if w.run(2 * time.Second); w.mtu() != ipv6MTU {
		t.Errorf("MTU %d after all was lost for five rounds, want %d", w.mtu(), ipv6MTU)
	}
}

func TestRefusedByKernel(t *testing.T) {
	w := newWire(leastMTU)
	for range 1000 {
		if w.sent[deviceMTU-headers] == 0 {
			w.run(time.Millisecond)
		}
	}
	w.s.refused(w.now, outgoing{Addr: beta.Addr, ID: w.s.peers[beta.ID].path.id})
	if w.run(3 * time.Second); w.mtu() != 0 {
		t.Errorf("MTU %d after the device took nothing of that size", w.mtu())
	}
	if w.run(2 * measureAgain); w.mtu() != leastMTU {
		t.Errorf("MTU %d, want %d by the next measurement", w.mtu(), leastMTU)
	}
}

// fakeConn is one end of a link between two probers.
type fakeConn struct {
	self, other netip.AddrPort
	limit       int // the longest packet that leaves
	in, out     chan []byte
	closed      chan struct{}
}

func (c *fakeConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	select {
	case p := <-c.in:
		return copy(b, p), c.other, nil
	case <-c.closed:
		return 0, netip.AddrPort{}, net.ErrClosed
	}
}

func (c *fakeConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	if to == c.other && len(b)+headers <= c.limit {
		p := bytes.Clone(b)
		time.AfterFunc(time.Millisecond, func() { c.out <- p })
	}
	return len(b), nil
}

func (c *fakeConn) Close() error {
	close(c.closed)
	return nil
}

// Two probers find that one way between them is narrow: each of them does.
func TestProbersMeasure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		addrs := []netip.Addr{netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")}
		view := mesh.View{Control: netip.MustParsePrefix("fd00::/64"), Nodes: []mesh.Node{
			{ID: mesh.NodeID{1}, Control: addrs[0], Key: mesh.Key{1}}, {ID: mesh.NodeID{2}, Control: addrs[1], Key: mesh.Key{2}},
		}}
		there, back := make(chan []byte, 100), make(chan []byte, 100)
		narrowed := make(chan int, 10)
		for i, c := range []*fakeConn{
			{in: back, out: there, limit: deviceMTU}, {in: there, out: back, limit: leastMTU},
		} {
			c.self, c.other, c.closed = netip.AddrPortFrom(addrs[i], port), netip.AddrPortFrom(addrs[1-i], port), make(chan struct{})
			p := New(slog.New(slog.DiscardHandler), func(netip.AddrPort) (Conn, error) { return c, nil }, func() { narrowed <- i })
			own := view
			own.Self = view.Nodes[i].ID
			p.SetView(&own)
			p.SetMTU(deviceMTU)
			go func() { _ = p.Run(ctx) }()
			defer func() {
				if paths := p.Paths(); len(paths) != 1 || paths[view.Nodes[1-i].ID] != leastMTU {
					t.Errorf("prober %d: paths %v, want %d to the other", i, paths, leastMTU)
				}
			}()
		}
		time.Sleep(3 * time.Second)
		if len(narrowed) != 2 {
			t.Errorf("told %d times, want once by each", len(narrowed))
		}
	})
}
