// Package reconcile is the one loop that makes the host look like the plan.
//
// It keeps the newest plan and hands it to each adapter until that one has
// applied it. An adapter that fails is tried again with back-off, and does not
// hold up the other. Adapters are idempotent, so whoever suspects that one of
// them was changed behind our back may call [Loop.Kick] or [Loop.Repair] at any
// time; how often is worth the work is for the caller to say.
package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	"meshd/overlay/plan"
	"meshd/overlay/tunnel"
	"meshd/tun"
)

// Tunnel is the data plane's engine.
type Tunnel interface {
	Apply(ctx context.Context, want tunnel.Config) error
}

// Host is the kernel's network.
type Host interface {
	Apply(ctx context.Context, want tun.HostState) error
}

// Firewall is the kernel's packet filter.
type Firewall interface {
	Apply(ctx context.Context, want tun.Rules) error
}

// Timers.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 2 * time.Second // what stood in the way may be gone any moment
	// again is when everything is applied even if nothing called for it: an event
	// may have been lost.
	again = 30 * time.Second
)

// Loop is the reconciler.
type Loop struct {
	adapters []*adapter // fixed at construction, in the order of application
	log      *slog.Logger
	kick     chan struct{} // everything is due
	repair   chan struct{} // the kernel is due

	mu      sync.Mutex // guards all below, and the adapters' err
	want    *plan.Plan
	version uint64 // of want
	changed chan struct{}
	noted   chan struct{} // closed, and made anew, when an adapter has been tried
}

// The names of the adapters.
const (
	tunnelName   = "tunnel"
	firewallName = "firewall"
	hostName     = "host network"
)

// adapter is one thing to keep as planned.
type adapter struct {
	name  string
	apply func(context.Context, *plan.Plan) error
	part  func(*plan.Plan) any // of the plan, that it applies

	// owned by Run
	due   time.Time
	delay time.Duration

	// guarded by Loop.mu
	err     error
	applied uint64 // version of the plan that was applied last
	tried   uint64 // version of the plan that was last to be applied
}

// New builds the loop. Without a firewall, nil, rules are not applied.
func New(t Tunnel, h Host, f Firewall, log *slog.Logger) *Loop {
	l := &Loop{
		log: log, changed: make(chan struct{}, 1), kick: make(chan struct{}, 1), repair: make(chan struct{}, 1), noted: make(chan struct{}),
		adapters: []*adapter{
			// The tunnel first, so that no route leads to a peer it does not know.
			{
				name:  tunnelName,
				apply: func(ctx context.Context, p *plan.Plan) error { return t.Apply(ctx, p.Tunnel) },
				part:  func(p *plan.Plan) any { return p.Tunnel },
			},
			{
				name:  hostName,
				apply: func(ctx context.Context, p *plan.Plan) error { return h.Apply(ctx, p.Host) },
				part:  func(p *plan.Plan) any { return p.Host },
			},
		},
	}
	if f != nil { // before the host: what makes it forward comes after what forbids
		l.adapters = slices.Insert(l.adapters, 1, &adapter{
			name:  firewallName,
			apply: func(ctx context.Context, p *plan.Plan) error { return f.Apply(ctx, p.Rules) },
			part:  func(p *plan.Plan) any { return p.Rules },
		})
	}
	return l
}

// Set replaces the plan. An adapter whose part is as before has nothing to do,
// and the loop stays settled as far as it is concerned. The caller does not
// change p afterwards.
func (l *Loop) Set(p *plan.Plan) {
	l.mu.Lock()
	for _, a := range l.adapters {
		if l.want != nil && a.applied == l.version && reflect.DeepEqual(a.part(l.want), a.part(p)) {
			a.applied++
		}
	}
	l.want, l.version = p, l.version+1
	l.mu.Unlock()
	l.signal(l.changed)
}

// Kick applies the plan again: the engine is another one.
func (l *Loop) Kick() { l.signal(l.kick) }

// Repair applies the parts of the kernel again, which has changed: the tunnel does
// not see that.
func (l *Loop) Repair() { l.signal(l.repair) }

