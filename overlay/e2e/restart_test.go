//go:build linux

package e2e

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/status"
)

func TestRestartKeepsLease(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 3)
	alpha, beta, gamma := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	for range 3 { // the founder, a node that joined, more than once
		t.Logf("restart of the founder: pings flow after %.2f s", killAndRestart(t, alpha, beta, gamma).Seconds())
		t.Logf("restart of a node that joined: pings flow after %.2f s", killAndRestart(t, gamma, alpha, beta).Seconds())
	}

	t.Run("alone", func(t *testing.T) {
		before := document(t, beta)
		for _, n := range c.Nodes {
			n.Kill()
		}
		start := time.Now()
		must(t, beta.Start())
		must(t, beta.WaitReady(bounded(t)))
		t.Logf("restart with all others dead: ready after %.2f s", time.Since(start).Seconds())
		if after := document(t, beta); leasesOf(after) != leasesOf(before) {
			t.Errorf("lease %s before, %s after", leasesOf(before), leasesOf(after))
		}
		_, err := beta.Host.Ping(t.Context(), addresses(t, beta)[0])
		must(t, err)
		must(t, alpha.Start())
		must(t, gamma.Start())
		must(t, c.WaitAllPairs(bounded(t)))
	})
}

// A host's address changes while its daemon runs, as with a new DHCP lease.
func TestNewAddress(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 3)
	beta := c.Nodes[1]
	before := document(t, beta)
	own := addresses(t, beta)
	old4, old6 := netip.PrefixFrom(beta.Host.IPv4, 24), netip.PrefixFrom(beta.Host.IPv6, 64)
	new4, new6 := netip.MustParsePrefix("198.18.0.102/24"), netip.MustParsePrefix("fd00:198:18::102/64")
	start := time.Now()
	must(t, beta.Host.ReplaceAddress(old4, new4))
	must(t, beta.Host.ReplaceAddress(old6, new6))
	for _, a := range own {
		_, err := c.Nodes[0].Host.Await(bounded(t), a)
		must(t, err)
	}
	t.Logf("address changed: pings flow after %.2f s", time.Since(start).Seconds())
	must(t, c.WaitAllPairs(bounded(t)))
	after := document(t, beta)
	if after.Node.ID != before.Node.ID || after.Node.Epoch != before.Node.Epoch || leasesOf(after) != leasesOf(before) {
		t.Errorf("was %+v, is %+v", before.Node, after.Node)
	}
	// The others know the new address, not only the answers to what came from it.
	for _, n := range []*cluster.Node{c.Nodes[0], c.Nodes[2]} {
		must(t, n.WaitFor(bounded(t), "to know the new address", func(d *status.Document) bool {
			p, err := d.Find("beta")
			return err == nil && p.Endpoint != nil && (p.Endpoint.Addr() == new4.Addr() || p.Endpoint.Addr() == new6.Addr())
		}))
		if d := document(t, n); len(d.Peers) != 2 {
			t.Errorf("%s knows %d peers", n.Name, len(d.Peers))
		}
	}
	// And so do those who start only now.
	killAndRestart(t, c.Nodes[2], c.Nodes[0], beta)
}

func TestSeeds(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 3) // alpha is the seed of the others
	alpha, beta, gamma := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	killAndRestart(t, alpha, beta, gamma)

	alpha.Kill()
	t.Logf("restart without the seed: pings flow after %.2f s", killAndRestart(t, gamma, beta).Seconds())

	// Without its copy of the table it has only the last known addresses to learn
	// from who is there.
	gamma.Kill()
	must(t, os.Remove(filepath.Join(gamma.StateDir(), "table")))
	start := time.Now()
	must(t, gamma.Start())
	must(t, cluster.WaitPairs(bounded(t), beta, gamma))
	t.Logf("the same, and without a table: pings flow after %.2f s", time.Since(start).Seconds())
}
