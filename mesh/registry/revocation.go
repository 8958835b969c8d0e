package registry

import (
	"fmt"
	"maps"
	"slices"

	"meshd/mesh"
	"meshd/mesh/trust"
)

// maxRevocations is far above what anybody revokes, one by one. Only the CA makes
// them, so this stops a mistake, such as a script that runs wild, from filling
// everybody's memory; the first ones stay.
const maxRevocations = 16 << 10

// revocations is a set that only grows.
type revocations struct {
	all    map[trust.Hash]*trust.Revocation
	nodes  map[mesh.NodeID]*trust.Revocation    // one of them is enough
	tokens map[trust.Serial][]*trust.Revocation // they may spare different nodes
}

// of finds what revokes the certificate, or nil.
func (s *revocations) of(c *trust.Certificate) *trust.Revocation {
	if len(s.all) == 0 {
		return nil
	}
	if v := s.nodes[c.ID()]; v != nil || c.Credential == nil {
		return v
	}
	if i := slices.IndexFunc(s.tokens[c.Credential.Serial], func(v *trust.Revocation) bool { return v.Covers(c) }); i >= 0 {
		return s.tokens[c.Credential.Serial][i]
	}
	return nil
}

// spends tells whether a certificate is of a node that was revoked and by a token
// that was not: it counts no more, but the token was used. Only the CA revokes, so
// there are few, however many such certificates somebody makes.
func (s *revocations) spends(c *trust.Certificate) bool {
	return c.Credential != nil && s.nodes[c.ID()] != nil && len(s.tokens[c.Credential.Serial]) == 0
}

func (s *revocations) add(v *trust.Revocation) {
	if s.all == nil {
		*s = revocations{map[trust.Hash]*trust.Revocation{}, map[mesh.NodeID]*trust.Revocation{}, map[trust.Serial][]*trust.Revocation{}}
	}
	s.all[v.Hash] = v
	if !v.Node.IsZero() {
		s.nodes[v.Node] = v
		return
	}
	s.tokens[v.Credential] = append(s.tokens[v.Credential], v)
}

// sorted lists the set by hash.
func (s *revocations) sorted() []*trust.Revocation {
	return slices.SortedFunc(maps.Values(s.all), func(a, b *trust.Revocation) int { return a.Hash.Compare(b.Hash) })
}

// addRevocation takes a revocation in, and drops what counts no more by it.
func (r *Registry) addRevocation(raw []byte) error {
	v, err := trust.ParseRevocation(raw, r.charter.CA)
	if err != nil {
		return err
	}
	if len(r.revocations.all) >= maxRevocations {
		return fmt.Errorf("%w: %d revocations are known", trust.ErrForbidden, maxRevocations)
	}
	r.revocations.add(v)
	r.signedAt(v.At)
	r.changes, r.rooted = r.changes+1, false
	gone := map[trust.Hash]bool{}
	for h, c := range r.certs {
		switch {
		case !v.Covers(c.Certificate):
		case !c.admitted:
			gone[h] = true
		case c.revoked == nil:
			c.revoked = v
			if rec := r.records[c.id]; rec != nil && rec.Certificate == h {
				r.dropRecord(c.id)
			}
		}
	}
	r.forget(gone)
	if !v.Node.IsZero() {
		delete(r.tombs, v.Node)
	}
	for id, all := range r.tombs {
		r.setTombs(id, slices.DeleteFunc(slices.Clone(all), func(t *trust.Tombstone) bool { return !t.ByCA() && !r.certs[t.Issuer].counts() }))
	}
	for id, all := range r.rekeys {
		r.setRekeys(id, slices.DeleteFunc(slices.Clone(all), func(k *trust.Rekey) bool { return !r.certs[k.Signer].counts() }))
	}
	r.settle(func(*waiting) bool { return true })
	return nil
}

// forget drops unadmitted certificates, and what waits for them.
func (r *Registry) forget(gone map[trust.Hash]bool) {
	if len(gone) == 0 {
		return
	}
	for h := range gone {
		delete(r.certs, h)
	}
	r.unadmitted = slices.DeleteFunc(r.unadmitted, func(h trust.Hash) bool { return gone[h] })
	r.waitNoMore(func(h trust.Hash) bool { return gone[h] })
	r.changes++
}

// Revocations lists all that are known, sorted by hash.
func (r *Registry) Revocations() []*trust.Revocation { return r.revocations.sorted() }

// Revoked finds what revokes a certificate, be the certificate known or not.
func (r *Registry) Revoked(c *trust.Certificate) (*trust.Revocation, bool) {
	v := r.revocations.of(c)
	return v, v != nil
}
