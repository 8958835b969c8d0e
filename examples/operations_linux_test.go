package examples

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"meshd/mesh"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/status"
)

// TestDayTwo does to a mesh what docs/operations.md says about a host that died:
// a new one takes its subnet, and one that comes from a backup is the same node.
func TestDayTwo(t *testing.T) {
	bin, _ := build(t)
	c, err := cluster.New(t.Context(), bin, []string{"alpha", "beta", "gamma"})
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.Logs(100))
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	alpha, beta, gamma := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	must(t, c.Init(t.Context()))
	must(t, c.Start())
	must(t, c.WaitAllPairs(bounded(t)))
	document := func(n *cluster.Node) *status.Document {
		t.Helper()
		d, err := n.Document(bounded(t))
		must(t, err)
		return d
	}

	t.Run("from a backup", func(t *testing.T) {
		before := document(beta)
		backup := filepath.Join(t.TempDir(), "backup")
		must(t, os.CopyFS(backup, os.DirFS(beta.StateDir()))) // while the daemon runs
		beta.Kill()
		must(t, beta.Start()) // lives on, so that the backup is of long ago
		must(t, c.WaitAllPairs(bounded(t)))
		beta.Kill()
		must(t, os.RemoveAll(beta.StateDir()))
		must(t, os.CopyFS(beta.StateDir(), os.DirFS(backup)))
		must(t, os.Chmod(beta.StateDir(), 0o700))
		must(t, beta.Start())
		must(t, c.WaitAllPairs(bounded(t)))
		after := document(beta)
		if after.Node.ID != before.Node.ID || after.Node.Leases[0].Prefixes[0] != before.Node.Leases[0].Prefixes[0] {
			t.Errorf("before %+v, after %+v", before.Node, after.Node)
		}
		must(t, beta.WaitFor(bounded(t), "to say that it comes from a backup", func(d *status.Document) bool {
			return slices.ContainsFunc(d.Health, func(f status.Finding) bool { return f.Code == "identity_in_use" })
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
		must(t, c.WaitAllPairs(bounded(t)))
		now := document(gamma)
		if now.Node.ID == dead.Node.ID || now.Node.Leases[0].Prefixes[0] != subnet || now.State != mesh.Ready {
			t.Errorf("the dead node had %s, the new one is %+v", subnet, now.Node)
		}
		// The dead one stays on the list.
		must(t, alpha.WaitFor(bounded(t), "to see that the dead node is down", func(d *status.Document) bool {
			p, err := d.Find(dead.Node.ID.String())
			return err == nil && p.State == status.PeerDown && d.ExitCode() == 1
		}))
	})
}
