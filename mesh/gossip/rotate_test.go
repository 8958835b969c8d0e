package gossip_test

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"

	"meshd/mesh/meshtest"
	"meshd/mesh/trust"
)

// rotate hands out another gossip key, from the host that may.
func (h *host) rotate(t *testing.T, n byte, grace time.Duration) {
	t.Helper()
	var err error
	missed := h.gossip.Do(t.Context(), func(now time.Time) {
		err = h.core.RotateGossip(now, bytes.Repeat([]byte{n}, trust.GossipKeySize), grace)
	})
	if missed != nil || err != nil {
		t.Fatalf("rotate: %v, %v", missed, err)
	}
}

// onlyHas tells whether hosts have, and have saved, one key, of a generation.
func onlyHas(hosts []*host, generation uint64) func() bool {
	return func() bool {
		for _, h := range hosts {
			if k := h.store.Keyring(); len(k.Keys) != 1 || k.Send != generation || k.Newest() != generation {
				return false
			}
		}
		return true
	}
}

// Ten rotations in a row, while everybody has news all the time, by a network that
// reorders: every message can be read, nobody seems dead, and in the end all have
// the last key alone.
func TestRotationUnderLoad(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		m, net := meshtest.NewMesh(t), meshtest.NewNetwork(1)
		net.SetLatency(10 * time.Millisecond)
		net.SetJitter(10 * time.Millisecond)
		hosts := make([]*host, 6)
		for i := range hosts {
			hosts[i] = newHost(t, m, i+1)
			hosts[i].start(t, net)
		}
		within(t, 10*time.Second, "every node holds a subnet", agreed(hosts, len(hosts)))
		port := uint16(1000)
		news := func() {
			port++
			for _, h := range hosts {
				h.gossip.SetEndpoints([]netip.AddrPort{netip.AddrPortFrom(h.at.Addr(), port)})
			}
		}
		heard := func() bool {
			for _, h := range hosts {
				if len(h.gossip.Stats().Live) != len(hosts)-1 {
					return false
				}
				for _, n := range h.sees().Nodes {
					if len(n.Endpoints) != 1 || n.Endpoints[0].Port() != port {
						return false
					}
				}
			}
			return true
		}
		for generation := range uint64(10) {
			hosts[0].rotate(t, byte(generation+1), 0)
			done := onlyHas(hosts, generation+1)
			begin := time.Now()
			for !done() {
				news()
				time.Sleep(250 * time.Millisecond)
				if time.Since(begin) > time.Minute {
					t.Fatalf("rotation %d has not ended after %s", generation+1, time.Since(begin))
				}
			}
			t.Logf("rotation %d took %s", generation+1, time.Since(begin))
			// Who says so much is heard once a second; of what was not heard digests tell.
			within(t, 15*time.Second, "news of all at all, and nobody seems dead", heard)
		}
		for i, h := range hosts {
			if n := h.gossip.Refused(); n > 0 {
				t.Errorf("host %d could not read %d messages", i+1, n)
			}
		}
		if k := hosts[5].store.Keyring(); !bytes.Equal(k.Keys[0].Key, bytes.Repeat([]byte{10}, trust.GossipKeySize)) {
			t.Error("the key is not the one that was handed out")
		}
	})
}

// Who was away during a rotation gets the key on its return, although nobody sends
// with its own any more.
func TestRotationWhileAway(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		m, net := meshtest.NewMesh(t), meshtest.NewNetwork(2)
		hosts := make([]*host, 4)
		for i := range hosts {
			hosts[i] = newHost(t, m, i+1)
			hosts[i].start(t, net)
		}
		within(t, 10*time.Second, "every node holds a subnet", agreed(hosts, len(hosts)))
		away, there := hosts[3], hosts[:3]
		away.stop()
		hosts[0].rotate(t, 1, 0)
		sends := func() bool {
			for _, h := range there {
				if h.store.Keyring().Send != 1 {
					return false
				}
			}
			return true
		}
		within(t, 2*time.Minute, "the others send with the new key", sends)
		if k := hosts[1].store.Keyring(); len(k.Keys) != 2 {
			t.Errorf("a %v, and somebody uses the key before", k)
		}
		away.start(t, net)
		within(t, 10*time.Second, "the one who was away has the key, and all drop the one before", onlyHas(hosts, 1))
		within(t, 10*time.Second, "all agree", agreed(hosts, len(hosts)))
	})
}

