//go:build linux

package e2e

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/status"
)

// networksOf lists the networks that a node knows.
func networksOf(d *status.Document) string {
	var names []string
	for _, n := range d.Networks {
		names = append(names, n.Name)
	}
	return strings.Join(names, " ")
}

// Networks are made and deleted where the CA key is, and the whole mesh has them
// within seconds, after restarts of all too.
func TestNetworks(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 3)
	alpha, beta, gamma := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	all := func(nodes []*cluster.Node, want string, bound time.Duration) {
		t.Helper()
		begin := time.Now()
		for _, n := range nodes {
			must(t, n.WaitFor(bounded(t), "to have the networks "+want, func(d *status.Document) bool { return networksOf(d) == want }))
		}
		if took := time.Since(begin); took > bound {
			t.Errorf("the networks %s took %s, want at most %s", want, took, bound)
		}
	}
	change := func(n *cluster.Node, args ...string) {
		t.Helper()
		out, err := n.Meshctl(bounded(t), append([]string{"network"}, args...)...)
		must(t, err)
		if !strings.Contains(out, "other nodes hear of it within seconds") {
			t.Errorf("network %s: %s", args, out)
		}
	}
	change(alpha, "create", "web", "--ipv4", "10.87.0.0/16")
	all(c.Nodes, "default web", 10*time.Second)
	// Any node will do, if it has the key.
	change(beta, "create", "db", "--ipv4", "10.88.0.0/16", "--ipv6", "none", "--ca", alpha.Dir+"/ca.key")
	all(c.Nodes, "default web db", 10*time.Second)
	list, err := gamma.Meshctl(bounded(t), "network", "list")
	must(t, err)
	for _, want := range []string{"default ", "10.86.0.0/16", "3 of 256", "web ", "10.87.0.0/16", "0 of 256", "db "} {
		if !strings.Contains(list, want) {
			t.Errorf("gamma lists\n%s\nwant %q", list, want)
		}
	}
	if out, err := gamma.Meshctl(bounded(t), "network", "create", "own", "--ipv4", "10.89.0.0/16"); err == nil || !strings.Contains(err.Error()+out, "ca.key") {
		t.Errorf("made without the key: %v %s", err, out)
	}

	t.Run("restart of all", func(t *testing.T) {
		for _, n := range c.Nodes {
			n.Kill()
		}
		for _, n := range c.Nodes { // each alone first, so that nobody can tell it
			must(t, n.Start())
			must(t, n.WaitFor(bounded(t), "to have kept the networks", func(d *status.Document) bool { return networksOf(d) == "default web db" }))
			n.Kill()
		}
	})
	t.Run("while some are away", func(t *testing.T) {
		must(t, alpha.Start())
		must(t, gamma.Start())
		must(t, cluster.WaitPairs(bounded(t), alpha, gamma))
		change(alpha, "delete", "web")
		all([]*cluster.Node{alpha, gamma}, "default db", 20*time.Second)
		must(t, beta.Start())
		all(c.Nodes, "default db", 20*time.Second)
		must(t, c.WaitAllPairs(bounded(t)))
	})
	t.Run("over an address of one host", func(t *testing.T) {
		lan := netip.MustParsePrefix("10.90.7.1/24")
		must(t, gamma.Host.AddAddress(lan))
		change(alpha, "create", "lan", "--ipv4", "10.90.0.0/16")
		all(c.Nodes, "default db lan", 10*time.Second)
		leftOut := func(d *status.Document) bool {
			return slices.ContainsFunc(d.Health, func(f status.Finding) bool { return f.Code == "network_left_out" })
		}
		must(t, gamma.WaitFor(bounded(t), "to leave the network out", leftOut))
		if leftOut(document(t, alpha)) {
			t.Error("alpha leaves it out as well")
		}
		must(t, gamma.Stop(bounded(t)))
		must(t, gamma.Start())
		must(t, c.WaitAllPairs(bounded(t)))
		must(t, gamma.WaitFor(bounded(t), "to leave the network out", leftOut))
		must(t, gamma.Host.RemoveAddress(lan))
		must(t, gamma.WaitFor(bounded(t), "to be well", func(d *status.Document) bool { return !leftOut(d) }))
	})
}
