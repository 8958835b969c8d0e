package gossip

import (
	"net/netip"
	"slices"

	"meshd/mesh"
)

// roster is who the members are.
type roster struct {
	view     *mesh.View           // that the owner was shown last; empty at first
	admitted map[mesh.NodeID]bool // not to be changed
	others   int                  // members but us that have not left
}

// set takes them from a view.
func (r *roster) set(view *mesh.View) {
	*r = roster{view: view, admitted: make(map[mesh.NodeID]bool, len(view.Nodes))}
	for _, n := range view.Nodes {
		r.admitted[n.ID] = true
		if r.isOther(n) {
			r.others++
		}
	}
}

func (r *roster) isOther(n mesh.Node) bool { return !n.Left && n.ID != r.view.Self }

// isAt tells whether a member says that it is at a host.
func (r *roster) isAt(id mesh.NodeID, host netip.Addr) bool {
	n, ok := r.view.Node(id)
	return ok && slices.ContainsFunc(n.Endpoints, func(e netip.AddrPort) bool { return bare(e.Addr()) == host })
}

// hosts are those at which members say that they are.
func (r *roster) hosts() map[netip.Addr]bool {
	at := make(map[netip.Addr]bool, len(r.view.Nodes))
	for _, n := range r.view.Nodes {
		for _, e := range n.Endpoints {
			at[bare(e.Addr())] = true
		}
	}
	return at
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
		if id, ok := parseName(name); ok {
			heard[id] = true
		}
	}
	return slices.ContainsFunc(l.roster.view.Nodes, func(n mesh.Node) bool { return l.roster.isOther(n) && !heard[n.ID] })
}
