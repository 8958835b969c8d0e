//go:build linux

package e2e

import (
	"maps"
	"path/filepath"
	"strings"
	"testing"

	"meshd/mesh/statedir"
	"meshd/overlay/e2e/cluster"
)

// State and tokens of another mesh do not fit.
func TestForeignStateAndToken(t *testing.T) {
	t.Parallel()
	c := hosts(t, 3)
	alpha, beta, gamma := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	for _, n := range []*cluster.Node{alpha, beta} {
		_, err := n.Meshctl(t.Context(), "init", "--name", "lab")
		must(t, err)
	}
	token, err := alpha.Token(t.Context())
	must(t, err)
	// beta's own CA makes no tokens for alpha's mesh.
	ca := filepath.Join(beta.Dir, "ca.key")
	if _, err := alpha.Meshctl(t.Context(), "token", "create", "--ca", ca); exitCode(err) != 65 || !strings.Contains(err.Error(), "another mesh") {
		t.Errorf("token create with another CA: %v", err)
	}
	// Whoever is a member joins no other mesh.
	before := hashFiles(t, beta.StateDir())
	if err := beta.Join(t.Context(), token); exitCode(err) != 65 {
		t.Errorf("join by a member: %v", err)
	}
	if !maps.Equal(hashFiles(t, beta.StateDir()), before) {
		t.Error("that changed its state")
	}
	// A node with the membership of one mesh and the gossip key of another one
	// hears nobody, and harms nobody.
	must(t, gamma.Join(t.Context(), token))
	dir, err := statedir.Open(gamma.StateDir())
	must(t, err)
	other, err := statedir.Open(beta.StateDir())
	must(t, err)
	m := dir.Membership()
	m.Charter = other.Membership().Charter
	must(t, dir.SaveMembership(m))
	if out, code := runDaemon(t, gamma); code != 65 || !strings.Contains(out, filepath.Join(gamma.StateDir(), "mesh")) {
		t.Errorf("with the charter of another mesh it exits %d: %s", code, out)
	}
}
