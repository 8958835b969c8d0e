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
	routes   []netip.Prefix    // guarded by mu
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

// Cleanup empties the state.
func (k *Kernel) Cleanup(ctx context.Context, link string) error {
	return k.Apply(ctx, tun.HostState{})
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

// Routes gives what [Kernel.SetRoutes] has set.
func (k *Kernel) Routes(ctx context.Context) ([]netip.Prefix, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.routes), ctx.Err()
}

// SetUnderlay sets the host's addresses, and tells the watchers.
func (k *Kernel) SetUnderlay(u tun.Underlay) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.underlay = u
	k.signalLocked()
}

// SetRoutes sets the destinations of routes that are not ours.
func (k *Kernel) SetRoutes(routes ...netip.Prefix) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.routes = slices.Clone(routes)
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
