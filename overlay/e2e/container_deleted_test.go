//go:build linux

package e2e

import (
	"testing"

	"meshd/overlay/attach"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/status"
)

// Containers that a network still has when it is deleted are cut off, and stand in
// nobody's way: not even when another network has the same range.
func TestContainersOfADeletedNetwork(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 2)
	alpha, beta := c.Nodes[0], c.Nodes[1]
	networks := func(want string, args ...string) {
		t.Helper()
		_, err := alpha.Meshctl(bounded(t), append([]string{"network"}, args...)...)
		must(t, err)
		for _, n := range c.Nodes {
			must(t, n.WaitFor(bounded(t), "to have the networks "+want, func(d *status.Document) bool { return networksOf(d) == want }))
		}
	}
	create := func(name string) {
		networks("default "+name, "create", name, "--ipv4", "10.87.0.0/23", "--ipv6", "none")
	}
	named := func(n *cluster.Node, name, network string) *cluster.Container {
		t.Helper()
		made := contain(t, n, name, network)
		answerByName(t, made)
		return made
	}
	create("web")
	left, right := named(alpha, "left", "web"), named(alpha, "right", "web")
	isAt(t, left, right.IPv4, right.Name)

	networks("default", "delete", "web", "--force")
	if err := cluster.Poll(bounded(t), func() (bool, error) {
		_, err := whoIs(t.Context(), left, right.IPv4)
		return err != nil, nil
	}); err != nil {
		t.Error("containers of a deleted network talk to each other")
	}
	a, err := alpha.Client().Attachment(bounded(t), left.ID)
	must(t, err)
	if a.State != attach.Stale {
		t.Errorf("its containers are %s, want %s", a.State, attach.Stale)
	}

	create("shop") // has two subnets, and either node one
	mine, fresh := named(alpha, "mine", "shop"), named(beta, "fresh", "shop")
	if mine.IPv4 != left.IPv4 && fresh.IPv4 != left.IPv4 {
		t.Errorf("containers at %s and %s: one should be where %s is", mine.IPv4, fresh.IPv4, left.IPv4)
	}
	host := &cluster.Container{Host: alpha.Host}
	for _, to := range []*cluster.Container{mine, fresh} {
		for _, from := range []*cluster.Container{mine, fresh, host} {
			isAt(t, from, to.IPv4, to.Name)
		}
		if to.IPv4 != left.IPv4 { // where it would find itself
			isSilent(t, left, to.IPv4)
		}
	}
	for _, from := range []*cluster.Container{left, mine, fresh, host} {
		isSilent(t, from, right.IPv4)
	}
}
