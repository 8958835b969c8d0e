package gossip

import (
	"net/netip"

	"meshd/mesh"
)

// roster is who the members are, by the last view.
type roster struct {
	admitted map[mesh.NodeID]bool         // not to be changed
	elders   []mesh.NodeID                // members but us that have not left, the first one first
	hosts    map[mesh.NodeID][]netip.Addr // at which their records say that they are
}

// set takes them from a view.
func (r *roster) set(view *mesh.View) {
	r.admitted, r.elders = make(map[mesh.NodeID]bool, len(view.Nodes)), view.Elders()
	r.hosts = make(map[mesh.NodeID][]netip.Addr, len(view.Nodes))
	for _, n := range view.Nodes {
		r.admitted[n.ID] = true
		for _, e := range n.Endpoints {
			r.hosts[n.ID] = append(r.hosts[n.ID], bare(e.Addr()))
		}
	}
}

// strangeness is 0 for a member's instance and 1 for any other.
func (r *roster) strangeness(name string) int {
	if id, ok := parseName(name); ok && r.admitted[id] {
		return 0
	}
	return 1
}

// unheard tells whether some member does not seem to hear gossip.
func (l *loop) unheard() bool {
	if l.inst == nil {
		return true
	}
	heard := map[mesh.NodeID]bool{}
	for name := range l.inst.others() {
		if id, ok := parseName(name); ok && l.roster.admitted[id] {
			heard[id] = true
		}
	}
	return len(heard) < len(l.roster.elders)
}
