//go:build linux

package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
)

// While the network loses packets, what a node says that has just started is with
// all others within the bound, and all can talk, and nobody is taken for gone.
func TestLoss(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 5)
	beta := c.Nodes[1]
	for _, l := range []struct {
		percent int
		bound   time.Duration
	}{{5, 3 * time.Second}, {20, 5 * time.Second}, {50, 15 * time.Second}} {
		t.Run(fmt.Sprint(l.percent, " %"), func(t *testing.T) {
			must(t, c.Filter(func(*cluster.Node) lab.Filter { return lab.Filter{Loss: float64(l.percent) / 100} }))
			before := tellings(t, c)
			// Whoever is late is tried a second time, so what is awaited may last for longer
			// than the bound.
			within(t, "its word with all, and all pairs", l.bound, func() time.Duration {
				must(t, beta.Stop(bounded(t)))
				word := fmt.Sprintf("%x", randomBytes(8))
				must(t, beta.Configure(fmt.Sprintf("node: {name: %s, labels: {said: %q}}", beta.Name, word)))
				start := time.Now()
				must(t, beta.Start())
				must(t, cluster.Poll(bounded(t), func() (bool, error) {
					for _, n := range c.Nodes {
						if p := peerNamed(document(t, n), beta.Name); n != beta && (p == nil || p.Labels["said"] != word) {
							return false, fmt.Errorf("%s sees %+v", n.Name, p)
						}
					}
					return true, nil
				}))
				told := time.Since(start)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				must(t, c.WaitAllPairs(ctx))
				t.Logf("its word with all after %.2f s", told.Seconds())
				return time.Since(start)
			})
			pause(t.Context(), 2*time.Second)
			for i, n := range c.Nodes {
				d := document(t, n)
				if len(d.Peers) != len(c.Nodes)-1 {
					t.Errorf("%s knows %d peers", n.Name, len(d.Peers))
				}
				for _, p := range d.Peers {
					if len(heldBy(p.Leases)) != 2 {
						t.Errorf("%s has taken away what %s has: %+v", n.Name, p.Name, p.Leases)
					}
				}
				if after := tellings(t, c); n != beta && after[i] != before[i] {
					t.Errorf("it was %s and is %s", before[i], after[i])
				}
			}
		})
	}
	must(t, c.Heal())
	must(t, c.WaitAllPairs(bounded(t)))
}

// A daemon sleeps, and its host with it as far as the mesh can see. Its routes stay
// where they are, the others lose nothing, and it is back at once. With
// MESHD_FROZEN=300s it sleeps as long as that.
func TestFrozen(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 3)
	alpha, beta, gamma := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	last := lengthOf(t, "MESHD_FROZEN", 15*time.Second)
	before := tellings(t, c)
	past := pingSteadily(t, alpha, gamma)
	defer past.Stop()
	within(t, "traffic flows", backWithin, func() time.Duration {
		through := pingSteadily(t, alpha, beta)
		defer through.Stop()
		must(t, stopProcess(beta))
		pause(t.Context(), last)
		for _, n := range []*cluster.Node{alpha, gamma} {
			if p := peerNamed(document(t, n), beta.Name); p == nil || len(heldBy(p.Leases)) != 2 {
				t.Errorf("beta sleeps, and %s sees %+v", n.Name, p)
			}
		}
		must(t, continueProcess(beta))
		d, err := through.Flows(bounded(t), time.Now())
		must(t, err)
		return d
	})
	must(t, c.WaitAllPairs(bounded(t)))
	if lost, sent := past.Lost(time.Now().Add(-time.Second)); lost > 0 || sent < 100 {
		t.Errorf("%d of %d pings lost between the others", lost, sent)
	}
	if after := tellings(t, c); !slices.Equal(before, after) {
		t.Errorf("it was %s and is %s", before, after)
	}
	t.Logf("its word reaches the others after %.2f s", timeGossip(t, beta, alpha).Seconds())
}
