//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"meshd/mesh"
	"meshd/overlay/config"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/status"
)

// watch begins all that looks on while faults happen; stop ends it, and what
// looks at the wire has the last word.
func (c *chaos) watch(ctx context.Context) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	var wires []*lab.Watch
	stop = func() {
		cancel()
		tasks.Wait()
		for _, w := range wires {
			w.Stop()
		}
	}
	ranges, err := c.ranges(ctx)
	if err != nil {
		stop()
		return nil, err
	}
	var frames atomic.Int64
	for _, n := range c.Nodes {
		w, err := n.Host.Watch(func(frame []byte) {
			frames.Add(1)
			if a, found := inner(frame, ranges); found {
				c.violate("I3", "a packet of %s crosses the underlay of %s in clear text", a, n.Name)
			}
		})
		if err != nil {
			stop()
			return nil, err
		}
		wires = append(wires, w)
	}
	c.report.frames = &frames
	every := func(d time.Duration, look func(context.Context)) {
		tasks.Go(func() {
			for tick := time.NewTicker(d); ; {
				select {
				case <-tick.C:
					look(ctx)
				case <-ctx.Done():
					tick.Stop()
					return
				}
			}
		})
	}
	every(500*time.Millisecond, func(context.Context) { c.judgePairs() })
	every(time.Second, c.judgeOwners)
	every(2*time.Second, func(context.Context) { c.judgeDaemons() })
	return stop, nil
}

