package examples

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/status"
)

// TestDayTwo does to a mesh what docs/operations.md says about a host that died:
// one that comes from a backup is the same node, a new one takes its name and subnet.
// And a host that is a member already gets the pin that only newcomers get.
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
			for _, n := range []*cluster.Node{alpha, gamma} { // or beta hears of an earlier one first
				must(t, n.WaitFor(cluster.Bounded(t), "to hear of the "+life+" life", func(d *status.Document) bool {
					p, err := d.Find("beta")
					return err == nil && p.Labels["life"] == life
				}))
			}
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
		typed := func(args ...string) string {
			t.Helper()
			out, err := alpha.Meshctl(cluster.Bounded(t), args...)
			must(t, err)
			return out
		}
		replaced := func() {
			t.Helper()
			must(t, os.RemoveAll(gamma.StateDir()))
			must(t, gamma.Join(t.Context(), typed("token", "create", "--subnet", subnet.String())))
			must(t, gamma.Start())
			must(t, gamma.WaitReady(cluster.Bounded(t)))
			if now := document(gamma); now.Node.ID == dead.Node.ID || now.Node.Leases[0].Prefixes[0] != subnet {
				t.Errorf("the dead node had %s, the new one is %+v", subnet, now.Node)
			}
		}
		alone := func() {
			t.Helper()
			must(t, alpha.WaitFor(cluster.Bounded(t), "to have one gamma", func(d *status.Document) bool {
				return len(d.Peers) == 2 && d.Healthy()
			}))
			began := time.Now()
			if typed("keys", "rotate", "gossip", "--now"); time.Since(began) > time.Minute {
				t.Error("the rotation waited for the dead node")
			}
		}

		// It was forgotten, and the new one is there already: two have one name.
		gamma.Kill()
		typed("forget", "gamma", "--yes")
		ctx, cancel := context.WithTimeout(t.Context(), 2*cluster.Soon)
		defer cancel()
		must(t, alpha.WaitFor(ctx, "to see that the dead node is down", func(d *status.Document) bool {
			p, err := d.Find("gamma")
			return err == nil && p.State == status.PeerDown && p.Expired == mesh.Forgotten && d.Healthy()
		}))
		replaced()
		_, err := alpha.Meshctl(cluster.Bounded(t), "revoke", "gamma", "--yes")
		if told := dead.Node.ID.Short() + " is down, forgotten, last heard of "; err == nil || !strings.Contains(err.Error(), told) {
			t.Errorf("which of the two is dead is not told: %v, want %q", err, told)
		}
		line := regexp.MustCompile(`(?m)^default .* forgotten .* (\S+)$`).FindStringSubmatch(typed("lease", "list", "-o", "wide"))
		if line == nil || line[1] != dead.Node.ID.String() {
			t.Fatalf("the list of leases says that %v was forgotten, want %s", line, dead.Node.ID)
		}
		typed("revoke", line[1], "--yes")
		alone()

		// The shorter way: the old one is thrown out before the new one comes.
		dead = document(gamma)
		gamma.Kill()
		typed("revoke", "gamma", "--yes")
		replaced()
		alone()
		must(t, c.WaitAllPairs(cluster.Bounded(t)))
	})

	t.Run("a member is pinned", func(t *testing.T) {
		before := document(beta)
		subnet := before.Node.Leases[0].Prefixes[0]
		token, err := alpha.Token(t.Context(), "--subnet", subnet.String())
		must(t, err)
		_, err = beta.Meshctl(cluster.Bounded(t), "leave")
		must(t, err)
		<-beta.Process().Done()
		must(t, beta.Join(t.Context(), token))
		must(t, beta.Start())
		must(t, c.WaitAllPairs(cluster.Bounded(t)))
		after := document(beta)
		if after.Node.ID == before.Node.ID || after.Node.Leases[0].Prefixes[0] != subnet {
			t.Errorf("before %+v, after %+v", before.Node, after.Node)
		}
		if _, err := beta.Meshctl(cluster.Bounded(t), "lease", "renumber"); err == nil {
			t.Error("the node is not pinned: it renumbers")
		}
		must(t, alpha.WaitFor(cluster.Bounded(t), "to be healthy", func(d *status.Document) bool { return d.Healthy() }))
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