func (l *Loop) signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Problem is what keeps an adapter from the plan.
type Problem struct {
	Adapter string
	Err     error
}

// Problems lists the adapters whose last attempt failed.
func (l *Loop) Problems() []Problem {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Problem
	for _, a := range l.adapters {
		if a.err != nil {
			out = append(out, Problem{a.name, a.err})
		}
	}
	return out
}

// Settled tells whether the newest plan stands, wholly.
func (l *Loop) Settled() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.adapters {
		if l.want == nil || a.err != nil || a.applied != l.version {
			return false
		}
	}
	return true
}

// Await returns when the kernel follows the plan that is the newest now, or a
// later one, whatever the tunnel does. It fails as soon as an attempt does.
func (l *Loop) Await(ctx context.Context) error {
	l.mu.Lock()
	version := l.version
	l.mu.Unlock()
	for {
		l.mu.Lock()
		stands, err := l.standsLocked(version)
		noted := l.noted
		l.mu.Unlock()
		if stands || err != nil {
			return err
		}
		select {
		case <-noted:
		case <-ctx.Done():
			return fmt.Errorf("make the host as planned: %w", ctx.Err())
		}
	}
}

// standsLocked tells whether the kernel has come to a plan, or what it came to
// instead.
func (l *Loop) standsLocked(version uint64) (bool, error) {
	stands := l.want != nil
	for _, a := range l.adapters {
		switch {
		case a.name == tunnelName:
		case a.tried >= version && a.err != nil:
			return false, fmt.Errorf("%s: %w", a.name, a.err)
		case a.applied < version:
			stands = false
		}
	}
	return stands, nil
}

// Run applies plans until ctx is done. It leaves the host as it is.
func (l *Loop) Run(ctx context.Context) error {
	timer := time.NewTimer(again)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.changed:
		case <-l.kick:
			l.due(tunnelName, firewallName, hostName)
		case <-l.repair:
			l.due(firewallName, hostName)
		case <-timer.C:
		}
		timer.Reset(l.round(ctx))
	}
}

// due has adapters applied in the next round, whenever they were last.
func (l *Loop) due(names ...string) {
	for _, a := range l.adapters {
		if slices.Contains(names, a.name) {
			a.due = time.Time{}
		}
	}
}

// round applies the plan where that is due, and says when to come again.
func (l *Loop) round(ctx context.Context) time.Duration {
	l.mu.Lock()
	want, version := l.want, l.version
	l.mu.Unlock()
	if want == nil {
		return again
	}
	next := again
	for _, a := range l.adapters {
		l.mu.Lock()
		fresh := a.applied < version && a.err == nil // Set may have found the next one the same
		l.mu.Unlock()
		if now := time.Now(); !fresh && now.Before(a.due) {
			next = min(next, a.due.Sub(now))
			continue
		}
		err := a.apply(ctx, want)
		if ctx.Err() != nil {
			return again
		}
		next = min(next, l.note(a, want, version, err))
	}
	return next
}

// note records the outcome and says when the adapter is due again.
func (l *Loop) note(a *adapter, want *plan.Plan, version uint64, err error) time.Duration {
	l.mu.Lock()
	before := a.err
	a.err, a.tried = err, version
	if err == nil {
		a.applied = max(a.applied, version) // Set may have found the next one the same
		if a.applied < l.version && reflect.DeepEqual(a.part(l.want), a.part(want)) {
			a.applied = l.version // it came meanwhile
		}
	}
	close(l.noted)
	l.noted = make(chan struct{})
	l.mu.Unlock()
	switch {
	case err == nil && before != nil:
		l.log.Info("applied again", "adapter", a.name)
	case err != nil && (before == nil || before.Error() != err.Error()):
		l.log.Warn("not applied, will be tried again", "adapter", a.name, "err", err)
	}
	wait := again
	if err == nil {
		a.delay = 0
	} else {
		a.delay = min(max(2*a.delay, firstRetry), lastRetry)
		wait = a.delay
	}
	a.due = time.Now().Add(wait)
	return wait
}
