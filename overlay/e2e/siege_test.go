//go:build linux

package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"meshd/mesh/trust"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
)

// siege is a mesh of three, of which alpha is attacked, and two hosts that are no
// members: one attacks, the other may still become one.
type siege struct {
	c                  *cluster.Cluster
	alpha, beta, gamma *cluster.Node
	spare              *cluster.Node
	stranger           *lab.Host
	token              *trust.Token // for one more node
}

func besieged(t *testing.T) *siege {
	t.Helper()
	c := hosts(t, 5)
	s := &siege{c: c, alpha: c.Nodes[0], beta: c.Nodes[1], gamma: c.Nodes[2], spare: c.Nodes[4], stranger: c.Nodes[3].Host}
	c.Nodes = c.Nodes[:3]
	must(t, c.Init(t.Context()))
	text, err := s.alpha.Token(t.Context())
	must(t, err)
	s.token, err = trust.ParseToken(text)
	must(t, err)
	must(t, c.Start())
	must(t, c.WaitAllPairs(bounded(t)))
	pause(t.Context(), 2*time.Second) // until it is calm
	return s
}

// The bounds of an attack.
const (
	maxGrowth = 64 << 20 // of memory, in bytes
	maxLines  = 12       // of the log, of each node
	calmAgain = time.Second
	maxMore   = 4 // descriptors, at last: it may try whom it was told of, two at a time
)

// attack does something to alpha while pings flow through it and past it. few is
// which part of them may be lost; of those between the others none may.
func (s *siege) attack(t *testing.T, few float64, do func(ctx context.Context)) {
	t.Helper()
	nodes := []*cluster.Node{s.alpha, s.beta, s.gamma}
	before := map[*cluster.Node]cluster.Usage{}
	lines, leases := map[*cluster.Node]int{}, map[*cluster.Node]string{}
	for _, n := range nodes {
		u, err := n.Usage()
		must(t, err)
		before[n], lines[n], leases[n] = u, strings.Count(n.Log(), "\n"), leasesOf(document(t, n))
	}
	through := pingSteadily(t, s.beta, s.alpha)
	defer through.Stop()
	past := pingSteadily(t, s.beta, s.gamma)
	defer past.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()

	var peak [3]atomic.Int64
	watching, stopWatching := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for tick := time.NewTicker(50 * time.Millisecond); watching.Err() == nil; <-tick.C {
			for i, n := range nodes {
				if u, err := n.Usage(); err == nil {
					peak[i].Store(max(peak[i].Load(), int64(u.RSS-before[n].RSS)))
				}
			}
		}
	})
	begin := time.Now()
	do(ctx)
	pause(ctx, 500*time.Millisecond-time.Since(begin)) // for some pings
	end := time.Now()
	stopWatching()
	watcher.Wait()

	after, err := through.Flows(bounded(t), end)
	must(t, err)
	_, err = past.Flows(bounded(t), end)
	must(t, err)
	lost, sent := through.Lost(end)
	lostPast, sentPast := past.Lost(end)
	t.Logf("%s; pings lost: %d of %d through it, %d of %d past it; they flow again after %s; memory grew by %d, %d and %d MiB",
		end.Sub(begin).Round(time.Millisecond), lost, sent, lostPast, sentPast, after.Round(time.Millisecond),
		peak[0].Load()>>20, peak[1].Load()>>20, peak[2].Load()>>20)
	if float64(lost) > few*float64(sent)+1 || sent < 5 {
		t.Errorf("of %d pings through it %d got lost", sent, lost)
	}
	if float64(lostPast) > few*float64(sentPast)/2+1 {
		t.Errorf("of %d pings past it %d got lost", sentPast, lostPast)
	}
	if after > calmAgain {
		t.Errorf("pings flow %s after the end", after)
	}
	asked := time.Now()
	ask, stop := context.WithTimeout(t.Context(), calmAgain)
	defer stop()
	if _, err := s.alpha.Document(ask); err != nil {
		t.Errorf("it does not answer within %s after the end: %v", time.Since(asked), err)
	}
	for i, n := range nodes {
		if grew := peak[i].Load(); grew > maxGrowth {
			t.Errorf("%s grew by %d MiB", n.Name, grew>>20)
		}
		log := strings.Split(n.Log(), "\n")
		if more := log[lines[n]:]; len(more)-1 > maxLines {
			t.Errorf("%s logged %d lines:\n%s", n.Name, len(more)-1, strings.Join(more[:maxLines], "\n"))
		}
		if err := cluster.Poll(bounded(t), func() (bool, error) {
			u, err := n.Usage()
			return err == nil && u.Descriptors <= before[n].Descriptors+maxMore, fmt.Errorf("%d descriptors, and %d before", u.Descriptors, before[n].Descriptors)
		}); err != nil {
			t.Errorf("%s: %v", n.Name, err)
		}
		must(t, n.WaitReady(bounded(t))) // it is not for a moment, whenever something is applied
		if d := document(t, n); leasesOf(d) != leases[n] {
			t.Errorf("%s has %s, and had %s", n.Name, leasesOf(d), leases[n])
		}
	}
	// They still hear each other: whatever is new gets round.
	must(t, cluster.WaitPairs(bounded(t), nodes...))
}

func pingSteadily(t *testing.T, from, to *cluster.Node) *lab.Pings {
	t.Helper()
	p, err := from.Host.Pings(t.Context(), addresses(t, to)[0], 20*time.Millisecond)
	must(t, err)
	return p
}
