//go:build linux

// Package cluster runs a mesh of real daemons, one on each host of a lab, in
// the way a person would: with the programs, configuration files and tokens.
//
// Each node has a directory of its own for its configuration, state, control
// socket and log. Waiting is done on the control sockets and with pings; there
// is no other knowledge of what the daemons do.
//
// The owner calls [Cluster.Close].
package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"meshd/overlay/e2e/lab"
)

// Cluster is a mesh on a lab.
type Cluster struct {
	Lab   *lab.Lab // fixed at construction
	Nodes []*Node  // in the order of New, then of Another
	Dir   string   // fixed at construction: all files are below it
	bin   Binaries // fixed at construction
}

// New builds a lab with the named hosts and writes their configuration files.
// No node is in a mesh yet. Each line of extra is one more of the files.
func New(ctx context.Context, bin Binaries, names []string, extra ...string) (*Cluster, error) {
	l, err := lab.New(ctx, names...)
	if err != nil {
		return nil, err
	}
	return On(l, bin, extra...)
}

// On is [New] on a lab that is there, which it closes if there is an error, and in
// [Cluster.Close].
func On(l *lab.Lab, bin Binaries, extra ...string) (*Cluster, error) {
	dir, err := os.MkdirTemp("", "meshd-")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make directory: %w", err), l.Close())
	}
	c := &Cluster{Lab: l, Dir: dir, bin: bin}
	for _, h := range c.Lab.Hosts() {
		n := &Node{Name: h.Name, Host: h, Dir: filepath.Join(dir, h.Name), bin: bin}
		c.Nodes = append(c.Nodes, n)
		if err := n.configure(extra); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

// Close kills the daemons and removes the lab and the files. Its error says
// what should not have been there.
func (c *Cluster) Close() error {
	return errors.Join(c.Lab.Close(), os.RemoveAll(c.Dir))
}

// Node finds a node by its name; it panics if there is none.
func (c *Cluster) Node(name string) *Node {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	panic("cluster has no node " + name)
}

// Another adds a node on the host of one that is there, with a directory of its
// own. Its daemon can run when that one's does not.
func (c *Cluster) Another(on *Node) (*Node, error) {
	n := &Node{Name: on.Name, Host: on.Host, Dir: fmt.Sprintf("%s-%d", on.Dir, len(c.Nodes)), bin: c.bin}
	if err := n.configure(nil); err != nil {
		return nil, err
	}
	c.Nodes = append(c.Nodes, n)
	return n, nil
}

// Init makes the mesh on the first node and lets the others join it.
func (c *Cluster) Init(ctx context.Context, args ...string) error {
	first := c.Nodes[0]
	if _, err := first.Meshctl(ctx, append([]string{"init", "--name", "lab"}, args...)...); err != nil {
		return err
	}
	if len(c.Nodes) == 1 {
		return nil
	}
	token, err := first.Token(ctx, "--uses", fmt.Sprint(len(c.Nodes)-1))
	if err != nil {
		return err
	}
	for _, n := range c.Nodes[1:] {
		if err := n.Join(ctx, token); err != nil {
			return err
		}
	}
	return nil
}

// Start starts the daemons of all nodes.
func (c *Cluster) Start() error {
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			return err
		}
	}
	return nil
}

// WaitReady waits until every node says that it is ready.
func (c *Cluster) WaitReady(ctx context.Context) error { return waitReady(ctx, c.Nodes) }

func waitReady(ctx context.Context, nodes []*Node) error {
	return each(ctx, nodes, func(ctx context.Context, n *Node) error { return n.WaitReady(ctx) })
}

// WaitAllPairs waits until every node is ready and each one's own addresses, of
// both families, answer a ping from every other node.
func (c *Cluster) WaitAllPairs(ctx context.Context) error { return WaitPairs(ctx, c.Nodes...) }

// WaitPairs is [Cluster.WaitAllPairs] among some nodes.
func WaitPairs(ctx context.Context, nodes ...*Node) error {
	if err := waitReady(ctx, nodes); err != nil {
		return err
	}
	return each(ctx, nodes, func(ctx context.Context, to *Node) error {
		addrs, err := to.Addresses(ctx)
		if err != nil {
			return err
		}
		for _, from := range nodes {
			if from == to {
				continue
			}
			for _, a := range addrs {
				if _, err := from.Host.Await(ctx, a); err != nil {
					return fmt.Errorf("reach %s: %w", to.Name, err)
				}
			}
		}
		return nil
	})
}

// each does the same for all nodes at once. The first error ends the others.
func each(ctx context.Context, nodes []*Node, do func(context.Context, *Node) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var tasks sync.WaitGroup
	var once sync.Once
	var first error
	for _, n := range nodes {
		tasks.Go(func() {
			if err := do(ctx, n); err != nil {
				once.Do(func() { first = err })
				cancel()
			}
		})
	}
	tasks.Wait()
	return first
}

// Poll asks twenty times a second until the answer is yes.
func Poll(ctx context.Context, ask func() (bool, error)) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		yes, err := ask()
		if yes {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

// Logs gives what the daemons have logged, at most the last lines of each.
func (c *Cluster) Logs(lines int) string {
	var b strings.Builder
	for _, n := range c.Nodes {
		all := strings.Split(strings.TrimSpace(n.Log()), "\n")
		fmt.Fprintf(&b, "--- log of %s (%d lines)\n%s\n", n.Name, len(all), strings.Join(all[max(0, len(all)-lines):], "\n"))
	}
	return b.String()
}
