//go:build linux

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"meshd/overlay/attach"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/status"
)

// contain attaches a container to a network.
func contain(t *testing.T, n *cluster.Node, name, network string) *cluster.Container {
	t.Helper()
	c, err := n.Contain(bounded(t), name, attach.Ask{Network: network, Container: name})
	must(t, err)
	return c
}

// answerByName has a container tell whoever asks on TCP port 7 who it is.
func answerByName(t *testing.T, c *cluster.Container) {
	t.Helper()
	l, err := c.Listen(t.Context(), "tcp4", ":7")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(conn, c.Name)
			conn.Close()
		}
	}()
}

// whoIs asks the container at an address for its name.
func whoIs(ctx context.Context, from *cluster.Container, at netip.Addr) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp4", net.JoinHostPort(at.String(), "7"))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(io.LimitReader(conn, 100)).ReadString('\n')
	return strings.TrimSpace(line), err
}

// isAt waits until the container at an address is the one of that name.
func isAt(t *testing.T, from *cluster.Container, at netip.Addr, name string) {
	t.Helper()
	ctx := bounded(t)
	var got string
	err := cluster.Poll(ctx, func() (_ bool, err error) {
		got, err = whoIs(ctx, from, at)
		return got == name, err
	})
	if err != nil {
		t.Fatalf("%s asked who is at %s: %q, %v; want %s", from.Name, at, got, err, name)
	}
}

// isSilent fails if anybody answers there, whoever it is.
func isSilent(t *testing.T, from *cluster.Container, at netip.Addr) {
	t.Helper()
	if got, err := whoIs(t.Context(), from, at); err == nil {
		t.Errorf("%s asked who is at %s: %q answers, want nobody", from.Name, at, got)
	}
}

// stateInWeb is the state of a node's lease in the network web.
func stateInWeb(d *status.Document) string {
	for _, l := range d.Node.Leases {
		if l.Network == "web" {
			return l.State
		}
	}
	return ""
}

// contest has two nodes take one subnet, each with two containers, while a cable is
// cut. It gives the containers of the winner and those of the loser, and a witness
// elsewhere in the network.
func contest(t *testing.T, extra ...string) (witness *cluster.Container, won, lost [2]*cluster.Container) {
	t.Helper()
	c := newMesh(t, 3, extra...)
	alpha, rivals := c.Nodes[0], c.Nodes[1:]
	_, err := alpha.Meshctl(bounded(t), "network", "create", "web", "--ipv4", "10.87.0.0/23", "--ipv6", "none")
	must(t, err)
	for _, n := range c.Nodes {
		must(t, n.WaitFor(bounded(t), "to know the network", func(d *status.Document) bool { return networksOf(d) == "default web" }))
	}
	witness = contain(t, alpha, "witness", "web") // holds one of two subnets

	must(t, rivals[1].Host.LinkDown())
	var all [2][2]*cluster.Container
	for i, n := range rivals {
		for k := range 2 {
			all[i][k] = contain(t, n, fmt.Sprintf("%s%d", n.Name, k), "web")
			answerByName(t, all[i][k])
		}
		isAt(t, all[i][0], all[i][1].IPv4, all[i][1].Name)
	}
	if all[0][0].IPv4 != all[1][0].IPv4 {
		t.Fatalf("containers at %s and %s: they should have the same address", all[0][0].IPv4, all[1][0].IPv4)
	}
	must(t, rivals[1].Host.LinkUp())
	var states [2]string
	err = cluster.Poll(bounded(t), func() (bool, error) {
		for i, n := range rivals {
			states[i] = stateInWeb(document(t, n))
		}
		return (states[0] == "held") != (states[1] == "held"), nil
	})
	if err != nil {
		t.Fatalf("the rivals' leases are %v, want one of them held: %v", states, err)
	}
	if states[0] == "held" {
		return witness, all[0], all[1]
	}
	return witness, all[1], all[0]
}

// A node that has lost its subnet keeps it for its containers, which talk to each
// other and to nobody else, until the winner gives it back.
func TestContainersInQuarantine(t *testing.T) {
	t.Parallel()
	witness, won, lost := contest(t)
	loser := lost[0].Node
	isAt(t, witness, won[0].IPv4, won[0].Name) // both have this address
	isAt(t, lost[0], lost[1].IPv4, lost[1].Name)
	answerByName(t, witness)
	isAt(t, won[0], witness.IPv4, witness.Name)
	isSilent(t, lost[0], witness.IPv4)
	if d := document(t, loser); stateInWeb(d) != "quarantined" {
		t.Errorf("its lease is %q, want quarantined", stateInWeb(d))
	}
	a, err := loser.Client().Attachment(bounded(t), lost[0].ID)
	must(t, err)
	if a.State != attach.Local {
		t.Errorf("its containers are %s, want %s", a.State, attach.Local)
	}
	if extra := contain(t, loser, "extra", "web"); extra.State != attach.Local {
		t.Errorf("a new container is %s, want %s", extra.State, attach.Local)
	}

	for _, c := range won { // gone, and so is the use that the winner has for the subnet
		must(t, won[0].Node.Client().Detach(bounded(t), c.ID))
	}
	must(t, loser.WaitFor(bounded(t), "to have its subnet back", func(d *status.Document) bool { return stateInWeb(d) == "held" }))
	isAt(t, witness, lost[0].IPv4, lost[0].Name)
	isAt(t, lost[0], witness.IPv4, witness.Name)
}

// Where the loser has to take another subnet, its containers with addresses of the
// former one are cut off, say so, and get good addresses when they come anew.
func TestContainersOfARenumberedNode(t *testing.T) {
	t.Parallel()
	witness, won, lost := contest(t, "lease: {on_conflict: renumber}")
	loser := lost[0].Node
	answerByName(t, witness)
	isAt(t, witness, won[0].IPv4, won[0].Name)
	isAt(t, lost[0], lost[1].IPv4, lost[1].Name)
	isSilent(t, lost[0], witness.IPv4)
	a, err := loser.Client().Attachment(bounded(t), lost[0].ID)
	must(t, err)
	if a.State == attach.Live {
		t.Errorf("its containers are %s", a.State)
	}
	// The witness's subnet is given back, and the loser takes it.
	must(t, witness.Node.Client().Detach(bounded(t), witness.ID))
	must(t, loser.WaitFor(bounded(t), "to take another subnet", func(d *status.Document) bool { return stateInWeb(d) == "held" }))
	must(t, loser.WaitFor(bounded(t), "to tell of containers with old addresses", func(d *status.Document) bool {
		for _, f := range d.Health {
			if f.Code == "attachments_stale" {
				return true
			}
		}
		return false
	}))
	isAt(t, lost[0], lost[1].IPv4, lost[1].Name)
	anew := contain(t, loser, "anew", "web")
	answerByName(t, anew)
	isAt(t, won[0], anew.IPv4, anew.Name)
	isAt(t, anew, won[0].IPv4, won[0].Name)
	isSilent(t, lost[0], anew.IPv4)
}
