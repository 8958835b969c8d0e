package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/meshtest"
	"meshd/mesh/statedir"
	"meshd/mesh/trust"
	"meshd/overlay/status"
)

// What meshctl says of a lease is what the daemon says of it: two tombstones stand,
// and the older one voids the lease.
func TestLeaseListAsTheDaemon(t *testing.T) {
	network := mesh.Network{Name: "default", IPv4: netip.MustParsePrefix("10.86.0.0/16"), IPv4Len: 24}
	m := meshtest.NewMesh(t, network)
	keys := statedir.NewKeys()
	card := m.Found(t, keys, "beta")
	cert, err := trust.ParseCertificate(card.Certificate, m.Charter.CA)
	if err != nil {
		t.Fatal(err)
	}
	rec := trust.Record{
		Version: mesh.Version{Epoch: 3, Seq: 3}, Certificate: cert.Hash, Nonce: 1, Key: keys.Tunnel.Public(),
		Leases: []mesh.Lease{{Network: "default", Prefixes: network.Slot(17), State: mesh.Held, Since: time.Now(), ClaimEpoch: 2}},
	}
	record, err := rec.Sign(keys.Identity)
	if err != nil {
		t.Fatal(err)
	}
	objects := [][]byte{m.Charter.Raw, card.Certificate, record}
	for _, v := range []mesh.Version{{Epoch: 2, Seq: 9}, {Epoch: 3, Seq: 2}} {
		tomb := trust.Tombstone{Node: cert.ID(), Version: v, Reason: trust.Expired, At: time.Now()}
		raw, err := tomb.Sign(m.CA())
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, raw)
	}
	k := &known{}
	if err := k.read(objects); err != nil {
		t.Fatal(err)
	}
	beta := k.members()[0]
	if _, void := beta.Void(beta.Leases()[0]); !void {
		t.Fatal("no tombstone voids the lease")
	}
	if _, expired := k.leasesOf(beta); expired == mesh.NotExpired {
		t.Error("the daemon's rule says that the lease is void, and meshctl says that it is held")
	}
}

// Of two namesakes the one that is dead is known by what is told of it.
func TestLifeOfAPeer(t *testing.T) {
	now := time.Now()
	earlier, later := now.Add(-3*time.Minute), now.Add(-2*time.Second)
	for _, c := range []struct {
		peer status.Peer
		want string
	}{
		{status.Peer{State: status.PeerUp, LastSeen: &later, Leases: []status.Lease{{Renewed: &earlier}}}, "up, last heard of 2s ago"},
		{status.Peer{State: status.PeerDown, LastSeen: &earlier, Expired: mesh.Forgotten}, "down, forgotten, last heard of 3m ago"},
		{status.Peer{State: status.PeerDown, Leases: []status.Lease{{}, {Renewed: &earlier}}}, "down, last heard of 3m ago"},
		{status.Peer{State: status.PeerLeft}, "left"},
	} {
		if got := strings.Join(peerWords(&c.peer, now), ", "); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}
