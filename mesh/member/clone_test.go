package member

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
)

// TestCloneIsWithheld: a copy on another host has no tunnels before it ends, and nobody
// is told to look for it there. One at the same address has none once it has heard of
// the other, which makes its tunnels anew meanwhile and after it.
func TestCloneIsWithheld(t *testing.T) {
	for name, elsewhere := range map[string]bool{"elsewhere": true, "at the same address": false} {
		t.Run(name, func(t *testing.T) {
			s, a, b, c := trio(t)
			s.run(time.Minute)
			contested := c.view.Contested
			copied := s.clone(c)
			if !elsewhere {
				copied.place = c.place
			}
			s.start(copied, a)
			begin, open := s.now, time.Duration(0)
			for ; !copied.ended && s.now.Sub(begin) < time.Minute; s.run(50 * time.Millisecond) {
				if !copied.view.Withheld {
					open += 50 * time.Millisecond
				}
				if copied.view.Withheld && (copied.view.State != mesh.Probing || !copied.has("withheld")) {
					t.Fatalf("the copy is withheld, %s, and says %v", copied.view.State, copied.view.Health)
				}
				if c.view.Withheld {
					t.Fatal("the one that it is a copy of is withheld")
				}
				for _, h := range []*host{a, b} {
					if at := h.sees(c).Endpoints; slices.Contains(at, copied.endpoint()) && elsewhere {
						t.Fatalf("%s looks for it at %s", h.name, at)
					}
				}
			}
			t.Logf("the copy ended after %s, and had tunnels for %s", s.now.Sub(begin), open)
			if !copied.ended || elsewhere && open > 0 || open > time.Second {
				t.Errorf("the copy has ended: %v; it had tunnels for %s", copied.ended, open)
			}
			if c.view.Contested == contested {
				t.Error("c has not made its tunnels anew")
			}
			contested = c.view.Contested
			s.run(2 * answerWithin)
			if c.view.Contested != contested+1 || c.view.Withheld {
				t.Errorf("after the copy is gone c is at %d after %d", c.view.Contested, contested)
			}
			if at := a.sees(c).Endpoints; !slices.Equal(at, c.sees(c).Endpoints) || len(at) != 1 {
				t.Errorf("a looks for it at %s", at)
			}
		})
	}
}

// TestStartElsewhere: whoever has moved while it was off waits until a twin would have
// spoken, once; a restart where it was costs nothing, and neither does a first start.
func TestStartElsewhere(t *testing.T) {
	s, a, b, c := trio(t)
	start := func(what string) time.Duration {
		t.Helper()
		c.stop()
		s.start(c, a)
		begin := s.now
		for s.run(50 * time.Millisecond); c.view.Withheld; s.run(50 * time.Millisecond) {
			if s.now.Sub(begin) > time.Minute {
				t.Fatalf("%s: still withheld", what)
			}
		}
		took := s.now.Sub(begin)
		s.run(time.Minute)
		if c.view.State != mesh.Ready || c.view.Withheld || c.view.Contested != 0 {
			t.Errorf("%s: it is %s, withheld %v", what, c.view.State, c.view.Withheld)
		}
		if at := b.sees(c).Endpoints; !slices.Contains(at, c.endpoint()) && c.side == b.side {
			t.Errorf("%s: b looks for it at %s", what, at)
		}
		return took
	}
	if took := start("where it was"); took > 50*time.Millisecond {
		t.Errorf("withheld for %s where it was", took)
	}
	c.place = 77
	if took := start("elsewhere"); took < answerWithin || took > answerWithin+quietFor {
		t.Errorf("withheld for %s elsewhere, want %s", took, answerWithin)
	}
	if took := start("there again"); took > 50*time.Millisecond {
		t.Errorf("withheld for %s where it was by now", took)
	}
	c.place, c.side = 78, 1 // where it reaches nobody
	if took := start("alone"); took < nobodyFor || took > nobodyFor+100*time.Millisecond {
		t.Errorf("withheld for %s where nobody can answer, want %s", took, nobodyFor)
	}
	if took := start("alone, where it was"); took > 50*time.Millisecond {
		t.Errorf("withheld for %s alone where it was", took)
	}
}

