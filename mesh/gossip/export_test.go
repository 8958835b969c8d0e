package gossip

import (
	"maps"
	"net/netip"
	"slices"

	"meshd/mesh"
)

// Stats is what tests want to know of the instance that runs.
type Stats struct {
	Name    string         // empty: there is none yet
	Address netip.AddrPort // where members reach us
	Live    []mesh.NodeID  // seem alive, without ourselves, sorted
}

// Refused is how many messages no key of the keyring has opened.
func (g *Gossip) Refused() uint64 { return g.seals.refused.Load() }

func (g *Gossip) Stats() Stats {
	i := g.running.Load()
	if i == nil {
		return Stats{}
	}
	live := map[mesh.NodeID]bool{} // one node may have several names for a while
	for name := range i.others() {
		if id, ok := parseName(name); ok {
			live[id] = true
		}
	}
	return Stats{i.name, i.address, slices.SortedFunc(maps.Keys(live), mesh.NodeID.Compare)}
}

// Hear has an object come, as with a packet.
func (g *Gossip) Hear(object []byte) {
	m, err := parseMessage(encodeObjects(maxState, object))
	if err != nil || !g.inbox.put(m) {
		panic("no room")
	}
}
