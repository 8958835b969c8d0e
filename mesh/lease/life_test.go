package lease

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"meshd/mesh"
)

// void is a claim that a tombstone has voided.
func void(c Claim, freed time.Duration) Claim {
	c.Void, c.Freed = true, start.Add(freed)
	return c
}

func TestLifeTranscripts(t *testing.T) {
	n := testNetwork24
	only := func(c ...Claim) func(*World) {
		return func(w *World) { w.Others = c }
	}
	held := func(slot int) mesh.Lease { return other(n, 5, slot, mesh.Held, -time.Hour).Lease }

	t.Run("a void slot is free to be claimed", func(t *testing.T) {
		s := newScript(t, Config{}, mesh.Lease{})
		s.after(0, "three of four are taken, one is void", only(
			other(n, 1, 0, mesh.Held, -time.Hour), other(n, 2, 1, mesh.Held, -time.Hour), other(n, 3, 2, mesh.Held, -time.Hour),
			void(other(n, 4, 3, mesh.Held, -time.Hour), 0)))
		s.after(probeWindow(5, false), "window over", nil)
		s.after(time.Second, "its owner speaks again, and is the elder", only(other(n, 4, 3, mesh.Held, -time.Hour)))
		s.golden()
	})
	t.Run("void slots by the time of their tombstones", func(t *testing.T) {
		s := newScript(t, Config{}, mesh.Lease{})
		s.after(0, "all are void; slot 2 the longest", only(
			void(other(n, 1, 0, mesh.Held, -9*time.Hour), -time.Hour), void(other(n, 2, 1, mesh.Held, -8*time.Hour), -2*time.Hour),
			void(other(n, 3, 2, mesh.Held, -time.Minute), -3*time.Hour), void(other(n, 4, 3, mesh.Held, -7*time.Hour), -time.Minute)))
		s.golden()
	})
	t.Run("claimed afresh", func(t *testing.T) {
		s := newScript(t, Config{}, held(2))
		s.world.MayClaim, s.world.Epoch = false, 2
		s.a.Reclaim(false)
		s.after(0, "off for too long, nobody reached yet", nil)
		s.after(time.Second, "reached", func(w *World) { w.MayClaim = true })
		s.after(probeWindow(1, false), "window over", nil)
		s.golden()
	})
	t.Run("claimed afresh and taken meanwhile", func(t *testing.T) {
		s := newScript(t, Config{}, held(2))
		s.a.Reclaim(false)
		s.after(0, "another has it by now", only(other(n, 1, 2, mesh.Held, -time.Minute)))
		s.after(probeWindow(2, false), "window over", nil)
		s.golden()
	})
	t.Run("claimed afresh with containers", func(t *testing.T) {
		s := newScript(t, Config{}, held(2))
		s.world.MayClaim, s.world.InUse = false, true
		s.a.Reclaim(true)
		s.after(0, "off for too long, nobody reached yet", nil)
		s.after(time.Second, "another has it by now", func(w *World) {
			w.MayClaim, w.Others = true, []Claim{other(n, 1, 2, mesh.Held, -time.Minute)}
		})
		s.after(time.Second, "that one leaves", func(w *World) { w.Others = nil })
		s.after(probeWindow(2, false), "window over", nil)
		s.golden()
	})
	t.Run("quarantine survives a restart", func(t *testing.T) {
		l := held(2)
		l.State = mesh.Quarantined
		s := newScript(t, Config{}, l)
		s.world.InUse, s.world.MayClaim = true, false
		s.after(0, "nobody is reached yet", nil)
		s.after(time.Second, "the winner is known", func(w *World) {
			w.MayClaim, w.Others = true, []Claim{other(n, 1, 2, mesh.Held, -time.Minute)}
		})
		s.golden()
	})
	t.Run("a pinned loser in use", func(t *testing.T) {
		s := newScript(t, Config{Pins: n.Slot(2)}, held(2))
		rival := other(n, 1, 2, mesh.Held, -2*time.Hour)
		rival.Pinned, rival.Admitted = true, start.Add(-2*time.Hour)
		s.world.InUse = true
		s.after(0, "an elder with the same pin", only(rival))
		s.golden()
	})
	t.Run("reserved", func(t *testing.T) {
		reserved := func(p []netip.Prefix) bool { return !slices.Equal(p, n.Slot(1)) }
		s := newScript(t, Config{Reserved: reserved}, mesh.Lease{})
		s.after(0, "all but one are reserved", nil)
		s.golden()
	})
	t.Run("reserved for the pinned", func(t *testing.T) {
		s := newScript(t, Config{Reserved: func([]netip.Prefix) bool { return true }, Pins: n.Slot(1)}, mesh.Lease{})
		s.after(0, "all are reserved", nil)
		s.golden()
	})
	t.Run("reserved what is held", func(t *testing.T) {
		s := newScript(t, Config{Reserved: func([]netip.Prefix) bool { return true }}, held(1))
		s.after(0, "all are reserved", nil)
		s.after(time.Second, "who is pinned comes", func(w *World) {
			c := other(n, 1, 1, mesh.Pending, 0)
			c.Pinned = true
			w.Others = []Claim{c}
		})
		s.golden()
	})
	t.Run("renumbered by hand", func(t *testing.T) {
		s := newScript(t, Config{}, held(2))
		s.after(0, "two are left", only(other(n, 1, 0, mesh.Held, 0), other(n, 2, 1, mesh.Held, 0)))
		if !s.a.Renumber(s.world) {
			t.Error("no other subnet, it says")
		}
		s.after(time.Second, "renumbered", nil)
		s.after(probeWindow(3, false), "window over", nil)
		s.after(0, "none is left", only(other(n, 1, 0, mesh.Held, 0), other(n, 2, 1, mesh.Held, 0), other(n, 3, 2, mesh.Held, 0)))
		if s.a.Renumber(s.world) {
			t.Error("there is another subnet, it says")
		}
		s.after(time.Second, "not renumbered", nil)
		s.golden()
	})
	t.Run("a renewed certificate permits less", func(t *testing.T) {
		s := newScript(t, Config{}, held(2))
		s.a.SetRights(nil, nil, start, func(p []netip.Prefix) bool { return slices.Equal(p, n.Slot(0)) })
		s.after(0, "another one is permitted", nil)
		s.golden()
	})
}

