package registry

import (
	"cmp"
	"fmt"
	"slices"

	"meshd/mesh"
	"meshd/mesh/trust"
)

// maxTombs are kept of one node by the CA, and as many by members, whom a
// revocation may show to have lied: the newest one, and that of the epoch before.
// What older ones void, these do.
//
//	tombstones  (2,9)     (3,2)
//	record                      (3,3)  with a lease claimed in epoch 2: void by the first alone
const maxTombs = 2

// decideTombstone believes a tombstone, refuses it, or lets it wait. A member's
// waits for a record that it reaches: it must not speak of what nobody has said.
func (r *Registry) decideTombstone(t *trust.Tombstone) error {
	if r.revocations.nodes[t.Node] != nil {
		return ErrStale
	}
	known := r.tombs[t.Node]
	all := keepTombs(append(slices.Clone(known), t))
	if !slices.Contains(all, t) || slices.ContainsFunc(known, func(o *trust.Tombstone) bool { return o.Hash == t.Hash }) {
		return ErrStale
	}
	var issuer *trust.Certificate
	if !t.ByCA() {
		cert := r.certs[t.Issuer]
		switch {
		case cert != nil && cert.revoked != nil:
			return fmt.Errorf("tombstone by %s: %w", cert.Name, ErrRevoked)
		case cert == nil || !cert.admitted:
			r.wait(waiting{hash: t.Hash, needs: []trust.Hash{t.Issuer}, retry: func() error { return r.decideTombstone(t) }})
			return nil
		}
		issuer = cert.Certificate
	}
	if err := t.Verify(issuer, r.charter.CA); err != nil {
		return err
	}
	if rec := r.records[t.Node]; !t.ByCA() && (rec == nil || rec.Version.Compare(t.Version) < 0) {
		r.wait(waiting{hash: t.Hash, node: t.Node, retry: func() error { return r.decideTombstone(t) }})
		return nil
	}
	if t.ByCA() {
		r.signedAt(t.At)
	}
	r.tombs[t.Node] = all
	r.changes++
	return nil
}

// keepTombs gives those of one node that are worth room, newest first.
func keepTombs(all []*trust.Tombstone) []*trust.Tombstone {
	slices.SortFunc(all, compareTombs)
	var out []*trust.Tombstone
	for _, t := range all {
		same, epochs := false, 0
		for _, o := range out {
			if o.ByCA() == t.ByCA() {
				same = same || o.Version.Epoch == t.Version.Epoch
				epochs++
			}
		}
		if !same && epochs < maxTombs {
			out = append(out, t)
		}
	}
	return out
}

// compareTombs puts the newer one first. Of two for one version, which void the
// same, the smaller hash makes everybody keep the same.
func compareTombs(a, b *trust.Tombstone) int {
	return cmp.Or(b.Version.Compare(a.Version), a.Hash.Compare(b.Hash))
}

func (r *Registry) setTombs(id mesh.NodeID, all []*trust.Tombstone) {
	if len(all) == 0 {
		delete(r.tombs, id)
		return
	}
	r.tombs[id] = all
}

// Dead finds the newest tombstone of a node. The node may have said something
// since, see [Member.Void].
func (r *Registry) Dead(id mesh.NodeID) (*trust.Tombstone, bool) {
	if all := r.tombs[id]; len(all) > 0 {
		return all[0], true
	}
	return nil, false
}

// Tombstones lists those of a node that are kept, whatever it has said since, the
// newest first.
func (r *Registry) Tombstones(id mesh.NodeID) []*trust.Tombstone { return slices.Clone(r.tombs[id]) }
