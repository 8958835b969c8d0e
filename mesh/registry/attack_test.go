package registry

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
)

// scene is a mesh with an honest member, and one that has gone bad: the CA lets it
// rotate keys, and it has tokens.
type scene struct {
	*maker
	founder, honest, bad *trust.Certificate
	r                    *Registry
}

func newScene(t *testing.T) *scene {
	t.Helper()
	m := newMaker("ca")
	s := &scene{maker: m, r: New(m.charter), founder: m.certificate("founder", nil), honest: m.certificate("honest", m.token)}
	s.bad = m.certify(trust.Certificate{Name: "bad", NotAfter: start.Add(1000 * time.Hour), Capabilities: []string{trust.CapRotate}})
	hear(t, s.r, s.founder.Raw, s.honest.Raw, m.admission(s.honest, s.founder, 0), s.bad.Raw)
	hear(t, s.r, m.record(s.founder, 1, 1, 0), m.record(s.honest, 2, 5, 0), m.record(s.bad, 1, 1, 0))
	return s
}

// Nothing that a revoked node signs is taken in, whatever it is and whenever it says
// that it signed it.
func TestRevokedNodeSays(t *testing.T) {
	s := newScene(t)
	guest := s.certificate("guest", s.token)
	hear(t, s.r, guest.Raw, s.revocation(trust.Revocation{Node: s.bad.ID()}))
	before := tells(s.r, start)
	for what, raw := range map[string][]byte{
		"record":            s.record(s.bad, 9, 9, 0),
		"admission":         s.admission(guest, s.bad, 0),
		"admission, known":  s.admission(s.honest, s.bad, 0),
		"tombstone":         s.tombstone(s.honest.ID(), v(2, 5), s.bad),
		"tombstone, beyond": s.tombstone(s.honest.ID(), v(2, 50), s.bad),
		"rekey":             s.rekey(s.bad, 5, 1, 0),
		"one by the CA":     s.certificate("bad", nil).Raw,
	} {
		if err := s.r.Add(raw); !errors.Is(err, ErrRevoked) {
			t.Errorf("%s: %v", what, err)
		}
	}
	again := s.certificate("bad", s.token)
	if err := s.r.Add(again.Raw); !errors.Is(err, ErrStale) { // its token might have been used before
		t.Errorf("a new certificate: %v", err)
	}
	for _, c := range s.r.Unadmitted() {
		if c.Hash == again.Hash {
			t.Error("a new certificate asks to be admitted")
		}
	}
	if after := tells(s.r, start); after != before || len(s.r.waiting) > 0 || len(s.r.Rekeys()) > 0 {
		t.Errorf("it changed something:\n%s\n%s", before, after)
	}
}

// A table from before a revocation brings nobody back.
func TestReplayFromBeforeARevocation(t *testing.T) {
	s := newScene(t)
	crony := s.certificate("crony", s.token)
	hear(t, s.r, crony.Raw, s.admission(crony, s.bad, 0), s.record(crony, 1, 1, 0), s.rekey(s.bad, 1, 1, 0), s.tombstone(s.honest.ID(), v(2, 5), s.bad))
	table := s.r.Table()
	hear(t, s.r, s.revocation(trust.Revocation{Node: s.bad.ID()}), s.revocation(trust.Revocation{Node: crony.ID()}))
	for _, r := range []*Registry{s.r, New(s.charter)} {
		feed(r, revocationsOf(s.r))
		for range 2 {
			feed(r, table)
		}
		mustBe(t, r, "founder", "honest")
		if _, dead := r.Dead(s.honest.ID()); dead || len(r.Rekeys()) > 0 {
			t.Error("what the revoked node said counts again")
		}
	}
}

