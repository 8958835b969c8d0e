package gossip_test

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/exchange"
	"meshd/mesh/gossip"
	"meshd/mesh/member"
	"meshd/mesh/meshtest"
	"meshd/mesh/statedir"
)

// host is a real member on the network in memory, over restarts.
type host struct {
	n          int
	keys       statedir.Keys
	membership statedir.Membership
	store      *meshtest.Store
	at         netip.AddrPort
	starts     uint64
	stop       func()
	gossip     *gossip.Gossip
	tunnels    exchange.Network // nil: none
	core       *member.Member   // gossip's

	mu   sync.Mutex
	view *mesh.View
}

func newHost(t *testing.T, m *meshtest.Mesh, n int) *host {
	h := &host{n: n, store: &meshtest.Store{}, at: address(n)}
	if name := fmt.Sprintf("node-%d", n); n == 1 {
		h.keys, h.membership = m.Founder(t, name)
	} else {
		h.keys, h.membership = m.Joined(t, name)
	}
	return h
}

// start runs the host as a daemon would.
func (h *host) start(t *testing.T, net *meshtest.Network) {
	t.Helper()
	state, table, peers := h.store.Saved()
	state.Epoch++
	h.starts++
	if err := h.store.SaveState(state); err != nil {
		t.Fatal(err)
	}
	membership := h.membership
	if charter := h.store.Charter(); charter != nil {
		membership.Charter = charter
	}
	h.core = meshtest.Member(t, time.Now(), h.keys, membership, state, table, h.starts)
	g, err := gossip.New(gossip.Options{
		Core: h.core, Store: h.store, Self: h.keys.ID(),
		Keyring: h.membership.Keyring, Seeds: []string{address(1).String()}, Peers: peers, Transport: net.Transport, Tunnels: h.tunnels,
	})
	if err != nil {
		t.Fatal(err)
	}
	g.SetAddress(h.at)
	ctx, cancel := context.WithCancel(t.Context())
	var tasks sync.WaitGroup
	tasks.Go(func() {
		if err := g.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	tasks.Go(func() {
		for {
			select {
			case v := <-g.Views():
				h.mu.Lock()
				h.view = v
				h.mu.Unlock()
			case <-ctx.Done():
				return
			}
		}
	})
	h.gossip = g
	h.stop = sync.OnceFunc(func() { cancel(); tasks.Wait() })
	t.Cleanup(h.stop)
	g.SetEndpoints([]netip.AddrPort{netip.AddrPortFrom(h.at.Addr(), 51880)})
}

// sees is the newest view.
func (h *host) sees() *mesh.View {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.view == nil {
		return &mesh.View{}
	}
	return h.view
}

// owners tells who holds which subnet, as this host sees it.
func (h *host) owners() map[netip.Prefix]mesh.NodeID {
	out, view := map[netip.Prefix]mesh.NodeID{}, h.sees()
	if view.State != mesh.Ready {
		return out
	}
	for _, n := range view.Nodes {
		for _, l := range n.Leases {
			if l.State == mesh.Held {
				out[l.Prefixes[0]] = n.ID
			}
		}
	}
	return out
}

// agreed tells whether all hosts are ready and see the same n owners.
func agreed(hosts []*host, n int) func() bool {
	return func() bool {
		first := hosts[0].owners()
		return len(first) == n && !slices.ContainsFunc(hosts, func(h *host) bool { return !maps.Equal(h.owners(), first) })
	}
}

func TestMembersLeaseSubnets(t *testing.T) {
	for _, n := range []int{3, 10} {
		t.Run(fmt.Sprint(n, " nodes"), func(t *testing.T) {
			meshtest.Bubble(t, func(t *testing.T) {
				m, net := meshtest.NewMesh(t), meshtest.NewNetwork(uint64(n))
				net.SetLatency(10 * time.Millisecond)
				hosts := make([]*host, n)
				for i := range hosts {
					hosts[i] = newHost(t, m, i+1)
					hosts[i].start(t, net)
				}
				begin := time.Now()
				within(t, 8*time.Second, "every node holds a subnet, and all agree whose", agreed(hosts, n))
				t.Logf("%d nodes agree after %s", n, time.Since(begin))
			})
		})
	}
}

func TestMemberKeepsItsLease(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		m, net := meshtest.NewMesh(t), meshtest.NewNetwork(1)
		var hosts []*host
		for i := range 3 {
			hosts = append(hosts, newHost(t, m, i+1))
			hosts[i].start(t, net)
		}
		within(t, 8*time.Second, "all hold subnets", agreed(hosts, 3))
		before := hosts[2].owners()

		hosts[2].stop()
		hosts[2].at = address(77)
		hosts[2].start(t, net)
		// It waits until a twin would have objected, and says then where it is.
		within(t, 8*time.Second, "back at another address, with the same subnet", func() bool {
			n, ok := hosts[0].sees().Node(hosts[2].keys.ID())
			return ok && n.Version.Epoch == 2 && len(n.Endpoints) == 1 && n.Endpoints[0].Addr() == hosts[2].at.Addr()
		})
		within(t, 3*time.Second, "all agree", agreed(hosts, 3))
		if after := hosts[2].owners(); !maps.Equal(before, after) {
			t.Errorf("owners are %v, were %v", after, before)
		}
	})
}

func TestMemberLeaves(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		m, net := meshtest.NewMesh(t), meshtest.NewNetwork(2)
		var hosts []*host
		for i := range 3 {
			hosts = append(hosts, newHost(t, m, i+1))
			hosts[i].start(t, net)
		}
		within(t, 8*time.Second, "all hold subnets", agreed(hosts, 3))
		if err := hosts[2].gossip.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		hosts[2].stop()
		within(t, time.Second, "its subnet is free", agreed(hosts[:2], 2))
		if state, _, _ := hosts[2].store.Saved(); !state.Left {
			t.Error("that it left is not saved")
		}
	})
}

// A host with the gossip key but a certificate of another CA is nobody.
func TestStrangerWithGossipKey(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		m, net := meshtest.NewMesh(t), meshtest.NewNetwork(3)
		hosts := []*host{newHost(t, m, 1), newHost(t, m, 2)}
		stranger := newHost(t, meshtest.NewMesh(t), 3) // every test mesh has the same gossip key
		for _, h := range append(hosts, stranger) {
			h.start(t, net)
		}
		time.Sleep(5 * time.Minute)
		if !agreed(hosts, 2)() {
			t.Errorf("owners are %v and %v", hosts[0].owners(), hosts[1].owners())
		}
		if nodes := hosts[0].sees().Nodes; len(nodes) != 2 {
			t.Errorf("%d nodes are members", len(nodes))
		}
		if !slices.Contains(hosts[0].gossip.Stats().Live, stranger.keys.ID()) {
			t.Error("the stranger never exchanged tables, so nothing is shown")
		}
	})
}
