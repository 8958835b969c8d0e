package examples

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"meshd/mesh"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/status"
)

// TestDayTwo does to a mesh what docs/operations.md says about a host that died:
// a new one takes its subnet, and one that comes from a backup is the same node.
func TestDayTwo(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, []string{"alpha", "beta", "gamma"})
	alpha, beta, gamma := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	must(t, c.Init(t.Context()))
	must(t, c.Start())
	must(t, c.WaitAllPairs(cluster.Bounded(t)))
	document := func(n *cluster.Node) *status.Document {
		t.Helper()
		d, err := n.Document(cluster.Bounded(t))
		must(t, err)
		return d
	}

	t.Run("from a backup", func(t *testing.T) {
		before := document(beta)
		backup := filepath.Join(t.TempDir(), "backup")
		must(t, os.CopyFS(backup, os.DirFS(beta.StateDir()))) // while the daemon runs
		// It lives on and on, as others hear, so that the backup is of long ago: one
		// life later it would begin where the restored node does.
		for _, life := range []string{"second", "third"} {
			beta.Kill()
			must(t, beta.Configure("node: {name: beta, labels: {life: "+life+"}}"))
			must(t, beta.Start())
			must(t, alpha.WaitFor(cluster.Bounded(t), "to hear of the "+life+" life", func(d *status.Document) bool {
				p, err := d.Find("beta")
				return err == nil && p.Labels["life"] == life
			}))
		}
		lived := document(beta).Node.Epoch
		beta.Kill()
		must(t, os.RemoveAll(beta.StateDir()))
		must(t, os.CopyFS(beta.StateDir(), os.DirFS(backup)))
		must(t, os.Chmod(beta.StateDir(), 0o700))
		must(t, beta.Start())
		must(t, c.WaitAllPairs(cluster.Bounded(t)))
		after := document(beta)
		if after.Node.ID != before.Node.ID || after.Node.Leases[0].Prefixes[0] != before.Node.Leases[0].Prefixes[0] {
			t.Errorf("before %+v, after %+v", before.Node, after.Node)
		}
		must(t, beta.WaitFor(cluster.Bounded(t), "to go on above what others have heard of it", func(d *status.Document) bool {
			return d.Node.Epoch > lived
		}))
	})

	t.Run("without one", func(t *testing.T) {
		dead := document(gamma)
		subnet := dead.Node.Leases[0].Prefixes[0]
		gamma.Kill()
		must(t, os.RemoveAll(gamma.StateDir()))
		token, err := alpha.Token(t.Context(), "--subnet", subnet.String())
		must(t, err)
		must(t, gamma.Join(t.Context(), token, "--node", "gamma-2"))
		must(t, gamma.Start())
		must(t, c.WaitAllPairs(cluster.Bounded(t)))
		now := document(gamma)
		if now.Node.ID == dead.Node.ID || now.Node.Leases[0].Prefixes[0] != subnet || now.State != mesh.Ready {
			t.Errorf("the dead node had %s, the new one is %+v", subnet, now.Node)
		}
		// The dead one stays on the list, as down after 25 s.
		ctx, cancel := context.WithTimeout(t.Context(), 2*cluster.Soon)
		defer cancel()
		must(t, alpha.WaitFor(ctx, "to see that the dead node is down", func(d *status.Document) bool {
			p, err := d.Find(dead.Node.ID.String())
			return err == nil && p.State == status.PeerDown && d.ExitCode() == 1
		}))
	})
}

// TestFirewall types the rules of docs/operations.md on hosts that let nothing in:
// before it there is no mesh, and after it there is one.
func TestFirewall(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, []string{"alpha", "beta"})
	if _, err := exec.LookPath("nft"); err != nil {
		missing(t, err)
	}
	page, err := os.ReadFile("../docs/operations.md")
	must(t, err)
	rules := regexp.MustCompile(`(?m)^    (nft .*)$`).FindAllStringSubmatch(string(page), -1)
	if len(rules) != 4 {
		t.Fatalf("the page has %d rules", len(rules))
	}
	typed := func(line string) {
		t.Helper()
		for _, n := range c.Nodes {
			_, err := n.Host.Run(exec.CommandContext(cluster.Bounded(t), "sh", "-c", line))
			must(t, err)
		}
	}
	typed("nft add table inet filter")
	typed("nft add chain inet filter input '{ type filter hook input priority 0; policy drop; }'")
	typed("nft add rule inet filter input ct state established,related accept")
	typed("nft add rule inet filter input meta l4proto ipv6-icmp accept")
	must(t, c.Init(t.Context()))
	must(t, c.Start())
	beta := c.Nodes[1]
	must(t, beta.WaitFor(cluster.Bounded(t), "to miss its seed", func(d *status.Document) bool {
		return d.State == mesh.WaitingForSeed && slices.ContainsFunc(d.Health, func(f status.Finding) bool { return f.Code == "no_seed" })
	}))
	for _, rule := range rules {
		typed(rule[1])
	}
	for _, n := range c.Nodes {
		must(t, n.WaitFor(cluster.Bounded(t), "to reach the other", func(d *status.Document) bool {
			return d.Healthy() && len(d.Peers) == 1 && d.Peers[0].State == status.PeerUp
		}))
	}
	_, err = beta.Meshctl(cluster.Bounded(t), "ping", "--count", "1", "alpha")
	must(t, err)
}
