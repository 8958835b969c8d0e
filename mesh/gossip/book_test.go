package gossip

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"meshd/mesh/trust"
)

func addresses(from, to int) []netip.AddrPort {
	var out []netip.AddrPort
	for i := from; i < to; i++ {
		out = append(out, netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:51881", i)))
	}
	return out
}

func TestTargets(t *testing.T) {
	all := addresses(0, 40)
	seeds, known, own := all[:3], all[2:20], all[:1]
	t.Run("alone: all seeds but ourselves, and some known", func(t *testing.T) {
		got := targets(true, seeds, known, nil, own)
		if len(got) != atOnce || !slices.Contains(got, all[1]) || !slices.Contains(got, all[2]) || slices.Contains(got, all[0]) {
			t.Errorf("targets are %s", got)
		}
		slices.SortFunc(got, netip.AddrPort.Compare)
		if len(slices.Compact(got)) != atOnce {
			t.Error("an address is tried twice")
		}
	})
	t.Run("alone: many dead seeds leave room for known addresses", func(t *testing.T) {
		got := targets(true, all[20:40], all[1:9], nil, own)
		if n := len(slices.DeleteFunc(got, func(a netip.AddrPort) bool { return !slices.Contains(all[1:9], a) })); n != atOnce/2 {
			t.Errorf("%d known addresses are tried, want %d", n, atOnce/2)
		}
	})
	t.Run("with company: one that is not live", func(t *testing.T) {
		seen := map[netip.AddrPort]bool{}
		for range 1000 {
			got := targets(false, seeds, known, all[1:10], own)
			if len(got) != 1 || !slices.Contains(all[10:20], got[0]) {
				t.Fatalf("targets are %s", got)
			}
			seen[got[0]] = true
		}
		if len(seen) != 10 {
			t.Errorf("%d of 10 addresses were ever tried", len(seen))
		}
	})
	t.Run("what was reached is left alone until somebody goes away", func(t *testing.T) {
		now := time.Unix(1000, 0)
		b := newBook(nil, now)
		b.see(all[1:3], now)
		b.reach(all[9:10], now) // another address of a member
		b.see(all[1:4], now)    // one more
		if got := b.skip(now); !slices.Equal(got, all[9:10]) {
			t.Errorf("skips %s, want %s", got, all[9:10])
		}
		if got := b.skip(now.Add(reachedFor)); len(got) > 0 {
			t.Errorf("skips %s for ever", got)
		}
		b.reach(all[9:10], now)
		b.see(all[1:3], now)
		if got := b.skip(now); len(got) > 0 {
			t.Errorf("skips %s, although a member has gone", got)
		}
	})
	t.Run("nobody is left to try", func(t *testing.T) {
		if got := targets(false, seeds, known, all, own); len(got) != 0 {
			t.Errorf("targets are %s", got)
		}
		if got := targets(true, nil, nil, nil, nil); len(got) != 0 {
			t.Errorf("targets are %s", got)
		}
	})
}

func TestBookIsBounded(t *testing.T) {
	now := time.Unix(0, 0)
	b := newBook([]netip.AddrPort{{}, netip.MustParseAddrPort("0.0.0.0:1"), netip.MustParseAddrPort("[::1]:0")}, now)
	if len(b.known) != 0 {
		t.Errorf("useless addresses are known: %s", b.known)
	}
	for i := range 2 * maxPeers {
		b.see([]netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1)}, now)
	}
	if len(b.known) != maxPeers || b.known[0].Addr() != netip.AddrFrom4([4]byte{10, 0, 3, 255}) {
		t.Errorf("%d known, the newest is %s", len(b.known), b.known[0])
	}
}