// judgeRotations looks whether all nodes have come to send with the gossip key of
// the last rotation.
func (c *chaos) judgeRotations(ctx context.Context) {
	if c.rotations.drawn == 0 {
		return
	}
	if c.rotations.made == 0 {
		c.violate("I6", "the gossip key was to be changed %d times, and never was", c.rotations.drawn)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	missing := "nobody was asked"
	err := cluster.Poll(ctx, func() (bool, error) {
		missing = c.behindRotations(ctx)
		return missing == "", errors.New(missing)
	})
	if err != nil {
		c.violate("I6", "the gossip key was changed %d times: %s", c.rotations.made, missing)
	}
}

// behindRotations names a node that does not send with the newest gossip key;
// empty: all do. Each rotation is a generation.
func (c *chaos) behindRotations(ctx context.Context) string {
	documents := c.documents(ctx)
	for _, n := range c.Nodes {
		d := documents[n]
		switch {
		case d == nil:
			return fmt.Sprintf("%s does not answer", n.Name)
		case d.Node.GossipKey == nil:
			return fmt.Sprintf("%s sends with the first one", n.Name)
		case d.Node.GossipKey.Sends < uint64(c.rotations.made):
			return fmt.Sprintf("%s sends with that of the change %d", n.Name, d.Node.GossipKey.Sends)
		}
	}
	return ""
}

// documents asks all daemons at once; who does not answer soon is left out.
func (c *chaos) documents(ctx context.Context) map[*cluster.Node]*status.Document {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var mu sync.Mutex
	var asked sync.WaitGroup
	all := map[*cluster.Node]*status.Document{}
	for _, n := range c.Nodes {
		asked.Go(func() {
			if d, err := n.Document(ctx); err == nil {
				mu.Lock()
				defer mu.Unlock()
				all[n] = d
			}
		})
	}
	asked.Wait()
	return all
}

func held(leases []status.Lease) (all []netip.Prefix) {
	for _, l := range leases {
		if l.State == mesh.Held.String() {
			all = append(all, l.Prefixes...)
		}
	}
	return all
}

// judgeOwners looks for what two have: in the kernels, in what the daemons say of
// themselves, and in the table of any one of them.
func (c *chaos) judgeOwners(ctx context.Context) {
	owner := map[netip.Addr]string{}
	for _, n := range c.Nodes {
		addresses, err := addressesOn(n.Host)
		if err != nil {
			continue // the link goes just now
		}
		for _, a := range addresses {
			if other := owner[a]; other != "" {
				c.violate("I1", "%s and %s both have the address %s", other, n.Name, a)
			}
			owner[a] = n.Name
		}
	}
	owners := map[netip.Prefix]string{}
	for n, d := range c.documents(ctx) {
		for _, p := range held(d.Node.Leases) {
			if other := owners[p]; other != "" {
				c.violate("I1", "%s and %s both hold %s", other, n.Name, p)
			}
			owners[p] = n.Name
		}
		table := map[netip.Prefix]string{}
		for _, peer := range d.Peers {
			for _, p := range held(peer.Leases) {
				if other := table[p]; other != "" {
					c.violate("I1", "in the table of %s, %s and %s both hold %s", n.Name, other, peer.Name, p)
				}
				table[p] = peer.Name
			}
		}
	}
}

// disagreement says what is missing until all are ready and see the same owners;
// empty: nothing.
func (c *chaos) disagreement(ctx context.Context) string {
	documents := c.documents(ctx)
	leases := map[mesh.NodeID][]netip.Prefix{}
	for _, n := range c.Nodes {
		d := documents[n]
		switch {
		case d == nil:
			return fmt.Sprintf("%s does not answer", n.Name)
		case d.State != mesh.Ready:
			return fmt.Sprintf("%s is %s", n.Name, d.State)
		}
		for _, f := range d.Health {
			if f.Level == "error" {
				return fmt.Sprintf("%s says %s: %s", n.Name, f.Code, f.Message)
			}
		}
		leases[d.Node.ID] = held(d.Node.Leases)
	}
	for n, d := range documents {
		for id, want := range leases {
			if id == d.Node.ID {
				continue
			}
			i := slices.IndexFunc(d.Peers, func(p status.Peer) bool { return p.ID == id })
			if i < 0 {
				return fmt.Sprintf("%s does not know %s", n.Name, id.Short())
			}
			if have := held(d.Peers[i].Leases); !slices.Equal(have, want) {
				return fmt.Sprintf("%s sees %s with %s, who has %s", n.Name, d.Peers[i].Name, have, want)
			}
		}
	}
	return ""
}

// demand is what a daemon takes of its machine.
type demand struct {
	RSS         int   `json:"rss"` // bytes
	Descriptors int   `json:"descriptors"`
	Goroutines  int   `json:"goroutines"`
	Log         int64 `json:"log"` // bytes
}

func demandOf(ctx context.Context, n *cluster.Node) (demand, error) {
	u, err := n.Usage()
	if err != nil {
		return demand{}, err
	}
	m, err := n.Metrics(ctx, fmt.Sprintf("127.0.0.1:%d", config.DefaultHTTPPort), "go_goroutines")
	return demand{u.RSS, u.Descriptors, int(m["go_goroutines"]), logSize(n)}, err
}

// What a daemon may take while faults happen, and what more than before them when
// they are over.
const (
	mostRSS         = 128 << 20
	mostDescriptors = 512
	mostLog         = 64 << 10 // a minute: some 300 lines, with faults every few seconds
	moreRSS         = 24 << 20
	moreDescriptors = 10
	moreGoroutines  = 20
)

// judgeDaemons looks at what the daemons take, and that they live.
func (c *chaos) judgeDaemons() {
	for _, n := range c.Nodes {
		c.mu.Lock()
		mayEnd := c.ends[n]
		c.mu.Unlock()
		if mayEnd {
			continue
		}
		select {
		case <-n.Process().Done():
			c.violate("I6", "the daemon of %s has ended: %v", n.Name, n.Process().Wait(context.Background()))
			continue
		default:
		}
		u, err := n.Usage()
		if err != nil {
			continue // it ends just now
		}
		if u.RSS > mostRSS || u.Descriptors > mostDescriptors {
			c.violate("I6", "%s has %d MiB and %d descriptors", n.Name, u.RSS>>20, u.Descriptors)
		}
	}
}

// calm waits until the daemons have given back what the faults took.
func (c *chaos) calm(ctx context.Context) error {
	c.mu.Lock()
	c.doing = "the faults are over"
	c.mu.Unlock()
	if err := pause(ctx, answerIn+time.Second); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var most demand // before
	for _, d := range c.base {
		most.RSS, most.Descriptors, most.Goroutines = max(most.RSS, d.RSS), max(most.Descriptors, d.Descriptors), max(most.Goroutines, d.Goroutines)
	}
	var left []string
	err := cluster.Poll(bounded, func() (bool, error) {
		left = nil
		after := demand{}
		for _, n := range c.Nodes {
			d, err := demandOf(bounded, n)
			if err != nil {
				return false, err
			}
			after.RSS, after.Descriptors, after.Goroutines = max(after.RSS, d.RSS), max(after.Descriptors, d.Descriptors), max(after.Goroutines, d.Goroutines)
			after.Log = max(after.Log, d.Log-c.base[n].Log)
			if d.RSS > most.RSS+moreRSS || d.Descriptors > most.Descriptors+moreDescriptors || d.Goroutines > most.Goroutines+moreGoroutines {
				left = append(left, fmt.Sprintf("%s has %.1f MiB, %d descriptors and %d goroutines", n.Name, float64(d.RSS)/(1<<20), d.Descriptors, d.Goroutines))
			}
		}
		c.report.Before, c.report.After = most, after
		return len(left) == 0, errors.New(strings.Join(left, ", "))
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		c.violate("I6", "not given back, with at most %.1f MiB, %d descriptors and %d goroutines before: %v",
			float64(most.RSS)/(1<<20), most.Descriptors, most.Goroutines, strings.Join(left, ", "))
	}
	for _, n := range c.Nodes {
		minutes := max(1, time.Since(c.begin).Minutes())
		if grew := logSize(n) - c.base[n].Log; float64(grew) > mostLog*minutes {
			c.violate("logs", "%s has logged %d KiB in %.1f minutes", n.Name, grew>>10, minutes)
		}
		for _, bad := range []string{"DATA RACE", "panic:", "fatal error:", "SIGSEGV"} {
			if strings.Contains(n.Log(), bad) {
				c.violate("I6", "%s logged: %s", n.Name, bad)
			}
		}
	}
	return nil
}
