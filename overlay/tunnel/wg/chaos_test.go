package wg

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// A hundred take a quarter of a minute.
var seeds = flag.Uint64("seeds", 6, "how many runs TestChaos makes")

// Hosts that talk over a network which loses, delays, repeats and reorders, that
// are restarted and move: nothing breaks, nothing grows, and once the network is
// well again all can talk.
func TestChaos(t *testing.T) {
	for seed := range *seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { chaos(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

func chaos(t *testing.T, r *rand.Rand) {
	w := newWorld(t)
	w.brief = true
	hosts := []*host{w.host("a"), w.host("b"), w.host("c")}
	each := func(f func(from, to *host)) {
		for _, from := range hosts {
			for _, to := range hosts {
				if from != to {
					f(from, to)
				}
			}
		}
	}
	each(func(from, to *host) {
		suite := bothSuites[(from.private[0]+to.private[0])%2]
		from.knows(to, Peer{Suite: suite, Keepalive: time.Duration(r.IntN(2)) * 25 * time.Second})
	})
	loss := r.Float64() / 2
	w.lose = func(*host, *host, string) bool {
		w.delay = time.Duration(r.IntN(100)) * time.Millisecond
		return r.Float64() < loss
	}
	pick := func() *host { return hosts[r.IntN(len(hosts))] }
	for range 600 {
		w.run(time.Duration(r.IntN(3000)) * time.Millisecond)
		switch r.IntN(40) {
		case 0:
			h := pick()
			h.skew -= time.Duration(r.IntN(100)) * time.Second
			h.boot()
		case 1:
			h := pick()
			h.addr = netip.AddrPortFrom(h.addr.Addr(), h.addr.Port()+1)
		case 2:
			h := pick()
			h.machine.UnderLoad(r.IntN(2) == 0)
		case 3:
			w.run(time.Duration(r.IntN(200)) * time.Second)
		default:
			from, to := pick(), pick()
			if from != to {
				from.send(to, "data")
			}
		}
		if len(w.air) > 0 && r.IntN(4) == 0 { // once more, and later
			again := w.air[r.IntN(len(w.air))]
			again.at = again.at.Add(time.Duration(r.IntN(10000)) * time.Millisecond)
			w.air = append(w.air, again)
		}
		for _, h := range hosts {
			if used := h.machine.table.used; used > 4*(len(hosts)-1) {
				t.Fatalf("%s holds %d indices", h.name, used)
			}
		}
	}

	w.note("all is well again")
	w.lose = func(*host, *host, string) bool { w.delay = 10 * time.Millisecond; return false }
	w.run(11 * time.Second) // what is still on its way
	for _, h := range hosts {
		h.machine.UnderLoad(false)
		for _, p := range h.peers {
			p.at = p.host.addr // as if it had been configured anew
		}
	}
	talk := func(n int) {
		for range n {
			each(func(from, to *host) { from.send(to, "data") })
			w.run(time.Second)
		}
	}
	// Who notices nothing: 15 s until he hears nothing, and a repetition of what
	// was lost before.
	talk(30)
	before := map[*remote]int{}
	each(func(from, to *host) {
		p := to.peers[from.machine.PublicKey()]
		before[p] = p.got
	})
	talk(20)
	each(func(from, to *host) {
		p := to.peers[from.machine.PublicKey()]
		if got := p.got - before[p]; got != 20 {
			t.Errorf("%s has got %d of 20 of %s:\n%s", to.name, got, from.name, w.end())
		}
		theirs := from.peers[to.machine.PublicKey()].session
		if p.session == nil || theirs == nil || p.session.local != theirs.remote {
			t.Errorf("%s and %s use different sessions:\n%s", from.name, to.name, w.end())
		}
	})
}

// end is the end of the story.
func (w *world) end() string {
	s := w.story.String()
	return s[max(0, len(s)-4000):]
}
