// Package tuntest provides a host network that exists only in memory, for tests
// of what drives one.
//
// [Kernel] has the methods of hostnet.Net. It believes everything that it is
// told, remembers it, and prints it as the commands that would make it so. A
// test damages it as other programs would, or has it fail.
package tuntest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"meshd/tun"
)

// ErrFailed is what a Kernel returns when it was told to fail.
var ErrFailed = errors.New("the kernel refuses")

// Kernel is a fake host network. The zero value is an empty host. Its methods
// may be called from any goroutine.
type Kernel struct {
	mu       sync.Mutex
	state    tun.HostState     // guarded by mu
	underlay tun.Underlay      // guarded by mu
	uses     []tun.Use         // guarded by mu
	applied  int               // guarded by mu
	failures int               // guarded by mu
	watchers []chan<- struct{} // guarded by mu
}

// Apply remembers the state. Watchers learn of it if it is another one.
func (k *Kernel) Apply(ctx context.Context, want tun.HostState) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.applied++
	if k.failures > 0 {
		k.failures--
		return fmt.Errorf("apply host state: %w", ErrFailed)
	}
	k.setLocked(want)
	return nil
}

func (k *Kernel) setLocked(s tun.HostState) {
	s = s.Normal()
	same := s.String() == k.state.String()
	k.state = s
	if !same {
		k.signalLocked()
	}
}

func (k *Kernel) signalLocked() {
	for _, w := range k.watchers {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

// Watch signals each change of the state or of the underlay, and once when it
// begins, without ever waiting for the receiver. It blocks until ctx is done.
func (k *Kernel) Watch(ctx context.Context, changed chan<- struct{}) error {
	k.mu.Lock()
	k.watchers = append(k.watchers, changed)
	k.signalLocked()
	k.mu.Unlock()
	<-ctx.Done()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.watchers = slices.DeleteFunc(k.watchers, func(w chan<- struct{}) bool { return w == changed })
	return nil
}

// Underlay gives what [Kernel.SetUnderlay] has set, without the addresses in
// exclude.
func (k *Kernel) Underlay(ctx context.Context, exclude ...netip.Prefix) (tun.Underlay, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	u := k.underlay
	u.Addresses = slices.DeleteFunc(slices.Clone(u.Addresses), func(a netip.Addr) bool {
		return slices.ContainsFunc(exclude, func(p netip.Prefix) bool { return p.Contains(a) })
	})
	return u, ctx.Err()
}

// Uses gives what [Kernel.SetUses] has set, as far as it is in the ranges.
func (k *Kernel) Uses(ctx context.Context, ranges ...netip.Prefix) ([]tun.Use, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(k.uses), func(u tun.Use) bool {
		return !slices.ContainsFunc(ranges, u.Prefix.Overlaps)
	}), ctx.Err()
}

// Connections gives none.
func (k *Kernel) Connections(ctx context.Context, _ ...netip.Prefix) ([]tun.Use, error) {
	return nil, ctx.Err()
}

// SetUnderlay sets the host's addresses, and tells the watchers.
func (k *Kernel) SetUnderlay(u tun.Underlay) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.underlay = u
	k.signalLocked()
}

// SetUses sets what the host has that is not ours, and tells the watchers.
func (k *Kernel) SetUses(uses ...tun.Use) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.uses = slices.Clone(uses)
	k.signalLocked()
}

// Damage changes the state behind the owner's back, and tells the watchers.
func (k *Kernel) Damage(change func(*tun.HostState)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.state.Normal() // a copy
	change(&s)
	k.setLocked(s)
}

// RemoveLink takes the TUN device away, and what needs it, as the kernel does
// when the daemon that has it open ends.
func (k *Kernel) RemoveLink() {
	k.Damage(func(s *tun.HostState) {
		s.Link, s.MTU, s.Addresses = "", 0, nil
		s.Routes = slices.DeleteFunc(s.Routes, func(r tun.Route) bool { return !r.Unreachable })
	})
}

// Route tells which route a packet takes, as `ip route get` does: the longest
// prefix, and of two the one that reaches. Without one of ours it goes where the
// host's default route leads.
func (k *Kernel) Route(dst netip.Addr) (route tun.Route, ours bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range k.state.Routes {
		if !r.Dst.Contains(dst) || !r.Unreachable && k.state.Link == "" {
			continue
		}
		better := r.Dst.Bits() > route.Dst.Bits() || r.Dst.Bits() == route.Dst.Bits() && !r.Unreachable
		if !ours || better {
			route, ours = r, true
		}
	}
	return route, ours
}

// Local tells whether the TUN device has an address.
func (k *Kernel) Local(a netip.Addr) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.ContainsFunc(k.state.Addresses, func(p netip.Prefix) bool { return p.Addr() == a })
}

// Fail lets the next n calls of Apply return [ErrFailed].
func (k *Kernel) Fail(n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failures = n
}

// Applied tells how often Apply was called, failures included.
func (k *Kernel) Applied() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.applied
}

// State gives the state that was applied last, in canonical order.
func (k *Kernel) State() tun.HostState {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state.Normal()
}

// String prints the state as the commands that would make it.
func (k *Kernel) String() string { return k.State().String() }