// TestStartWithoutNetwork: what is said where nobody can hear it shows nothing, so the
// wait begins with the address; and one at which the last run was ends it at once.
func TestStartWithoutNetwork(t *testing.T) {
	for name, moved := range map[string]bool{"elsewhere": true, "where it was": false} {
		t.Run(name, func(t *testing.T) {
			s, a, _, c := trio(t)
			s.run(time.Minute)
			c.stop()
			if moved {
				c.place = 77
			}
			c.side = 1
			s.startWithoutNetwork(c, a)
			s.run(20 * time.Second)
			if !c.view.Withheld || c.view.State != mesh.Ready || c.has("withheld") {
				t.Errorf("without a network: withheld %v, %s, says %v", c.view.Withheld, c.view.State, c.view.Health)
			}
			c.side = 0
			s.plugIn(c)
			begin := s.now
			if !moved {
				if c.view.Withheld {
					t.Error("it is withheld where it was")
				}
				return
			}
			for s.run(50 * time.Millisecond); c.view.Withheld && s.now.Sub(begin) < time.Minute; s.run(50 * time.Millisecond) {
				if slices.Contains(c.disk.Addresses, c.endpoint().Addr()) {
					t.Fatal("it is saved to be where it may not be")
				}
			}
			if took := s.now.Sub(begin); took < answerWithin || took > answerWithin+2*time.Second {
				t.Errorf("withheld for %s after its address came, want %s", took, answerWithin)
			}
			s.run(time.Second)
			if !slices.Contains(c.disk.Addresses, c.endpoint().Addr()) {
				t.Errorf("the next run is to expect itself at %s", c.disk.Addresses)
			}
		})
	}
}

// TestCopyThatReachesNobodyAtFirst: a copy has no tunnels before it ends, and nobody is
// told to look for it, although it is long there when the first member hears of it.
func TestCopyThatReachesNobodyAtFirst(t *testing.T) {
	for name, address := range map[string]bool{"for want of an address": false, "with an address": true} {
		t.Run(name, func(t *testing.T) {
			s, a, b, c := trio(t)
			s.run(time.Minute)
			copied := s.clone(c)
			copied.side = 1
			if address {
				s.start(copied, a)
			} else {
				s.startWithoutNetwork(copied, a)
			}
			check := func() {
				t.Helper()
				if !copied.ended && !copied.view.Withheld {
					t.Fatalf("the copy has tunnels at %s", s.now.Sub(start))
				}
				for _, h := range []*host{a, b} {
					if at := h.sees(c).Endpoints; slices.Contains(at, copied.endpoint()) {
						t.Fatalf("%s looks for it at %s", h.name, at)
					}
				}
			}
			for range 400 { // 20 s
				s.run(50 * time.Millisecond)
				check()
			}
			copied.side = 0
			s.plugIn(copied)
			for begin := s.now; !copied.ended; s.run(50 * time.Millisecond) {
				if check(); s.now.Sub(begin) > 20*time.Second {
					t.Fatal("the copy does not end")
				}
			}
		})
	}
}

// startWithoutNetwork is start on a host that has no address yet.
func (s *sim) startWithoutNetwork(h, seed *host) {
	s.t.Helper()
	h.unplugged = true
	s.start(h, seed)
}

// plugIn gives a host its address.
func (s *sim) plugIn(h *host) {
	h.unplugged = false
	h.m.SetEndpoints([]netip.AddrPort{h.endpoint()})
	s.step(h)
}

