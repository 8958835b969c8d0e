package sim

import (
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"meshd/mesh"
)

// playCrowd plays the schedule of one seed, and looks whether all is well again in
// time, and for good.
func playCrowd(t *testing.T, seed uint64, verbose bool) (took time.Duration) {
	t.Helper()
	cryptotest.SetGlobalRandom(t, seed)
	synctest.Test(t, func(t *testing.T) { // only for a clock that always begins at the same time
		s := drawCrowd(seed)
		c := newCrowd(t, s)
		c.play(s)
		var err error
		if len(c.wrong) == 0 {
			took, err = c.settle()
		}
		for _, v := range c.wrong {
			t.Error(v)
		}
		if err != nil && len(c.wrong) == 0 {
			t.Error(err)
		}
		if t.Failed() || verbose {
			c.tell(t.Output())
		}
		if t.Failed() {
			fmt.Fprintf(t.Output(), "replay: go test ./overlay/sim -run 'TestCrowd$' -sim.seed=%d -v\n", seed)
		}
	})
	return took
}

// Membership alone survives whatever a seed draws, leases that expire included.
func TestCrowd(t *testing.T) {
	if *simSeed != 0 {
		playCrowd(t, *simSeed, testing.Verbose())
		return
	}
	runs(t, "crowds", *simTime/2, func(t *testing.T, seed uint64) time.Duration { return playCrowd(t, seed, false) })
}

// A seed tells the same story each time.
func TestCrowdIsOfItsSeed(t *testing.T) {
	story := func(t *testing.T, seed uint64) (out string) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			cryptotest.SetGlobalRandom(t, seed)
			synctest.Test(t, func(t *testing.T) {
				s := drawCrowd(seed)
				c := newCrowd(t, s)
				c.play(s)
				_, _ = c.settle()
				out = fmt.Sprint(c.story)
			})
		})
		return out
	}
	for seed := range uint64(3) {
		if first, second := story(t, seed+1), story(t, seed+1); first != second {
			t.Errorf("seed %d tells two stories", seed+1)
		}
	}
}

