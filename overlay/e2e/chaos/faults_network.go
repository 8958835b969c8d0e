//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/tun/hostnet"
)

// apart parts the mesh.
func (c *chaos) apart(a []*cluster.Node, oneWay bool) func(context.Context) error {
	return func(context.Context) error { return c.Part(a, oneWay) }
}

func (c *chaos) heal(context.Context) error { return c.Heal() }

func across(a []*cluster.Node) func(x, y *cluster.Node) bool {
	return func(x, y *cluster.Node) bool { return slices.Contains(a, x) != slices.Contains(a, y) }
}

func (d *drawer) partition() act {
	a, b := d.split()
	last := d.between(time.Second, 40*time.Second)
	return act{
		text: fmt.Sprintf("partition for %s: %s | %s", last, list(a), list(b)), last: last, hurts: across(a),
		begin: d.apart(a, false), end: d.heal,
	}
}

func (d *drawer) oneWay() act {
	a, b := d.split()
	last := d.between(time.Second, 20*time.Second)
	return act{
		text: fmt.Sprintf("one-way partition for %s: nothing from %s to %s", last, list(a), list(b)), last: last, hurts: across(a),
		begin: d.apart(a, true), end: d.heal,
	}
}

func (d *drawer) flapping() act {
	a, b := d.split()
	var beats []time.Duration
	total, most := time.Duration(0), 2*(3+d.IntN(5))
	for len(beats) < most && (total < d.longest() || len(beats)%2 == 1) {
		beats = append(beats, d.between(100*time.Millisecond, 1500*time.Millisecond))
		total += beats[len(beats)-1]
	}
	return act{
		text: fmt.Sprintf("flapping, %d times: %s | %s", len(beats)/2, list(a), list(b)), hurts: across(a),
		begin: func(ctx context.Context) error {
			for i, beat := range beats {
				do := d.apart(a, false)
				if i%2 == 1 {
					do = d.heal
				}
				if err := do(ctx); err != nil {
					return err
				}
				if err := pause(ctx, beat); err != nil {
					return err
				}
			}
			return nil
		},
		end: d.heal,
	}
}

func (d *drawer) loss() act {
	some, _ := d.split()
	share, last := 0.05+0.45*d.Float64(), d.between(3*time.Second, 15*time.Second)
	return act{
		text: fmt.Sprintf("%.0f %% of what is sent to %s is lost, for %s", 100*share, list(some), last), last: last, hurts: with(some...),
		begin: func(context.Context) error {
			return d.Filter(func(n *cluster.Node) lab.Filter {
				if slices.Contains(some, n) {
					return lab.Filter{Loss: share}
				}
				return lab.Filter{}
			})
		},
		end: d.heal,
	}
}

func (d *drawer) cable() act {
	n, last := d.node(), d.between(100*time.Millisecond, 10*time.Second)
	return act{
		text: fmt.Sprintf("%s: the cable is out for %s", n.Name, last), last: last, hurts: with(n),
		begin: func(context.Context) error { return n.Host.LinkDown() },
		end:   func(context.Context) error { return n.Host.LinkUp() },
	}
}

// noGossip hurts nobody: tunnels need no gossip.
func (d *drawer) noGossip() act {
	last := d.between(5*time.Second, 30*time.Second)
	return act{
		text: fmt.Sprintf("nothing of gossip gets through for %s", last), last: last, hurts: nobody,
		begin: func(context.Context) error {
			return d.Filter(func(*cluster.Node) lab.Filter { return lab.Filter{Ports: []uint16{gossipPort}} })
		},
		end: d.heal,
	}
}

func (d *drawer) tun() act {
	n := d.node()
	what, do := "deleted", netlink.LinkDel
	if d.IntN(2) == 0 {
		what, do = "set down", netlink.LinkSetDown
	}
	return act{
		text: fmt.Sprintf("%s: the TUN device is %s", n.Name, what), hurts: with(n),
		begin: func(context.Context) error {
			return n.Host.Do(func() error {
				l, err := netlink.LinkByName(meshLink)
				if errors.As(err, new(netlink.LinkNotFoundError)) {
					return nil // the daemon is dead: that is another fault
				}
				if err != nil {
					return err
				}
				return do(l)
			})
		},
	}
}

func (d *drawer) flush() act {
	n := d.node()
	return act{
		text: fmt.Sprintf("%s: our routes are flushed", n.Name), hurts: with(n),
		begin: func(context.Context) error {
			return n.Host.Do(func() error {
				routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL,
					&netlink.Route{Protocol: hostnet.RouteProtocol, Table: unix.RT_TABLE_UNSPEC},
					netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
				for _, r := range routes {
					if delErr := netlink.RouteDel(&r); !errors.Is(delErr, unix.ESRCH) { // the daemon ends just now
						err = errors.Join(err, delErr)
					}
				}
				return err
			})
		},
	}
}

// addressesOn lists what a host's kernel has of the mesh.
func addressesOn(h *lab.Host) (all []netip.Addr, err error) {
	err = h.Do(func() error {
		l, err := netlink.LinkByName(meshLink)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		for _, a := range addrs {
			ip, _ := netip.AddrFromSlice(a.IP)
			if !ip.IsLinkLocalUnicast() {
				all = append(all, ip.Unmap())
			}
		}
		return err
	})
	return all, err
}
