package gossip_test

import (
	"net/netip"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/meshtest"
)

// TestHealsWithoutGossip: gossip is blocked all the time, and a partition of the tunnels
// has lasted so long that both sides are calm. Who says something on one side is heard on
// the other within the bound of a partition's end.
func TestHealsWithoutGossip(t *testing.T) {
	const within = 10 * time.Second
	for seed := range uint64(20) {
		for n := 2; n <= 4; n++ {
			meshtest.Bubble(t, func(t *testing.T) {
				net, tunnels := meshtest.NewNetwork(seed), meshtest.NewTunnels()
				hosts := membersWithTunnels(t, net, tunnels, n)
				side := map[netip.Addr]int{}
				for i, h := range hosts {
					side[mesh.ControlAddr(hosts[0].sees().Mesh, h.keys.ID())] = i % 2
				}
				noGossip(net)
				time.Sleep(2 * time.Minute)
				tunnels.Block(func(a, b netip.Addr) bool { return side[a] != side[b] })
				time.Sleep(30 * time.Second)
				moved := netip.MustParseAddrPort("198.51.100.9:51880")
				hosts[0].gossip.SetEndpoints([]netip.AddrPort{moved})
				time.Sleep(5*time.Minute + time.Duration(seed)*137*time.Millisecond)
				tunnels.Block(func(netip.Addr, netip.Addr) bool { return false })
				begin := time.Now()
				for !isAt(hosts, hosts[0], moved)() && time.Since(begin) < time.Minute {
					time.Sleep(50 * time.Millisecond)
				}
				if took := time.Since(begin); took > within {
					t.Errorf("%d nodes: all have heard after %s, want %s", n, took, within)
				}
			})
		}
	}
}