// What seeds have found once, each as short as it gets, and what they hardly ever meet.
func TestCrowdStories(t *testing.T) {
	for name, steps := range map[string][]crowdStep{
		// It asked for the next step at once, for as long as it ran.
		"who is revoked while it looks for a subnet does not spin": {
			{0, "n0 joins", func(c *crowd) { c.hosts[0].join() }},
			{5 * time.Second, "n1 joins", func(c *crowd) { c.hosts[1].join() }},
			{7 * time.Second, "n1 is revoked", func(c *crowd) { c.revoke(1) }},
		},
		// Whose turn came second had a turn in the past, for ever.
		"who comes too late to say that a node is gone does not spin": {
			{0, "n0 to n3 join", func(c *crowd) {
				for _, h := range c.hosts[:4] {
					h.join()
				}
			}},
			{20 * time.Second, "n3 is off", func(c *crowd) { c.hosts[3].wanted = false; c.hosts[3].stop() }},
			{20*time.Second + 2*crowdTTL, "n3 is on again", func(c *crowd) { c.hosts[3].again() }},
		},
		// Its renewal was due all the time that it had to be quiet.
		"who wakes up after its lease has ended does not spin while it listens": {
			{0, "n0 and n1 join", func(c *crowd) { c.hosts[0].join(); c.hosts[1].join() }},
			{20 * time.Second, "n1 is suspended", func(c *crowd) { c.hosts[1].sleep() }},
			{20*time.Second + 2*crowdTTL, "n1 wakes up", func(c *crowd) { c.hosts[1].wake() }},
		},
		// Each took itself for the older one, since what it heard was some seconds old.
		"of two clones that start together, one ends": {
			{0, "n0 and n1 join", func(c *crowd) { c.hosts[0].join(); c.hosts[1].join() }},
			{10 * time.Second, "n1 is cloned", func(c *crowd) { c.clone(1) }},
			{10*time.Second + 200*time.Millisecond, "n1 restarts", func(c *crowd) { c.hosts[1].stop(); c.hosts[1].boot() }},
		},
		// It had told nobody of its lease in this run, and took it for one that cannot end.
		"who is suspended right after a restart holds nothing after longer than a lease lasts": {
			{0, "n0 and n1 join", func(c *crowd) { c.hosts[0].join(); c.hosts[1].join() }},
			{20 * time.Second, "n1 is alone, and restarts", func(c *crowd) {
				c.part([]int{0}, []int{1}, true)
				c.part([]int{1}, []int{0}, true)
				c.hosts[1].stop()
				c.hosts[1].boot()
			}},
			{21 * time.Second, "n1 is suspended", func(c *crowd) { c.hosts[1].sleep() }},
			{21*time.Second + 2*crowdTTL, "n1 wakes up", func(c *crowd) { c.hosts[1].wake() }},
		},
		// By it the certificates of n1 and n3 have ended.
		"whoever's clock is set ahead drops nobody": {
			{0, "n0 to n3 join", func(c *crowd) {
				for _, h := range c.hosts[:4] {
					h.join()
				}
			}},
			{20 * time.Second, "the clocks of n0 and n1 are set a day ahead", func(c *crowd) {
				c.hosts[0].setClock(settings[0])
				c.hosts[1].setClock(settings[0])
			}},
			{20*time.Second + crowdTTL, "n3 restarts", func(c *crowd) { c.hosts[3].stop(); c.hosts[3].boot() }},
		},
		// Those who started with it believe it: they have dropped n1 and n3 for good reason.
		"who was dropped for a clock is back when that is right": {
			{0, "n0 to n3 join", func(c *crowd) {
				for _, h := range c.hosts[:4] {
					h.join()
				}
			}},
			{20 * time.Second, "n0 and n2 start with clocks that are a day ahead", func(c *crowd) {
				for _, h := range []*machine{c.hosts[0], c.hosts[2]} {
					h.stop()
					h.setClock(settings[0])
					h.boot()
				}
			}},
		},
		"who starts in 1970 has what it had": {
			{0, "n0 to n3 join", func(c *crowd) {
				for _, h := range c.hosts[:4] {
					h.join()
				}
			}},
			{20 * time.Second, "all start with clocks of 1970", func(c *crowd) {
				for _, h := range c.hosts[:4] {
					h.stop()
					h.setClock(settings[4])
				}
				for _, h := range c.hosts[:4] {
					h.boot()
				}
			}},
		},
		// Nobody else had heard of it: whoever revokes has to look.
		"a revocation that was lost with a disk is handed in again": {
			{0, "n0 to n2 join", func(c *crowd) {
				for _, h := range c.hosts[:3] {
					h.join()
				}
			}},
			{20 * time.Second, "n0 is alone, and a backup of it is made", func(c *crowd) {
				c.part([]int{0}, []int{1, 2}, true)
				c.part([]int{1, 2}, []int{0}, true)
				c.hosts[0].stop()
				c.hosts[0].boot()
				c.hosts[0].backup = c.hosts[0].disk.clone()
			}},
			{30 * time.Second, "n2 is revoked", func(c *crowd) { c.revoke(2) }},
			{40 * time.Second, "the backup is restored", func(c *crowd) { c.restore(0) }},
		},
		// The others have said by then that n2 is gone, up to its epoch: that is of what it has
		// claimed in it since, too. It dies before it has said that it lives.
		"who renumbers while others bury it may have to claim afresh": {
			{0, "n0 to n2 join", func(c *crowd) {
				for _, h := range c.hosts[:3] {
					h.join()
				}
			}},
			{20 * time.Second, "n2 is alone", func(c *crowd) {
				c.part([]int{2}, []int{0, 1}, true)
				c.part([]int{0, 1}, []int{2}, true)
			}},
			{20*time.Second + 2*crowdTTL, "n2 renumbers", func(c *crowd) { c.hosts[2].renumber() }},
			{30*time.Second + 2*crowdTTL, "it heals, and n2 dies while it saves", func(c *crowd) {
				c.hosts[2].dies = midSave
				clear(c.cut)
			}},
			{50*time.Second + 2*crowdTTL, "n2 runs again", func(c *crowd) {
				if h := c.hosts[2]; h.dies == midSave || h.excuse != "" {
					c.violate("story", "n2 was to renumber, and to die")
				}
			}},
		},
		// There is one subnet left, which both sides take.
		"of two sides of a partition, the earlier keeps what both have taken": {
			{0, "n0 to n2 join", func(c *crowd) {
				for _, h := range c.hosts[:3] {
					h.join()
				}
			}},
			{20 * time.Second, "partition", func(c *crowd) {
				c.part([]int{0, 3}, []int{1, 2, 4}, true)
				c.part([]int{1, 2, 4}, []int{0, 3}, true)
				c.hosts[3].join()
			}},
			{35 * time.Second, "n4 joins on the other side", func(c *crowd) { c.hosts[4].join() }},
			{55 * time.Second, "it heals", func(c *crowd) { clear(c.cut) }},
		},
	} {
		t.Run(name, func(t *testing.T) {
			playStory(t, &crowdSchedule{Network: tiny, Short: []bool{1: true, 3: true, 4: false}, Steps: steps})
		})
	}
}

