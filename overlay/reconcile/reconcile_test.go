package reconcile_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"meshd/mesh"
	"meshd/overlay/plan"
	"meshd/overlay/reconcile"
	"meshd/overlay/tunnel"
	"meshd/tun"
)

// fake counts what it is asked and fails as often as it is told to.
type fake[W any] struct {
	takes time.Duration // each call; fixed at construction

	mu    sync.Mutex
	fails int
	calls []time.Time
	last  W
}

func (f *fake[W]) Apply(_ context.Context, want W) error {
	time.Sleep(f.takes)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, time.Now())
	if f.fails > 0 {
		f.fails--
		return errors.New("the kernel says no")
	}
	f.last = want
	return nil
}

func (f *fake[W]) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.calls)
}

// link is that of the last state that was applied.
func (f *fake[W]) link() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	state, _ := any(f.last).(tun.HostState)
	return state.Link
}

// run starts a loop in virtual time and hands it to the test.
func run(t *testing.T, tunnelFails, hostFails int, test func(*reconcile.Loop, *fake[tunnel.Config], *fake[tun.HostState])) {
	synctest.Test(t, func(t *testing.T) {
		tunnels, host := &fake[tunnel.Config]{fails: tunnelFails}, &fake[tun.HostState]{fails: hostFails}
		loop := reconcile.New(tunnels, host, nil, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- loop.Run(ctx) }()
		test(loop, tunnels, host)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func planFor(link string) *plan.Plan { return &plan.Plan{Host: tun.HostState{Link: link}} }

func TestAppliesTheNewestPlan(t *testing.T) {
	run(t, 0, 0, func(l *reconcile.Loop, tunnels *fake[tunnel.Config], host *fake[tun.HostState]) {
		if l.Settled() {
			t.Error("settled without a plan")
		}
		host.takes = time.Second
		l.Set(planFor("first"))
		synctest.Wait()
		for _, link := range []string{"a", "b", "c"} {
			l.Set(planFor(link))
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if !l.Settled() || host.last.Link != "c" || host.count() != 2 || tunnels.count() != 1 {
			t.Errorf("settled %v, link %q, %d host and %d tunnel calls; want the first plan and the last, each applied once",
				l.Settled(), host.last.Link, host.count(), tunnels.count())
		}
	})
}

// A plan that comes while another is applied, and differs in peers alone, leaves the
// kernel alone.
func TestPlanForThePeersComesMeanwhile(t *testing.T) {
	run(t, 0, 0, func(l *reconcile.Loop, tunnels *fake[tunnel.Config], host *fake[tun.HostState]) {
		tunnels.takes = time.Second
		for i := range 3 {
			p := planFor("mesh0")
			p.Tunnel.Peers = make([]tunnel.Peer, i)
			l.Set(p)
			time.Sleep(900 * time.Millisecond)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if !l.Settled() || tunnels.count() != 3 || host.count() != 1 {
			t.Errorf("settled %v, %d tunnel and %d host calls; want each plan for the tunnel, and one for the host",
				l.Settled(), tunnels.count(), host.count())
		}
	})
}

func TestRetriesWithBackoff(t *testing.T) {
	run(t, 0, 4, func(l *reconcile.Loop, tunnels *fake[tunnel.Config], host *fake[tun.HostState]) {
		l.Set(planFor("mesh0"))
		synctest.Wait()
		if p := l.Problems(); len(p) != 1 || p[0].Adapter != "host network" || l.Settled() {
			t.Errorf("problems %v, settled %v", p, l.Settled())
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if len(l.Problems()) != 0 || !l.Settled() {
			t.Errorf("problems %v, settled %v after the kernel came round", l.Problems(), l.Settled())
		}
		if host.count() != 5 || tunnels.count() != 1 {
			t.Errorf("%d host calls, want 5; %d tunnel calls, want 1: one adapter's failure is not the other's", host.count(), tunnels.count())
		}
		for i := 2; i < len(host.calls); i++ {
			if was, is := host.calls[i-1].Sub(host.calls[i-2]), host.calls[i].Sub(host.calls[i-1]); is < 2*was {
				t.Errorf("waited %s after %s: no back-off", is, was)
			}
		}
	})
}

func TestFailureDoesNotStopTheOther(t *testing.T) {
	run(t, 1<<30, 0, func(l *reconcile.Loop, _ *fake[tunnel.Config], host *fake[tun.HostState]) {
		l.Set(planFor("a"))
		synctest.Wait()
		l.Set(planFor("b"))
		synctest.Wait()
		if host.last.Link != "b" || l.Settled() {
			t.Errorf("link %q, settled %v; the host must follow while the tunnel fails", host.last.Link, l.Settled())
		}
	})
}

func TestKickAndRepair(t *testing.T) {
	run(t, 0, 0, func(l *reconcile.Loop, tunnels *fake[tunnel.Config], host *fake[tun.HostState]) {
		l.Set(planFor("mesh0"))
		synctest.Wait()
		for _, c := range []struct {
			what        string
			do          func()
			tunnel, all int
		}{
			{"a repair", l.Repair, 1, 2},
			{"a kick", l.Kick, 2, 3},
		} {
			c.do()
			synctest.Wait()
			if tunnels.count() != c.tunnel || host.count() != c.all {
				t.Errorf("%d tunnel and %d host calls after %s, want %d and %d", tunnels.count(), host.count(), c.what, c.tunnel, c.all)
			}
		}
		before := tunnels.count()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := tunnels.count() - before; n < 1 || n > 3 {
			t.Errorf("%d calls in a quiet minute, want one or two", n)
		}
	})
}

// TestSamePartIsNotApplied: what only a person reads changes a plan often, and
// must neither cost the kernel anything nor make the node unready.
func TestSamePartIsNotApplied(t *testing.T) {
	run(t, 0, 0, func(loop *reconcile.Loop, tunnels *fake[tunnel.Config], host *fake[tun.HostState]) {
		set := func(p *plan.Plan, settled bool, tunnelCalls, hostCalls int) {
			t.Helper()
			synctest.Wait()
			loop.Set(p)
			if settled && !loop.Settled() { // otherwise the loop may have been quick
				t.Errorf("not settled as soon as %+v was set", p)
			}
			synctest.Wait()
			if !loop.Settled() || tunnels.count() != tunnelCalls || host.count() != hostCalls {
				t.Errorf("%+v: settled %t, tunnel applied %d times, host %d times; want %d and %d",
					p, loop.Settled(), tunnels.count(), host.count(), tunnelCalls, hostCalls)
			}
		}
		set(planFor("mesh0"), false, 1, 1)
		set(planFor("mesh0"), true, 1, 1)
		set(&plan.Plan{Host: tun.HostState{Link: "mesh0"}, Health: []mesh.Finding{{Code: "overlap"}}}, true, 1, 1)
		set(planFor("mesh1"), false, 1, 2)
		set(&plan.Plan{Host: tun.HostState{Link: "mesh1"}, Tunnel: tunnel.Config{Inside: []netip.Prefix{{}}}}, false, 2, 2)
	})
}

func TestFirewall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tunnels, host, firewall := &fake[tunnel.Config]{}, &fake[tun.HostState]{}, &fake[tun.Rules]{fails: 1}
		loop := reconcile.New(tunnels, host, firewall, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- loop.Run(ctx) }()
		loop.Set(&plan.Plan{Rules: tun.Rules{Link: "mesh0"}})
		synctest.Wait()
		if p := loop.Problems(); len(p) != 1 || p[0].Adapter != "firewall" || loop.Settled() || host.count() != 1 {
			t.Errorf("problems %v, settled %t, host applied %d times; the firewall alone should fail", p, loop.Settled(), host.count())
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if firewall.last.Link != "mesh0" || !loop.Settled() {
			t.Errorf("rules %+v, settled %t after it came round", firewall.last, loop.Settled())
		}
		before := firewall.count()
		loop.Repair()
		synctest.Wait()
		if firewall.count() != before+1 || tunnels.count() != 1 {
			t.Errorf("a repair applied rules %d times, want once more than %d", firewall.count(), before)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// Whoever awaits the host does not wait for the tunnel, and hears of a failure at
// once.
func TestAwait(t *testing.T) {
	run(t, 1000, 0, func(l *reconcile.Loop, _ *fake[tunnel.Config], host *fake[tun.HostState]) {
		background := context.Background() //nolint:usetesting // the test's own is not of the bubble
		ctx, cancel := context.WithTimeout(background, time.Second)
		defer cancel()
		if err := l.Await(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without a plan: %v", err)
		}
		l.Set(planFor("a"))
		if err := l.Await(background); err != nil || host.link() != "a" {
			t.Errorf("%v, with the link %q", err, host.link())
		}
		host.mu.Lock()
		host.fails = 1
		host.mu.Unlock()
		l.Set(planFor("b"))
		if err := l.Await(background); err == nil || host.link() != "a" {
			t.Errorf("%v, with the link %q; want the failure", err, host.link())
		}
		time.Sleep(time.Second)
		if err := l.Await(background); err != nil || host.link() != "b" {
			t.Errorf("%v, with the link %q", err, host.link())
		}
		l.Set(planFor("b"))
		if err := l.Await(background); err != nil {
			t.Errorf("the same again: %v", err)
		}
	})
}
