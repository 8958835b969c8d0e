//go:build linux

package e2e

import (
	"fmt"
	"slices"
	"testing"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/status"
)

func TestAllPairs(t *testing.T) {
	t.Parallel()
	c := hosts(t, 3)
	t.Logf("3 nodes: all pairs after %.2f s", formMesh(t, c).Seconds())
	for _, from := range c.Nodes {
		for _, to := range c.Nodes {
			if from == to {
				continue
			}
			for _, a := range addresses(t, to) {
				if err := exchange(t.Context(), from.Host, to.Host, "tcp", a, randomBytes(1<<20)); err != nil {
					t.Error(err)
				}
				if err := exchange(t.Context(), from.Host, to.Host, "udp", a, randomBytes(1300)); err != nil {
					t.Error(err)
				}
			}
		}
	}
	for _, n := range c.Nodes {
		checkStatus(t, n, len(c.Nodes)-1)
	}
}

// checkStatus looks whether a node tells the truth about a mesh that works.
func checkStatus(t *testing.T, n *cluster.Node, peers int) {
	t.Helper()
	// A probe of every peer was answered.
	must(t, n.WaitFor(bounded(t), "to have measured its peers", func(d *status.Document) bool {
		return !slices.ContainsFunc(d.Peers, func(p status.Peer) bool { return p.RTTms == nil })
	}))
	d, code, err := n.Status(t.Context())
	must(t, err)
	if code != 0 || d.State != "ready" || len(d.Health) != 0 || len(d.Peers) != peers {
		t.Errorf("%s: status exits %d, says %s, %d peers, health %v", n.Name, code, d.State, len(d.Peers), d.Health)
	}
	if d.Node.Name != n.Name || len(d.Node.Leases) != 1 || len(d.Node.Leases[0].Prefixes) != 2 {
		t.Errorf("%s: says it is %+v", n.Name, d.Node)
	}
	for _, p := range d.Peers {
		switch {
		case p.State != status.PeerUp, p.Path != status.PathDirect, p.Endpoint == nil, p.LastHandshake == nil,
			p.RxBytes == nil || *p.RxBytes == 0, p.TxBytes == nil || *p.TxBytes == 0, *p.RTTms > 1000,
			p.Loss == nil, len(p.Leases) != 1:
			t.Errorf("%s: says of a peer that answers: %+v", n.Name, p)
		}
	}
	if _, err := n.Meshctl(t.Context(), "status", "--check", "ready"); err != nil {
		t.Error(err)
	}
	if out, err := n.Meshctl(t.Context(), "ping", d.Peers[0].Name, "-c", "1"); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// Ten nodes start at the same moment: each gets a subnet of its own. And an idle
// daemon among them is small.
func TestManyNodes(t *testing.T) {
	t.Parallel()
	c := hosts(t, 10)
	t.Logf("10 nodes: all pairs after %.2f s", formMesh(t, c).Seconds())
	owner := map[string]string{}
	for _, n := range c.Nodes {
		for _, l := range document(t, n).Node.Leases {
			for _, p := range l.Prefixes {
				if other := owner[p.String()]; other != "" {
					t.Errorf("%s belongs to %s and to %s", p, other, n.Name)
				}
				owner[p.String()] = n.Name
			}
		}
	}
	if len(owner) != 20 {
		t.Errorf("%d subnets for 10 nodes and 2 families", len(owner))
	}

	const most = 40 << 20
	worst := 0
	// It calms down after the start: not more than the bound, within some time.
	err := cluster.Poll(bounded(t), func() (bool, error) {
		worst = 0
		for _, n := range c.Nodes {
			u, err := n.Usage()
			if err != nil {
				return false, err
			}
			worst = max(worst, u.RSS)
		}
		return worst <= most, fmt.Errorf("a daemon has %.1f MiB", float64(worst)/(1<<20))
	})
	if err != nil {
		t.Error(err)
	}
	t.Logf("10 nodes: memory of the largest daemon %.1f MiB", float64(worst)/(1<<20))
}
