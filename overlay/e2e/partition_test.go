//go:build linux

package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/status"
)

// healWithin is how soon all is well after a partition of any length.
const healWithin = 10 * time.Second

// lengthOf is how long a fault lasts: a short time, or by hand what the
// environment says.
func lengthOf(t *testing.T, variable string, short time.Duration) time.Duration {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return short
	}
	d, err := time.ParseDuration(text)
	must(t, err)
	return d
}

// A partition, of whatever kind and length, ends within the bound; no lease
// changes hands, each half loses nothing, and the logs stay short. With
// MESHD_PARTITION it lasts as long as you like.
func TestPartition(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 4)
	half := c.Nodes[:2]
	last := lengthOf(t, "MESHD_PARTITION", 8*time.Second)
	hold := func(oneWay bool) func() {
		return func() {
			must(t, c.Part(half, oneWay))
			pause(t.Context(), last)
		}
	}
	for _, p := range []struct {
		name string
		do   func()
	}{
		{"symmetric", hold(false)},
		{"one-way", hold(true)},
		{"flapping", func() {
			for end := time.Now().Add(last); time.Now().Before(end); {
				must(t, c.Part(half, false))
				pause(t.Context(), 700*time.Millisecond)
				must(t, c.Heal())
				pause(t.Context(), 300*time.Millisecond)
			}
		}},
	} {
		t.Run(p.name, func(t *testing.T) {
			before, lines := tellings(t, c), linesOf(c)
			inside := []*lab.Pings{pingSteadily(t, c.Nodes[0], c.Nodes[1]), pingSteadily(t, c.Nodes[3], c.Nodes[2])}
			within(t, "all pairs, and news both ways,", healWithin, func() time.Duration {
				p.do()
				must(t, c.Heal())
				start := time.Now()
				must(t, c.WaitAllPairs(bounded(t)))
				t.Logf("all pairs after %.2f s", time.Since(start).Seconds())
				timeGossip(t, c.Nodes[0], c.Nodes[2])
				timeGossip(t, c.Nodes[3], c.Nodes[1])
				return time.Since(start)
			})
			for _, flow := range inside {
				_, err := flow.Flows(bounded(t), time.Now())
				must(t, err)
				if lost, sent := flow.Lost(time.Now().Add(-time.Second)); lost > 0 || sent < 100 {
					t.Errorf("%s: %d of %d lost, on one side of the partition", flow, lost, sent)
				}
				flow.Stop()
			}
			if after := tellings(t, c); !slices.Equal(before, after) {
				t.Errorf("it was %s and is %s", before, after)
			}
			for i, n := range c.Nodes {
				if more := linesOf(c)[i] - lines[i]; more > 40 {
					t.Errorf("%s has logged %d lines", n.Name, more)
				}
			}
		})
	}
}

// tellings is who has what, in the same life as before.
func tellings(t *testing.T, c *cluster.Cluster) (all []string) {
	t.Helper()
	for _, n := range c.Nodes {
		d := document(t, n)
		all = append(all, fmt.Sprint(n.Name, " in epoch ", d.Node.Epoch, " has ", leasesOf(d)))
	}
	return all
}

func linesOf(c *cluster.Cluster) (all []int) {
	for _, n := range c.Nodes {
		all = append(all, strings.Count(n.Log(), "\n"))
	}
	return all
}

// Two nodes take the last subnet on two sides of a partition. When it heals,
// everybody sees the same winner; the loser says what is the matter, does not
// spin, and is ready as soon as somebody leaves.
func TestConflictingClaims(t *testing.T) {
	t.Parallel()
	c := hosts(t, 5)
	old, left, right := c.Nodes[:3], c.Nodes[3], c.Nodes[4]
	c.Nodes = old
	must(t, c.Init(t.Context(), "--ipv4", "10.99.0.0/22")) // four subnets
	must(t, c.Start())
	must(t, c.WaitAllPairs(bounded(t)))

	c.Nodes = append(slices.Clone(old), left, right)
	token, err := old[0].Token(t.Context(), "--uses", "2",
		"--seed", fmt.Sprintf("%s:%d", old[0].Host.IPv4, gossipPort), "--seed", fmt.Sprintf("%s:%d", old[1].Host.IPv4, gossipPort))
	must(t, err)
	must(t, c.Part([]*cluster.Node{old[0], left}, false))
	for _, n := range []*cluster.Node{left, right} {
		must(t, n.Join(t.Context(), token))
		must(t, n.Start())
	}
	for _, n := range []*cluster.Node{left, right} {
		must(t, n.WaitReady(bounded(t)))
	}
	if a, b := leasesOf(document(t, left)), leasesOf(document(t, right)); a != b {
		t.Fatalf("there is one subnet left; one node has %s and the other %s", a, b)
	}

	must(t, c.Heal())
	start := time.Now()
	var winner, loser *cluster.Node
	must(t, cluster.Poll(bounded(t), func() (bool, error) {
		winner, loser = left, right
		if document(t, left).State == mesh.NoFreeSubnets {
			winner, loser = right, left
		}
		won, lost := document(t, winner), document(t, loser)
		if won.State != mesh.Ready || lost.State != mesh.NoFreeSubnets || len(heldBy(won.Node.Leases)) != 2 {
			return false, fmt.Errorf("one is %s, the other %s", won.State, lost.State)
		}
		for _, n := range c.Nodes {
			d := document(t, n)
			for _, o := range []*cluster.Node{winner, loser} {
				if o == n {
					continue
				}
				p := peerNamed(d, o.Name)
				if p == nil || (len(heldBy(p.Leases)) > 0) != (o == winner) {
					return false, fmt.Errorf("%s sees %s as %+v", n.Name, o.Name, p)
				}
			}
		}
		return true, nil
	}))
	took := time.Since(start)
	t.Logf("one winner for all after %.2f s", took.Seconds())
	if took > healWithin {
		t.Errorf("one winner for all after %s, want %s", took, healWithin)
	}
	health := document(t, loser).Health
	if !slices.ContainsFunc(health, func(f status.Finding) bool { return f.Code == "no_free_subnets" }) {
		t.Errorf("the loser says %+v", health)
	}
	before, err := loser.Usage()
	must(t, err)
	lines := strings.Count(loser.Log(), "\n")
	pause(t.Context(), 3*time.Second)
	after, err := loser.Usage()
	must(t, err)
	if cpu := after.CPU - before.CPU; cpu > 500*time.Millisecond || strings.Count(loser.Log(), "\n")-lines > 5 {
		t.Errorf("without a subnet it took %s of CPU in 3 s, and logged %d lines", cpu, strings.Count(loser.Log(), "\n")-lines)
	}

	_, err = old[2].Meshctl(bounded(t), "leave")
	must(t, err)
	start = time.Now()
	must(t, loser.WaitReady(bounded(t)))
	t.Logf("the loser has another subnet %.2f s after somebody left", time.Since(start).Seconds())
	c.Nodes = []*cluster.Node{old[0], old[1], left, right}
	must(t, c.WaitAllPairs(bounded(t)))
	c.Nodes = append(c.Nodes, old[2]) // its log counts too
}

func heldBy(leases []status.Lease) (held []string) {
	for _, l := range leases {
		if l.State == "held" {
			for _, p := range l.Prefixes {
				held = append(held, p.String())
			}
		}
	}
	return held
}