// A member that lies about a live one takes nothing from it, however often it says
// so. Two of them void what it says and no more: its next record counts again.
func TestTombstoneOfALiveNode(t *testing.T) {
	s := newScene(t)
	lease := mesh.Lease{Network: "default", Prefixes: s.charter.Networks[0].Slot(7), State: mesh.Held, Since: start, ClaimEpoch: 2}
	say := func(epoch, seq, claimed uint64) []byte {
		lease.ClaimEpoch = claimed
		rec := trust.Record{Version: v(epoch, seq), Certificate: s.honest.Hash, Key: mesh.Key{1}, Leases: []mesh.Lease{lease}}
		raw, err := rec.Sign(key("honest"))
		check(err)
		return raw
	}
	isVoid := func() bool {
		for _, m := range s.r.Members(all) {
			if m.ID == s.honest.ID() {
				_, void := m.Void(m.Leases()[0])
				return void
			}
		}
		t.Fatal("it is no member any more")
		return false
	}
	hear(t, s.r, say(2, 6, 2), s.tombstone(s.honest.ID(), v(1, 9), s.bad), s.tombstone(s.honest.ID(), v(2, 6), s.bad))
	if isVoid() {
		t.Error("the word of one counts")
	}
	twin := s.certify(trust.Certificate{Name: "bad", NotAfter: start.Add(900 * time.Hour)})
	hear(t, s.r, twin.Raw)
	_ = s.r.Add(s.tombstone(s.honest.ID(), v(2, 6), twin)) // or that of its other one is kept
	if isVoid() {
		t.Error("the word of one counts twice, with two certificates")
	}
	hear(t, s.r, s.tombstone(s.honest.ID(), v(2, 6), s.founder))
	if !isVoid() {
		t.Error("the word of two voids nothing")
	}
	hear(t, s.r, say(2, 7, 2))
	if isVoid() {
		t.Error("it voids what came after it")
	}
	t.Run("of a version that nobody has said", func(t *testing.T) {
		hear(t, s.r, s.tombstone(s.honest.ID(), v(trust.MaxEpoch, 1<<62), s.bad), s.tombstone(s.honest.ID(), v(2, trust.WholeEpoch-1), s.bad), s.tombstone(s.honest.ID(), v(2, trust.WholeEpoch-1), s.founder))
		if isVoid() {
			t.Error("it voids ahead")
		}
		hear(t, s.r, say(3, 1, 3)) // that of a whole epoch but one counts now, and voids that epoch
		if isVoid() {
			t.Error("it voids what was claimed after it")
		}
	})
	t.Run("by the CA that is none", func(t *testing.T) {
		forged := trust.Tombstone{Node: s.honest.ID(), Version: v(3, trust.WholeEpoch), Reason: trust.Forgotten, At: start}
		raw, err := forged.Sign(key("bad"))
		check(err)
		if err := s.r.Add(raw); !errors.Is(err, trust.ErrSignature) {
			t.Error(err)
		}
	})
}

