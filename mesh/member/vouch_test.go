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
