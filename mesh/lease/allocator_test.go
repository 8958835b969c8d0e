package lease

import (
	"encoding/binary"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// testNetwork is 10.0.0.0/8 cut into 2^bits subnets.
func testNetwork(bits int) mesh.Network {
	return mesh.Network{Name: "default", IPv4: netip.MustParsePrefix("10.0.0.0/8"), IPv4Len: 8 + bits}
}

// testNetwork24 is the one of newScript.
var testNetwork24 = mesh.Network{Name: "default", IPv4: netip.MustParsePrefix("10.0.0.0/24"), IPv4Len: 26}

// script drives one allocator and writes down what happens.
type script struct {
	t     *testing.T
	cfg   Config
	a     *Allocator
	now   time.Time
	world World
	out   strings.Builder
}

func newScript(t *testing.T, cfg Config, previous mesh.Lease) *script {
	if cfg.Permit == nil {
		cfg.Permit = func(p []netip.Prefix) bool { return len(cfg.Pins) == 0 || slices.Contains(cfg.Pins, p[0]) }
	}
	if cfg.Network.Name == "" {
		cfg.Network = testNetwork24
	}
	cfg.Self, cfg.Admitted = mesh.NodeID{5}, start
	s := &script{t: t, cfg: cfg, a: New(cfg, previous), now: start, world: World{MayClaim: true, Asked: true, Epoch: 1}}
	s.line("new")
	return s
}

// after lets time pass, tells what happened meanwhile, and steps.
func (s *script) after(d time.Duration, what string, happens func(*World)) {
	s.t.Helper()
	s.now = s.now.Add(d)
	if happens != nil {
		happens(&s.world)
	}
	before, _ := s.a.Lease()
	s.world.Members = len(s.world.Others) + 1
	changed := s.a.Step(s.now, s.world)
	if s.a.Asks() && s.world.Asked { // others are told at once, and answer
		changed = s.a.Step(s.now, s.world) || changed
	}
	after, _ := s.a.Lease()
	if really := show(before) != show(after); really != changed {
		s.t.Errorf("at %s: Step says changed=%v, and it is %v", s.now.Sub(start), changed, really)
	}
	if s.a.Step(s.now, s.world) {
		s.t.Errorf("at %s: a second Step changes it again", s.now.Sub(start))
	}
	s.line(what)
}

func (s *script) line(what string) {
	l, _ := s.a.Lease()
	next := ""
	if s.a.Asks() {
		next = "  asks"
	}
	if at, due := s.a.Next(); due {
		next += "  next " + at.Sub(start).String()
	}
	fmt.Fprintf(&s.out, "%9s  %-34s %-16s  %s%s\n", s.now.Sub(start), what, s.a.State(), show(l), next)
}

func show(l mesh.Lease) string {
	if l.State == 0 {
		return "-"
	}
	return fmt.Sprintf("%s %s since %s epoch %d", l.Prefixes, l.State, l.Since.Sub(start), l.ClaimEpoch)
}

func (s *script) golden() {
	s.t.Helper()
	file := filepath.Join("testdata", strings.ReplaceAll(strings.TrimPrefix(strings.TrimPrefix(s.t.Name(), "TestTranscripts/"), "TestLifeTranscripts/"), "/", "_")+".txt")
	if *update {
		if err := os.WriteFile(file, []byte(s.out.String()), 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		s.t.Fatal(err)
	}
	if got := s.out.String(); got != string(want) {
		s.t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// other is somebody else's claim of the i-th subnet.
func other(n mesh.Network, id byte, slot int, state mesh.LeaseState, since time.Duration) Claim {
	return Claim{Owner: mesh.NodeID{id}, Admitted: start, Lease: mesh.Lease{
		Network: n.Name, Prefixes: n.Slot(slot), State: state, Since: start.Add(since), ClaimEpoch: 1,
	}}
}

func TestTranscripts(t *testing.T) {
	const later = time.Hour // a claim that loses against ours by its date
	earlier := -time.Hour
	add := func(c ...Claim) func(*World) {
		return func(w *World) { w.Others = append(w.Others, c...) }
	}
	only := func(c ...Claim) func(*World) {
		return func(w *World) { w.Others = c }
	}
	at := func(s *script) int { // the slot that the script's node has
		l, _ := s.a.Lease()
		slot, err := s.cfg.Network.SlotOf(l.Prefixes[0])
		if err != nil {
			s.t.Fatal(err)
		}
		return slot
	}
	window := probeWindow(1, false)

	t.Run("first start alone", func(t *testing.T) {
		s := newScript(t, Config{}, mesh.Lease{})
		s.after(0, "nobody is known", func(w *World) { w.MayClaim = false })
		s.after(time.Second, "may claim", func(w *World) { w.MayClaim = true })
		s.after(window-time.Millisecond, "almost", nil)
		s.after(time.Millisecond, "window over", nil)
		s.after(time.Hour, "nothing happens", nil)
		s.golden()
	})
	t.Run("start among others", func(t *testing.T) {
		s := newScript(t, Config{}, mesh.Lease{})
		n := s.cfg.Network
		s.after(0, "three of four are taken", only(other(n, 1, 0, mesh.Held, earlier), other(n, 2, 2, mesh.Pending, earlier), other(n, 3, 3, mesh.Quarantined, earlier)))
		s.after(probeWindow(4, false), "window over", nil)
		s.golden()
	})
	t.Run("collision while pending", func(t *testing.T) {
		s := newScript(t, Config{}, mesh.Lease{})
		s.after(0, "claims", nil)
		s.after(400*time.Millisecond, "a later claim of the same", add(other(s.cfg.Network, 9, at(s), mesh.Pending, later)))
		s.after(time.Second, "an earlier claim of the same", add(other(s.cfg.Network, 1, at(s), mesh.Pending, earlier)))
		s.after(probeWindow(3, false), "window over", nil)
		s.golden()
	})
	unproven := func(slot int, state mesh.LeaseState) func(*World) {
		return func(w *World) { w.Unproven = []mesh.Lease{other(testNetwork24, 1, slot, state, earlier).Lease} }
	}
	t.Run("a rival is proven late", func(t *testing.T) {
		s := newScript(t, Config{}, mesh.Lease{})
		s.after(0, "claims", nil)
		s.after(400*time.Millisecond, "a record of the same slot waits for proof", unproven(at(s), mesh.Pending))
		s.after(probeWindow(1, true)-400*time.Millisecond, "window over", nil)
		s.after(time.Second, "the proof comes", func(w *World) {
			w.Unproven, w.Others = nil, []Claim{other(s.cfg.Network, 1, at(s), mesh.Pending, earlier)}
		})
		s.after(probeWindow(2, false), "window over", nil)
		s.golden()
	})
	t.Run("a rival is never proven", func(t *testing.T) {
		s := newScript(t, Config{}, mesh.Lease{})
		s.after(0, "claims, unproven record of the same slot", func(w *World) { unproven(3, mesh.Held)(w) })
		if at(s) != 3 {
			t.Fatalf("the first wish is slot %d, the test wants 3", at(s))
		}
		s.after(probeWindow(1, true), "window over", nil)
		s.after(proofWait-time.Millisecond, "almost", nil)
		s.after(time.Millisecond, "long enough", nil)
		s.after(time.Hour, "nothing happens", nil)
		s.golden()
	})
	asked := func(yes bool) func(*World) { return func(w *World) { w.Asked = yes } }
	t.Run("others are told and asked first", func(t *testing.T) {
		s := newScript(t, Config{}, mesh.Lease{})
		s.after(0, "claims, others are told", asked(false))
		s.after(time.Second, "they have been", asked(true))
		s.after(window-time.Millisecond, "almost", nil)
		s.after(time.Millisecond, "window over, others are asked", asked(false))
		s.after(time.Second, "they have been", asked(true))
		s.golden()
	})
	t.Run("whoever is asked does not answer", func(t *testing.T) {
		s := newScript(t, Config{}, mesh.Lease{})
		s.after(0, "claims, others are told", asked(false))
		s.after(proofWait-time.Millisecond, "almost", nil)
		s.after(time.Millisecond, "nobody has heard", nil)
		s.after(probeWindow(1, true), "window over, others are asked", nil)
		s.after(proofWait, "no answer", nil)
		s.golden()
	})
	t.Run("whoever is asked knows of a rival", func(t *testing.T) {
		s := newScript(t, Config{}, mesh.Lease{})
		s.after(0, "claims", nil)
		s.after(window, "window over, others are asked", asked(false))
		s.after(3*time.Second, "they have been: a later claim of the same", func(w *World) {
			w.Asked, w.Others = true, []Claim{other(s.cfg.Network, 9, at(s), mesh.Pending, later)}
		})
		s.after(probeWindow(2, false)-time.Millisecond, "almost", asked(false))
		s.after(time.Millisecond, "others are asked again", nil)
		s.after(time.Second, "they have been", asked(true))
		s.golden()
	})
	t.Run("a rival from the start", func(t *testing.T) {
		s := newScript(t, Config{Pins: prefixes("10.0.0.128/26")}, mesh.Lease{})
		s.after(0, "held by one that is not pinned", only(other(s.cfg.Network, 1, 2, mesh.Held, earlier)))
		s.after(probeWindow(2, true)-time.Millisecond, "almost", nil)
		s.after(time.Millisecond, "window over", nil)
		s.golden()
	})
	t.Run("a rival that comes later", func(t *testing.T) {
		s := newScript(t, Config{}, mesh.Lease{})
		s.after(0, "claims", nil)
		s.after(window-time.Millisecond, "a later claim of the same", add(other(s.cfg.Network, 9, at(s), mesh.Pending, later)))
		s.after(time.Second, "it is withdrawn", only())
		s.after(probeWindow(2, true)-window-time.Second, "almost", nil)
		s.after(time.Millisecond, "window over", nil)
		s.golden()
	})
	t.Run("members become known", func(t *testing.T) {
		s := newScript(t, Config{}, mesh.Lease{})
		s.after(0, "claims, alone", nil)
		s.after(400*time.Millisecond, "two others are there", only(other(s.cfg.Network, 1, (at(s)+1)%4, mesh.Held, earlier), other(s.cfg.Network, 2, (at(s)+2)%4, mesh.Held, earlier)))
		s.after(window-400*time.Millisecond, "window of one over", nil)
		s.after(probeWindow(3, false)-window, "window of three over", nil)
		s.golden()
	})
	t.Run("unproven claims that are not in the way", func(t *testing.T) {
		s := newScript(t, Config{}, mesh.Lease{})
		s.after(0, "claims", nil)
		s.after(window-time.Millisecond, "of the same slot, released", unproven(at(s), mesh.Released))
		s.after(time.Millisecond, "of another slot", unproven((at(s)+1)%4, mesh.Held))
		s.golden()
	})
	t.Run("pending is never quarantined", func(t *testing.T) {
		s := newScript(t, Config{OnConflict: Quarantine}, mesh.Lease{})
		s.after(0, "claims", func(w *World) { w.InUse = true })
		s.after(400*time.Millisecond, "an earlier claim of the same", add(other(s.cfg.Network, 1, at(s), mesh.Pending, earlier)))
		s.golden()
	})
	t.Run("held loser renumbers", func(t *testing.T) {
		s := newScript(t, Config{}, mesh.Lease{})
		s.after(0, "claims", nil)
		s.after(window, "window over", nil)
		s.after(time.Minute, "pending rival, however early", add(other(s.cfg.Network, 1, at(s), mesh.Pending, earlier)))
		s.after(time.Minute, "held rival, later", only(other(s.cfg.Network, 1, at(s), mesh.Held, later)))
		s.after(time.Minute, "held rival, earlier", only(other(s.cfg.Network, 1, at(s), mesh.Held, earlier)))
		s.after(probeWindow(2, false), "window over", nil)
		s.golden()
	})
	t.Run("pinned beats free", func(t *testing.T) {
		n := mesh.Network{Name: "default", IPv4: netip.MustParsePrefix("10.0.0.0/24"), IPv4Len: 26, IPv6: netip.MustParsePrefix("fd00::/48"), IPv6Len: 64}
		s := newScript(t, Config{Network: n, Pins: prefixes("10.0.0.128/26")}, mesh.Lease{})
		s.after(0, "held by one that is not pinned", only(other(n, 1, 2, mesh.Held, earlier)))
		s.after(probeWindow(2, true), "window over, and it is still there", nil)
		s.golden()
	})
	t.Run("pinned against pinned", func(t *testing.T) {
		s := newScript(t, Config{Pins: prefixes("10.0.0.128/26")}, mesh.Lease{})
		rival := other(s.cfg.Network, 1, 2, mesh.Held, earlier)
		rival.Pinned = true
		s.after(0, "held by one with the same pin", only(rival))
		s.after(time.Hour, "still", nil)
		rival.State = mesh.Released
		s.after(time.Hour, "the winner leaves", only(rival))
		s.after(probeWindow(2, false), "window over", nil)
		s.golden()
	})
	t.Run("pin outside the network", func(t *testing.T) {
		s := newScript(t, Config{Pins: prefixes("10.9.0.0/26")}, mesh.Lease{})
		s.after(0, "may claim", nil)
		s.golden()
	})
	t.Run("exhaustion", func(t *testing.T) {
		s := newScript(t, Config{}, mesh.Lease{})
		n := s.cfg.Network
		s.after(0, "all four are taken", only(other(n, 1, 0, mesh.Held, 0), other(n, 2, 1, mesh.Held, 0), other(n, 3, 2, mesh.Held, 0), other(n, 4, 3, mesh.Held, 0)))
		s.after(time.Hour, "one is released", func(w *World) { w.Others[1].State = mesh.Released })
		s.after(probeWindow(4, false), "window over", nil)
		s.golden()
	})
	held := mesh.Lease{Network: "default", Prefixes: prefixes("10.0.0.64/26"), State: mesh.Held, Since: start.Add(-time.Minute), ClaimEpoch: 1}
	for _, c := range []struct {
		on    OnConflict
		inUse bool
	}{{Auto, false}, {Auto, true}, {Renumber, true}, {Quarantine, false}} {
		t.Run(fmt.Sprintf("loser %s in use %v", c.on, c.inUse), func(t *testing.T) {
			s := newScript(t, Config{OnConflict: c.on}, held)
			s.after(0, "start", func(w *World) { w.InUse = c.inUse })
			s.after(time.Minute, "loses", only(other(s.cfg.Network, 1, 1, mesh.Held, earlier)))
			s.after(time.Minute, "nothing happens", nil)
			s.after(time.Minute, "nothing local uses it", func(w *World) { w.InUse = false })
			s.after(time.Minute, "nothing happens", nil)
			s.golden()
		})
	}
	t.Run("quarantined until the winner goes", func(t *testing.T) {
		s := newScript(t, Config{OnConflict: Quarantine}, held)
		s.after(0, "loses", only(other(s.cfg.Network, 1, 1, mesh.Held, earlier)))
		s.after(time.Minute, "the winner goes", only())
		s.after(window, "window over", nil)
		s.golden()
	})
	t.Run("policy changes while quarantined", func(t *testing.T) {
		s := newScript(t, Config{OnConflict: Quarantine}, mesh.Lease{})
		s.after(0, "claims", nil)
		s.after(window, "window over", nil)
		s.after(time.Hour, "an earlier claim of the same", add(other(s.cfg.Network, 1, at(s), mesh.Held, earlier)))
		s.a.SetOnConflict(Renumber)
		s.after(time.Minute, "told to renumber", nil)
		s.after(probeWindow(2, false), "window over", nil)
		s.golden()
	})
	t.Run("freed the longest ago is used first", func(t *testing.T) {
		s := newScript(t, Config{}, mesh.Lease{})
		n := s.cfg.Network
		s.after(0, "0 freed at 3h, 1 at 1h, 2 at 2h", only(
			other(n, 1, 0, mesh.Released, 3*time.Hour), other(n, 2, 1, mesh.Released, time.Hour),
			other(n, 3, 2, mesh.Released, 2*time.Hour), other(n, 4, 3, mesh.Held, 0)))
		s.golden()
	})
	t.Run("never used before freed", func(t *testing.T) {
		s := newScript(t, Config{}, mesh.Lease{})
		n := s.cfg.Network
		s.after(0, "only 2 was never used", only(
			other(n, 1, 0, mesh.Released, 3*time.Hour), other(n, 2, 1, mesh.Released, time.Hour), other(n, 3, 3, mesh.Released, 2*time.Hour)))
		s.golden()
	})
	t.Run("restart with its lease", func(t *testing.T) {
		s := newScript(t, Config{}, held)
		s.after(0, "nobody is known yet", func(w *World) { w.MayClaim, w.Epoch = false, 2 })
		s.after(time.Minute, "synced", func(w *World) { w.MayClaim = true })
		s.golden()
	})
	t.Run("restart with a lease that was lost meanwhile", func(t *testing.T) {
		s := newScript(t, Config{}, held)
		s.after(0, "nobody is known yet", func(w *World) { w.MayClaim = false })
		s.after(time.Minute, "loses, before it may claim", only(other(s.cfg.Network, 1, 1, mesh.Held, earlier)))
		s.after(time.Minute, "may claim", func(w *World) { w.MayClaim, w.Epoch = true, 2 })
		s.golden()
	})
	t.Run("restart with a lease that is not permitted any more", func(t *testing.T) {
		s := newScript(t, Config{Pins: prefixes("10.0.0.0/26")}, held)
		s.after(0, "may claim", nil)
		s.golden()
	})
	t.Run("restart in another address plan", func(t *testing.T) {
		s := newScript(t, Config{Network: mesh.Network{Name: "default", IPv4: netip.MustParsePrefix("10.0.0.0/24"), IPv4Len: 27}}, held)
		s.after(0, "may claim", nil)
		s.golden()
	})
	t.Run("release", func(t *testing.T) {
		s := newScript(t, Config{}, held)
		s.after(time.Minute, "start", nil)
		s.a.Release(s.now)
		s.line("leaves")
		s.after(time.Hour, "nothing brings it back", only(other(s.cfg.Network, 1, 1, mesh.Held, 0)))
		s.golden()
	})
}

// TestManyStartTogether lets allocators start at one moment, each hearing of the
// others after a delay, and waits until all hold a subnet of their own.
func TestManyStartTogether(t *testing.T) {
	for _, c := range []struct {
		name  string
		nodes int
		slots int // as a power of two
		id    func(i int) mesh.NodeID
		limit time.Duration
	}{
		{"20 with all wishes alike", 20, 8, alike, 20 * time.Second},
		{"50 with all wishes alike", 50, 8, alike, 45 * time.Second},
		{"20 of 256", 20, 8, spread, 5 * time.Second},
		{"50 of 256", 50, 8, spread, 6 * time.Second},
		{"as many as subnets", 32, 5, spread, 15 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			const tick, delay = 50 * time.Millisecond, 6 // ticks
			n := testNetwork(c.slots)
			nodes := make([]*Allocator, c.nodes)
			for i := range nodes {
				nodes[i] = New(Config{Self: c.id(i), Network: n, Admitted: start, Permit: func([]netip.Prefix) bool { return true }}, mesh.Lease{})
			}
			var history [][]Claim // what each has said, by tick
			for ticks := 0; ; ticks++ {
				now := start.Add(time.Duration(ticks) * tick)
				var heard []Claim
				if ticks >= delay {
					heard = history[ticks-delay]
				}
				var said []Claim
				ready := 0
				for i, a := range nodes {
					others := slices.DeleteFunc(slices.Clone(heard), func(o Claim) bool { return o.Owner == c.id(i) })
					a.Step(now, World{MayClaim: true, Asked: a.Asks(), Epoch: 1, Others: others})
					if a.State() == mesh.Ready {
						ready++
					}
					if l, ok := a.Lease(); ok {
						said = append(said, a.claim(l))
					}
				}
				history = append(history, said)
				if ready == len(nodes) && len(Resolve(said)) == len(nodes) {
					t.Logf("all ready after %s", now.Sub(start))
					return
				}
				if now.Sub(start) > c.limit {
					t.Fatalf("after %s %d of %d are ready, %d without conflict", c.limit, ready, len(nodes), len(Resolve(said)))
				}
			}
		})
	}
}

// alike makes IDs that rank all slots in the same order.
func alike(i int) mesh.NodeID { return mesh.NodeID{8: 0xff, 19: byte(i)} }

func spread(i int) (id mesh.NodeID) {
	binary.BigEndian.PutUint64(id[:], mix(uint64(i)))
	return id
}

// TestFirstWishesSpread compares the first wishes with what chance would give.
func TestFirstWishesSpread(t *testing.T) {
	n := testNetwork(8)
	taken := map[netip.Prefix]int{}
	const nodes = 2000
	for i := range nodes {
		p, ok := choose(n, spread(i), nil, nil, func([]netip.Prefix) bool { return true }, nil)
		if !ok {
			t.Fatal("nothing free")
		}
		taken[p[0]]++
	}
	most := 0
	for _, c := range taken {
		most = max(most, c)
	}
	// 7.8 per slot on average; 3 sigma of a Poisson distribution over 256 slots is well below 25.
	if len(taken) < 250 || most > 25 {
		t.Errorf("%d wishes use %d of 256 slots, one of them %d times", nodes, len(taken), most)
	}
}

// TestChooseLooksInRangesOnly: to look everywhere in a network of 2^24 slots took
// seconds, in which the owner of the allocator does nothing else.
func TestChooseLooksInRangesOnly(t *testing.T) {
	n := mesh.Network{Name: "default", IPv4: netip.MustParsePrefix("10.0.0.0/8"), IPv4Len: 30, IPv6: netip.MustParsePrefix("fd00::/32"), IPv6Len: 64}
	ranges := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/12"), netip.MustParsePrefix("fd00:0:0:100::/60"), netip.MustParsePrefix("fd00:0:7:100::/60")}
	looks := 0
	permit := func(p []netip.Prefix) bool {
		looks++
		return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(p[1].Addr()) })
	}
	got, _ := choose(n, mesh.NodeID{1}, nil, ranges, permit, nil)
	if looks > 32 {
		t.Errorf("looked at %d slots of 32", looks)
	}
	if want, _ := choose(n, mesh.NodeID{1}, nil, nil, permit, nil); !slices.Equal(got, want) {
		t.Errorf("chose %v; looking everywhere, %v", got, want)
	}
	if got, ok := choose(n, mesh.NodeID{1}, nil, []netip.Prefix{netip.MustParsePrefix("192.168.0.0/24")}, permit, nil); ok {
		t.Errorf("chose %v outside of the range", got)
	}
}

func TestProbeWindowGrows(t *testing.T) {
	for _, c := range []struct {
		doubt       bool
		alone, most time.Duration
	}{{false, 500 * time.Millisecond, 1600 * time.Millisecond}, {true, 1700 * time.Millisecond, 5 * time.Second}} {
		if w := probeWindow(1, c.doubt); w != c.alone {
			t.Errorf("alone, doubt %v: %s, want %s", c.doubt, w, c.alone)
		}
		for n := 2; n < 2000; n *= 2 {
			if w := probeWindow(n, c.doubt); w < probeWindow(n/2, c.doubt) || w > c.most {
				t.Errorf("%d nodes, doubt %v: %s", n, c.doubt, w)
			}
		}
	}
}

func ExampleResolve() {
	claim := func(id byte, subnet string, state mesh.LeaseState, since int64) Claim {
		return Claim{Owner: mesh.NodeID{id}, Lease: mesh.Lease{
			Network: "default", Prefixes: prefixes(subnet), State: state, Since: time.Unix(since, 0),
		}}
	}
	for _, w := range Resolve([]Claim{
		claim(1, "10.86.17.0/24", mesh.Pending, 100),
		claim(2, "10.86.17.0/24", mesh.Held, 300), // wins: it is held
		claim(3, "10.86.17.0/24", mesh.Held, 400),
		claim(4, "10.86.18.0/24", mesh.Held, 500),
	}) {
		fmt.Println(w.Owner[0], w.Prefixes)
	}
	// Output:
	// 2 [10.86.17.0/24]
	// 4 [10.86.18.0/24]
}
