package gossip_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/meshtest"
	"meshd/mesh/trust"
)

// bring has the operator of a host bring a charter, and waits until it is saved.
func (h *host) bring(t *testing.T, charter *trust.Charter) error {
	t.Helper()
	err := h.gossip.Do(t.Context(), func(time.Time) {
		if err := h.core.SetCharter(charter.Raw); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		return err
	}
	return h.gossip.Saved(t.Context())
}

// withNetworks adds networks to those of a charter.
func withNetworks(t *testing.T, m *meshtest.Mesh, after *trust.Charter, n int) *trust.Charter {
	networks := slices.Clone(after.Networks)
	for i := range n {
		networks = append(networks, mesh.Network{
			Name: fmt.Sprint("net-", i), IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(100 + i)}), 16), IPv4Len: 24,
			IPv6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, byte(i + 1)}), 48), IPv6Len: 64,
		})
	}
	return m.Next(t, after, networks...)
}

func TestCharterSpreads(t *testing.T) {
	for _, tt := range []struct {
		name     string
		networks int
		bound    time.Duration
	}{
		{"by broadcast", 2, 2 * time.Second},
		{"too large for a broadcast", 60, 30 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			meshtest.Bubble(t, func(t *testing.T) {
				m, net := meshtest.NewMesh(t), meshtest.NewNetwork(1)
				net.SetLatency(10 * time.Millisecond)
				var hosts []*host
				for i := range 10 {
					hosts = append(hosts, newHost(t, m, i+1))
					hosts[i].start(t, net)
				}
				within(t, 8*time.Second, "all hold subnets", agreed(hosts, 10))
				hosts[9].stop()

				next := withNetworks(t, m, m.Charter, tt.networks)
				if large := len(next.Raw) > trust.MaxBroadcast; large != (tt.networks > 2) {
					t.Fatalf("%d networks are %d bytes", tt.networks, len(next.Raw))
				}
				if err := hosts[1].bring(t, next); err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(hosts[1].store.Charter(), next.Raw) {
					t.Error("it is not saved")
				}
				has := func(h *host) bool {
					return len(h.sees().Networks) == 1+tt.networks && slices.Equal(h.store.Charter(), next.Raw)
				}
				begin := time.Now()
				within(t, tt.bound, "all have the networks", func() bool {
					return !slices.ContainsFunc(hosts[:9], func(h *host) bool { return !has(h) })
				})
				t.Logf("after %s", time.Since(begin))
				hosts[9].start(t, net)
				within(t, 5*time.Second, "so has the one that was away", func() bool { return has(hosts[9]) })
			})
		})
	}
}

// While the disk is full nobody hears of a charter; when there is room, all do.
func TestCharterThatIsNotSaved(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		m, net := meshtest.NewMesh(t), meshtest.NewNetwork(1)
		hosts := []*host{newHost(t, m, 1), newHost(t, m, 2)}
		for _, h := range hosts {
			h.start(t, net)
		}
		within(t, 8*time.Second, "both hold subnets", agreed(hosts, 2))
		hosts[0].store.Fail(true)
		next := withNetworks(t, m, m.Charter, 1)
		if err := hosts[0].bring(t, next); err == nil || !strings.Contains(err.Error(), meshtest.ErrStore.Error()) {
			t.Errorf("brought to a full disk: %v", err)
		}
		time.Sleep(20 * time.Second)
		if n := len(hosts[1].sees().Networks); n != 1 {
			t.Errorf("the other sees %d networks", n)
		}
		hosts[0].store.Fail(false)
		within(t, 5*time.Second, "the other has it", func() bool { return len(hosts[1].sees().Networks) == 2 })
		if !slices.Equal(hosts[0].store.Charter(), next.Raw) {
			t.Error("it is not saved")
		}
	})
}
