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

func v(epoch, seq uint64) mesh.Version { return mesh.Version{Epoch: epoch, Seq: seq} }

// A member's tombstone counts as far as the record goes that is held, whichever of
// them comes first; the CA's counts anyway.
func TestTombstoneWaitsForTheRecord(t *testing.T) {
	m := newMaker("ca")
	founder, second, other, gone := m.certificate("founder", nil), m.certificate("second", nil), m.certificate("other", nil), m.certificate("gone", nil)
	setUp := func(t *testing.T) *Registry {
		r := New(m.charter)
		hear(t, r, founder.Raw, second.Raw, gone.Raw, m.record(gone, 3, 2, 0))
		return r
	}
	by := func(v mesh.Version, issuers ...*trust.Certificate) (out [][]byte) {
		for _, c := range issuers {
			out = append(out, m.tombstone(gone.ID(), v, c))
		}
		return out
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
		hear(t, r, by(v(3, 2), founder, second)...)
		dead(t, r, v(3, 2))
	})
	t.Run("not reached", func(t *testing.T) {
		r := setUp(t)
		hear(t, r, by(v(3, 3), founder, second)...)
		dead(t, r, mesh.Version{})
		hear(t, r, m.record(gone, 4, 1, 0))
		dead(t, r, v(3, 3))
		if len(r.waiting) > 0 {
			t.Error("it still waits")
		}
	})
	t.Run("issuer unknown", func(t *testing.T) {
		r := setUp(t)
		hear(t, r, by(v(3, 1), founder, other)...)
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
		hear(t, r, by(v(3, 1), founder, second)...)
		hear(t, r, by(v(3, 2), founder, second)...)
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

// Of what members say that counts which a second one says, of that version or a
// newer one, be it of another epoch; where there is no third, one is enough.
func TestTombstonesOfTwoMembers(t *testing.T) {
	m := newMaker("ca")
	one, two, three, gone := m.certificate("one", nil), m.certificate("two", nil), m.certificate("three", nil), m.certificate("gone", nil)
	type says struct {
		by *trust.Certificate
		v  mesh.Version
	}
	for name, c := range map[string]struct {
		says []says
		want string
	}{
		"one":                    {[]says{{one, v(3, 5)}}, "[]"},
		"one, in two epochs":     {[]says{{one, v(3, 5)}, {one, v(2, 5)}}, "[]"},
		"two":                    {[]says{{one, v(3, 5)}, {two, v(3, 5)}}, "[{3 5}]"},
		"two versions":           {[]says{{one, v(3, 5)}, {two, v(3, 4)}}, "[{3 4}]"},
		"two epochs":             {[]says{{one, v(3, 5)}, {two, v(2, 4)}}, "[{2 4}]"},
		"the newest is of one":   {[]says{{one, v(3, 5)}, {one, v(2, 9)}, {two, v(2, 7)}}, "[{2 7}]"},
		"three":                  {[]says{{one, v(3, 5)}, {two, v(3, 4)}, {three, v(3, 3)}}, "[{3 4} {3 3}]"},
		"two, and one of before": {[]says{{one, v(3, 5)}, {two, v(3, 5)}, {three, v(2, 3)}}, "[{3 5} {2 3}]"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, backwards := range []bool{false, true} {
				r := New(m.charter)
				hear(t, r, one.Raw, two.Raw, three.Raw, gone.Raw, m.record(gone, 3, 5, 0))
				if backwards {
					slices.Reverse(c.says)
				}
				for _, s := range c.says {
					hear(t, r, m.tombstone(gone.ID(), s.v, s.by))
				}
				got := []mesh.Version{}
				for _, tomb := range r.Tombstones(gone.ID()) {
					got = append(got, tomb.Version)
				}
				if fmt.Sprint(got) != c.want {
					t.Errorf("%v count, want %s", got, c.want)
				}
			}
		})
	}
	t.Run("there is no third", func(t *testing.T) {
		for name, third := range map[string][][]byte{
			"ever":             nil,
			"it has left":      {three.Raw, m.left(three)},
			"it was revoked":   {three.Raw, m.revocation(trust.Revocation{Node: three.ID()})},
			"but there is one": {three.Raw},
		} {
			r := New(m.charter)
			hear(t, r, one.Raw, gone.Raw, m.record(gone, 3, 5, 0), m.tombstone(gone.ID(), v(3, 5), one))
			hear(t, r, third...)
			if _, dead := r.Dead(gone.ID()); dead != (name != "but there is one") {
				t.Errorf("%s: one is enough: %v", name, dead)
			}
		}
	})
	t.Run("many", func(t *testing.T) {
		r := New(m.charter)
		hear(t, r, one.Raw, two.Raw, gone.Raw, m.record(gone, 3, 5, 0), m.tombstone(gone.ID(), v(3, 5), one), m.tombstone(gone.ID(), v(3, 5), two))
		for i := range 3 * maxIssuers {
			c := m.certificate(fmt.Sprint("n", i), nil)
			hear(t, r, c.Raw)
			_, _ = r.Add(m.tombstone(gone.ID(), v(3, 4), c)), r.Add(m.tombstone(gone.ID(), v(2, 4), c))
		}
		if n := len(r.Accusations(gone.ID())); n > maxIssuers*maxTombs {
			t.Errorf("%d are kept", n)
		}
		if tomb, ok := r.Dead(gone.ID()); !ok || tomb.Version != v(3, 5) {
			t.Errorf("the newest are gone: %v", tomb)
		}
	})
}

// What one voids stays void when a newer one comes, and what a liar's has displaced
// of the CA's stays.
func TestTombstonesVoid(t *testing.T) {
	m := newMaker("ca")
	founder, liar, crony, node := m.certificate("founder", nil), m.certificate("liar", nil), m.certificate("crony", nil), m.certificate("node", nil)
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
	hear(t, r, founder.Raw, liar.Raw, crony.Raw, node.Raw, record(2, 9, 2))
	void(t, false)
	hear(t, r, m.tombstone(node.ID(), v(2, 9), founder))
	void(t, false)
	hear(t, r, m.tombstone(node.ID(), v(2, 9), crony))
	void(t, true)
	hear(t, r, record(3, 1, 2)) // a restart alone
	void(t, true)
	hear(t, r, m.tombstone(node.ID(), v(3, 1), liar), m.tombstone(node.ID(), v(3, 1), crony), record(3, 2, 2)) // it goes on, cut off as it seems
	void(t, true)
	hear(t, r, record(3, 3, 3)) // claimed afresh
	void(t, false)
	hear(t, r, m.tombstone(node.ID(), v(3, trust.WholeEpoch), nil))
	void(t, true)
	hear(t, r, record(4, 1, 4), m.tombstone(node.ID(), v(4, 1), liar), m.tombstone(node.ID(), v(4, 1), crony))
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

// Dead finds the newest tombstone of a node that counts.
func (r *Registry) Dead(id mesh.NodeID) (*trust.Tombstone, bool) {
	if all := r.counting(id); len(all) > 0 {
		return all[0], true
	}
	return nil, false
}
