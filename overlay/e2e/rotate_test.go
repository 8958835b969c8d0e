//go:build linux

package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/status"
)

// A daemon that is stopped holds a rotation up for a minute and no longer; when it
// goes on it has the key soon. The others lose nothing all the while.
func TestRotateWhileStopped(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 5)
	sleeper, others := c.Nodes[4], c.Nodes[:4]
	flows := pingPairs(t, others)
	begin := time.Now()
	must(t, sleeper.Process().Signal(syscall.SIGSTOP))
	_, err := c.Nodes[0].Meshctl(bounded(t), "keys", "rotate", "gossip", "--now", "--no-wait")
	must(t, err)
	for _, n := range others {
		for { // longer than other things may take
			d := document(t, n)
			if d.Node.GossipKey != nil && d.Node.GossipKey.Sends == 1 {
				break
			}
			if time.Since(begin) > 2*time.Minute {
				t.Fatalf("%s has not gone over to the new key: %+v", n.Name, d.Node.GossipKey)
			}
			pause(t.Context(), 500*time.Millisecond)
		}
	}
	t.Logf("the others have gone over after %.1f s", time.Since(begin).Seconds())
	if took := time.Since(begin); took < 50*time.Second {
		t.Errorf("they went over after %s, and nobody knew whether all have the key", took)
	}
	ks, err := c.Nodes[1].Client().Keys(bounded(t))
	must(t, err)
	if len(ks.Gossip) != 2 {
		t.Errorf("the key that the one who is stopped sends with is gone: %+v", ks.Gossip)
	}
	begin2 := time.Now()
	must(t, sleeper.Process().Signal(syscall.SIGCONT))
	must(t, sleeper.WaitFor(bounded(t), "to send with key 1", func(d *status.Document) bool {
		return d.Node.GossipKey != nil && d.Node.GossipKey.Sends == 1
	}))
	took := time.Since(begin2)
	t.Logf("the one that was stopped sends with the new key after %d ms", took.Milliseconds())
	if took > 10*time.Second {
		t.Errorf("it took %s, want 10 s at most", took)
	}
	must(t, c.WaitAllPairs(bounded(t)))
	end := time.Now()
	for _, p := range flows {
		_, err := p.Flows(bounded(t), end)
		must(t, err)
		if lost, sent := p.Between(begin, end); lost > 0 {
			t.Errorf("%s: %d of %d lost", p, lost, sent)
		}
	}
}

// Both engines, and one with the other, carry traffic on while a tunnel key changes.
func TestRotateTunnelEngines(t *testing.T) {
	t.Parallel()
	c := hosts(t, 3)
	for _, n := range c.Nodes[1:] {
		must(t, n.Configure("engine: wireguard-go"))
	}
	formMesh(t, c)
	for _, n := range c.Nodes[:2] { // native and wireguard-go
		d := document(t, n)
		flows := pingPairs(t, c.Nodes)
		pause(t.Context(), 500*time.Millisecond)
		begin := time.Now()
		_, err := n.Meshctl(bounded(t), "keys", "rotate", "tunnel")
		must(t, err)
		pause(t.Context(), 8*time.Second) // wireguard-go goes over after 3 s
		end := time.Now()
		var gap time.Duration
		all, of := 0, 0
		for _, p := range flows {
			_, err := p.Flows(bounded(t), end)
			must(t, err)
			lost, sent := p.Between(begin, end)
			gap, all, of = max(gap, p.Gap()), all+lost, of+sent
			if lost > 0 && p.Gap() > time.Second { // else it was not asked for so long, on a busy host
				t.Errorf("%s rotates: %s has a gap of %s", n.Name, p, p.Gap())
			}
			p.Stop()
		}
		t.Logf("%s (%s) rotates: %d of %d pings lost, greatest gap %d ms", n.Name, strings.TrimSpace(d.Engine.Name), all, of, gap.Milliseconds())
	}
}

// pingPairs pings from each node to each other one, every 10 ms.
func pingPairs(t *testing.T, nodes []*cluster.Node) (flows []*lab.Pings) {
	t.Helper()
	for _, from := range nodes {
		for _, to := range nodes {
			if from == to {
				continue
			}
			p, err := from.Host.Pings(t.Context(), addresses(t, to)[0], 10*time.Millisecond)
			must(t, err)
			t.Cleanup(p.Stop)
			flows = append(flows, p)
		}
	}
	return flows
}