// TestRouteOfAVoidLease: gossip may be silent for long everywhere, and then
// everybody takes everybody for gone.
func TestRouteOfAVoidLease(t *testing.T) {
	n := testNetwork24
	gone := void(other(n, 1, 2, mesh.Held, -time.Hour), 0)
	for name, c := range map[string]struct {
		others []Claim
		routed byte
	}{
		"nobody wants it":    {nil, 1},
		"pending":            {[]Claim{other(n, 2, 2, mesh.Pending, 0)}, 1},
		"held":               {[]Claim{other(n, 2, 2, mesh.Held, 0)}, 2},
		"an elder void one":  {[]Claim{void(other(n, 2, 2, mesh.Held, -2*time.Hour), 0)}, 1}, // both as old as their admission
		"a void pending one": {[]Claim{void(other(n, 0, 2, mesh.Pending, -2*time.Hour), 0)}, 1},
		"beside it":          {[]Claim{other(n, 2, 3, mesh.Held, 0)}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			for _, all := range [][]Claim{append([]Claim{gone}, c.others...), append(slices.Clone(c.others), gone)} {
				var who []byte
				for _, r := range Routed(all) {
					if r.overlaps(n.Slot(2)) {
						who = append(who, r.Owner[0])
					}
				}
				if !slices.Equal(who, []byte{c.routed}) {
					t.Errorf("routed to %v, want %d", who, c.routed)
				}
			}
		})
	}
}

