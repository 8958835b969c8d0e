package gossip_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"meshd/mesh/gossip"
	"meshd/mesh/member"
	"meshd/mesh/meshtest"
)

func TestClocks(t *testing.T) {
	for name, c := range map[string]struct {
		after         gossip.Clocks // a minute later by the monotonic clock
		slept, jumped time.Duration
	}{
		"nothing":           {gossip.Clocks{Boot: time.Minute, Monotonic: time.Minute, Wall: time.Minute}, 0, 0},
		"slewed":            {gossip.Clocks{Boot: time.Minute, Monotonic: time.Minute, Wall: time.Minute + 30*time.Millisecond}, 0, 0},
		"suspended":         {gossip.Clocks{Boot: time.Hour, Monotonic: time.Minute, Wall: time.Hour}, 59 * time.Minute, 0},
		"set forward":       {gossip.Clocks{Boot: time.Minute, Monotonic: time.Minute, Wall: time.Hour}, 0, 59 * time.Minute},
		"set to 1970":       {gossip.Clocks{Boot: time.Minute, Monotonic: time.Minute, Wall: -20 * time.Hour}, 0, -20*time.Hour - time.Minute},
		"suspended and set": {gossip.Clocks{Boot: time.Hour, Monotonic: time.Minute, Wall: 0}, 59 * time.Minute, -time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			meshtest.Bubble(t, func(t *testing.T) {
				begin := time.Now()
				var told *core
				start(t, meshtest.NewNetwork(1), 1, func(opt *gossip.Options, c1 *core) {
					told = c1
					opt.Clocks = func() gossip.Clocks {
						d := time.Since(begin)
						now := gossip.Clocks{Boot: time.Hour + d, Monotonic: time.Hour + d, Wall: 24*time.Hour + d}
						if d >= time.Minute {
							now.Boot += c.after.Boot - time.Minute
							now.Monotonic += c.after.Monotonic - time.Minute
							now.Wall += c.after.Wall - time.Minute
						}
						return now
					}
				})
				time.Sleep(time.Minute + time.Second) // it looks every second
				synctest.Wait()
				told.mu.Lock()
				defer told.mu.Unlock()
				if told.slept != c.slept || told.jumped != c.jumped {
					t.Errorf("slept %s, jumped %s; want %s and %s", told.slept, told.jumped, c.slept, c.jumped)
				}
			})
		})
	}
}

// TestCloneEnds: what the core says of a clone ends Run.
func TestCloneEnds(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		c := newCore(id(1))
		c.out.Clone = true
		g, err := gossip.New(gossip.Options{
			Core: c, Store: new(meshtest.Store), Self: id(1), Keyring: member.NewKeyring(testKey), Transport: meshtest.NewNetwork(1).Transport,
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Run(t.Context()); !errors.Is(err, gossip.ErrClone) {
			t.Errorf("ends with %v", err)
		}
	})
}

// TestRenewalsNeedNoDisk: a disk that is full for a day must not cost the lease.
func TestRenewalsNeedNoDisk(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		net := meshtest.NewNetwork(1)
		a, b := start(t, net, 1, nil), start(t, net, 2, func(opt *gossip.Options, _ *core) { opt.Seeds = []string{address(1).String()} })
		time.Sleep(5 * time.Second)
		b.store.Fail(true)
		b.core.mu.Lock()
		b.core.out.Keep = &member.State{Epoch: 7}
		b.core.mu.Unlock()
		b.core.say("renewed")
		b.SetSeeds(nil) // a step
		time.Sleep(5 * time.Second)
		if !a.core.knows("renewed") {
			t.Error("the renewal was not said")
		}
		b.store.Fail(false)
		time.Sleep(5 * time.Second)
		if s, _, _ := b.store.Saved(); s.Epoch != 7 {
			t.Errorf("saved %+v", s)
		}
	})
}
