// Package tunneltest holds what tests of and around tunnel engines need: the
// [Contract] that every engine passes, with a [Pipe] in place of the TUN device;
// a [Fake] engine for tests of whoever configures one; and a [Fabric] of
// simulated engines, which carry packets between hosts in memory.
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
	mu     sync.Mutex // guards config
	config tunnel.Config
}

// Name is "fake".
func (f *Fake) Name() string { return "fake" }

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

// Apply keeps the configuration.
func (f *Fake) Apply(_ context.Context, want tunnel.Config) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.config = want
	return nil
}

// Stats gives the configured peers, which carried nothing.
func (f *Fake) Stats() tunnel.Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	stats := tunnel.Stats{Peers: map[mesh.NodeID]tunnel.PeerStats{}, Drops: map[string]uint64{}}
	for _, p := range f.config.Peers {
		stats.Peers[p.ID] = tunnel.PeerStats{}
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
