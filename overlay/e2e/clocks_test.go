//go:build linux

package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/status"
)

const day = 24 * time.Hour

// clockSetting is what a clock is set to, from what is right.
type clockSetting struct {
	name string
	by   time.Duration
	// silent: a daemon that starts with it has nothing by which to tell that it is wrong.
	silent bool
}

var (
	dayBack = clockSetting{"a day back", -day, false}

	someClocks = []clockSetting{{"a day ahead", day, true}, dayBack, {"ten years ahead", 3652 * day, false}}
	oldClocks  = []clockSetting{{"ten years back", -3652 * day, false}, {"1970", -time.Since(time.Unix(0, 0)), false}}
)

// handshakesWithin is how soon those who have lost their sessions have new ones,
// whatever the clock of one of them shows.
const handshakesWithin = 5 * time.Second

// lookOn is for how long packets are counted after a clock was set: an exchange of what
// members believe, and several looks at the clock, come in that time.
const lookOn = 3 * time.Second

// A clock that is set costs no packet, and whoever restarts meanwhile is soon back.
func TestClocks(t *testing.T) {
	t.Parallel()
	tryClocks(t, handshakesWithin, someClocks)
}

// The same; it is half of what takes a minute.
func TestClocksBack(t *testing.T) {
	t.Parallel()
	tryClocks(t, handshakesWithin, oldClocks)
}

// It dates handshakes by its clock alone, so those of a daemon that starts with an
// earlier one are refused, until its peers, who hear nothing of it for 15 seconds,
// begin one.
func TestClocksWireguardGo(t *testing.T) {
	t.Parallel()
	tryClocks(t, 20*time.Second, []clockSetting{dayBack}, "engine: wireguard-go")
}

func tryClocks(t *testing.T, restarted time.Duration, settings []clockSetting, config ...string) {
	t.Helper()
	c := cluster.ProgramsWithClocks(t).ForTest(t, hostNames(3), config...)
	formMesh(t, c)
	for _, to := range settings {
		t.Run(to.name, func(t *testing.T) { tryClock(t, c, to, restarted) })
	}
}

func tryClock(t *testing.T, c *cluster.Cluster, to clockSetting, restarted time.Duration) {
	t.Helper()
	peer, n := c.Nodes[0], c.Nodes[1]
	var flows []*lab.Pings
	for _, from := range c.Nodes {
		for _, to := range c.Nodes {
			if from == to {
				continue
			}
			for _, a := range addresses(t, to) {
				p, err := from.Host.Pings(t.Context(), a, 10*time.Millisecond)
				must(t, err)
				defer p.Stop()
				flows = append(flows, p)
			}
		}
	}
	flow := func() {
		t.Helper()
		now := time.Now()
		for _, p := range flows {
			_, err := p.Flows(bounded(t), now)
			must(t, err)
		}
	}
	flow()
	finds := func(want bool) {
		t.Helper()
		must(t, n.WaitFor(bounded(t), fmt.Sprintf("to report its clock: %t", want), func(d *status.Document) bool {
			return slices.ContainsFunc(d.Health, func(f status.Finding) bool { return f.Code == "clock" }) == want
		}))
	}
	set := func(by time.Duration) {
		t.Helper()
		begin := time.Now()
		must(t, n.SetClock(by))
		finds(by != 0)
		pause(t.Context(), lookOn)
		end := time.Now()
		flow()
		for _, p := range flows {
			if lost, sent := p.Between(begin, end); lost > 0 || sent < 100 {
				t.Errorf("its clock was set by %s: %s lost %d of %d", by, p, lost, sent)
			}
		}
	}
	restart := func(which *cluster.Node, name string, meanwhile func() error) {
		t.Helper()
		within(t, "traffic after a restart of "+name, restarted, func() (gap time.Duration) {
			must(t, which.Stop(bounded(t)))
			must(t, meanwhile())
			begin := time.Now()
			must(t, which.Start())
			for _, p := range flows {
				took, err := p.Flows(bounded(t), begin)
				must(t, err)
				gap = max(gap, took)
			}
			t.Logf("%s restarts: traffic again after %s", name, gap.Round(time.Millisecond))
			return gap
		})
		must(t, which.WaitReady(bounded(t)))
	}
	leases := leasesOf(document(t, n))
	set(to.by)
	restart(peer, "a peer", func() error { return nil })
	set(0)
	restart(n, "who has this clock", func() error { return n.SetClock(to.by) })
	finds(!to.silent)
	restart(n, "who has the right clock again", func() error { return n.SetClock(0) })
	finds(false)
	if now := leasesOf(document(t, n)); now != leases {
		t.Errorf("it had %s, and has %s", leases, now)
	}
}
