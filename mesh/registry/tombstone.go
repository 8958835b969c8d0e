package registry

import (
	"cmp"
	"slices"

	"meshd/mesh"
	"meshd/mesh/trust"
)

const (
	// maxTombs are kept of one node by the CA, and as many by each member that issued
	// some: the newest one, and that of the epoch before. What older ones void, these do.
	//
	//	tombstones  (2,9)     (3,2)
	//	record                      (3,3)  with a lease claimed in epoch 2: void by the first alone
	maxTombs = 2
	// maxIssuers are the members whose tombstones of one node are kept: two are enough,
	// and of the others some may be revoked.
	maxIssuers = 8
)

// decideTombstone believes a tombstone, refuses it, or lets it wait. A member's
// waits for a record that it reaches: it must not speak of what nobody has said.
func (r *Registry) decideTombstone(t *trust.Tombstone) error {
	known := r.tombs[t.Node]
	if r.revocations.nodes[t.Node] != nil || slices.ContainsFunc(known, func(o *trust.Tombstone) bool { return o.Hash == t.Hash }) {
		return ErrStale
	}
	var issuer *trust.Certificate
	if !t.ByCA() {
		cert, err := r.signer("tombstone", t.Issuer, waiting{hash: t.Hash, retry: func() error { return r.decideTombstone(t) }})
		if cert == nil {
			return err
		}
		issuer = cert.Certificate
	}
	all := r.keepTombs(append(slices.Clone(known), t))
	if !slices.Contains(all, t) {
		return ErrStale
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

// issuer is whose tombstone it is; zero: the CA's. A node may have several certificates.
func (r *Registry) issuer(t *trust.Tombstone) mesh.NodeID {
	if c := r.certs[t.Issuer]; c != nil && !t.ByCA() {
		return c.id
	}
	return mesh.NodeID{}
}

// keepTombs gives those of one node that are worth room, newest first: of each
// issuer the newest one, and of the epoch before; of members those who have issued
// the newest ones.
func (r *Registry) keepTombs(all []*trust.Tombstone) []*trust.Tombstone {
	slices.SortFunc(all, compareTombs)
	var out []*trust.Tombstone
	newest, members := map[mesh.NodeID][]uint64{}, 0 // epochs, by issuer
	for _, t := range all {
		id := r.issuer(t)
		epochs, known := newest[id]
		if len(epochs) >= maxTombs || slices.Contains(epochs, t.Version.Epoch) || !known && !t.ByCA() && members >= maxIssuers {
			continue
		}
		if !known && !t.ByCA() {
			members++
		}
		newest[id] = append(epochs, t.Version.Epoch)
		out = append(out, t)
	}
	return out
}

// counting gives those tombstones of a node that count, newest first: the CA's, and
// a member's if another member has issued one of that version or a newer one. So
// one alone, whatever it repeats, takes nothing from a node that lives. Where there
// is no other member who could, one is enough.
//
//	a says (3,7), b says (3,5), c says (2,1):  (3,5) and (2,1) count
func (r *Registry) counting(node mesh.NodeID) []*trust.Tombstone {
	var out []*trust.Tombstone
	var first mesh.NodeID // issuer of the newest one
	second := false       // another one was met
	for _, t := range r.tombs[node] {
		id := r.issuer(t)
		switch {
		case t.ByCA():
			out = append(out, t)
			continue
		case first.IsZero():
			first = id
		case first != id:
			second = true
		}
		if second || r.isSoleWitness(id, node) {
			out = append(out, t)
		}
	}
	return out
}

// isSoleWitness tells whether there is no third member who could confirm what one
// says of another: none is left, or has been there.
func (r *Registry) isSoleWitness(id, of mesh.NodeID) bool {
	for _, c := range r.certs {
		if rec := r.records[c.id]; c.id != id && c.id != of && c.counts() && (rec == nil || !rec.Left) {
			return false
		}
	}
	return true
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

// Tombstones lists those of a node that count, whatever it has said since, the
// newest first.
func (r *Registry) Tombstones(id mesh.NodeID) []*trust.Tombstone { return r.counting(id) }

// Accusation is a tombstone by a member, be there a second one or not.
type Accusation struct {
	*trust.Tombstone
	By *trust.Certificate
}

// Accusations lists what members say of a node that they take for gone, the newest first.
func (r *Registry) Accusations(id mesh.NodeID) []Accusation {
	var out []Accusation
	for _, t := range r.tombs[id] {
		if c := r.certs[t.Issuer]; !t.ByCA() && c != nil {
			out = append(out, Accusation{t, c.Certificate})
		}
	}
	return out
}