// A token of before a rotation admits while its key is kept.
func TestJoinWithTheKeyBefore(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		m, net := meshtest.NewMesh(t), meshtest.NewNetwork(3)
		hosts := []*host{newHost(t, m, 1), newHost(t, m, 2)}
		for _, h := range hosts {
			h.start(t, net)
		}
		within(t, 10*time.Second, "both hold a subnet", agreed(hosts, 2))
		hosts[0].rotate(t, 1, time.Hour)
		time.Sleep(5 * time.Minute)
		guest := newHost(t, m, 3)
		guest.start(t, net)
		hosts = append(hosts, guest)
		within(t, 30*time.Second, "the newcomer is a member", agreed(hosts, 3))
		within(t, time.Minute, "the newcomer gets the key", func() bool { return guest.store.Keyring().Send == 1 })
		time.Sleep(2 * time.Hour)
		if !onlyHas(hosts, 1)() {
			t.Error("the key before is kept for ever")
		}
		late := newHost(t, m, 4)
		late.start(t, net)
		time.Sleep(5 * time.Minute)
		if n := len(hosts[0].sees().Nodes); n != 3 || hosts[0].gossip.Refused() == 0 {
			t.Errorf("%d nodes, and one of them has a key that was given up", n)
		}
		if f := late.sees().Health; len(f) == 0 || f[0].Code != "no_seed" || !strings.Contains(f[0].Message, "the token is older than the last rotation") {
			t.Errorf("who comes with an old token is told %v", f)
		}
	})
}

// Who comes with a token of before while a rotation drops its key becomes a member
// all the same, and gets the new one, as long as all others still have the old one;
// afterwards it does not. It is not left half-way, admitted and deaf.
func TestJoinWhileTheKeyIsDropped(t *testing.T) {
	ms := time.Millisecond
	for _, after := range []time.Duration{-2000 * ms, -1000 * ms, -500 * ms, 0, 200 * ms, 300 * ms, 400 * ms, 450 * ms, 500 * ms, 550 * ms, 570 * ms, 580 * ms, 590 * ms, 600 * ms, 610 * ms, 620 * ms, 630 * ms, 640 * ms, 650 * ms, 700 * ms, 800 * ms, 1000 * ms, 2000 * ms, 4000 * ms, 9000 * ms} {
		t.Run(after.String(), func(t *testing.T) {
			meshtest.Bubble(t, func(t *testing.T) {
				m, net := meshtest.NewMesh(t), meshtest.NewNetwork(3)
				net.SetLatency(20 * ms)
				hosts := []*host{newHost(t, m, 1), newHost(t, m, 2), newHost(t, m, 3)}
				for _, h := range hosts {
					h.start(t, net)
				}
				within(t, 10*time.Second, "all hold a subnet", agreed(hosts, 3))
				time.Sleep(time.Minute)
				guest := newHost(t, m, 4)
				if after < 0 {
					guest.start(t, net)
					time.Sleep(-after)
				}
				hosts[0].rotate(t, 1, 0)
				if after >= 0 {
					time.Sleep(after)
					guest.start(t, net)
				}
				all := append(hosts, guest)
				if after > 400*ms {
					time.Sleep(2 * time.Minute)
					if n := len(hosts[0].sees().Nodes); n == 3 && onlyHas(hosts, 1)() {
						return // it came too late
					}
				}
				within(t, time.Minute, "the newcomer is a member", agreed(all, 4))
				within(t, time.Minute, "all have the new key alone", onlyHas(all, 1))
			})
		})
	}
}
