//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"meshd/overlay/e2e/cluster"
)

// Whatever somebody does to our part of a host's network, the daemon repairs,
// and meanwhile nothing leaves in clear text.
func TestRepair(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 2)
	alpha, beta := c.Nodes[0], c.Nodes[1]
	onLink := func(do func(netlink.Link) error) func() error {
		return func() error {
			l, err := netlink.LinkByName(meshLink)
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
		{"link renamed", onLink(renameLink)},
		{"link deleted again", onLink(netlink.LinkDel)},
		{"mtu changed", onLink(func(l netlink.Link) error { return netlink.LinkSetMTU(l, 9000) })},
	} {
		t.Run(damage.name, func(t *testing.T) {
			whole := ourNetwork(t, alpha.Host)
			marker := []byte("is this in clear text?")
			frames := capture(t, c.Nodes, func() {
				within(t, "repaired", repairWithin, func() time.Duration {
					must(t, alpha.Host.Do(damage.do))
					start := time.Now()
					for _, a := range addresses(t, beta) {
						_ = sendICMP(t.Context(), alpha.Host, a, marker) // it may work or not
					}
					err := cluster.Poll(bounded(t), func() (bool, error) {
						is := ourNetwork(t, alpha.Host)
						return slices.Equal(whole, is), fmt.Errorf("want %v, have %v", whole, is)
					})
					must(t, err)
					return time.Since(start)
				})
				must(t, c.WaitAllPairs(bounded(t)))
			})
			if framesContain(frames, marker) {
				t.Error("clear text on the underlay")
			}
		})
	}
}

func renameLink(l netlink.Link) error {
	return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, "other0"))
}
