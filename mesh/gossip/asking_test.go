package gossip_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
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

// startAsker starts n nodes, the last of which asks.
func startAsker(t *testing.T, net *meshtest.Network, n int) (others []*node, a *asks, x *node) {
	t.Helper()
	others = startAll(t, net, n-1)
	a = &asks{core: newCore(id(n)), done: make(chan uint64, 1)}
	x = start(t, net, n, func(opt *gossip.Options, _ *core) { opt.Core = a })
	within(t, 10*time.Second, "all are met", x.sees(n-1))
	return others, a, x
}

// shows has it see the nodes 1 to n, each as change makes it.
func (a *asks) shows(x *node, n int, change func(i int, node *mesh.Node)) {
	v := &mesh.View{Self: id(n)}
	for i := 1; i <= n; i++ {
		v.Nodes = append(v.Nodes, mesh.Node{ID: id(i), Endpoints: []netip.AddrPort{address(i)}})
		change(i, &v.Nodes[i-1])
	}
	a.mu.Lock()
	a.view = v
	a.mu.Unlock()
	x.Hear([]byte("look"))
}

// asks has it ask.
func (a *asks) asks(x *node, ask uint64) {
	a.mu.Lock()
	a.next = ask
	a.mu.Unlock()
	x.Hear(fmt.Append(nil, "ask ", ask))
}

// TestEldersAreAsked: whoever asks before it holds a claim asks the two members that were
// admitted first, of those that are there, and a third one by lot, and they hear what it
// has said by then.
func TestEldersAreAsked(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		const n, times = 8, 12
		net := meshtest.NewNetwork(1)
		nodes, a, x := startAsker(t, net, n)
		nodes[5-1].stop()
		within(t, time.Minute, "one is missed", x.sees(n-2))
		// The elders are 7, 6, 5 and so on: 7 has left, and 5 is off.
		a.shows(x, n, func(i int, n *mesh.Node) { n.Admitted, n.Left = time.Unix(int64(100-i), 0), i == 7 })
		time.Sleep(time.Second)
		heard := make([]int, n) // what it has said before it asked, by number; 0: nobody's
		for i := range times {
			word := fmt.Sprint("claim ", i)
			a.say(word)
			a.asks(x, uint64(i+1))
			if got := <-a.done; got != uint64(i+1) {
				t.Fatalf("question %d was answered, want %d", got, i+1)
			}
			synctest.Wait()
			for j, o := range nodes {
				if o.core.knows(word) {
					heard[j+1]++
				}
			}
			time.Sleep(time.Second)
		}
		if heard[6] < times || heard[4] < times {
			t.Errorf("of %d times the elders 6 and 4 have heard it %d and %d times", times, heard[6], heard[4])
		}
		young := heard[1] + heard[2] + heard[3]
		if others := young + heard[7]; others < times || slices.Max(heard[1:4]) == young {
			t.Errorf("of %d times others have heard it %v times", times, heard)
		}
		if heard[5] > 0 {
			t.Error("one that is off was asked")
		}
	})
}

// TestNoElderAnswers: a question that is refused is put again, until an elder answers,
// and ten times if none does.
func TestNoElderAnswers(t *testing.T) {
	for name, back := range map[string]bool{"until one is back": true, "ever": false} {
		t.Run(name, func(t *testing.T) {
			meshtest.Bubble(t, func(t *testing.T) {
				const n = 4
				net := meshtest.NewNetwork(1)
				nodes, a, x := startAsker(t, net, n)
				a.shows(x, n, func(i int, n *mesh.Node) { n.Admitted = time.Unix(int64(i), 0) })
				time.Sleep(100 * time.Millisecond)
				nodes[0].stop() // gossip does not know it yet
				nodes[1].stop()
				begin := time.Now()
				a.asks(x, 1)
				time.Sleep(3 * time.Second)
				select {
				case <-a.done:
					t.Fatal("the question is answered, and no elder was there")
				default:
				}
				least, most := 9*time.Second, 10*time.Second // ten times, a second apart
				if back {
					start(t, net, 2, nil)
					least, most = 3*time.Second, 5*time.Second
				}
				<-a.done
				if took := time.Since(begin); took < least || took > most {
					t.Errorf("it is answered after %s, want %s to %s", took, least, most)
				}
			})
		})
	}
}

// TestClaimsMeetAtElders: two members claim the last subnet of a network at the same
// moment, while gossip is blocked: elders tell them of each other before either holds it.
func TestClaimsMeetAtElders(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		const n, times = 40, 8
		networks := []mesh.Network{{Name: mesh.DefaultNetwork, IPv4: netip.MustParsePrefix("10.86.0.0/16"), IPv4Len: 24}}
		for i := range times {
			networks = append(networks, mesh.Network{Name: fmt.Sprint("web", i), IPv4: netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/24", 90+i)), IPv4Len: 25})
		}
		m, net, tunnels := meshtest.NewMesh(t, networks...), meshtest.NewNetwork(1), meshtest.NewTunnels()
		net.SetLatency(15 * time.Millisecond)
		net.SetJitter(15 * time.Millisecond)
		hosts := make([]*host, n)
		for i := range hosts {
			hosts[i] = newHost(t, m, i+1)
			hosts[i].tunnels = tunnels
			hosts[i].start(t, net)
			time.Sleep(time.Second)
		}
		within(t, 30*time.Second, "all hold subnets", agreed(hosts, n))
		time.Sleep(time.Minute)
		use := func(h *host, network string) {
			if err := h.gossip.Do(t.Context(), func(now time.Time) {
				if err := h.core.Use(now, []string{network}); err != nil {
					t.Error(err)
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		for i := range times {
			use(hosts[2+i], networks[1+i].Name) // one of two
		}
		time.Sleep(time.Minute)
		noGossip(net)
		time.Sleep(2 * time.Minute)
		for i := range times {
			two := []*host{hosts[2+times+i], hosts[n-1-i]}
			for _, h := range two {
				use(h, networks[1+i].Name)
			}
			ever := map[*host]bool{}
			for begin := time.Now(); time.Since(begin) < 10*time.Second; time.Sleep(20 * time.Millisecond) {
				for _, h := range two {
					self, _ := h.sees().Node(h.keys.ID())
					ever[h] = ever[h] || slices.ContainsFunc(self.Leases, func(l mesh.Lease) bool {
						return l.Network == networks[1+i].Name && l.State == mesh.Held
					})
				}
			}
			if ever[two[0]] == ever[two[1]] {
				t.Errorf("network %d: held by one %v, by the other %v", i, ever[two[0]], ever[two[1]])
			}
		}
	})
}
