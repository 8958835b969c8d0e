//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/status"
)

// gossipPort is every daemon's, UDP and TCP.
const gossipPort = 51881

// meshLink is the daemons' TUN device.
const meshLink = "mesh0"

// layer is what a fault happens to. Two faults of different layers may happen at
// once.
type layer int

const (
	daemon layer = iota
	network
	kernel
)

// fault is a kind of thing that may happen.
type fault struct {
	name string
	at   layer
	draw func(*drawer) act
}

// act is a fault that was drawn: on whom, and for how long.
type act struct {
	name       string
	text       string        // a sentence about it
	last       time.Duration // from its begin to its end
	begin, end func(context.Context) error
	hurts      func(a, b *cluster.Node) bool // may packets between these get lost?
	moves      *cluster.Node                 // gets other addresses by it; nil: nobody does
}

// faults are all. What is not here cannot be done on this machine: see skipped.
var faults = []fault{
	{"kill", daemon, (*drawer).kill},
	{"restart", daemon, (*drawer).restart},
	{"freeze", daemon, (*drawer).freeze},
	{"disk", daemon, (*drawer).disk},
	{"rejoin", daemon, (*drawer).rejoin},
	{"revoke", daemon, (*drawer).revoke},
	{"renumber", daemon, (*drawer).renumber},
	{"gossip-key", daemon, (*drawer).gossipKey},
	{"tunnel-key", daemon, (*drawer).tunnelKey},
	{"partition", network, (*drawer).partition},
	{"one-way", network, (*drawer).oneWay},
	{"flapping", network, (*drawer).flapping},
	{"loss", network, (*drawer).loss},
	{"cable", network, (*drawer).cable},
	{"no-gossip", network, (*drawer).noGossip},
	{"tun", kernel, (*drawer).tun},
	{"flush", kernel, (*drawer).flush},
}

// skipped is what the list of faults has and this program does not do, and why.
var skipped = map[string]string{
	"clock":   "a namespace has no wall clock of its own; overlay/e2e.TestClocks and the simulator set clocks",
	"suspend": "the machine would sleep with us; the simulator suspends nodes",
	"delay":   "many kernels lack netem; the simulator delays and repeats packets",
}

func names() (all []string) {
	for _, f := range faults {
		all = append(all, f.name)
	}
	return all
}

func known(name string) bool { return slices.Contains(names(), name) }

// drawer draws an act.
type drawer struct {
	*rand.Rand
	*chaos
}

// drawStep draws what happens in a step: one fault, or two at once.
func (c *chaos) drawStep(step int) []act {
	d := &drawer{rand.New(rand.NewPCG(c.seed, uint64(step))), c}
	from := slices.DeleteFunc(slices.Clone(faults), func(f fault) bool {
		return c.only != "" && !slices.Contains(strings.Split(c.only, ","), f.name)
	})
	first := from[d.IntN(len(from))]
	acts := []act{d.act(first)}
	others := slices.DeleteFunc(from, func(f fault) bool { return f.at == first.at })
	if len(others) > 0 && d.Float64() < 0.2 {
		second := others[d.IntN(len(others))]
		both := append(acts, d.act(second))
		// Nodes that look for a subnet on two sides of a partition may take the same
		// one, until it heals: that is no violation, so it is not watched here.
		claims := slices.ContainsFunc(both, func(a act) bool { return a.moves != nil })
		if !claims || first.at != network && second.at != network {
			acts = both
		}
	}
	return acts
}

func (d *drawer) act(f fault) act {
	a := f.draw(d)
	a.name = f.name
	nothing := func(context.Context) error { return nil }
	if a.begin == nil {
		a.begin = nothing
	}
	if a.end == nil {
		a.end = nothing
	}
	return a
}

// between draws how long something lasts: longer than least only as far as the run
// has room for other faults.
func (d *drawer) between(least, most time.Duration) time.Duration {
	drawn := least + time.Duration(d.Int64N(int64(most-least))).Round(time.Millisecond)
	return max(least, min(drawn, d.longest()))
}

// longest is an eighth of the run. All that can be drawn has room in 5 min 20 s.
func (d *drawer) longest() time.Duration { return d.duration / 8 }

func (d *drawer) node() *cluster.Node { return d.Nodes[d.IntN(len(d.Nodes))] }

// ordinary draws a node that does not keep the CA's key.
func (d *drawer) ordinary() *cluster.Node { return d.Nodes[1+d.IntN(len(d.Nodes)-1)] }

// split draws two groups of nodes, none empty.
func (d *drawer) split() (a, b []*cluster.Node) {
	all := d.Perm(len(d.Nodes))
	n := 1 + d.IntN(len(all)-1)
	for i, k := range all {
		if i < n {
			a = append(a, d.Nodes[k])
		} else {
			b = append(b, d.Nodes[k])
		}
	}
	return a, b
}

