package lease

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"meshd/mesh"
)

// model is a few allocators that hear of each other late, in any order, and some
// claims never. Of a claim that was replaced, the newer one counts.
type model struct {
	now   time.Time
	nodes []*modelNode
}

type modelNode struct {
	id      mesh.NodeID
	pinned  bool
	alloc   *Allocator
	version int
	said    Claim // newest
	inUse   bool
	// heard is what it has heard of the others.
	heard map[int]said
}

type said struct {
	Claim
	version int
}

// modelNetwork has four subnets.
var modelNetwork = mesh.Network{Name: "default", IPv4: netip.MustParsePrefix("10.0.0.0/22"), IPv4Len: 24}

func newModel(t *rapid.T) *model {
	m := &model{now: start}
	for i := range rapid.IntRange(2, 6).Draw(t, "nodes") {
		n := &modelNode{id: mesh.NodeID{byte(i + 1)}, heard: map[int]said{}}
		cfg := Config{
			Self: n.id, Network: modelNetwork, Admitted: start.Add(time.Duration(i%2) * time.Second),
			Permit:     func([]netip.Prefix) bool { return true },
			OnConflict: rapid.SampledFrom([]OnConflict{Auto, Renumber}).Draw(t, "on conflict"),
		}
		if i == 0 && rapid.Bool().Draw(t, "pinned") {
			n.pinned, cfg.Pins = true, modelNetwork.Slot(2)
		}
		n.alloc = New(cfg, mesh.Lease{})
		m.nodes = append(m.nodes, n)
	}
	return m
}

func (m *model) world(i int) World {
	n := m.nodes[i]
	w := World{MayClaim: true, Epoch: 1, Members: len(m.nodes), InUse: n.inUse, Asked: n.alloc.Asks()}
	for _, k := range slices.Sorted(maps.Keys(n.heard)) {
		if c := n.heard[k]; c.State != 0 {
			w.Others = append(w.Others, c.Claim)
		}
	}
	return w
}

// step has one do what is due, and say what it has then.
func (m *model) step(i int) {
	n := m.nodes[i]
	n.alloc.Step(m.now, m.world(i))
	l, _ := n.alloc.Lease()
	if !slices.Equal(l.Prefixes, n.said.Prefixes) || l.State != n.said.State || !l.Since.Equal(n.said.Since) {
		n.version++
		n.said = n.alloc.claim(l)
	}
}

// hear tells one what another has said last.
func (m *model) hear(by, of int) {
	n := m.nodes[of]
	m.nodes[by].heard[of] = said{n.said, n.version}
}

// check is true always, whoever has heard what.
func (m *model) check(t *rapid.T) {
	for i, n := range m.nodes {
		l, has := n.alloc.Lease()
		switch {
		case has && !IsSlot(modelNetwork, l.Prefixes):
			t.Fatalf("%d has %v, which is no subnet", i, l.Prefixes)
		case has && n.pinned && !slices.Equal(l.Prefixes, modelNetwork.Slot(2)):
			t.Fatalf("%d is pinned and has %v", i, l.Prefixes)
		case l.State == mesh.Held && n.alloc.State() != mesh.Ready:
			t.Fatalf("%d holds a subnet and is %s", i, n.alloc.State())
		}
	}
}

// converge lets everybody hear of everybody until nothing changes any more: the
// model's answer is that no two have one subnet, and nobody has none while one is
// free.
func (m *model) converge(t *rapid.T) {
	for range 60 {
		for i := range m.nodes {
			for k := range m.nodes {
				if i != k {
					m.hear(i, k)
				}
			}
			m.step(i)
		}
		m.now = m.now.Add(time.Second)
	}
	owner := map[netip.Prefix]int{}
	var without []int
	for i, n := range m.nodes {
		l, _ := n.alloc.Lease()
		if l.State != mesh.Held {
			if !n.inUse { // else it keeps what it has lost
				without = append(without, i)
			}
			continue
		}
		if other, taken := owner[l.Prefixes[0]]; taken {
			t.Fatalf("%d and %d both hold %s", other, i, l.Prefixes[0])
		}
		owner[l.Prefixes[0]] = i
	}
	if free := modelNetwork.Slots() - len(owner); free > 0 && len(without) > 0 {
		t.Fatalf("%d subnets are free, and %v have none: %s", free, without, m)
	}
}

func (m *model) String() (out string) {
	for i, n := range m.nodes {
		l, _ := n.alloc.Lease()
		out += fmt.Sprintf("%d %s %v %s; ", i, n.alloc.State(), l.Prefixes, l.State)
	}
	return out
}

// Whatever some allocators hear of each other, when, and in which order: once all
// have heard all, each subnet has one owner, and it stays so.
func TestAllocatorsAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		node := rapid.IntRange(0, len(m.nodes)-1)
		t.Repeat(map[string]func(*rapid.T){
			"":     m.check,
			"step": func(t *rapid.T) { m.step(node.Draw(t, "node")) },
			"hear": func(t *rapid.T) {
				if by, of := node.Draw(t, "by"), node.Draw(t, "of"); by != of {
					m.hear(by, of)
				}
			},
			"forget": func(t *rapid.T) { delete(m.nodes[node.Draw(t, "by")].heard, node.Draw(t, "of")) },
			"wait": func(t *rapid.T) {
				m.now = m.now.Add(time.Duration(rapid.IntRange(1, 8000).Draw(t, "ms")) * time.Millisecond)
			},
			"use": func(t *rapid.T) {
				n := m.nodes[node.Draw(t, "node")]
				n.inUse = !n.inUse
			},
			"renumber": func(t *rapid.T) {
				i := node.Draw(t, "node")
				m.nodes[i].alloc.Renumber(m.world(i))
			},
			"reclaim": func(t *rapid.T) { n := m.nodes[node.Draw(t, "node")]; n.alloc.Reclaim(n.inUse) },
		})
		m.converge(t)
		before := m.String()
		m.converge(t)
		if after := m.String(); after != before {
			t.Fatalf("it does not rest:\n%s\n%s", before, after)
		}
	})
}
