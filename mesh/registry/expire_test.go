package registry

import (
	"errors"
	"testing"
	"time"

	"meshd/mesh/trust"
)

func (r *Registry) expireNow(at time.Time) {
	r.pruneAt = time.Time{}
	r.Expire(at, trust.Hash{})
}

// A renewed certificate needs no admission; the record says which one counts.
func TestRenewal(t *testing.T) {
	m := newMaker("ca")
	founder := m.certificate("founder", nil)
	old := m.certify(trust.Certificate{Name: "node", Credential: m.token, NotAfter: start.Add(10 * time.Hour)})
	renewed := m.certificate("node", nil)
	counts := func(r *Registry) *trust.Certificate {
		for _, member := range r.Members(all) {
			if member.ID == old.ID() {
				return member.Certificate
			}
		}
		return nil
	}
	r := New(m.charter)
	hear(t, r, founder.Raw, old.Raw, m.admission(old, founder, 0), m.record(old, 1, 5, 0))
	hear(t, r, renewed.Raw)
	if got := counts(r); got.Hash != old.Hash {
		t.Error("another certificate counts than the record names")
	}
	if got := r.Certificates(old.ID()); len(got) != 2 || got[0].Hash != renewed.Hash {
		t.Errorf("certificates %v, the one that ends last first", got)
	}
	if err := r.Add(m.record(renewed, 1, 4, 0)); !errors.Is(err, ErrStale) {
		t.Errorf("an older record under the new certificate: %v", err)
	}
	r.expireNow(old.NotAfter.Add(2 * time.Hour)) // it has not said anything since
	if rec, ok := r.Record(old.ID()); !ok || rec.Version != v(1, 5) {
		t.Error("the record is no mark any more")
	}
	if err := r.Add(m.record(renewed, 1, 4, 0)); !errors.Is(err, ErrStale) {
		t.Errorf("an older record when the old certificate has ended: %v", err)
	}
	hear(t, r, m.record(renewed, 1, 6, 0))
	if got := counts(r); got.Hash != renewed.Hash {
		t.Error("the new certificate does not count")
	}
	r.expireNow(old.NotAfter.Add(2 * time.Hour))
	if known, _ := r.Certificate(old.Hash); known != nil {
		t.Error("the old one is still kept")
	}
	mustBe(t, r, "founder", "node")
}

// What has ended goes, with all that was said by its node and of it; but not a
// witness to whom others lead back, nor its witnesses.
func TestPrune(t *testing.T) {
	m := newMaker("ca")
	short := func(name string) *trust.Certificate {
		return m.certify(trust.Certificate{Name: name, Credential: m.token, NotAfter: start.Add(10 * time.Hour)})
	}
	founder, first, second, third := m.certificate("founder", nil), short("first"), short("second"), m.certificate("third", m.token)
	gone, own := short("gone"), short("own")
	says := [][]byte{
		gone.Raw, m.admission(gone, founder, 0), m.record(gone, 1, 1, 0), m.tombstone(gone.ID(), v(1, 1), founder),
		m.tombstone(gone.ID(), v(1, trust.WholeEpoch), nil),
	}
	r := New(m.charter)
	hear(t, r, founder.Raw, first.Raw, m.admission(first, founder, 0), second.Raw, m.admission(second, first, 0), third.Raw, m.admission(third, second, 0))
	hear(t, r, own.Raw, m.admission(own, founder, 0), m.record(first, 1, 1, 0), m.record(third, 1, 1, 0))
	hear(t, r, says...)
	hear(t, r, m.tombstone(third.ID(), v(1, 1), first), m.tombstone(third.ID(), v(1, 1), second))
	known := func(c *trust.Certificate) bool { k, _ := r.Certificate(c.Hash); return k != nil }

	r.expireNow(start.Add(11 * time.Hour))
	if !known(gone) || len(r.records) != 3 {
		t.Error("it is gone within the hour")
	}
	before := r.Changes()
	r.pruneAt = time.Time{}
	r.Expire(start.Add(11*time.Hour+time.Second), own.Hash)
	if known(gone) || !known(own) || !known(first) || !known(second) || !known(third) || r.Changes() == before {
		t.Error("of those that have ended only the witnesses are needed, and the own one")
	}
	if len(r.records) != 1 || len(r.Tombstones(gone.ID())) != 0 || len(r.Tombstones(third.ID())) != 1 {
		t.Errorf("%d records, tombstones of gone: %d, of third: %d", len(r.records), len(r.Tombstones(gone.ID())), len(r.Tombstones(third.ID())))
	}
	t.Run("offered again", func(t *testing.T) {
		for i, raw := range says {
			if err := r.Add(raw); i != 1 && i != 2 && i != 3 && !errors.Is(err, ErrStale) && i != 4 {
				t.Errorf("object %d: %v", i, err)
			}
		}
		r.expireNow(start.Add(12 * time.Hour))
		if known(gone) || len(r.records) != 1 || len(r.waiting) > 0 || len(r.Unadmitted()) > 0 {
			t.Errorf("known %v, %d records, %d wait, %d unadmitted", known(gone), len(r.records), len(r.waiting), len(r.Unadmitted()))
		}
	})
	t.Run("a newcomer", func(t *testing.T) {
		fresh := New(m.charter)
		fresh.expireNow(start.Add(12 * time.Hour))
		feed(fresh, r.Table())
		fresh.expireNow(start.Add(12 * time.Hour))
		if a, b := tells(r, start.Add(12*time.Hour)), tells(fresh, start.Add(12*time.Hour)); a != b {
			t.Errorf("another belief:\n%s\n%s", a, b)
		}
	})
	t.Run("wanted", func(t *testing.T) {
		fresh := New(m.charter)
		fresh.expireNow(start.Add(12 * time.Hour))
		feed(fresh, [][]byte{third.Raw, m.admission(third, second, 0), m.admission(second, first, 0), m.admission(first, founder, 0)})
		hear(t, fresh, founder.Raw, first.Raw, second.Raw)
		mustBe(t, fresh, "first", "founder", "second", "third")
	})
	t.Run("revoked", func(t *testing.T) {
		out := m.revocation(trust.Revocation{Node: third.ID()})
		hear(t, r, out)
		r.expireNow(start.Add(12 * time.Hour))
		if !known(third) || !known(second) || !known(first) {
			t.Error("it is kept until it ends, and so are its witnesses")
		}
		r.expireNow(start.Add(1002 * time.Hour))
		if known(third) || known(second) || known(first) || len(r.Revocations()) != 1 {
			t.Error("it is kept for ever, or its revocation is not")
		}
	})
}

