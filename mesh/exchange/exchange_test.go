package exchange_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"meshd/mesh"
	"meshd/mesh/exchange"
	"meshd/mesh/meshtest"
	"meshd/mesh/trust"
)

// node believes every text but those that begin with "bad".
type node struct {
	*exchange.Exchange
	addr netip.Addr

	mu      sync.Mutex
	objects map[string]bool
	puts    int // objects
	syncs   int
}

func (n *node) Set() *exchange.Set {
	n.mu.Lock()
	defer n.mu.Unlock()
	var hashes []trust.Hash
	for _, o := range slices.Sorted(maps.Keys(n.objects)) {
		hashes = append(hashes, sha256.Sum256([]byte(o)))
	}
	return exchange.NewSet(hashes)
}

func (n *node) Get(_ context.Context, hashes []trust.Hash) (out [][]byte, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for o := range n.objects {
		if slices.Contains(hashes, trust.Hash(sha256.Sum256([]byte(o)))) {
			out = append(out, []byte(o))
		}
	}
	return out, nil
}

func (n *node) Put(_ context.Context, objects [][]byte, whole bool) ([][]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.puts += len(objects)
	for _, o := range objects {
		if !bytes.HasPrefix(o, []byte("bad")) {
			n.objects[string(o)] = true
		}
	}
	if whole {
		n.syncs++
	}
	return objects, nil
}

func (n *node) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.objects)
}

// told is how many objects others have sent.
func (n *node) told() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.puts
}

func (n *node) say(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.objects[text] = true
}

func (n *node) knows(text string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.objects[text]
}

func id(n int) mesh.NodeID { return mesh.NodeID{0: byte(n >> 8), 1: byte(n)} }

func control(n int) netip.Addr { return mesh.ControlAddr(mesh.ID{1}, id(n)) }

// viewOf is what node n of as many knows.
func viewOf(n, count int) *mesh.View {
	v := &mesh.View{Self: id(n)}
	for i := range count {
		v.Nodes = append(v.Nodes, mesh.Node{ID: id(i), Control: control(i), Key: mesh.Key{1}})
	}
	return v
}

// start runs as many nodes, all of whom know each other.
func start(t *testing.T, network exchange.Network, count int) []*node {
	t.Helper()
	var all []*node
	for n := range count {
		x := &node{addr: control(n), objects: map[string]bool{fmt.Sprint("node ", n): true}}
		x.Exchange = exchange.New(network, x, slog.New(slog.DiscardHandler))
		x.SetView(viewOf(n, count))
		ctx, cancel := context.WithCancel(t.Context())
		var task sync.WaitGroup
		task.Go(func() { x.Run(ctx) })
		t.Cleanup(func() { cancel(); task.Wait() })
		all = append(all, x)
	}
	return all
}

// within waits, in virtual time.
func within(t *testing.T, most time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	for !ok() {
		if time.Since(begin) > most {
			t.Fatalf("not within %s: %s", most, what)
		}
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
	}
	return time.Since(begin)
}

// all tells whether every node knows a text.
func all(nodes []*node, text string) func() bool {
	return func() bool {
		return !slices.ContainsFunc(nodes, func(n *node) bool { return !n.knows(text) })
	}
}

func TestNewsSpreads(t *testing.T) {
	for _, count := range []int{2, 5, 50} {
		t.Run(fmt.Sprint(count, " nodes"), func(t *testing.T) {
			meshtest.Bubble(t, func(t *testing.T) {
				nodes := start(t, meshtest.NewTunnels(), count)
				took := within(t, 10*time.Second, "all know of all", func() bool {
					return !slices.ContainsFunc(nodes, func(n *node) bool { return n.count() != count })
				})
				t.Logf("from nothing after %s", took)
				time.Sleep(time.Minute)
				nodes[0].say("found by digests")
				t.Logf("found by digests after %s", within(t, 15*time.Second, "all know", all(nodes, "found by digests")))
				time.Sleep(time.Minute)
				nodes[0].say("told in a hurry")
				nodes[0].Hurry()
				t.Logf("told in a hurry after %s", within(t, 10*time.Second, "all know", all(nodes, "told in a hurry")))
				for i, n := range nodes {
					if n.mu.Lock(); n.syncs == 0 {
						t.Errorf("node %d was never in sync", i)
					}
					n.mu.Unlock()
				}
			})
		})
	}
}

