package gossip_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/gossip"
	"meshd/mesh/meshtest"
	"meshd/mesh/trust"
)

// membersWithTunnels starts hosts with tunnels between them, and waits until all hold
// subnets.
func membersWithTunnels(t *testing.T, net *meshtest.Network, tunnels *meshtest.Tunnels, n int) []*host {
	t.Helper()
	m := meshtest.NewMesh(t)
	var hosts []*host
	for i := range n {
		h := newHost(t, m, i+1)
		h.tunnels = tunnels
		h.start(t, net)
		hosts = append(hosts, h)
	}
	within(t, 10*time.Second, "all hold subnets", agreed(hosts, n))
	return hosts
}

// noGossip blocks gossip between all hosts.
func noGossip(net *meshtest.Network) {
	net.Block(func(netip.AddrPort, netip.AddrPort) bool { return true })
}

// isAt tells whether hosts know another's endpoint.
func isAt(hosts []*host, of *host, endpoint netip.AddrPort) func() bool {
	return func() bool {
		for _, h := range hosts {
			n, ok := h.sees().Node(of.keys.ID())
			if h != of && (!ok || len(n.Endpoints) != 1 || n.Endpoints[0] != endpoint) {
				return false
			}
		}
		return true
	}
}

// What members say reaches all others by the tunnels alone.
func TestNewsByTunnels(t *testing.T) {
	for _, n := range []int{2, 5, 20} {
		t.Run(fmt.Sprint(n, " nodes"), func(t *testing.T) {
			meshtest.Bubble(t, func(t *testing.T) {
				net := meshtest.NewNetwork(uint64(n))
				hosts := membersWithTunnels(t, net, meshtest.NewTunnels(), n)
				noGossip(net)
				time.Sleep(10 * time.Minute)
				moved := netip.MustParseAddrPort("198.51.100.9:51880")
				hosts[0].gossip.SetEndpoints([]netip.AddrPort{moved})
				t.Logf("known after %s", took(t, 10*time.Second, "all know where node 1 is", isAt(hosts, hosts[0], moved)))

				// One that restarts needs neither gossip nor another's help for its lease.
				last := hosts[n-1]
				last.stop()
				last.start(t, net)
				back := netip.MustParseAddrPort("198.51.100.10:51880")
				last.gossip.SetEndpoints([]netip.AddrPort{back})
				// Elsewhere, so it waits first until a twin would have objected.
				t.Logf("restarted, known after %s", took(t, 12*time.Second, "all know of the restart", isAt(hosts, last, back)))
				within(t, 5*time.Second, "all agree", agreed(hosts, n))
			})
		})
	}
}

// took is within, and tells how long it was.
func took(t *testing.T, most time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	within(t, most, what, ok)
	return time.Since(begin)
}

// A new charter, and a node's leaving, are known by the tunnels alone.
func TestCharterAndLeavingByTunnels(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		net := meshtest.NewNetwork(4)
		m := meshtest.NewMesh(t)
		var hosts []*host
		tunnels := meshtest.NewTunnels()
		for i := range 4 {
			h := newHost(t, m, i+1)
			h.tunnels = tunnels
			h.start(t, net)
			hosts = append(hosts, h)
		}
		within(t, 10*time.Second, "all hold subnets", agreed(hosts, 4))
		noGossip(net)
		time.Sleep(10 * time.Minute)
		next := m.Next(t, m.Charter, append(m.Charter.Networks, mesh.Network{Name: "web", IPv4: netip.MustParsePrefix("10.87.0.0/16"), IPv4Len: 24})...)
		if err := hosts[1].gossip.Do(t.Context(), func(time.Time) {
			if err := hosts[1].core.SetCharter(next.Raw); err != nil {
				t.Error(err)
			}
		}); err != nil {
			t.Fatal(err)
		}
		t.Logf("charter known after %s", took(t, 10*time.Second, "all have the new charter", func() bool {
			for _, h := range hosts {
				if len(h.sees().Networks) != 2 {
					return false
				}
			}
			return true
		}))
		if err := hosts[3].gossip.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		hosts[3].stop()
		t.Logf("leaving known after %s", took(t, 10*time.Second, "its subnet is free", agreed(hosts[:3], 3)))
	})
}

// With gossip and tunnels, tables go by gossip only where there is no tunnel yet: an
// idle mesh is cheap.
func TestNoTablesByGossip(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		tunnels := meshtest.NewTunnels()
		hosts := membersWithTunnels(t, meshtest.NewNetwork(5), tunnels, 10)
		time.Sleep(time.Minute)
		before := tunnels.Bytes()
		time.Sleep(10 * time.Minute)
		perNode := float64(tunnels.Bytes()-before) / float64(len(hosts)) / 600
		if t.Logf("%.1f bytes/s for each node in tunnels", perNode); perNode > 20 {
			t.Errorf("idle nodes of one mind exchange more than digests")
		}
	})
}

// counted are tunnels that count the exchanges that one node begins.
type counted struct {
	*meshtest.Tunnels
	by    netip.Addr
	begun atomic.Int64
}

func (c *counted) Dial(ctx context.Context, from, to netip.Addr) (net.Conn, error) {
	if from == c.by {
		c.begun.Add(1)
	}
	return c.Tunnels.Dial(ctx, from, to)
}

// News that gossip may not bring to all is told through the tunnels at once. For all
// else an exchange is no sooner than it would be.
func TestHurry(t *testing.T) {
	for name, tt := range map[string]struct {
		size             int
		blocked, hurries bool
	}{
		"gossip brings it":      {},
		"the largest it brings": {size: trust.MaxBroadcast},
		"too large for it":      {size: trust.MaxBroadcast + 1, hurries: true},
		"it is blocked":         {blocked: true, hurries: true},
	} {
		t.Run(name, func(t *testing.T) {
			meshtest.Bubble(t, func(t *testing.T) {
				var view mesh.View
				for n := range 2 {
					view.Nodes = append(view.Nodes, mesh.Node{ID: id(n + 1), Control: mesh.ControlAddr(mesh.ID{1}, id(n+1)), Key: mesh.Key{1}})
				}
				net, tunnels := meshtest.NewNetwork(6), &counted{Tunnels: meshtest.NewTunnels(), by: view.Nodes[0].Control}
				var nodes []*node
				for n := range 2 {
					nodes = append(nodes, start(t, net, n+1, func(o *gossip.Options, c *core) {
						own := view
						own.Self = id(n + 1)
						o.Tunnels, c.pad, c.out.View = tunnels, tt.size, &own
					}))
				}
				within(t, 5*time.Second, "they meet", nodes[0].sees(1), nodes[1].sees(1))
				if tt.blocked {
					noGossip(net)
				}
				const news = 20
				hurried := 0
				for port := range uint16(news) {
					time.Sleep(time.Minute)
					before := tunnels.begun.Load()
					nodes[0].SetEndpoints([]netip.AddrPort{netip.AddrPortFrom(address(1).Addr(), port+1)})
					time.Sleep(100 * time.Millisecond)
					if tunnels.begun.Load() > before {
						hurried++ // or it was due: one in fifty
					}
				}
				if tt.hurries && hurried < news || !tt.hurries && hurried > news/2 {
					t.Errorf("of %d news %d were told by an exchange at once; should they be: %t", news, hurried, tt.hurries)
				}
			})
		})
	}
}
