//go:build linux

package e2e

import (
	"strings"
	"testing"
	"time"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/status"
)

// keysOf is what a node knows of its keys.
func keysOf(t *testing.T, n *cluster.Node) status.KeysReply {
	t.Helper()
	k, err := n.Client().Keys(bounded(t))
	must(t, err)
	return k
}

// sends tells whether a node seals gossip with a generation of the key, and all its
// peers say that they do.
func sends(generation uint64) func(*status.Document) bool {
	return func(d *status.Document) bool {
		if d.Node.GossipKey == nil || d.Node.GossipKey.Sends != generation {
			return false
		}
		for _, p := range d.Peers {
			if p.State != status.PeerLeft && (p.GossipKey == nil || p.GossipKey.Sends != generation) {
				return false
			}
		}
		return true
	}
}

// The gossip key changes under load without a lost packet, twice; a token made
// before the first change is still good, and a node that was off for the second one
// comes back.
func TestRotateGossip(t *testing.T) {
	t.Parallel()
	c := hosts(t, 4)
	alpha, beta, sleeper, late := c.Nodes[0], c.Nodes[1], c.Nodes[2], c.Nodes[3]
	_, err := alpha.Meshctl(t.Context(), "init", "--name", "lab")
	must(t, err)
	token, err := alpha.Token(t.Context(), "--uses", "3")
	must(t, err)
	must(t, beta.Join(t.Context(), token))
	must(t, sleeper.Join(t.Context(), token))
	for _, n := range c.Nodes[:3] {
		must(t, n.Start())
	}
	must(t, cluster.WaitPairs(bounded(t), c.Nodes[:3]...))
	if out, err := beta.Meshctl(bounded(t), "keys", "rotate", "gossip"); err == nil || !strings.Contains(err.Error(), "may not") {
		t.Errorf("beta has no right to rotate: %v, %s", err, out)
	}

	noneLost := pingAll(t, []*cluster.Node{alpha, beta})
	begin := time.Now()
	out, err := alpha.Meshctl(bounded(t), "keys", "rotate", "gossip")
	must(t, err)
	t.Logf("rotated in %d ms:\n%s", time.Since(begin).Milliseconds(), out)
	if !strings.Contains(out, "Done") {
		t.Errorf("it says %q", out)
	}
	for _, n := range c.Nodes[:3] {
		must(t, n.WaitFor(bounded(t), "to send with key 1, as all do", sends(1)))
	}
	must(t, late.Join(t.Context(), token)) // of before
	must(t, late.Start())
	must(t, cluster.WaitPairs(bounded(t), c.Nodes...))
	for _, n := range c.Nodes {
		must(t, n.WaitFor(bounded(t), "to send with key 1, as the new node does", sends(1)))
	}

	sleeper.Kill()
	killed := time.Now()
	out, err = alpha.Meshctl(bounded(t), "keys", "rotate", "gossip", "--now", "--no-wait")
	must(t, err)
	if !strings.Contains(out, "on its way") {
		t.Errorf("it says %q", out)
	}
	if ks := keysOf(t, alpha).Gossip; len(ks) < 2 || ks[0].Generation != 2 {
		t.Errorf("after the command alpha has %+v", ks)
	}
	must(t, sleeper.Start())
	for _, n := range c.Nodes {
		must(t, n.WaitFor(bounded(t), "to send with key 2, as all do", sends(2)))
	}
	t.Logf("all four send with the second key %d ms after one of them was killed", time.Since(killed).Milliseconds())
	must(t, cluster.WaitPairs(bounded(t), c.Nodes...))
	must(t, cluster.Poll(bounded(t), func() (bool, error) {
		k, err := alpha.Client().Keys(t.Context())
		return err == nil && len(k.Gossip) == 1, err
	}))
	noneLost()
	// The keys outlast all daemons.
	for _, n := range c.Nodes {
		n.Kill()
	}
	must(t, c.Start())
	must(t, c.WaitAllPairs(bounded(t)))
	if k := keysOf(t, late).Gossip; len(k) != 1 || k[0].Generation != 2 {
		t.Errorf("after a restart of all, %s has the keys %+v", late.Name, k)
	}
}

// A node changes its tunnel key: nothing is lost, and the key outlasts the daemon.
func TestRotateTunnel(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 3)
	beta := c.Nodes[1]
	before := keysOf(t, beta).Tunnel
	noneLost := pingAll(t, c.Nodes)
	pause(t.Context(), 500*time.Millisecond)
	out, err := beta.Meshctl(bounded(t), "keys", "rotate", "tunnel")
	must(t, err)
	after := keysOf(t, beta).Tunnel
	if after == before || !strings.Contains(out, after) {
		t.Errorf("the key was %s and is %s, and meshctl says %q", before, after, out)
	}
	pause(t.Context(), 2*time.Second)
	noneLost()
	beta.Kill()
	startAgain(t, c, beta)
	if k := keysOf(t, beta).Tunnel; k != after {
		t.Errorf("after a restart the key is %s, want %s", k, after)
	}
}