func TestPause(t *testing.T) {
	begin := time.Unix(0, 0)
	b := newBook(nil, begin)
	for _, tt := range []struct {
		name        string
		live        []netip.AddrPort
		at          time.Duration
		least, most time.Duration
	}{
		{"just started", nil, time.Second, 500 * time.Millisecond, time.Second},
		{"long alone", nil, time.Hour, 2 * time.Second, 5 * time.Second},
		{"with company", addresses(0, 1), 2 * time.Hour, 4 * time.Second, 6 * time.Second},
		{"alone again", nil, 3 * time.Hour, 500 * time.Millisecond, time.Second},
	} {
		b.see(tt.live, begin.Add(tt.at))
		for range 100 {
			if p := b.pause(begin.Add(tt.at)); p < tt.least || p > tt.most {
				t.Errorf("%s: pause of %s", tt.name, p)
			}
		}
	}
}

func TestWants(t *testing.T) {
	now := time.Unix(0, 0)
	w := wants{}
	w.set([]trust.Hash{{1}, {2}}, now)
	if got := w.take(now); len(got) != 0 {
		t.Errorf("asked at once for %v", got)
	}
	asked := 0
	for range 600 { // a minute
		now = now.Add(100 * time.Millisecond)
		for _, h := range w.take(now) {
			if h == (trust.Hash{1}) {
				asked++
			}
		}
	}
	if asked < 5 || asked > 14 {
		t.Errorf("asked %d times within a minute", asked)
	}
	w.set([]trust.Hash{{2}}, now)
	if len(w) != 1 {
		t.Error("what is no longer missing is still wanted")
	}

	t.Run("forged references do not crowd out the rest", func(t *testing.T) {
		missing := make([]trust.Hash, 2*maxWanted)
		for i := range missing {
			missing[i] = trust.Hash{3, byte(i >> 8), byte(i)}
		}
		w.set(missing, now)
		if len(w) > maxWanted {
			t.Errorf("%d are wanted", len(w))
		}
		if got := w.take(now.Add(crowdWant / 2)); len(got) != 0 {
			t.Errorf("asked for %d before an exchange could bring them", len(got))
		}
		if got := w.take(now.Add(crowdWant)); len(got) != maxHashes {
			t.Errorf("%d in one message", len(got))
		}
	})
	t.Run("nor what is wanted most", func(t *testing.T) {
		full, own := wants{}, trust.Hash{0xff}
		missing := make([]trust.Hash, maxWanted)
		for i := range missing {
			missing[i] = trust.Hash{4, byte(i >> 8), byte(i)}
		}
		at := now
		full.set(missing, at)
		for begin := at; ; at = at.Add(100 * time.Millisecond) {
			full.set(append([]trust.Hash{own}, missing...), at)
			if slices.Contains(full.take(at), own) {
				break
			}
			if at.Sub(begin) > 10*crowdWant {
				t.Fatal("it is not asked for")
			}
		}
	})
	t.Run("what was asked least comes first", func(t *testing.T) {
		old, at := wants{}, now
		for i := range maxHashes {
			old.set(append(slices.Collect(maps.Keys(old)), trust.Hash{byte(i)}), at)
		}
		for range 5 {
			at = at.Add(time.Minute)
			old.take(at)
		}
		fresh := trust.Hash{99}
		old.set(append(slices.Collect(maps.Keys(old)), fresh), at)
		if got := old.take(at.Add(time.Hour)); got[0] != fresh {
			t.Errorf("asked for %v first", got[0])
		}
	})
}

func TestRecent(t *testing.T) {
	var r recent
	if !r.add([32]byte{1}) || r.add([32]byte{1}) {
		t.Error("the first time is the only one")
	}
	for i := range 10 * recentSize {
		r.add([32]byte{2, byte(i >> 16), byte(i >> 8), byte(i)})
	}
	if n := len(r.young) + len(r.old); n > 2*recentSize {
		t.Errorf("%d are remembered", n)
	}
	last := 10*recentSize - 1
	if r.add([32]byte{2, byte(last >> 16), byte(last >> 8), byte(last)}) {
		t.Error("the last one is forgotten")
	}
}
