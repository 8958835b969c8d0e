//go:build linux

package e2e

import (
	"testing"

	"github.com/vishvananda/netlink"

	"meshd/overlay/attach"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/status"
)

// Containers keep their way into the mesh, whatever is taken from under them, and
// get it back after the daemon has cleared the host.
func TestContainersAreRepaired(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 2)
	alpha, beta := c.Nodes[0], c.Nodes[1]
	a0, a1, b := contain(t, alpha, "a0", ""), contain(t, alpha, "a1", ""), contain(t, beta, "b", "")
	routed, err := alpha.Contain(bounded(t), "routed", attach.Ask{Mode: attach.PTP})
	must(t, err)
	reaches := func(t *testing.T) {
		t.Helper()
		ctx := bounded(t)
		for _, from := range []*cluster.Container{a0, a1, routed} {
			for _, to := range []*cluster.Container{b, a0, routed} {
				if from == to {
					continue
				}
				if _, err := from.Await(ctx, to.IPv4); err != nil {
					t.Fatalf("%s to %s: %v", from.Name, to.Name, err)
				}
				if _, err := from.Await(ctx, to.IPv6); err != nil {
					t.Fatalf("%s to %s by IPv6: %v", from.Name, to.Name, err)
				}
			}
		}
	}
	reaches(t)
	onLink := func(name string, do func(netlink.Link) error) func() error {
		return func() error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			return do(l)
		}
	}
	for name, fault := range map[string]func() error{
		"the bridge removed":           onLink("mbr-default", netlink.LinkDel),
		"the bridge down":              onLink("mbr-default", netlink.LinkSetDown),
		"a link down":                  onLink(a0.HostLink, netlink.LinkSetDown),
		"a link without a bridge down": onLink(routed.HostLink, netlink.LinkSetDown),
		"a link taken off the bridge":  onLink(a0.HostLink, netlink.LinkSetNoMaster),
		"the bridge's addresses taken": onLink("mbr-default", flushAddresses),
	} {
		t.Run(name, func(t *testing.T) {
			must(t, alpha.Host.Do(fault))
			reaches(t)
		})
	}
	t.Run("killed and restarted", func(t *testing.T) {
		alpha.Kill()
		if _, err := a0.Ping(t.Context(), a1.IPv4); err != nil {
			t.Errorf("neighbours need the daemon: %v", err)
		}
		must(t, alpha.Start())
		reaches(t)
	})
	t.Run("down and up", func(t *testing.T) {
		_, err := alpha.Meshctl(bounded(t), "down")
		must(t, err)
		must(t, alpha.Process().Wait(bounded(t)))
		must(t, alpha.Start())
		reaches(t)
	})
	t.Run("killed and cleaned up", func(t *testing.T) {
		alpha.Kill()
		if out, code := runDaemon(t, alpha, "--cleanup"); code != 0 {
			t.Fatalf("meshd --cleanup exits %d: %s", code, out)
		}
		must(t, alpha.Start())
		reaches(t)
	})
	t.Run("a container that has gone", func(t *testing.T) {
		must(t, a1.End())
		if err := alpha.Client().Detach(bounded(t), a1.ID); err != nil {
			t.Errorf("detach what has gone: %v", err)
		}
		a1 = contain(t, alpha, "again", "")
		reaches(t)
		must(t, alpha.WaitFor(bounded(t), "to be healthy", func(d *status.Document) bool { return len(d.Health) == 0 }))
	})
}
