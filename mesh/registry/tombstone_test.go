package registry

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
)

func v(epoch, seq uint64) mesh.Version { return mesh.Version{Epoch: epoch, Seq: seq} }

// A member's tombstone counts as far as the record goes that is held, whichever of
// them comes first; the CA's counts anyway.
func TestTombstoneWaitsForTheRecord(t *testing.T) {
	m := newMaker("ca")
	founder, other, gone := m.certificate("founder", nil), m.certificate("other", nil), m.certificate("gone", nil)
	setUp := func(t *testing.T) *Registry {
		r := New(m.charter)
		hear(t, r, founder.Raw, gone.Raw, m.record(gone, 3, 2, 0))
		return r
	}
	dead := func(t *testing.T, r *Registry, want mesh.Version) {
		t.Helper()
		tomb, ok := r.Dead(gone.ID())
		if ok != (want != mesh.Version{}) || ok && tomb.Version != want {
			t.Errorf("dead: %v %v, want %v", ok, tomb, want)
		}
	}
	t.Run("reached", func(t *testing.T) {
		r := setUp(t)
		hear(t, r, m.tombstone(gone.ID(), v(3, 2), founder))
		dead(t, r, v(3, 2))
	})
	t.Run("not reached", func(t *testing.T) {
		r := setUp(t)
		hear(t, r, m.tombstone(gone.ID(), v(3, 3), founder))
		dead(t, r, mesh.Version{})
		hear(t, r, m.record(gone, 4, 1, 0))
		dead(t, r, v(3, 3))
		if len(r.waiting) > 0 {
			t.Error("it still waits")
		}
	})
	t.Run("issuer unknown", func(t *testing.T) {
		r := setUp(t)
		hear(t, r, m.tombstone(gone.ID(), v(3, 1), other))
		dead(t, r, mesh.Version{})
		if got := r.Missing(); len(got) != 1 || got[0] != other.Hash {
			t.Errorf("missing %v", got)
		}
		hear(t, r, other.Raw)
		dead(t, r, v(3, 1))
	})
	t.Run("the CA's", func(t *testing.T) {
		r := setUp(t)
		hear(t, r, m.tombstone(gone.ID(), v(7, trust.WholeEpoch), nil))
		dead(t, r, v(7, trust.WholeEpoch))
	})
	t.Run("the CA's, before all else", func(t *testing.T) {
		r := New(m.charter)
		hear(t, r, m.tombstone(gone.ID(), v(3, trust.WholeEpoch), nil), gone.Raw, m.record(gone, 3, 2, 0))
		dead(t, r, v(3, trust.WholeEpoch))
	})
	t.Run("older, newer, and again", func(t *testing.T) {
		r := setUp(t)
		hear(t, r, m.tombstone(gone.ID(), v(3, 1), founder), m.tombstone(gone.ID(), v(3, 2), founder))
		for _, seq := range []uint64{1, 2} {
			if err := r.Add(m.tombstone(gone.ID(), v(3, seq), founder)); !errors.Is(err, ErrStale) {
				t.Errorf("(3,%d) again: %v", seq, err)
			}
		}
		dead(t, r, v(3, 2))
	})
	t.Run("of the issuer itself", func(t *testing.T) {
		r := setUp(t)
		if err := r.Add(m.tombstone(gone.ID(), v(3, 2), gone)); !errors.Is(err, trust.ErrForbidden) {
			t.Error(err)
		}
	})
	t.Run("of who was revoked", func(t *testing.T) {
		r := setUp(t)
		hear(t, r, m.tombstone(gone.ID(), v(3, 2), founder), m.revocation(trust.Revocation{Node: gone.ID()}))
		dead(t, r, mesh.Version{})
		if err := r.Add(m.tombstone(gone.ID(), v(3, trust.WholeEpoch), nil)); !errors.Is(err, ErrStale) {
			t.Error(err)
		}
	})
}

