//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"meshd/overlay/config"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/status"
)

const (
	// backWithin is how soon traffic flows when the cause of its loss has gone.
	backWithin = 3 * time.Second
	// faultFor outlasts a handshake's time and several probes.
	faultFor = 3 * time.Second
)

// fault is something bad that happens to a host, and its end.
type fault struct {
	name  string
	begin func() error
	end   func() error
	last  time.Duration // between the two
	stops bool          // traffic, until the end
}

// Whatever happens to the network below the mesh, the same daemon carries
// traffic soon after it is over, and nothing leaves in clear text meanwhile.
func TestRepairUnderlay(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 2)
	alpha, beta := c.Nodes[0], c.Nodes[1]
	h := alpha.Host
	for _, f := range []fault{
		{"cable pulled", h.LinkDown, h.LinkUp, faultFor, true},
		{"interface down and up, with its addresses", h.NICDown, func() error {
			return errors.Join(h.NICUp(t.Context()), h.Readdress())
		}, faultFor, true},
		{"interface down and up at once", h.NICDown, func() error {
			return errors.Join(h.NICUp(t.Context()), h.Readdress())
		}, 0, false},
		{"interface deleted and made anew", h.RemoveNIC, func() error { return h.ReplaceNIC(t.Context()) }, faultFor, true},
		{"IPv6 off", h.DisableIPv6, func() error {
			return errors.Join(h.EnableIPv6(), h.Readdress())
		}, faultFor, false},
		{"own subnet's route gone, then a default route", func() error { return h.Do(dropRoutes) }, func() error { return h.Do(addDefaultRoutes) }, faultFor, true},
		{"default route gone and back", func() error { return h.Do(dropRoutes) }, func() error { return h.Do(addDefaultRoutes) }, faultFor, true},
		{"sending refused (EPERM)", h.ForbidSending, h.PermitSending, faultFor, true},
		{"nothing fits into the queue", func() error { return h.Do(stopQueue) }, func() error { return h.Do(startQueue) }, faultFor, true},
		{"peers refuse (ICMP port unreachable)", func() error { beta.Kill(); return nil }, func() error {
			return errors.Join(beta.Start(), beta.WaitReady(bounded(t)))
		}, faultFor, true},
	} {
		t.Run(f.name, func(t *testing.T) { survive(t, c, f) })
	}
}

// IPv6 addresses that an interface lost by a bounce may stay lost.
func TestRepairWithoutIPv6Underlay(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 2)
	h := c.Nodes[0].Host
	survive(t, c, fault{"interface down and up, IPv6 addresses lost", h.NICDown, func() error { return h.NICUp(t.Context()) }, 0, false})
	survive(t, c, fault{"IPv6 off for good", h.DisableIPv6, func() error { return nil }, 0, false})
}

// The host moves to another address while traffic flows.
func TestRepairNewAddress(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 2)
	h := c.Nodes[0].Host
	survive(t, c, fault{"another address", func() error {
		return errors.Join(
			h.ReplaceAddress(netip.PrefixFrom(h.IPv4, 24), netip.MustParsePrefix("198.18.0.101/24")),
			h.ReplaceAddress(netip.PrefixFrom(h.IPv6, 64), netip.MustParsePrefix("fd00:198:18::101/64")))
	}, func() error { return nil }, 0, false})
	survive(t, c, fault{"and back", func() error {
		return errors.Join(
			h.ReplaceAddress(netip.MustParsePrefix("198.18.0.101/24"), netip.PrefixFrom(h.IPv4, 24)),
			h.ReplaceAddress(netip.MustParsePrefix("fd00:198:18::101/64"), netip.PrefixFrom(h.IPv6, 64)))
	}, func() error { return nil }, 0, false})
}

// survive lets a fault happen while traffic flows between the first two nodes in
// both directions and families.
func survive(t *testing.T, c *cluster.Cluster, f fault) {
	t.Helper()
	pid := pidOf(c.Nodes[0])
	within(t, f.name+": traffic flows", backWithin, func() (worst time.Duration) {
		var flows []*lab.Pings
		frames := capture(t, c.Nodes, func() {
			flows = allPings(t, c.Nodes[0], c.Nodes[1])
			for _, p := range flows {
				_, err := p.Flows(bounded(t), time.Now())
				must(t, err)
			}
			must(t, f.begin())
			time.Sleep(f.last)
			for _, p := range flows {
				if gap := p.Gap(); f.stops && gap < f.last-time.Second {
					t.Errorf("%s: the longest gap is %s: traffic did not stop, and this test proves nothing", f.name, gap)
				}
			}
			must(t, f.end())
			over := time.Now()
			for _, p := range flows {
				d, err := p.Flows(bounded(t), over)
				must(t, err)
				if d > time.Second {
					t.Logf("%s: %s waited %s; now %s", f.name, p, d, endpointsInUse(t, c))
				}
				worst = max(worst, d)
				p.Stop()
			}
		})
		for _, p := range flows {
			if framesContain(frames, p.Marker()) {
				t.Errorf("%s: clear text on the underlay", f.name)
			}
		}
		return worst
	})
	if now := pidOf(c.Nodes[0]); now != pid {
		t.Errorf("%s: the daemon was %d and is %d", f.name, pid, now)
	}
	must(t, cluster.WaitPairs(bounded(t), c.Nodes...))
	t.Logf("%s: gossip reaches the other node %.2f s after that", f.name, timeGossip(t, c.Nodes[0], c.Nodes[1]).Seconds())
	t.Logf("%s: and back after %.2f s", f.name, timeGossip(t, c.Nodes[1], c.Nodes[0]).Seconds())
}

