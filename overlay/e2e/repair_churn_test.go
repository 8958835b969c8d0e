//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/overlay/e2e/cluster"
)

const (
	churnFor = 5 * time.Second
	// cpuOfChurn bounds what that costs. Most of it is reading what the kernel
	// tells, some 40 microseconds for each of thousands of messages.
	cpuOfChurn = time.Second
)

// A host whose links and routes never rest, as one that starts containers or
// speaks BGP, costs the daemon next to nothing, and is repaired as soon.
func TestRepairUnderChurn(t *testing.T) {
	c := newMesh(t, 2)
	alpha := c.Nodes[0]
	must(t, alpha.Host.Do(fillTable))
	for _, churn := range []struct {
		name string
		turn func(int) error
	}{
		{"links", addAndDeleteVeth},
		{"routes of another table", changeRoute(otherTable)},
		{"routes of the main table", changeRoute(unix.RT_TABLE_MAIN)},
	} {
		t.Run(churn.name, func(t *testing.T) {
			whole := ourNetwork(t, alpha.Host)
			within(t, "the CPU time for "+churnFor.String()+" of churn was there", cpuOfChurn, func() time.Duration {
				used, turns := churned(t, alpha, churn.turn, func() { pause(t.Context(), churnFor) })
				t.Logf("%d turns in %s cost the daemon %s", turns, churnFor, used)
				return used
			})
			within(t, "repaired", repairWithin, func() (took time.Duration) {
				churned(t, alpha, churn.turn, func() {
					pause(t.Context(), 2*time.Second) // until looks are as rare as they get
					must(t, alpha.Host.Do(func() error {
						l, err := netlink.LinkByName(meshLink)
						if err != nil {
							return err
						}
						return netlink.LinkSetDown(l)
					}))
					start := time.Now()
					must(t, cluster.Poll(bounded(t), func() (bool, error) {
						is := ourNetwork(t, alpha.Host)
						return slices.Equal(whole, is), fmt.Errorf("want %v, have %v", whole, is)
					}))
					took = time.Since(start)
				})
				return took
			})
		})
	}
}

// churned lets a host churn while do runs, and tells what that cost its daemon.
func churned(t *testing.T, n *cluster.Node, turn func(int) error, do func()) (cpu time.Duration, turns int) {
	t.Helper()
	before, err := n.Usage()
	must(t, err)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if err := n.Host.Do(func() error { return turn(turns) }); err != nil {
				ended <- err
				return
			}
			turns++
			time.Sleep(time.Millisecond) // lets others use the host
		}
		ended <- nil
	}()
	do()
	stop()
	must(t, <-ended)
	after, err := n.Usage()
	must(t, err)
	return after.CPU - before.CPU, turns
}

// otherTable is a table to which no rule leads.
const otherTable = 1000

// fillTable gives the host 10 000 routes that do not concern it.
func fillTable() error {
	for i := range 10_000 {
		if err := netlink.RouteAdd(testRoute(otherTable, 10_000+i)); err != nil {
			return err
		}
	}
	return nil
}

func testRoute(table, i int) *netlink.Route {
	return &netlink.Route{
		LinkIndex: loopback, Table: table, Scope: netlink.SCOPE_LINK,
		Dst: &net.IPNet{IP: net.IPv4(100, 64+byte(i>>16), byte(i>>8), byte(i)).To4(), Mask: net.CIDRMask(32, 32)},
	}
}

func changeRoute(table int) func(int) error {
	return func(i int) error {
		r := testRoute(table, i%1000)
		return errors.Join(netlink.RouteAdd(r), netlink.RouteDel(r))
	}
}

func addAndDeleteVeth(i int) error {
	v := netlink.NewVeth(netlink.LinkAttrs{Name: fmt.Sprintf("veth%da", i)})
	v.PeerName = fmt.Sprintf("veth%db", i)
	return errors.Join(netlink.LinkAdd(v), netlink.LinkSetUp(v), netlink.LinkDel(v))
}
