package gossip_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/gossip"
	"meshd/mesh/member"
	"meshd/mesh/meshtest"
)

// asks has its core ask about, now and then.
type asks struct {
	*core
	view *mesh.View
	next uint64
	done chan uint64
}

func (a *asks) Step(now time.Time) member.Output {
	out := a.core.Step(now)
	a.mu.Lock()
	defer a.mu.Unlock()
	out.View, a.view = a.view, nil
	out.Ask, a.next = a.next, 0
	return out
}

func (a *asks) Asked(ask uint64) { a.done <- ask }

// TestEldersAreAsked: whoever asks before it holds a claim asks the two members that were
// admitted first, of those that are there, and a third one by lot. So of two that claim
// the same, the later one hears of the other.
func TestEldersAreAsked(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		const n, times = 8, 12
		net := meshtest.NewNetwork(1)
		nodes := startAll(t, net, n-1)
		a := &asks{core: newCore(id(n)), done: make(chan uint64, 1)}
		x := start(t, net, n, func(opt *gossip.Options, _ *core) { opt.Core = a })
		within(t, 10*time.Second, "all are met", x.sees(n-1))
		// The elders are 7, 6, 5 and so on: 7 has left, and 5 is off.
		v := &mesh.View{Self: id(n)}
		for i := 1; i <= n; i++ {
			v.Nodes = append(v.Nodes, mesh.Node{
				ID: id(i), Admitted: time.Unix(int64(100-i), 0), Left: i == 7, Endpoints: []netip.AddrPort{address(i)},
			})
		}
		nodes[5-1].stop()
		within(t, time.Minute, "one is missed", x.sees(n-2))
		a.mu.Lock()
		a.view = v
		a.mu.Unlock()
		x.Hear([]byte("look"))
		time.Sleep(time.Second)
		asked := make([]int, n) // by number; 0: nobody's
		for i := range times {
			before := make([]int, n)
			for j, o := range nodes {
				before[j+1] = o.core.exchanges()
			}
			a.mu.Lock()
			a.next = uint64(i + 1)
			a.mu.Unlock()
			x.Hear([]byte{byte(i)})
			if got := <-a.done; got != uint64(i+1) {
				t.Fatalf("question %d was answered, want %d", got, i+1)
			}
			for j, o := range nodes {
				asked[j+1] += o.core.exchanges() - before[j+1]
			}
			time.Sleep(time.Second)
		}
		if asked[6] < times || asked[4] < times {
			t.Errorf("of %d times the elders 6 and 4 were asked %d and %d times", times, asked[6], asked[4])
		}
		young := asked[1] + asked[2] + asked[3]
		if others := young + asked[7]; others < times || others > 2*times || slices.Max(asked[1:4]) == young {
			t.Errorf("of %d times the others were asked %v times", times, asked)
		}
		if asked[5] > 0 {
			t.Error("one that is off was asked")
		}
	})
}