// One bad member says as much as it can. What it takes is bounded, and what the
// others say counts meanwhile and after.
func TestBadMemberFloods(t *testing.T) {
	const many = 3 * maxWaiting
	honest := func(t *testing.T, s *scene) {
		t.Helper()
		guest := s.certificate("guest", s.credential(0, start.Add(time.Hour)))
		hear(t, s.r, guest.Raw, s.admission(guest, s.founder, 0), s.record(guest, 1, 1, 0), s.tombstone(guest.ID(), v(1, 1), s.founder), s.tombstone(guest.ID(), v(1, 1), s.honest))
		if _, dead := s.r.Dead(guest.ID()); !dead {
			t.Error("an honest tombstone does not count")
		}
		if rec, ok := s.r.Record(s.honest.ID()); !ok || rec.Version != v(2, 5) {
			t.Error("an honest record is gone")
		}
	}
	t.Run("tombstones", func(t *testing.T) {
		s := newScene(t)
		hear(t, s.r, s.record(s.honest, 2, 6, 0), s.record(s.honest, 3, 5000, 0))
		for i := range uint64(many) {
			if err := s.r.Add(s.tombstone(s.honest.ID(), v(3, i), s.bad)); err != nil {
				t.Fatal(err)
			}
		}
		if kept, waits := len(s.r.tombs[s.honest.ID()]), len(s.r.waiting); kept > maxTombs || waits > maxWaiting {
			t.Errorf("%d are kept, %d wait", kept, waits)
		}
	})
	t.Run("rekeys", func(t *testing.T) {
		s := newScene(t)
		good := s.certify(trust.Certificate{Name: "good", NotAfter: start.Add(1000 * time.Hour), Capabilities: []string{trust.CapRotate}})
		hear(t, s.r, good.Raw, s.rekey(good, 1, 1, 0))
		for i := range many {
			_ = s.r.Add(s.rekey(s.bad, uint64(1+i%7), byte(i%3), time.Duration(i)*time.Second))
		}
		if n := len(s.r.Rekeys()); n > maxGenerations*maxParts+1 {
			t.Errorf("%d are kept", n)
		}
		honest(t, s)
		hear(t, s.r, s.revocation(trust.Revocation{Node: s.bad.ID()}))
		if all := s.r.Rekeys(); len(all) != 1 || all[0].Signer != good.Hash {
			t.Errorf("of the good one's is left: %v", all)
		}
	})
	t.Run("certificates", func(t *testing.T) {
		s := newScene(t)
		before := len(s.r.certs)
		unlimited := s.credential(0, start.Add(24*time.Hour))
		others := map[mesh.NodeID][]trust.Hash{} // signing so many takes long
		for i := range maxByToken - 100 {
			others[mesh.NodeID{byte(i), byte(i >> 8), 1}] = []trust.Hash{{1}}
		}
		s.r.joined[unlimited.Serial] = &joins{unlimited.NotAfter, others}
		for i := range 500 {
			c := trust.Certificate{Serial: trust.Serial{200, byte(i), byte(i >> 8)}, Identity: public(fmt.Sprint("fake", i)), Name: "fake", Credential: unlimited, NotBefore: start, NotAfter: start.Add(2 * time.Hour), Admitted: start}
			raw, err := c.Sign(key("token"))
			check(err)
			parsed, err := trust.ParseCertificate(raw, public(s.ca))
			check(err)
			_ = s.r.Add(raw)
			_ = s.r.Add(s.admission(parsed, s.bad, 0))
		}
		if n := len(s.r.certs) - before; n != 100+maxUnadmitted || s.r.Uses(unlimited.Serial) != maxByToken {
			t.Errorf("%d certificates, %d nodes", n, s.r.Uses(unlimited.Serial))
		}
		honest(t, s)
		hear(t, s.r, s.revocation(trust.Revocation{Credential: unlimited.Serial}))
		mustBe(t, s.r, "bad", "founder", "guest", "honest")
		// When they have ended, nothing of them is left.
		s.r.Expire(start.Add(26*time.Hour), trust.Hash{})
		if n := len(s.r.certs); n > before+1 || s.r.Uses(unlimited.Serial) != 0 {
			t.Errorf("%d certificates and %d uses are left", n, s.r.Uses(unlimited.Serial))
		}
	})
	t.Run("admissions", func(t *testing.T) {
		s := newScene(t)
		for i := range 1000 {
			_ = s.r.Add(s.admission(s.honest, s.bad, time.Duration(i)*time.Second))
		}
		if n := len(s.r.certs[s.honest.Hash].admissions); n != 2 {
			t.Errorf("%d admissions are kept", n)
		}
	})
}

// Whoever has the CA key can revoke without end, and is stopped by mistake alone.
func TestRevocationsAreBounded(t *testing.T) {
	s := newScene(t)
	one, err := trust.ParseRevocation(s.revocation(trust.Revocation{Node: mesh.NodeID{1}}), public(s.ca))
	check(err)
	for i := range maxRevocations { // as if signed, which would take long
		v := *one
		v.Hash, v.Node = trust.Hash{byte(i), byte(i >> 8)}, mesh.NodeID{byte(i), byte(i >> 8), 1}
		s.r.revocations.add(&v)
	}
	if err := s.r.Add(s.revocation(trust.Revocation{Node: mesh.NodeID{2}})); !errors.Is(err, trust.ErrForbidden) {
		t.Errorf("one too many: %v", err)
	}
	mustBe(t, s.r, "bad", "founder", "honest")
	if !slices.IsSortedFunc(s.r.Revocations(), func(a, b *trust.Revocation) int { return a.Hash.Compare(b.Hash) }) {
		t.Error("not sorted")
	}
}
