package member

import (
	"crypto/sha256"
	"testing"
	"time"

	"meshd/mesh/trust"
)

// TestRootlessVouchesForNobody: c and d were admitted by b alone, who was revoked
// since. Neither vouches for the other anew, since no newcomer would believe it; a
// does, as soon as it is there.
func TestRootlessVouchesForNobody(t *testing.T) {
	s := newSim(t, narrow)
	token := s.token(nil)
	a, b, c, d := s.host("a", nil), s.host("b", nil), s.host("c", token), s.host("d", token)
	b.founder = false
	s.syncing(time.Minute)
	s.start(a, nil)
	s.start(b, a)
	s.run(5 * time.Second)
	a.side = 1
	s.start(c, b)
	s.start(d, b)
	s.run(time.Minute)
	vouched := func() (each []int) {
		for _, h := range []*host{c, d} {
			each = append(each, s.admissions[trust.Hash(sha256.Sum256(h.cert))])
		}
		return each
	}
	before := vouched()
	gone := trust.Revocation{Node: b.id(), At: s.now}
	s.byCA(c, gone.Sign)
	b.stop()
	s.run(10 * time.Minute)
	for i, n := range vouched() {
		if before[i] == 0 || n != before[i] {
			t.Errorf("of %s there were %d admissions, and are %d while nobody is there whom the CA admits", []string{"c", "d"}[i], before[i], n)
		}
	}
	a.side = 0
	s.run(10 * time.Minute)
	for i, n := range vouched() {
		if n != before[i]+1 {
			t.Errorf("of %s there were %d admissions, and are %d with a", []string{"c", "d"}[i], before[i], n)
		}
	}
}

// A daemon that is admitted when it starts vouches for others at once, as a mesh waits
// for that whose seed starts last; who was admitted a moment ago leaves it to others.
func TestWhoVouchesSoon(t *testing.T) {
	s := newSim(t, narrow)
	token := s.token(nil)
	a, b, c := s.host("a", nil), s.host("b", token), s.host("c", token)
	b.founder, c.founder = false, false
	s.start(a, nil)
	s.start(b, a)
	s.run(3 * s.delay)
	if n := s.admissions[trust.Hash(sha256.Sum256(b.cert))]; n != 1 {
		t.Fatalf("%d have vouched for b when the seed had heard of it, want 1", n)
	}
	a.stop()
	s.start(c, b)
	vouched := func() int { return s.admissions[trust.Hash(sha256.Sum256(c.cert))] }
	s.run(admitTurns*admitTurn - 4*s.delay)
	if n := vouched(); n != 0 {
		t.Errorf("%d have vouched for c, and b was admitted a moment ago", n)
	}
	s.run(admitTurns * admitTurn * 2)
	if n := vouched(); n != 1 {
		t.Errorf("%d have vouched for c, want 1", n)
	}
}
