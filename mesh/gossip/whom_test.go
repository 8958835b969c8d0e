package gossip

import (
	"net/netip"
	"testing"

	"meshd/mesh"
)

// Whoever has the gossip key can make up live names of a member at other addresses: it is
// asked at a host of its record.
func TestMemberWithSeveralNames(t *testing.T) {
	elder, other := mesh.NodeID{1}, mesh.NodeID{2}
	own, forged := netip.MustParseAddrPort("192.0.2.1:51881"), netip.MustParseAddrPort("198.51.100.7:9")
	inst := &instance{live: map[string]netip.AddrPort{newName(elder): own, newName(other): forged}}
	for range 3 {
		inst.live[newName(elder)] = forged
	}
	l := &loop{inst: inst}
	l.roster.set(&mesh.View{Nodes: []mesh.Node{{ID: elder, Endpoints: []netip.AddrPort{own}}}})
	for range 50 { // maps have no order
		if got := l.addresses(); got[elder] != own || got[other] != forged {
			t.Fatalf("the elder is at %s, the other one at %s", got[elder], got[other])
		}
	}
}
