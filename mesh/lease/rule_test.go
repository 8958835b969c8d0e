package lease

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"meshd/mesh"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// claims draws what a mesh may say: few subnets and few moments, so that
// conflicts and ties are common; subnets of several sizes, so that one may
// overlap two; and every state.
func claims(t *rapid.T) []Claim {
	n := rapid.IntRange(0, 12).Draw(t, "claims")
	var out []Claim
	for i := range n {
		bits := rapid.IntRange(22, 26).Draw(t, "bits")
		v4 := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(rapid.IntRange(0, 7).Draw(t, "v4"))}), bits).Masked()
		v6 := netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 15: 0, 7: byte(rapid.IntRange(0, 7).Draw(t, "v6"))}), 64)
		out = append(out, Claim{
			Owner:    mesh.NodeID{byte(i / 2)}, // two networks each
			Pinned:   rapid.IntRange(0, 4).Draw(t, "pinned") == 0,
			Admitted: start.Add(time.Duration(rapid.IntRange(0, 2).Draw(t, "admitted")) * time.Second),
			Lease: mesh.Lease{
				Network: fmt.Sprint("network", i%2), Prefixes: []netip.Prefix{v4, v6},
				State: rapid.SampledFrom([]mesh.LeaseState{mesh.Pending, mesh.Held, mesh.Held, mesh.Quarantined, mesh.Released}).Draw(t, "state"),
				Since: start.Add(time.Duration(rapid.IntRange(-2, 3).Draw(t, "since")) * 500 * time.Millisecond),
			},
		})
	}
	return out
}

func same(a, b Claim) bool { return a.Owner == b.Owner && a.Network == b.Network }

func equal(a, b []Claim) bool { return slices.EqualFunc(a, b, same) }

func TestResolveLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := claims(t)
		before := slices.Clone(all)
		winners := Resolve(all)
		if !equal(all, before) {
			t.Fatal("the argument was changed")
		}
		if again := Resolve(rapid.Permutation(all).Draw(t, "order")); !equal(again, winners) {
			t.Fatalf("depends on order:\n%v\n%v", winners, again)
		}
		if again := Resolve(winners); !equal(again, winners) {
			t.Fatalf("not idempotent:\n%v\n%v", winners, again)
		}
		for i, a := range winners {
			if !a.candidate() {
				t.Fatalf("%s wins", a.State)
			}
			for _, b := range winners[:i] {
				if a.overlaps(b.Prefixes) {
					t.Fatalf("two winners overlap: %v, %v", a, b)
				}
			}
		}
		for i, c := range all {
			won := slices.ContainsFunc(winners, func(w Claim) bool { return same(w, c) })
			if c.candidate() && wins(c, slices.Delete(slices.Clone(all), i, i+1)) != won {
				t.Fatalf("wins disagrees with Resolve on %v", c)
			}
			if won {
				continue
			}
			if c.candidate() && !slices.ContainsFunc(winners, func(w Claim) bool { return w.overlaps(c.Prefixes) && w.compare(c) < 0 }) {
				t.Fatalf("%v lost to nobody", c)
			}
			if again := Resolve(append(slices.Clone(all), c)); !equal(again, winners) {
				t.Fatalf("a loser twice changes the winners: %v", c)
			}
			if again := Resolve(slices.Delete(slices.Clone(all), i, i+1)); !equal(again, winners) {
				t.Fatalf("without a loser the winners change: %v", c)
			}
		}
	})
}

// TestTaken compares with a look at all that were taken, for claims whose own subnets
// overlap too.
func TestTaken(t *testing.T) {
	subnet := rapid.Custom(func(t *rapid.T) netip.Prefix {
		if rapid.Bool().Draw(t, "is v6") {
			return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 15: byte(rapid.IntRange(0, 31).Draw(t, "v6"))}), rapid.IntRange(122, 128).Draw(t, "bits")).Masked()
		}
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(0, 31).Draw(t, "v4"))}), rapid.IntRange(26, 32).Draw(t, "bits")).Masked()
	})
	rapid.Check(t, func(t *rapid.T) {
		var all, want []Claim
		for i, own := range rapid.SliceOfN(rapid.SliceOfN(subnet, 0, 3), 0, 20).Draw(t, "claims") {
			c := Claim{Owner: mesh.NodeID{byte(i)}, Lease: mesh.Lease{Prefixes: own}}
			all = append(all, c)
			if !slices.ContainsFunc(want, func(w Claim) bool { return w.overlaps(own) }) {
				want = append(want, c)
			}
		}
		var taken subnets
		if got := taken.take(all); !equal(got, want) {
			t.Fatalf("taken:\n%v\nwant:\n%v", got, want)
		}
		for i := range taken {
			if i > 0 && (taken[i-1].Overlaps(taken[i]) || taken[i-1].Addr().Compare(taken[i].Addr()) >= 0) {
				t.Fatalf("%v is not sorted, or overlaps", taken)
			}
		}
	})
}

func TestCompareIsATotalOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := claims(t)
		for _, a := range all {
			for _, b := range all {
				ab, ba := a.compare(b), b.compare(a)
				if ab != -ba || (ab == 0) != same(a, b) {
					t.Fatalf("%v, %v: %d and %d", a, b, ab, ba)
				}
				for _, c := range all {
					if ab < 0 && b.compare(c) < 0 && a.compare(c) >= 0 {
						t.Fatalf("not transitive: %v, %v, %v", a, b, c)
					}
				}
			}
		}
	})
}

func TestWhoWins(t *testing.T) {
	claim := func(id byte, change func(*Claim)) Claim {
		c := Claim{Owner: mesh.NodeID{id}, Admitted: start, Lease: mesh.Lease{
			Network: "default", Prefixes: prefixes("10.0.0.0/24"), State: mesh.Held, Since: start.Add(time.Hour),
		}}
		change(&c)
		return c
	}
	for _, c := range []struct {
		name          string
		winner, loser func(*Claim)
	}{
		{"smaller ID", func(*Claim) {}, func(*Claim) {}},
		{"pinned pending before held", func(c *Claim) { c.Pinned, c.State = true, mesh.Pending }, func(*Claim) {}},
		{"held before an older pending", func(*Claim) {}, func(c *Claim) { c.State, c.Since = mesh.Pending, start }},
		{"earlier", func(c *Claim) { c.Since = start.Add(time.Minute) }, func(*Claim) {}},
		{"dated before its admission, it counts from there", func(c *Claim) { c.Since = start.Add(time.Minute) },
			func(c *Claim) { c.Since, c.Admitted = time.Unix(0, 0), start.Add(2*time.Minute) }},
		{"seconds, as on the wire", func(c *Claim) { c.Since = c.Since.Add(900 * time.Millisecond) }, func(*Claim) {}},
		{"quarantined never", func(c *Claim) { c.State, c.Since = mesh.Pending, start.Add(9*time.Hour) },
			func(c *Claim) { c.State, c.Pinned = mesh.Quarantined, true }},
		{"released never", func(c *Claim) { c.State = mesh.Pending }, func(c *Claim) { c.State = mesh.Released }},
		{"one family is enough for a conflict", func(c *Claim) { c.Prefixes = prefixes("10.0.0.0/24", "fd00::/64") },
			func(c *Claim) { c.Prefixes = prefixes("10.0.1.0/24", "fd00::/64") }},
		{"a wider one overlaps", func(c *Claim) { c.Prefixes = prefixes("10.0.0.0/16") }, func(*Claim) {}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := claim(1, c.winner), claim(2, c.loser)
			if c.name == "one family is enough for a conflict" && !a.overlaps(b.Prefixes) {
				t.Fatal("no overlap")
			}
			for _, order := range [][]Claim{{a, b}, {b, a}} {
				if got := Resolve(order); len(got) != 1 || got[0].Owner != a.Owner {
					t.Errorf("winners: %v", got)
				}
			}
		})
	}
	t.Run("a loser's loser wins", func(t *testing.T) {
		first := claim(1, func(c *Claim) { c.Prefixes = prefixes("10.0.0.0/24") })
		between := claim(2, func(c *Claim) { c.Prefixes = prefixes("10.0.0.0/23") })
		last := claim(3, func(c *Claim) { c.Prefixes = prefixes("10.0.1.0/24") })
		if got := Resolve([]Claim{last, between, first}); !equal(got, []Claim{first, last}) {
			t.Errorf("winners: %v", got)
		}
	})
}

func BenchmarkResolve(b *testing.B) {
	for _, conflicts := range []bool{false, true} {
		b.Run(fmt.Sprintf("claims=200/conflicts=%v", conflicts), func(b *testing.B) {
			n := testNetwork(16)
			var all []Claim
			for i := range 200 {
				slot := i
				if conflicts {
					slot = i % 150
				}
				all = append(all, Claim{Owner: mesh.NodeID{byte(i)}, Lease: mesh.Lease{
					Network: "default", Prefixes: n.Slot(slot), State: mesh.Held, Since: start.Add(time.Duration(i*7919%200) * time.Second),
				}})
			}
			for b.Loop() {
				Resolve(all)
			}
		})
	}
}

func BenchmarkChoose(b *testing.B) {
	for _, c := range []struct {
		name   string
		ranges []netip.Prefix
		permit func([]netip.Prefix) bool
	}{
		{"any", nil, func([]netip.Prefix) bool { return true }},
		{"narrow", []netip.Prefix{netip.MustParsePrefix("10.0.16.0/24")}, func(p []netip.Prefix) bool { return netip.MustParsePrefix("10.0.16.0/24").Contains(p[0].Addr()) }},
	} {
		b.Run(fmt.Sprintf("slots=65536/permit=%s", c.name), func(b *testing.B) {
			n := mesh.Network{Name: "default", IPv4: netip.MustParsePrefix("10.0.0.0/12"), IPv4Len: 28}
			var others []Claim
			for i := range 200 {
				others = append(others, Claim{Owner: mesh.NodeID{byte(i)}, Lease: mesh.Lease{Network: "default", Prefixes: n.Slot(i * 300), State: mesh.Held}})
			}
			for b.Loop() {
				if _, ok := choose(n, mesh.NodeID{1, 2, 3, 4}, nil, c.ranges, c.permit, others); !ok {
					b.Fatal("nothing free")
				}
			}
		})
	}
}