// What one voids stays void when a newer one comes, and what a liar's has displaced
// of the CA's stays.
func TestTombstonesVoid(t *testing.T) {
	m := newMaker("ca")
	founder, liar, node := m.certificate("founder", nil), m.certificate("liar", nil), m.certificate("node", nil)
	r := New(m.charter)
	record := func(epoch, seq, claimed uint64) []byte {
		rec := trust.Record{Version: v(epoch, seq), Certificate: node.Hash, Key: mesh.Key{1}, Leases: []mesh.Lease{{
			Network: "default", Prefixes: m.charter.Networks[0].Slot(9), State: mesh.Held, Since: start, ClaimEpoch: claimed,
		}}}
		raw, err := rec.Sign(key("node"))
		check(err)
		return raw
	}
	void := func(t *testing.T, want bool) {
		t.Helper()
		for _, member := range r.Members(all) {
			if member.ID != node.ID() {
				continue
			}
			if _, got := member.Void(member.Leases()[0]); got != want {
				t.Errorf("record %v, lease claimed in %d: void %v", member.Record.Version, member.Leases()[0].ClaimEpoch, got)
			}
		}
	}
	hear(t, r, founder.Raw, liar.Raw, node.Raw, record(2, 9, 2))
	void(t, false)
	hear(t, r, m.tombstone(node.ID(), v(2, 9), founder))
	void(t, true)
	hear(t, r, record(3, 1, 2)) // a restart alone
	void(t, true)
	hear(t, r, m.tombstone(node.ID(), v(3, 1), liar), record(3, 2, 2)) // it goes on, cut off as it seems
	void(t, true)
	hear(t, r, record(3, 3, 3)) // claimed afresh
	void(t, false)
	hear(t, r, m.tombstone(node.ID(), v(3, trust.WholeEpoch), nil))
	void(t, true)
	hear(t, r, record(4, 1, 4), m.tombstone(node.ID(), v(4, 1), liar))
	void(t, true)
	hear(t, r, m.revocation(trust.Revocation{Node: liar.ID()}))
	void(t, false)
	if tomb, ok := r.Dead(node.ID()); !ok || !tomb.ByCA() {
		t.Errorf("the CA's is gone: %v", tomb)
	}
}

// Of each signer a few generations are kept, one key of each, and parts as many as a
// large mesh takes.
func TestRekeys(t *testing.T) {
	m := newMaker("ca")
	may := func(name string) *trust.Certificate {
		return m.certify(trust.Certificate{Name: name, NotAfter: start.Add(1000 * time.Hour), Capabilities: []string{trust.CapRotate}})
	}
	one, two, mayNot := may("one"), may("two"), m.certificate("three", nil)
	r := New(m.charter)
	hear(t, r, m.rekey(one, 1, 1, 0))
	if got := r.Missing(); len(got) != 1 || got[0] != one.Hash {
		t.Errorf("missing %v", got)
	}
	hear(t, r, one.Raw, two.Raw, mayNot.Raw)
	if got := r.Rekeys(); len(got) != 1 || got[0].Generation != 1 {
		t.Fatalf("what waited does not count: %v", got)
	}
	if err := r.Add(m.rekey(mayNot, 2, 1, 0)); !errors.Is(err, trust.ErrForbidden) {
		t.Errorf("by who may not: %v", err)
	}
	for generation := range uint64(6) {
		hear(t, r, m.rekey(two, generation+1, 2, 0))
	}
	if err := r.Add(m.rekey(two, 2, 2, 0)); !errors.Is(err, ErrStale) {
		t.Errorf("an old one again: %v", err)
	}
	var got []string
	for _, k := range r.Rekeys() {
		got = append(got, fmt.Sprint(k.Generation))
	}
	if want := "[6 5 4 3 1]"; fmt.Sprint(got) != want {
		t.Errorf("generations %v, want %s", got, want)
	}
	// Two keys of one generation by one signer: the larger KeyID is used, in any order.
	larger, smaller := byte(1), byte(2)
	if id, other := trust.KeyIDOf([]byte{larger}), trust.KeyIDOf([]byte{smaller}); string(id[:]) < string(other[:]) {
		larger, smaller = smaller, larger
	}
	hear(t, r, m.rekey(one, 7, smaller, 0), m.rekey(one, 7, larger, 0))
	if err := r.Add(m.rekey(one, 7, smaller, time.Second)); !errors.Is(err, ErrStale) {
		t.Errorf("the smaller one again: %v", err)
	}
	if got := r.Rekeys()[0]; got.KeyID != trust.KeyIDOf([]byte{larger}) {
		t.Errorf("key %s is used", got.KeyID)
	}
	for part := range maxParts + 10 {
		_ = r.Add(m.rekey(one, 7, larger, time.Duration(part)*time.Second))
	}
	parts := 0
	for _, k := range r.Rekeys() {
		if k.Generation == 7 {
			parts++
		}
	}
	if newest := r.Rekeys()[0]; parts != maxParts || !newest.At.Equal(start.Add((maxParts+9)*time.Second)) {
		t.Errorf("%d parts, the newest of %s", parts, newest.At)
	}
	hear(t, r, m.revocation(trust.Revocation{Node: one.ID()}))
	if got := r.Rekeys(); len(got) != maxGenerations || got[0].Generation != 6 {
		t.Errorf("after its signer was revoked: %d rekeys", len(got))
	}
}
