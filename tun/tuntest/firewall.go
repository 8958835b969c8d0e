package tuntest

import (
	"context"
	"slices"
	"sync"

	"meshd/tun"
)

// Firewall is a fake packet filter, as nft.Firewall is a real one. The zero value
// has no rules. Its methods may be called from any goroutine.
type Firewall struct {
	mu        sync.Mutex
	rules     tun.Rules
	fail      error
	obstacles []string
}

// Apply remembers the rules.
func (f *Firewall) Apply(ctx context.Context, want tun.Rules) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case f.fail != nil:
		return f.fail
	}
	f.rules = want.Normal()
	return nil
}

// Watch blocks until ctx is done: nobody else changes rules here.
func (f *Firewall) Watch(ctx context.Context, _ chan<- struct{}) error {
	<-ctx.Done()
	return nil
}

// Obstacles gives what [Firewall.SetObstacles] has set.
func (f *Firewall) Obstacles(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.obstacles), nil
}

// SetObstacles says what else drops packets of containers.
func (f *Firewall) SetObstacles(what ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.obstacles = what
}

// Fail lets Apply return an error from now on; nil: no longer.
func (f *Firewall) Fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

// Rules gives those that were applied last, in canonical order.
func (f *Firewall) Rules() tun.Rules {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rules
}