// A subnet in use that was claimed out of quarantine, and is lost, goes back there:
// containers have addresses of it.
func TestClaimOutOfQuarantineGoesBack(t *testing.T) {
	n := mesh.Network{Name: "default", IPv4: netip.MustParsePrefix("10.86.0.0/16"), IPv4Len: 24}
	now, own := time.Unix(1_800_000_000, 0), n.Slot(5)
	another := []Claim{{Owner: mesh.NodeID{2}, Lease: mesh.Lease{Network: "default", Prefixes: own, State: mesh.Held, Since: now.Add(-time.Hour)}}}
	for name, again := range map[string]func(*Allocator){
		"lost":                func(*Allocator) {},
		"off again, and lost": func(a *Allocator) { a.Reclaim(true) },
	} {
		t.Run(name, func(t *testing.T) {
			a := New(Config{Self: mesh.NodeID{1}, Network: n, OnConflict: Auto, Permit: func([]netip.Prefix) bool { return true }},
				mesh.Lease{Network: "default", Prefixes: own, State: mesh.Held, Since: now, ClaimEpoch: 1})
			w := World{MayClaim: true, Epoch: 2, InUse: true}
			a.Reclaim(true)
			a.Step(now, w)
			if l, _ := a.Lease(); l.State != mesh.Pending {
				t.Fatalf("it is %s, not claimed", l.State)
			}
			again(a)
			w.Others = another
			a.Step(now.Add(time.Second), w)
			if l, ok := a.Lease(); !ok || l.State != mesh.Quarantined || !slices.Equal(l.Prefixes, own) {
				t.Errorf("containers have addresses of %s; now it is %s with %s", own, l.State, l.Prefixes)
			}
			w.Others = nil
			a.Step(now.Add(2*time.Second), w)
			w.InUse, w.Others = false, another
			a.Step(now.Add(3*time.Second), w)
			if l, _ := a.Lease(); slices.Equal(l.Prefixes, own) {
				t.Errorf("nothing uses it any more, and it is %s with %s", l.State, l.Prefixes)
			}
		})
	}
}

// Nothing is free in the one slot that a node may have: a large network is not searched
// again until somebody gives something up, the rights change, or after a while.
func TestNothingFreeIsRemembered(t *testing.T) {
	n := mesh.Network{Name: "default", IPv4: netip.MustParsePrefix("10.0.0.0/8"), IPv4Len: 24}
	looks := 0
	only := func(i int) func([]netip.Prefix) bool {
		return func(p []netip.Prefix) bool { looks++; return slices.Equal(p, n.Slot(i)) }
	}
	now := time.Unix(1_800_000_000, 0)
	a := New(Config{Self: mesh.NodeID{1}, Network: n, Permit: only(5)}, mesh.Lease{})
	held := Claim{Owner: mesh.NodeID{2}, Lease: mesh.Lease{Network: "default", Prefixes: n.Slot(5), State: mesh.Held, Since: now}}
	w := World{MayClaim: true, Epoch: 1, Others: []Claim{held}}
	step := func(after time.Duration, want bool) {
		t.Helper()
		now, looks = now.Add(after), 0
		a.Step(now, w)
		if looks > 0 != want {
			t.Errorf("looked %d times", looks)
		}
		if _, ok := a.Lease(); ok || a.State() != mesh.NoFreeSubnets {
			t.Errorf("it is %s", a.State())
		}
	}
	step(0, true)
	for range 10 {
		step(time.Second, false)
	}
	step(lookAgain, true)
	a.SetRights(nil, nil, time.Time{}, only(5))
	step(time.Second, true)
	other := held
	other.Owner, other.Prefixes = mesh.NodeID{3}, n.Slot(6)
	w.Others = append(w.Others, other)
	step(time.Second, true)
	step(time.Second, false)
	w.Others[0].State = mesh.Released
	a.Step(now.Add(time.Second), w)
	if l, ok := a.Lease(); !ok || !slices.Equal(l.Prefixes, n.Slot(5)) {
		t.Errorf("what was given up is not taken: %v", l)
	}
}
