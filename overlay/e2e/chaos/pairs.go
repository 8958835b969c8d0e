//go:build linux

package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
)

// pair is two nodes that ping each other: one by IPv4, the other by IPv6.
type pair struct {
	a, b  *cluster.Node
	flows []*lab.Pings
	// guarded by chaos.mu
	hurt  bool      // the fault under way may keep them apart
	since time.Time // from then on nothing may be lost while not hurt
}

// answerIn is how long an answer may take while all is well, on a machine that is
// busy: what is later counts as lost.
const answerIn = 4 * time.Second

// watchPair begins the pings between two nodes.
func (c *chaos) watchPair(ctx context.Context, a, b *cluster.Node) error {
	p := &pair{a: a, b: b}
	for i, way := range [][2]*cluster.Node{{a, b}, {b, a}} {
		to, err := way[1].Addresses(ctx)
		if err != nil {
			return err
		}
		if len(to) != 2 {
			return fmt.Errorf("%s has the addresses %s, and it should be one for each family", way[1].Name, to)
		}
		flow, err := way[0].Host.Pings(ctx, to[i], c.every)
		if err != nil {
			return err
		}
		p.flows = append(p.flows, flow)
	}
	p.since = time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pairs = append(c.pairs, p)
	return nil
}

func (c *chaos) stopPairs() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.pairs {
		p.stop()
	}
}

func (p *pair) stop() {
	for _, f := range p.flows {
		f.Stop()
	}
}

// follow has the pings go to a node's new addresses.
func (c *chaos) follow(ctx context.Context, n *cluster.Node) error {
	ctx2, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := n.WaitReady(ctx2); err != nil {
		return err
	}
	c.mu.Lock()
	var old []*pair
	c.pairs = slices.DeleteFunc(c.pairs, func(p *pair) bool {
		if p.a == n || p.b == n {
			old = append(old, p)
		}
		return p.a == n || p.b == n
	})
	c.mu.Unlock()
	for _, p := range old {
		p.stop()
	}
	for _, o := range c.Nodes {
		if o == n {
			continue
		}
		if err := c.watchPair(ctx, n, o); err != nil {
			return err
		}
		c.mu.Lock()
		c.pairs[len(c.pairs)-1].hurt = true
		c.mu.Unlock()
	}
	return nil
}

// judge looks whether the pair has lost anything up to a time, from when it was
// well. Called with mu.
func (p *pair) judge(c *chaos, to time.Time) {
	for _, f := range p.flows {
		lost, sent := f.Between(p.since, to)
		c.report.healthy(lost, sent)
		if lost > 0 {
			c.violateLocked("lost", "%s: %d of %d pings lost, and no fault is between these two", f, lost, sent)
		}
	}
	if to.After(p.since) {
		p.since = to
	}
}

// revokedIn is how long the others may still talk to a node that was revoked.
const revokedIn = 2 * time.Second

// judgeRevoked looks whether a node that was revoked has talked to anybody since.
func (c *chaos) judgeRevoked(n *cluster.Node, since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.pairs {
		if p.a != n && p.b != n {
			continue
		}
		for _, f := range p.flows {
			if lost, sent := f.Between(since, time.Now()); lost < sent {
				c.violateLocked("I8", "%s: %d of %d pings answered, sent more than %s after %s was revoked", f, sent-lost, sent, revokedIn, n.Name)
			}
		}
	}
}

// silent names a pair that the fault has hurt and that is not well for good since
// its end; empty: all are.
func (c *chaos) silent(ended time.Time) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for _, p := range c.pairs {
		if !p.hurt {
			continue
		}
		for _, f := range p.flows {
			// An answer of half a second ago should be here, and for another second
			// each had one.
			last := f.LastLost(ended, now.Add(-500*time.Millisecond))
			if _, sent := f.Between(ended, now.Add(-500*time.Millisecond)); sent < 3 || !last.IsZero() && now.Sub(last) < 1500*time.Millisecond {
				return fmt.Sprintf("%s gets no answers", f)
			}
		}
	}
	return ""
}

// excuse ends a fault: what the pairs lost that it has hurt is counted, and from
// now on they may not lose anything. It gives how long after its end traffic
// flowed again.
func (c *chaos) excuse(began, ended time.Time) (traffic time.Duration, lost, sent int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now().Add(-500 * time.Millisecond)
	for _, p := range c.pairs {
		if !p.hurt {
			continue
		}
		for _, f := range p.flows {
			l, s := f.Between(began.Add(-time.Second), now)
			lost, sent = lost+l, sent+s
			if last := f.LastLost(ended, now); !last.IsZero() {
				traffic = max(traffic, last.Add(c.every).Sub(ended))
			}
		}
		p.hurt, p.since = false, now
	}
	return traffic, lost, sent
}

func (c *chaos) judgePairs() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.pairs {
		if !p.hurt {
			p.judge(c, time.Now().Add(-answerIn))
		}
	}
}