// Whatever clocks show, and for good: a mesh that starts with them is what it was, and
// lets others in while by them there are tokens.
func TestCrowdOfWrongClocks(t *testing.T) {
	for _, to := range settings {
		t.Run(to.name, func(t *testing.T) {
			all := func(do func(*machine)) func(*crowd) {
				return func(c *crowd) {
					for _, h := range c.hosts[:4] {
						do(h)
					}
				}
			}
			steps := []crowdStep{
				{0, "n0 to n3 join", all((*machine).join)},
				{20 * time.Second, "their clocks are set " + to.name, all(func(h *machine) { h.setClock(to) })},
				{40 * time.Second, "they stop", all((*machine).stop)},
				{42 * time.Second, "they start", all((*machine).boot)},
			}
			if to.of(time.Now()) < 0 {
				steps = append(steps, crowdStep{50 * time.Second, "n4 joins", func(c *crowd) { c.hosts[4].join() }})
			}
			playStory(t, &crowdSchedule{Network: small, Steps: steps})
		})
	}
}

// As [TestSameFirstWish], with more than whole nodes could be played with: each record
// goes to each of the others by itself, and is taken a round of gossip later. One of
// twenty gets lost.
func TestCrowdOfOneWish(t *testing.T) {
	const seed = 2 // with which some hear late of each other
	nodes := *simWishers
	cryptotest.SetGlobalRandom(t, seed)
	wishers := drawWishers(seed, nodes)
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, &crowdSchedule{Seed: seed, Network: wishers.Network, Skews: make([]time.Duration, len(wishers.Hosts))})
		for i, h := range c.hosts {
			h.keys.Identity = ed25519.NewKeyFromSeed(wishers.Hosts[i].Identity[:])
			h.id = idOf(h.keys.Identity)
		}
		c.round = 200 * time.Millisecond // as memberlist's
		c.hosts[0].join()
		c.pass(5 * time.Second)
		c.loss = 0.05
		for _, h := range c.hosts[1:] {
			h.join()
			h.soon(time.Second, func() { h.exchange(c.hosts[0]) }) // all may claim at once
		}
		begin := c.now
		for c.unsettled() != "" && c.now.Sub(begin) <= wishes[nodes] && len(c.wrong) == 0 {
			c.pass(250 * time.Millisecond)
		}
		if wrong := c.unsettled(); wrong != "" || len(c.wrong) > 0 {
			t.Errorf("not unique within %s: %s %s", wishes[nodes], wrong, c.wrong)
		}
		held, lost := map[mesh.NodeID]netip.Prefix{}, 0
		for _, o := range c.claims {
			switch had, ok := held[o.owner]; {
			case o.State == mesh.Held && ok && had != o.Prefixes[0]:
				t.Errorf("%s held %s, and then %s", o.owner.Short(), had, o.Prefixes[0])
			case o.State == mesh.Held:
				held[o.owner] = o.Prefixes[0]
			case !o.until.IsZero():
				lost++
			}
		}
		if lost -= len(held); lost <= 0 { // each has had a claim that was not held yet
			t.Error("no claim was given up: there was nothing to be seen")
		}
		t.Logf("unique after %s; %d claims were given up", c.now.Sub(begin), lost)
	})
}

// playStory plays what no seed has drawn.
func playStory(t *testing.T, s *crowdSchedule) {
	t.Helper()
	s.Seed, s.Skews, s.End = 1, make([]time.Duration, 5), s.Steps[len(s.Steps)-1].At+5*time.Second
	cryptotest.SetGlobalRandom(t, s.Seed)
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, s)
		c.play(s)
		if _, err := c.settle(); err != nil || len(c.wrong) > 0 {
			c.tell(t.Output())
			t.Error(err, c.wrong)
		}
	})
}
