// Package tunneltest holds what tests of and around tunnel engines need: the
// [Contract] that every engine passes, a [Pipe] in place of the TUN device, and
// a [Fake] engine for tests of whoever configures one.
package tunneltest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"meshd/mesh"
	"meshd/overlay/tunnel"
)

// Fake is an engine that carries nothing. It remembers what was applied and
// prints it. The zero value is ready.
type Fake struct {
	mu      sync.Mutex // guards all below
	config  tunnel.Config
	applied int
	fail    error
	stats   map[mesh.NodeID]tunnel.PeerStats
}

// Name is "fake".
func (f *Fake) Name() string { return "fake" }

// Port is any number that is not zero.
func (f *Fake) Port() uint16 { return 51820 }

// Ready is always closed.
func (f *Fake) Ready() <-chan struct{} {
	ready := make(chan struct{})
	close(ready)
	return ready
}

// Run waits until ctx is done.
func (f *Fake) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Apply keeps the configuration, or fails as told by [Fake.Fail].
func (f *Fake) Apply(_ context.Context, want tunnel.Config) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.applied++
	if f.fail != nil {
		return f.fail
	}
	f.config = want
	return nil
}

// Fail makes each following Apply fail with err, until told nil.
func (f *Fake) Fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

// Applied tells how often Apply was called, also in vain.
func (f *Fake) Applied() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applied
}

// Config gives what was applied last.
func (f *Fake) Config() tunnel.Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.config
}

// SetStats says what [Fake.Stats] gives for a peer.
func (f *Fake) SetStats(id mesh.NodeID, s tunnel.PeerStats) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stats == nil {
		f.stats = map[mesh.NodeID]tunnel.PeerStats{}
	}
	f.stats[id] = s
}

// Stats gives the configured peers with the numbers that were set.
func (f *Fake) Stats() tunnel.Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	stats := tunnel.Stats{Peers: map[mesh.NodeID]tunnel.PeerStats{}, Drops: map[string]uint64{}}
	for _, p := range f.config.Peers {
		stats.Peers[p.ID] = f.stats[p.ID]
	}
	return stats
}

// String prints what is configured, a line for the own prefixes and one for
// each peer, in the order given:
//
//	own 10.86.17.0/24 fd00:0:0:11::/64
//	peer aaaaaaaa via 192.0.2.1:51820 allowed 10.86.18.0/24
func (f *Fake) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	if len(f.config.Own) > 0 {
		fmt.Fprintf(&b, "own%s\n", list(f.config.Own, netip.Prefix.String))
	}
	for _, p := range f.config.Peers {
		fmt.Fprintf(&b, "peer %s via%s allowed%s\n", p.ID.Short(), list(p.Endpoints, netip.AddrPort.String), list(p.AllowedIPs, netip.Prefix.String))
	}
	return b.String()
}

func list[T any](items []T, name func(T) string) string {
	if len(items) == 0 {
		return " none"
	}
	return " " + strings.Join(slices.Collect(func(yield func(string) bool) {
		for _, item := range items {
			if !yield(name(item)) {
				return
			}
		}
	}), " ")
}
