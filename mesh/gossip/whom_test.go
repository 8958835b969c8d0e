package gossip

import (
	"net/netip"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
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

// A member that is silent is one that does not hear, though another one that has left is
// still about.
func TestUnheard(t *testing.T) {
	us, left, member := mesh.NodeID{1}, mesh.NodeID{2}, mesh.NodeID{3}
	at := netip.MustParseAddrPort("192.0.2.1:51881")
	inst := &instance{live: map[string]netip.AddrPort{newName(left): at}}
	l := &loop{inst: inst}
	l.roster.set(&mesh.View{Self: us, Nodes: []mesh.Node{{ID: us}, {ID: left, Left: true}, {ID: member}}})
	if !l.unheard() {
		t.Error("the member seems to hear")
	}
	inst.live[newName(member)] = at
	if l.unheard() {
		t.Error("the member does not seem to hear")
	}
}

// The last live member may go between two looks at who is there.
func TestNobodyToFetchFrom(t *testing.T) {
	l := &loop{inst: &instance{}, wants: wants{}, fetching: fetching{pause: firstFetch}}
	for i := range byte(maxHashes + 1) {
		l.wants[trust.Hash{i}] = &want{}
	}
	now := time.Now()
	if l.fetch(now); !l.fetching.at.After(now) {
		t.Error("it does not rest")
	}
}
