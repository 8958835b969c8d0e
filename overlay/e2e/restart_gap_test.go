//go:build linux

package e2e

import (
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
)

const (
	restartsEach = 10
	// gapWithin is how long a restart of a daemon may keep traffic from its host.
	gapWithin = time.Second
	// upWithin is how long a daemon that was a member before may take from its
	// start until it tells systemd that it is ready.
	upWithin = 500 * time.Millisecond
)

// A restart, planned or not, costs little traffic, and the daemon is soon ready.
// MESHD_RUNS says how often each.
func TestRestartGap(t *testing.T) {
	runs := restartsEach
	if text := os.Getenv("MESHD_RUNS"); text != "" {
		var err error
		runs, err = strconv.Atoi(text)
		must(t, err)
	}
	c := newMesh(t, 3)
	beta := c.Nodes[1]
	systemd := listenNotify(t, beta)
	for _, r := range []struct {
		name string
		stop func()
	}{
		{"SIGTERM", func() { must(t, beta.Stop(bounded(t))) }},
		{"kill -9", beta.Kill},
	} {
		t.Run(r.name, func(t *testing.T) {
			var gaps, ups []time.Duration
			for range runs {
				// One bound each, so that the run which is late is the one that is done again.
				within(t, "traffic again", gapWithin, func() time.Duration {
					gap, up := restartUnderTraffic(t, c, beta, r.stop, systemd)
					gaps, ups = append(gaps, gap), append(ups, up)
					return gap
				})
			}
			t.Logf("gap in traffic: %s", medianAndMax(gaps))
			t.Logf("start to READY: %s", medianAndMax(ups))
			slices.Sort(ups)
			if m := ups[len(ups)/2]; m > upWithin {
				within(t, "ready", upWithin, func() time.Duration {
					_, up := restartUnderTraffic(t, c, beta, r.stop, systemd)
					return up
				})
			}
		})
	}
}

// restartUnderTraffic restarts a daemon while all others ping its host every 10
// milliseconds, in both families.
func restartUnderTraffic(t *testing.T, c *cluster.Cluster, n *cluster.Node, stop func(), systemd notices) (gap, up time.Duration) {
	t.Helper()
	var flows []*lab.Pings
	for _, other := range c.Nodes {
		if other == n {
			continue
		}
		for _, a := range addresses(t, n) {
			p, err := other.Host.Pings(t.Context(), a, 10*time.Millisecond)
			must(t, err)
			flows = append(flows, p)
		}
	}
	for _, p := range flows {
		_, err := p.Flows(bounded(t), time.Now())
		must(t, err)
	}
	stop()
	start := time.Now()
	must(t, n.Start())
	up = systemd.ready(t).Sub(start)
	for _, p := range flows {
		_, err := p.Flows(bounded(t), start)
		must(t, err)
		p.Stop()
		gap = max(gap, p.Gap())
	}
	return gap, up
}

func medianAndMax(all []time.Duration) string {
	s := slices.Sorted(slices.Values(all))
	ms := time.Millisecond
	return s[len(s)/2].Round(ms).String() + " (median), " + s[len(s)-1].Round(ms).String() + " (maximum)"
}
