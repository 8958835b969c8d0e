package gossip_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"meshd/mesh/gossip"
	"meshd/mesh/member"
	"meshd/mesh/meshtest"
)

// stepping notes when the core may act.
type stepping struct {
	*core
	took time.Duration // each time
	at   []time.Time
}

func (s *stepping) Step(now time.Time) member.Output {
	s.mu.Lock()
	s.at = append(s.at, now)
	s.mu.Unlock()
	time.Sleep(s.took)
	return s.core.Step(now)
}

// startStepping starts a member alone.
func startStepping(t *testing.T) (s *stepping, x *node) {
	t.Helper()
	x = start(t, meshtest.NewNetwork(1), 1, func(opt *gossip.Options, c *core) {
		s = &stepping{core: c}
		opt.Core = s
	})
	return s, x
}

// TestStepsOfABurst: a member acts on a message soon, also on the last one of a burst,
// and on those of a burst together.
func TestStepsOfABurst(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		s, x := startStepping(t)
		time.Sleep(30 * time.Second)
		steps := func(from time.Time) (since []time.Duration) {
			synctest.Wait()
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, at := range s.at[slices.IndexFunc(append(slices.Clone(s.at), time.Now()), func(at time.Time) bool { return !at.Before(from) }):] {
				since = append(since, at.Sub(from))
			}
			return since
		}
		begin := time.Now()
		x.Hear([]byte("alone"))
		time.Sleep(100 * time.Millisecond)
		if got := steps(begin); len(got) == 0 || got[0] > 50*time.Millisecond {
			t.Errorf("after silence it acts after %s", got)
		}
		time.Sleep(10 * time.Second)
		begin = time.Now()
		for i := range 200 {
			x.Hear(fmt.Appendf(nil, "one of many %d", i))
			time.Sleep(5 * time.Millisecond)
			synctest.Wait()
		}
		if n := len(steps(begin)); n < 15 || n > 25 {
			t.Errorf("it acts %d times within a second of 200 messages", n)
		}
		time.Sleep(10 * time.Second)
		begin = time.Now()
		x.Hear([]byte("the first of two"))
		time.Sleep(10 * time.Millisecond)
		x.Hear([]byte("the last one"))
		time.Sleep(90 * time.Millisecond)
		soon := func(d time.Duration) bool { return 10*time.Millisecond <= d && d <= 60*time.Millisecond }
		if got := steps(begin); !slices.ContainsFunc(got, soon) {
			t.Errorf("it acts on two messages after %s", got)
		}
	})
}

// TestSlowStepsRest: where a step takes long, the member takes in messages for a multiple
// of that before it acts on them, up to a bound.
func TestSlowStepsRest(t *testing.T) {
	for _, tt := range []struct{ took, every time.Duration }{
		{20 * time.Millisecond, 180 * time.Millisecond}, // eight times as long
		{time.Second, 1500 * time.Millisecond},          // the bound
	} {
		t.Run(tt.took.String(), func(t *testing.T) {
			meshtest.Bubble(t, func(t *testing.T) {
				s := &stepping{took: tt.took}
				x := start(t, meshtest.NewNetwork(1), 1, func(opt *gossip.Options, c *core) {
					s.core = c
					opt.Core = s
				})
				time.Sleep(30 * time.Second)
				s.mu.Lock()
				s.at = nil
				s.mu.Unlock()
				const steps = 20
				for begin := time.Now(); time.Since(begin) < steps*tt.every; time.Sleep(10 * time.Millisecond) {
					x.Hear([]byte("the same again"))
				}
				s.mu.Lock()
				defer s.mu.Unlock()
				if n := len(s.at); n < steps-3 || n > steps+3 { // some are for other things
					t.Errorf("it acts %d times within %s, want %d", n, steps*tt.every, steps)
				}
			})
		})
	}
}
