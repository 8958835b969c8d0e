package gossip

import (
	"bytes"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	"meshd/mesh"
	"meshd/mesh/member"
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

// Hears tells whether a name is live to the instance that runs, at that address.
func (g *Gossip) Hears(name string, at netip.AddrPort) bool {
	i := g.running.Load()
	if i == nil {
		return false
	}
	return i.others()[name] == at
}

// SealPacket and SealStream seal what whoever has the key sends.
func SealPacket(key, message []byte) []byte { return mustSeal(key, nil, message) }

func SealStream(key, message []byte) []byte {
	return mustSeal(key, binary.BigEndian.AppendUint32([]byte{sealedStream}, uint32(len(message)+sealOverhead)), message)
}

func mustSeal(key, header, message []byte) []byte {
	s, err := newSealer(member.NewKeyring(key))
	if err != nil {
		panic(err)
	}
	return s.seal(bytes.Clone(header), message, header)
}

// When a name is worn out, and how often there is a new one.
const (
	WornOut    = wornOut
	RenewEvery = renewEvery
)
