//go:build linux

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"meshd/mesh"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/status"
)

// A host that was thrown out does not come back with its own token of one use: also
// not by members who were restarted, or have joined since.
func TestRevokedHostJoinsAgain(t *testing.T) {
	t.Parallel()
	c := hosts(t, 4)
	alpha, beta, laptop, late := c.Nodes[0], c.Nodes[1], c.Nodes[2], c.Nodes[3]
	_, err := alpha.Meshctl(t.Context(), "init", "--name", "lab")
	must(t, err)
	many, err := alpha.Token(t.Context(), "--uses", "0")
	must(t, err)
	once, err := alpha.Token(t.Context(), "--uses", "1")
	must(t, err)
	must(t, beta.Join(t.Context(), many))
	must(t, laptop.Join(t.Context(), once))
	for _, n := range c.Nodes[:3] {
		must(t, n.Start())
	}
	must(t, cluster.WaitPairs(bounded(t), alpha, beta, laptop))

	_, err = alpha.Meshctl(bounded(t), "revoke", laptop.Name, "--yes")
	must(t, err)
	for _, n := range []*cluster.Node{alpha, beta} {
		must(t, n.WaitFor(bounded(t), "to have dropped "+laptop.Name, func(d *status.Document) bool { return peerNamed(d, laptop.Name) == nil }))
	}
	laptop.Kill()
	beta.Kill()
	startAgainAmong(t, beta, alpha)
	must(t, late.Join(t.Context(), many))
	startAgainAmong(t, late, alpha, beta)
	out, err := alpha.Meshctl(bounded(t), "token", "list", "-f", "{{range .}}{{.uses}} {{.state}} {{.nodes}};{{end}}")
	must(t, err)
	if !strings.Contains(out, "1 used [gamma (revoked)];") {
		t.Errorf("the tokens are %s", out)
	}

	alpha.Kill() // who remembers, without having been told
	must(t, os.RemoveAll(laptop.StateDir()))
	more := []string{"seeds: [\"" + netip.AddrPortFrom(beta.Host.IPv4, gossipPort).String() + "\", \"" + netip.AddrPortFrom(late.Host.IPv4, gossipPort).String() + "\"]"}
	must(t, laptop.Configure(more...))
	must(t, laptop.Join(t.Context(), once))
	must(t, laptop.Start())
	for _, n := range []*cluster.Node{beta, late} {
		must(t, n.WaitFor(bounded(t), "to say that it does not admit "+laptop.Name, func(d *status.Document) bool {
			return strings.Contains(fmt.Sprint(d.Health), "is not admitted: its token was good for 1")
		}))
		if peerNamed(document(t, n), laptop.Name) != nil {
			t.Errorf("%s has admitted %s again", n.Name, laptop.Name)
		}
	}
	if d := document(t, laptop); d.State == mesh.Ready {
		t.Errorf("%s is %s with %s", laptop.Name, d.State, leasesOf(d))
	}
}