// Nodes that have nothing to tell cost a few bytes, also if two differ for good.
func TestIdle(t *testing.T) {
	for _, differ := range []bool{false, true} {
		t.Run(fmt.Sprint("differ ", differ), func(t *testing.T) {
			meshtest.Bubble(t, func(t *testing.T) {
				const count = 10
				tunnels := meshtest.NewTunnels()
				nodes := start(t, tunnels, count)
				time.Sleep(time.Minute)
				if differ {
					nodes[0].say("bad for all others")
				}
				time.Sleep(time.Minute)
				before, puts := tunnels.Bytes(), nodes[1].told()
				time.Sleep(10 * time.Minute)
				perNode := float64(tunnels.Bytes()-before) / count / 600
				t.Logf("%.1f bytes/s for each node, without TCP's and the tunnels' own", perNode)
				most := 8.0
				if differ {
					most = 100
				}
				if perNode > most {
					t.Errorf("want at most %.0f", most)
				}
				if again := nodes[1].told() - puts; again > 20 {
					t.Errorf("node 1 was told %d times in ten minutes what it does not believe", again)
				}
			})
		})
	}
}

func TestPartitionHeals(t *testing.T) {
	for _, length := range []time.Duration{time.Second, time.Minute, 3 * time.Hour} {
		t.Run(length.String(), func(t *testing.T) {
			meshtest.Bubble(t, func(t *testing.T) {
				tunnels := meshtest.NewTunnels()
				nodes := start(t, tunnels, 6)
				time.Sleep(time.Minute)
				left := map[netip.Addr]bool{control(0): true, control(1): true, control(2): true}
				tunnels.Block(func(a, b netip.Addr) bool { return left[a] != left[b] })
				nodes[0].say("said on the left")
				nodes[5].say("said on the right")
				time.Sleep(length)
				if nodes[5].knows("said on the left") {
					t.Fatal("there is no partition")
				}
				tunnels.Block(func(a, b netip.Addr) bool { return false })
				t.Logf("healed after %s", within(t, 10*time.Second, "all know both", func() bool {
					return all(nodes, "said on the left")() && all(nodes, "said on the right")()
				}))
			})
		})
	}
}

// A node that was cut off from everybody, or starts where nobody answers, is back
// soon.
func TestAloneForLong(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		tunnels := meshtest.NewTunnels()
		tunnels.Block(func(a, b netip.Addr) bool { return a == control(0) || b == control(0) })
		nodes := start(t, tunnels, 4)
		time.Sleep(3 * time.Hour)
		tunnels.Block(func(a, b netip.Addr) bool { return false })
		t.Logf("back after %s", within(t, 10*time.Second, "all know", all(nodes, "node 0")))
	})
}

// Dead members do not keep the others from each other.
func TestMostAreDead(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		tunnels := meshtest.NewTunnels()
		tunnels.Block(func(a, b netip.Addr) bool {
			dead := func(a netip.Addr) bool { return a != control(0) && a != control(7) }
			return dead(a) || dead(b)
		})
		nodes := start(t, tunnels, 12)
		within(t, 30*time.Second, "the two that live know each other", all([]*node{nodes[0], nodes[7]}, "node 7"))
		time.Sleep(time.Hour)
		nodes[0].say("news")
		t.Logf("news after %s", within(t, 30*time.Second, "the other one knows", all([]*node{nodes[7]}, "news")))
	})
}

// dialer connects as somebody else than a daemon may.
func connect(t *testing.T, tunnels *meshtest.Tunnels, from netip.AddrPort, to netip.Addr) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	conn, err := tunnels.DialFrom(ctx, from, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

var question = append([]byte("mshX\x01"), make([]byte, 24)...)

// Who is not a member's daemon is not read from, let alone answered.
func TestStrangers(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		tunnels := meshtest.NewTunnels()
		nodes := start(t, tunnels, 2)
		time.Sleep(time.Minute)
		for name, from := range map[string]netip.AddrPort{
			"a container":                 netip.MustParseAddrPort("10.86.17.5:51883"),
			"a program of this host":      netip.AddrPortFrom(control(0), exchange.AskPort),
			"one of a member's host":      netip.AddrPortFrom(control(1), 40000),
			"a control address of nobody": netip.AddrPortFrom(control(9), exchange.AskPort),
			"the member's tunnel address": netip.MustParseAddrPort("198.18.0.2:51883"),
		} {
			conn := connect(t, tunnels, from, nodes[0].addr)
			if n, err := conn.Write(question); n > 0 || err == nil {
				t.Errorf("%s: %d bytes were read, error %v", name, n, err)
			}
			if heard, _ := io.ReadAll(conn); len(heard) > 0 {
				t.Errorf("%s heard %q", name, heard)
			}
		}
		// The same from a member's daemon is answered, so the above shows something.
		nodes[1].SetView(&mesh.View{Self: id(1)}) // it asks no more by itself
		time.Sleep(time.Minute)
		conn := connect(t, tunnels, netip.AddrPortFrom(control(1), exchange.AskPort), nodes[0].addr)
		if _, err := conn.Write(question); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Errorf("a member's daemon is not answered: %v", err)
		}
		// It left, and is a stranger from then on.
		v := viewOf(0, 2)
		v.Nodes[1].Left = true
		nodes[0].SetView(v)
		conn = connect(t, tunnels, netip.AddrPortFrom(control(1), exchange.AskPort), nodes[0].addr)
		if _, err := conn.Write(question); err == nil {
			t.Error("one that has left is read from")
		}
	})
}

