//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/tun/hostnet"
)

const link = "mesh0"

// repairWithin is how soon our own part of a host's network is whole again.
const repairWithin = 2 * time.Second

// Whatever somebody does to our part of a host's network, the daemon repairs,
// and meanwhile nothing leaves in clear text.
func TestRepair(t *testing.T) {
	c := mesh(t, 2)
	alpha, beta := c.Nodes[0], c.Nodes[1]
	onLink := func(do func(netlink.Link) error) func() error {
		return func() error {
			l, err := netlink.LinkByName(link)
			if err != nil {
				return err
			}
			return do(l)
		}
	}
	for _, damage := range []struct {
		name string
		do   func() error
	}{
		{"routes flushed", flushRoutes},
		{"addresses flushed", onLink(flushAddresses)},
		{"link down", onLink(netlink.LinkSetDown)},
		{"link deleted", onLink(netlink.LinkDel)},
		{"link renamed", onLink(rename)},
		{"link deleted again", onLink(netlink.LinkDel)},
		{"mtu changed", onLink(func(l netlink.Link) error { return netlink.LinkSetMTU(l, 9000) })},
	} {
		t.Run(damage.name, func(t *testing.T) {
			whole := network(t, alpha.Host)
			marker := []byte("is this in clear text?")
			frames := capture(t, c, func() {
				within(t, "repaired", repairWithin, func() time.Duration {
					must(t, alpha.Host.Do(damage.do))
					start := time.Now()
					for _, a := range addresses(t, beta) {
						_ = sendICMP(t.Context(), alpha.Host, a, marker) // it may work or not
					}
					err := cluster.Poll(bounded(t), func() (bool, error) {
						is := network(t, alpha.Host)
						return slices.Equal(whole, is), fmt.Errorf("want %v, have %v", whole, is)
					})
					must(t, err)
					return time.Since(start)
				})
				must(t, c.WaitAllPairs(bounded(t)))
			})
			if contains(frames, marker) {
				t.Error("clear text on the underlay")
			}
		})
	}
}

// within measures how long something takes. The machine may be busy: only who is
// late a second time fails.
func within(t *testing.T, what string, bound time.Duration, measure func() time.Duration) {
	t.Helper()
	took := measure()
	t.Logf("%s after %.2f s", what, took.Seconds())
	if took <= bound {
		return
	}
	if again := measure(); again > bound {
		t.Errorf("%s after %s, and the second time after %s; want %s", what, took, again, bound)
	}
}

func rename(l netlink.Link) error {
	return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, "other0"))
}

func flushRoutes() error {
	routes, err := ourRoutes()
	for _, r := range routes {
		err = errors.Join(err, netlink.RouteDel(&r))
	}
	if len(routes) == 0 {
		err = errors.Join(err, errors.New("there are no routes to flush"))
	}
	return err
}

func flushAddresses(l netlink.Link) error {
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	for _, a := range addrs {
		err = errors.Join(err, netlink.AddrDel(l, &a))
	}
	return err
}

func ourRoutes() ([]netlink.Route, error) {
	return netlink.RouteListFiltered(netlink.FAMILY_ALL,
		&netlink.Route{Protocol: hostnet.RouteProtocol, Table: unix.RT_TABLE_UNSPEC},
		netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
}

// network lists our part of a host's network.
func network(t *testing.T, h *lab.Host) (all []string) {
	t.Helper()
	must(t, h.Do(func() error {
		routes, err := ourRoutes()
		if err != nil {
			return err
		}
		for _, r := range routes {
			all = append(all, fmt.Sprintf("route %s type %d src %s", r.Dst, r.Type, r.Src))
		}
		l, err := netlink.LinkByName(link)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		if err != nil {
			return err
		}
		all = append(all, fmt.Sprintf("link mtu %d up %t", l.Attrs().MTU, l.Attrs().RawFlags&unix.IFF_UP != 0))
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		for _, a := range addrs {
			if !a.IP.IsLinkLocalUnicast() {
				all = append(all, "address "+a.IPNet.String())
			}
		}
		return err
	}))
	slices.Sort(all)
	return all
}