func list(nodes []*cluster.Node) string {
	var out []string
	for _, n := range nodes {
		out = append(out, n.Name)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// with tells which pairs have a node.
func with(nodes ...*cluster.Node) func(a, b *cluster.Node) bool {
	return func(a, b *cluster.Node) bool { return slices.Contains(nodes, a) || slices.Contains(nodes, b) }
}

func nobody(_, _ *cluster.Node) bool { return false }

func (d *drawer) kill() act {
	n, down := d.node(), d.between(0, 5*time.Second)
	return act{
		text: fmt.Sprintf("%s: kill -9, and %s later it starts", n.Name, down), last: down, hurts: with(n),
		begin: func(context.Context) error { d.expectEnd(n); n.Kill(); return nil },
		end:   func(context.Context) error { return d.start(n) },
	}
}

func (d *drawer) restart() act {
	n, down := d.node(), d.between(0, time.Second)
	return act{
		text: fmt.Sprintf("%s: SIGTERM, and %s later it starts", n.Name, down), last: down, hurts: with(n),
		begin: func(ctx context.Context) error { d.expectEnd(n); return n.Stop(ctx) },
		end:   func(context.Context) error { return d.start(n) },
	}
}

func (d *drawer) freeze() act {
	n, down := d.node(), d.between(time.Second, 30*time.Second)
	return act{
		text: fmt.Sprintf("%s: SIGSTOP for %s", n.Name, down), last: down, hurts: with(n),
		begin: func(context.Context) error { return n.Process().Signal(unix.SIGSTOP) },
		end:   func(context.Context) error { return n.Process().Signal(unix.SIGCONT) },
	}
}

// disk hurts nobody: the data plane needs none.
func (d *drawer) disk() act {
	n, down := d.node(), d.between(2*time.Second, 10*time.Second)
	dir := n.StateDir()
	return act{
		text: fmt.Sprintf("%s: its disk is read-only for %s", n.Name, down), last: down, hurts: nobody,
		begin: func(context.Context) error {
			return n.Host.Do(func() error {
				return errors.Join(unix.Mount(dir, dir, "", unix.MS_BIND, ""), unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
			})
		},
		end: func(context.Context) error {
			return n.Host.Do(func() error { return unix.Unmount(dir, unix.MNT_DETACH) })
		},
	}
}

// rejoin lets a node leave, and its host come again as one that nobody knows.
func (d *drawer) rejoin() act {
	n := d.ordinary()
	return act{
		text: fmt.Sprintf("%s leaves; its host joins as another node", n.Name), hurts: with(n), moves: n,
		begin: func(ctx context.Context) error {
			d.expectEnd(n)
			if _, err := n.Meshctl(ctx, "leave"); err != nil {
				return err
			}
			<-n.Process().Done()
			return os.RemoveAll(n.StateDir())
		},
		end: func(ctx context.Context) error { return d.comeAnew(ctx, n) },
	}
}

// comeAnew has a host join as another node.
func (d *drawer) comeAnew(ctx context.Context, n *cluster.Node) error {
	token, err := d.Nodes[0].Token(ctx)
	if err == nil {
		err = n.Join(ctx, token)
	}
	if err == nil {
		err = d.start(n)
	}
	return err
}

// revoke throws a node out while its daemon runs on, and lets its host come again
// some time later.
func (d *drawer) revoke() act {
	n, last := d.ordinary(), d.between(revokedIn+2*time.Second, revokedIn+5*time.Second)
	var alone time.Time // from then on nobody may talk to it
	return act{
		text: fmt.Sprintf("%s is revoked; %s later its host joins as another node", n.Name, last), last: last, hurts: with(n), moves: n,
		begin: func(ctx context.Context) error {
			d.expectEnd(n)
			doc, err := n.Document(ctx)
			if err == nil {
				_, err = d.Nodes[0].Meshctl(ctx, "revoke", doc.Node.ID.String(), "--yes")
			}
			alone = time.Now().Add(revokedIn)
			return err
		},
		end: func(ctx context.Context) error {
			d.judgeRevoked(n, alone)
			n.Kill()
			if err := os.RemoveAll(n.StateDir()); err != nil {
				return err
			}
			return d.comeAnew(ctx, n)
		},
	}
}

func (d *drawer) renumber() act {
	n := d.node()
	return act{
		text: fmt.Sprintf("%s takes another subnet", n.Name), hurts: with(n), moves: n,
		begin: func(ctx context.Context) error {
			_, err := n.Meshctl(ctx, "lease", "renumber")
			return err
		},
	}
}

// gossipKey hurts nobody. It may not go while the last rotation does.
func (d *drawer) gossipKey() act {
	return act{
		text: "the gossip key is changed", last: 2 * time.Second, hurts: nobody,
		begin: func(ctx context.Context) error {
			d.rotations.drawn++
			out, err := d.Nodes[0].Meshctl(ctx, "keys", "rotate", "gossip", "--no-wait")
			switch {
			case err == nil:
				d.rotations.made++
				return nil
			case strings.Contains(err.Error(), status.ErrNotNow.Error()):
				d.say("      not now: %s %v", strings.TrimSpace(out), err)
				return nil
			}
			return err
		},
	}
}

func (d *drawer) tunnelKey() act {
	n := d.node()
	return act{
		text: fmt.Sprintf("%s: its tunnel key is changed", n.Name), hurts: with(n),
		begin: func(ctx context.Context) error {
			_, err := n.Meshctl(ctx, "keys", "rotate", "tunnel")
			return err
		},
	}
}
