package member

import (
	"slices"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
)

// TestUrgentObjects: what throws somebody out, or frees a subnet, is on the disk before
// anything is said that rests on it; all else is in the next copy of the table.
func TestUrgentObjects(t *testing.T) {
	s, a, b, c := trio(t)
	cert := must(trust.ParseCertificate(a.cert, s.charter.CA))(t)
	gone := mesh.NodeID{7}
	byA := trust.Tombstone{Node: c.id(), Version: a.sees(c).Version, Reason: trust.Expired, At: s.now, Issuer: cert.Hash}
	byCA := trust.Tombstone{Node: c.id(), Version: mesh.Version{Epoch: 1, Seq: trust.WholeEpoch}, Reason: trust.Forgotten, At: s.now}
	revocation := trust.Revocation{Node: gone, At: s.now}
	for _, test := range []struct {
		name   string
		raw    []byte
		urgent bool
	}{
		{"a record", s.badRecord(c, 100, func(*trust.Record) {}), false},
		{"a member's tombstone", must(byA.Sign(key("a")))(t), true},
		{"the CA's tombstone", must(byCA.Sign(key("ca")))(t), true},
		{"a revocation", must(revocation.Sign(key("ca")))(t), true},
	} {
		if err := b.m.Receive(test.raw); err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if out := b.m.Step(s.now); out.Table != test.urgent {
			t.Errorf("%s: the table is to be saved: %v, want %v", test.name, out.Table, test.urgent)
		}
		if out := b.m.Step(s.now.Add(time.Second)); out.Table {
			t.Errorf("%s: the table is to be saved again", test.name)
		}
	}
}

// TestRotatorsTakeTurns: of several members that may rotate, all of whose keys are due
// at the same time, the first one does; if it is away the next one does, in its turn.
func TestRotatorsTakeTurns(t *testing.T) {
	const every = 10 * time.Hour
	s := newSim(t, narrow)
	all := []string{trust.CapRotate}
	s.seals, s.rights = true, map[string][]string{"a": all, "b": all, "c": all}
	hosts := []*host{s.host("a", nil), s.host("b", nil), s.host("c", nil)}
	s.syncing(2 * time.Minute)
	for i, h := range hosts {
		h.keyring, h.rotates, h.founder = NewKeyring(make([]byte, trust.GossipKeySize)), every, i == 0
		s.start(h, hosts[max(0, i-1)])
	}
	order := slices.SortedFunc(slices.Values(hosts), func(x, y *host) int { return x.id().Compare(y.id()) })
	makers := func() (by []string) {
		for _, h := range order {
			cert := must(trust.ParseCertificate(h.cert, s.charter.CA))(t)
			for _, r := range order[2].m.reg.Rekeys() {
				if r.Signer == cert.Hash {
					by = append(by, h.name)
				}
			}
		}
		return by
	}
	admitted := time.Hour // of which the keys from the token are taken to be old
	s.run(every - admitted + time.Minute)
	if by := makers(); !slices.Equal(by, []string{order[0].name}) {
		t.Fatalf("rotated by %s, want %s alone", by, order[0].name)
	}
	made := s.now
	s.run(every / 2)
	order[0].stop() // no member's word is fresh for so long
	s.run(every/2 - rotateTurn)
	if by := makers(); len(by) != 1 {
		t.Fatalf("%s after they began, rotated by %s", s.now.Sub(made), by)
	}
	s.run(rotateTurn + 2*time.Minute)
	if by := makers(); !slices.Contains(by, order[1].name) || slices.Contains(by, order[2].name) {
		t.Errorf("rotated by %s, want %s now", by, order[1].name)
	}
}