// A clock that is set back, as far as we know, does not stop it.
func TestExpireWithAClockThatGoesBack(t *testing.T) {
	m := newMaker("ca")
	c := m.certify(trust.Certificate{Name: "node", NotAfter: start.Add(time.Hour)})
	r := New(m.charter)
	r.Expire(start.Add(1000*time.Hour), trust.Hash{})
	r.Expire(start, trust.Hash{})
	hear(t, r, c.Raw)
	r.Expire(start.Add(3*time.Hour), trust.Hash{})
	if known, _ := r.Certificate(c.Hash); known != nil {
		t.Error("it is not forgotten")
	}
}

// Who forgets a member's certificate while its clock is wrong takes the member back
// when that is over, however often: the token was used once.
func TestForgottenByAWrongClock(t *testing.T) {
	m := newMaker("ca")
	founder := m.certificate("founder", nil)
	node := m.certify(trust.Certificate{Name: "node", Credential: m.token, NotAfter: start.Add(time.Hour)})
	r := New(m.charter)
	hear(t, r, founder.Raw)
	for range maxPerIdentity + 2 {
		r.expireNow(start)
		hear(t, r, node.Raw, m.admission(node, founder, 0))
		mustBe(t, r, "founder", "node")
		r.expireNow(start.Add(3 * time.Hour))
		if known, _ := r.Certificate(node.Hash); known != nil {
			t.Fatal("it is not forgotten")
		}
	}
	if n := r.Uses(m.token.Serial); n != 1 {
		t.Errorf("the token was used %d times", n)
	}
}

// Who could confirm a tombstone does not depend on what time it is: else two members
// that look at different times would differ about it.
func TestWitnessesWhateverTheTime(t *testing.T) {
	m := newMaker("ca")
	founder, gone := m.certificate("founder", nil), m.certificate("gone", m.token)
	other := m.certify(trust.Certificate{Name: "other", Credential: m.token, NotAfter: start.Add(time.Hour)})
	r := New(m.charter)
	hear(t, r, founder.Raw, gone.Raw, m.admission(gone, founder, 0), other.Raw, m.admission(other, founder, 0))
	for _, later := range []time.Duration{0, 3 * time.Hour} {
		r.now = start.Add(later)
		if r.isSoleWitness(founder.ID(), gone.ID()) {
			t.Errorf("after %s nobody else is there", later)
		}
	}
}
