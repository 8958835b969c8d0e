//go:build linux

package cluster

import (
	"errors"
	"slices"

	"meshd/overlay/e2e/lab"
)

// Filter has every node's host filter what arrives; one for which there is
// nothing to filter hears all again.
func (c *Cluster) Filter(of func(*Node) lab.Filter) error {
	var errs []error
	for _, n := range c.Nodes {
		errs = append(errs, n.Host.Filter(of(n)))
	}
	return errors.Join(errs...)
}

// Heal ends what [Cluster.Filter] and [Cluster.Part] have begun.
func (c *Cluster) Heal() error {
	return c.Filter(func(*Node) lab.Filter { return lab.Filter{} })
}

// Part keeps all others from hearing anything of the given nodes and, unless it
// is one-way, these from hearing the others. Among each other both go on.
func (c *Cluster) Part(from []*Node, oneWay bool) error {
	return c.Filter(func(n *Node) lab.Filter {
		var f lab.Filter
		inside := slices.Contains(from, n)
		if inside && oneWay {
			return f
		}
		for _, o := range c.Nodes {
			if slices.Contains(from, o) != inside {
				f.From = append(f.From, o.Host.IPv4, o.Host.IPv6)
			}
		}
		return f
	})
}