// timeGossip has a node say something new, which only gossip carries, and tells how
// long it took until another one had heard of it.
func timeGossip(t *testing.T, from, to *cluster.Node) time.Duration {
	t.Helper()
	word := fmt.Sprintf("%x", randomBytes(8))
	must(t, from.Configure(fmt.Sprintf("node: {name: %s, labels: {said: %q}}", from.Name, word)))
	start := time.Now()
	_, err := from.Meshctl(bounded(t), "config", "reload")
	must(t, err)
	must(t, to.WaitFor(bounded(t), "to hear of "+from.Name, func(d *status.Document) bool {
		p, err := d.Find(from.Name)
		return err == nil && p.Labels["said"] == word
	}))
	return time.Since(start)
}

// endpointsInUse tells by which way the nodes reach each other.
func endpointsInUse(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	var all []string
	for _, n := range c.Nodes {
		for _, p := range document(t, n).Peers {
			if p.Endpoint != nil {
				all = append(all, fmt.Sprintf("%s reaches %s at %s", n.Name, p.Name, p.Endpoint))
			}
		}
	}
	return strings.Join(all, ", ")
}

// allPings begins pings between two nodes, in both directions and families.
func allPings(t *testing.T, a, b *cluster.Node) []*lab.Pings {
	t.Helper()
	var all []*lab.Pings
	for _, pair := range [][2]*cluster.Node{{a, b}, {b, a}} {
		for _, to := range addresses(t, pair[1]) {
			p, err := pair[0].Host.Pings(t.Context(), to, 20*time.Millisecond)
			must(t, err)
			all = append(all, p)
		}
	}
	return all
}

var defaultPrefixes = []*net.IPNet{ipNet(netip.MustParsePrefix("0.0.0.0/0")), ipNet(netip.MustParsePrefix("::/0"))}

// dropRoutes takes all routes by the network card, so that there is no way to
// anybody.
func dropRoutes() error {
	eth, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	routes, err := netlink.RouteList(eth, netlink.FAMILY_ALL)
	for _, r := range routes {
		if r.Dst.IP.IsLinkLocalUnicast() {
			continue // neighbours are found by these
		}
		err = errors.Join(err, netlink.RouteDel(&r))
	}
	return err
}

// addDefaultRoutes has the host reach everybody by a default route.
func addDefaultRoutes() error {
	eth, err := netlink.LinkByName("eth0")
	for _, dst := range defaultPrefixes {
		if err == nil {
			r := &netlink.Route{Dst: dst, LinkIndex: eth.Attrs().Index}
			if dst.IP.To4() != nil {
				r.Scope = netlink.SCOPE_LINK
			}
			err = netlink.RouteAdd(r)
		}
	}
	return err
}

// stopQueue puts a queue before the network card through which no packet fits.
func stopQueue() error {
	eth, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	return netlink.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: eth.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       1000, Limit: 1000, // bytes per second, bytes
		Buffer: uint32(60 * time.Millisecond / (64 * time.Nanosecond)), // 60 bytes: the kernel drops what is longer
	})
}

func startQueue() error {
	eth, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	return netlink.QdiscDel(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: eth.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
	})
}

// What can happen often costs no descriptor and no goroutine.
func TestRepairLeaksNothing(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 2)
	alpha := c.Nodes[0]
	h := alpha.Host
	onTUN := func(do func(netlink.Link) error) func() error {
		return func() error {
			return h.Do(func() error {
				l, err := netlink.LinkByName(meshLink)
				if err != nil {
					return err
				}
				return do(l)
			})
		}
	}
	for _, f := range []struct {
		name string
		do   func() error
	}{
		{"routes flushed", func() error { return h.Do(flushRoutes) }},
		{"addresses flushed", onTUN(flushAddresses)},
		{"link down", onTUN(netlink.LinkSetDown)},
		{"link deleted", onTUN(netlink.LinkDel)},
		{"interface bounced", func() error {
			return errors.Join(h.NICDown(), h.NICUp(t.Context()), h.Readdress())
		}},
		{"sending refused", func() error { return errors.Join(h.ForbidSending(), h.PermitSending()) }},
	} {
		t.Run(f.name, func(t *testing.T) {
			whole := ourNetwork(t, h)
			again := func() {
				must(t, f.do())
				must(t, cluster.Poll(bounded(t), func() (bool, error) {
					is := ourNetwork(t, h)
					return slices.Equal(whole, is), fmt.Errorf("want %v, have %v", whole, is)
				}))
			}
			again() // what is made once is made now
			must(t, c.WaitAllPairs(bounded(t)))
			before := resources(t, alpha)
			pid := pidOf(alpha)
			for range 10 {
				again()
			}
			must(t, c.WaitAllPairs(bounded(t)))
			var after holdings
			err := cluster.Poll(bounded(t), func() (bool, error) {
				after = resources(t, alpha)
				return after.descriptors <= before.descriptors+2 && after.goroutines <= before.goroutines+5,
					fmt.Errorf("%+v before, %+v after 10 times", before, after)
			})
			must(t, err)
			t.Logf("%+v before, %+v after 10 times", before, after)
			if now := pidOf(alpha); now != pid {
				t.Errorf("the daemon was %d and is %d", pid, now)
			}
		})
	}
}

// holdings is what a daemon holds.
type holdings struct{ descriptors, goroutines int }

func resources(t *testing.T, n *cluster.Node) holdings {
	t.Helper()
	u, err := n.Usage()
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	m, err := n.Metrics(ctx, fmt.Sprintf("127.0.0.1:%d", config.DefaultHTTPPort), "go_goroutines")
	must(t, err)
	return holdings{u.Descriptors, int(m["go_goroutines"])}
}
