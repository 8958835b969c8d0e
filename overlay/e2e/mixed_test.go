//go:build linux

package e2e

import (
	"os/exec"
	"testing"
	"time"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
)

// Hosts go over to a later version one after the other, and one goes back. Each such
// restart costs no more traffic than any; who does not know what a later version says
// passes it on as it is, or nobody would believe its signature; and all come to one table.
func TestMixedVersions(t *testing.T) {
	t.Parallel()
	later, err := cluster.Later(t.Context(), t.TempDir())
	must(t, err)
	today := cluster.Programs(t).Meshd
	c := newMesh(t, 3)
	alpha, beta, gamma := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	systemd, runs := map[*cluster.Node]notices{}, map[*cluster.Node]string{}
	for _, n := range c.Nodes {
		systemd[n] = listenNotify(t, n)
		wrap := n.Wrap
		n.Wrap = func(cmd *exec.Cmd) error {
			cmd.Path, cmd.Args[0] = runs[n], runs[n]
			return wrap(cmd)
		}
	}
	for _, s := range []struct {
		n       *cluster.Node
		meshd   string
		between bool // then, today's version is between two later ones
	}{{alpha, later, false}, {gamma, later, true}, {beta, later, false}, {alpha, today, false}} {
		runs[s.n] = s.meshd
		within(t, "traffic with "+s.n.Name, gapWithin, func() (gap time.Duration) {
			gap, _ = restartUnderTraffic(t, c, s.n, func() { must(t, s.n.Stop(bounded(t))) }, systemd[s.n])
			return gap
		})
		if s.between {
			must(t, c.Filter(func(n *cluster.Node) (f lab.Filter) {
				for _, o := range c.Nodes {
					if n != o && n != beta && o != beta {
						f.From = append(f.From, o.Host.IPv4, o.Host.IPv6)
					}
				}
				return f
			}))
			allKnow(t, []*cluster.Node{beta, gamma}, "what alpha says, of which gamma hears by beta alone,", relabel(t, alpha, "later"))
			must(t, c.Heal())
		}
	}
	allKnow(t, []*cluster.Node{alpha, beta}, "what gamma says", relabel(t, gamma, "last"))
	must(t, c.WaitAllPairs(bounded(t)))
}