// TestCloneThatHearsNothing says that it is where the other one is, and so what all are
// told goes there. It asks, and ends; also when the other one is older by less than what
// it hears is old.
func TestCloneThatHearsNothing(t *testing.T) {
	for older, most := range map[time.Duration]time.Duration{
		2500 * time.Millisecond: 15 * time.Second, // what it hears first may tell the same second: they go on until the nonces decide
		4 * time.Second:         objectionAfter + answerWithin,
		time.Minute:             objectionAfter + answerWithin,
	} {
		for skip := range 8 { // other nonces
			s, a, _, c := trio(t)
			copied := s.clone(c)
			c.stop()
			s.seq += skip
			s.start(c, a)
			s.run(older)
			copied.place, copied.deaf, copied.disk.Addresses = c.place, true, nil
			s.start(copied, a)
			begin := s.now
			for !copied.ended && !c.ended && s.now.Sub(begin) < time.Minute {
				s.run(50 * time.Millisecond)
			}
			if took := s.now.Sub(begin); !copied.ended || c.ended || took > most {
				t.Errorf("the other one is older by %s, %d: the copy has ended: %v, the other: %v, after %s, want %s",
					older, skip, copied.ended, c.ended, took, most)
			}
		}
	}
}

// says has somebody with a host's keys say a record, so much above its epoch.
func (s *sim) says(h *host, nonce, above uint64, up time.Duration) {
	s.t.Helper()
	if h.m == nil {
		return
	}
	raw := must((&trust.Record{
		Version: mesh.Version{Epoch: h.disk.Epoch + above}, Certificate: h.m.cert.Hash, Nonce: nonce, Uptime: up, Key: mesh.Key{0xcc},
	}).Sign(key(h.name)))(s.t)
	if err := h.m.Receive(raw); err != nil {
		s.t.Fatal(err)
	}
	s.step(h)
}

// TestDeadRunIsNoElder: a past run of a node that was restored was older at first. It has
// said more than the node heard then, and that comes late.
func TestDeadRunIsNoElder(t *testing.T) {
	s, _, _, c := trio(t)
	c.stop()
	s.start(c, nil)
	s.run(10 * time.Second)
	const past = 1
	s.says(c, past, 1, 5*time.Minute)
	s.run(time.Hour)
	s.says(c, past, 1, 6*time.Minute)
	s.run(time.Minute)
	if c.ended {
		t.Error("it has ended, and nobody else is there")
	}
}

// TestTwoClones: one is younger and the other one older than who is copied. That the older
// one was heard is no reason to end for the younger one's answer.
func TestTwoClones(t *testing.T) {
	s, _, _, c := trio(t)
	s.run(time.Minute)
	const younger, older = 1, 2
	s.says(c, younger, 1, time.Second) // and is outbid
	s.run(time.Second)
	s.says(c, older, 1, time.Hour)
	s.run(outbidEvery - 1500*time.Millisecond)
	s.says(c, younger, 2, 5*time.Second) // answers
	s.run(time.Second)
	if c.ended {
		t.Fatal("it has ended for one that is younger")
	}
	for range 2 {
		s.says(c, older, 1, time.Hour) // is outbid, and answers
		s.run(outbidEvery + time.Second)
	}
	if !c.ended {
		t.Error("it has not ended for one that is older")
	}
}

// TestCloneThatKnowsNobody has lost the table, which is a cache, and has no seeds: it
// speaks before it has heard of anybody, and tells no endpoints even so.
func TestCloneThatKnowsNobody(t *testing.T) {
	s, a, b, _ := trio(t)
	s.run(time.Minute)
	copied := s.clone(a)
	copied.founder, copied.table = true, nil
	s.start(copied, nil)
	s.after(s.delay, func() { s.exchange(copied.m, copied, b) })
	s.run(time.Minute)
	if !copied.ended || len(copied.spoken) == 0 {
		t.Fatalf("the copy has ended: %v, after %d records", copied.ended, len(copied.spoken))
	}
	for _, r := range copied.spoken {
		if len(r.Endpoints) > 0 {
			t.Errorf("it says to be at %s", r.Endpoints)
		}
	}
}
