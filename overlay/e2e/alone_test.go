//go:build linux

package e2e

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/status"
)

func stopProcess(n *cluster.Node) error     { return n.Process().Signal(unix.SIGSTOP) }
func continueProcess(n *cluster.Node) error { return n.Process().Signal(unix.SIGCONT) }

// cachedWithin is how soon a node finds the others again by the addresses that it
// has kept.
const cachedWithin = 5 * time.Second

// All seeds are dead for good: the others lose nothing, and one that has lost all
// but the addresses of others is back within the bound.
func TestSeedsDead(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 4) // alpha is the seed of all others
	alpha, beta, gamma, delta := c.Nodes[0], c.Nodes[1], c.Nodes[2], c.Nodes[3]
	flow := pingSteadily(t, beta, delta)
	defer flow.Stop()
	alpha.Kill()
	within(t, "back by cached addresses", cachedWithin, func() time.Duration {
		must(t, gamma.Stop(bounded(t)))
		must(t, os.Remove(filepath.Join(gamma.StateDir(), "table")))
		start := time.Now()
		must(t, gamma.Start())
		must(t, cluster.WaitPairs(bounded(t), beta, gamma, delta))
		return time.Since(start)
	})
	pause(t.Context(), 3*time.Second)
	if lost, sent := flow.Lost(time.Now().Add(-time.Second)); lost > 0 || sent < 50 {
		t.Errorf("%d of %d pings lost between those that nothing happened to", lost, sent)
	}
}

// Nothing of gossip gets through: tunnels lose nothing, and who restarts finds all
// others, also what they have said since it last saved its table. When gossip gets
// through again, so does what is new. With MESHD_SILENCE=1h it is silent as long.
func TestGossipBlocked(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 4)
	beta := c.Nodes[1]
	var flows []*lab.Pings
	for _, pair := range [][2]int{{0, 2}, {2, 3}, {3, 0}} {
		flows = append(flows, pingSteadily(t, c.Nodes[pair[0]], c.Nodes[pair[1]]))
	}
	must(t, c.Filter(func(*cluster.Node) lab.Filter { return lab.Filter{Ports: []uint16{gossipPort}} }))
	pause(t.Context(), lengthOf(t, "MESHD_SILENCE", 20*time.Second))
	t.Logf("restart while gossip is silent: all pairs after %.2f s", killAndRestart(t, beta, c.Nodes[0], c.Nodes[2], c.Nodes[3]).Seconds())
	for _, flow := range flows {
		if lost, sent := flow.Lost(time.Now().Add(-time.Second)); lost > 0 || sent < 100 {
			t.Errorf("%s: %d of %d lost", flow, lost, sent)
		}
		flow.Stop()
	}
	must(t, c.Heal())
	within(t, "all hear what is new", healWithin, func() time.Duration {
		return max(timeGossip(t, c.Nodes[0], beta), timeGossip(t, beta, c.Nodes[3]))
	})
}

// Three of ten nodes are restarted, one after the other, as if 30 % were each
// minute: the others lose nothing, and the mesh is calm soon after. With
// MESHD_CHURN=10m it goes on as long as that.
func TestChurn(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 10)
	steady := c.Nodes[:7]
	var flows []*lab.Pings
	for i, n := range steady {
		flows = append(flows, pingSteadily(t, n, steady[(i+1)%len(steady)]))
	}
	pause(t.Context(), 2*time.Second)
	restarts := 0
	for end := time.Now().Add(lengthOf(t, "MESHD_CHURN", 12*time.Second)); time.Now().Before(end); restarts++ {
		n := c.Nodes[7+rand.IntN(3)]
		if restarts%2 == 0 {
			n.Kill()
		} else {
			must(t, n.Stop(bounded(t)))
		}
		pause(t.Context(), time.Duration(rand.IntN(1000))*time.Millisecond)
		must(t, n.Start())
		pause(t.Context(), 3*time.Second)
	}
	start := time.Now()
	must(t, c.WaitAllPairs(bounded(t)))
	for _, n := range c.Nodes {
		must(t, n.WaitFor(bounded(t), "to be calm", func(d *status.Document) bool { return len(d.Health) == 0 && d.ExitCode() == 0 }))
	}
	took := time.Since(start)
	t.Logf("%d restarts; calm after %.2f s", restarts, took.Seconds())
	if took > healWithin {
		t.Errorf("calm after %s, want %s", took, healWithin)
	}
	for _, flow := range flows {
		lost, sent := flow.Lost(time.Now().Add(-time.Second))
		if lost > 0 || sent < 100 {
			t.Errorf("%s: %d of %d lost, and neither was restarted", flow, lost, sent)
		}
		flow.Stop()
	}
	owners := map[string]string{}
	for _, n := range c.Nodes {
		for _, p := range heldBy(document(t, n).Node.Leases) {
			if other := owners[p]; other != "" {
				t.Errorf("%s belongs to %s and to %s", p, other, n.Name)
			}
			owners[p] = n.Name
		}
	}
}