// A member gone bad that says nothing, or all too slowly, or comes all the time,
// costs little and keeps nobody else away.
func TestBadMember(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		tunnels := meshtest.NewTunnels()
		nodes := start(t, tunnels, 3)
		time.Sleep(time.Minute)
		nodes[2].SetView(&mesh.View{Self: id(2)}) // node 2 is the bad one
		time.Sleep(time.Minute)
		bad := netip.AddrPortFrom(control(2), exchange.AskPort)
		begin := time.Now()
		silent := connect(t, tunnels, bad, nodes[0].addr)
		second := connect(t, tunnels, bad, nodes[0].addr)
		if _, err := second.Write(question); err == nil {
			t.Error("a second exchange at the same time is served")
		}
		_, _ = io.ReadAll(silent)
		if took := time.Since(begin); took > 4*time.Second {
			t.Errorf("one that says nothing is heard out for %s", took)
		}

		begin = time.Now()
		slow := connect(t, tunnels, bad, nodes[0].addr)
		if _, err := slow.Write(question); err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.Copy(io.Discard, slow) }()
		for {
			if _, err := slow.Write([]byte{0}); err != nil {
				break
			}
			time.Sleep(time.Second / 2)
			if time.Since(begin) > time.Minute {
				t.Fatal("one that is slow is heard out for a minute")
			}
		}
		nodes[0].say("news")
		within(t, 15*time.Second, "the good ones go on", all(nodes[:2], "news"))

		served := 0
		for begin = time.Now(); time.Since(begin) < 20*time.Second; time.Sleep(10 * time.Millisecond) {
			conn := connect(t, tunnels, bad, nodes[0].addr)
			if _, err := conn.Write(question); err == nil {
				served++
			}
			_ = conn.Close()
			synctest.Wait()
		}
		if t.Logf("served %d times in 20 s", served); served == 0 || served > 30 {
			t.Error("want about one a second after a burst")
		}
	})
}

func TestWith(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		tunnels := meshtest.NewTunnels()
		nodes := start(t, tunnels, 3)
		time.Sleep(time.Minute)
		nodes[0].say("news")
		if err := nodes[0].With(t.Context(), id(1)); err != nil {
			t.Errorf("an exchange on demand: %v", err)
		}
		if synctest.Wait(); !nodes[1].knows("news") {
			t.Error("an exchange on demand has not brought the news")
		}
		if err := nodes[0].With(t.Context(), id(7)); !errors.Is(err, exchange.ErrNoMember) {
			t.Errorf("with nobody: %v", err)
		}
		if got := nodes[0].Others(9); len(got) != 2 || slices.Contains(got, id(0)) {
			t.Errorf("others are %v", got)
		}
		tunnels.Block(func(a, b netip.Addr) bool { return a == control(1) || b == control(1) })
		begin := time.Now()
		if err := nodes[0].With(t.Context(), id(1)); err == nil || time.Since(begin) > 4*time.Second {
			t.Errorf("with a dead one: %v after %s", err, time.Since(begin))
		}
		if nodes[0].Met(id(1)) || !nodes[0].Met(id(2)) {
			t.Error("who is dead counts as met, or who lives does not")
		}
		if got := nodes[0].Others(1); len(got) != 1 || got[0] != id(2) {
			t.Errorf("first of the others is %v, want the one that lives", got)
		}
	})
}

// refusing is a network in which nothing can be done yet.
type refusing struct {
	exchange.Network
	mu sync.Mutex
	no bool
}

func (r *refusing) refuses() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.no
}

func (r *refusing) Listen(ctx context.Context, at netip.Addr) (net.Listener, error) {
	if r.refuses() {
		return nil, errors.New("cannot assign requested address")
	}
	return r.Network.Listen(ctx, at)
}

func (r *refusing) Dial(ctx context.Context, from, to netip.Addr) (net.Conn, error) {
	if r.refuses() {
		return nil, errors.New("network is unreachable")
	}
	return r.Network.Dial(ctx, from, to)
}

// The tunnels come up after the exchange: it is there at once when they do.
func TestTunnelsComeLater(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		r := &refusing{Network: meshtest.NewTunnels(), no: true}
		nodes := start(t, r, 4)
		time.Sleep(7 * time.Second)
		r.mu.Lock()
		r.no = false
		r.mu.Unlock()
		t.Logf("after %s", within(t, 3*time.Second, "all know of all", all(nodes, "node 3")))
	})
}
