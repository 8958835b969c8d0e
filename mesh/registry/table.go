package registry

import (
	"maps"
	"slices"

	"meshd/mesh"
	"meshd/mesh/trust"
)

// Table lists every believed object in an order in which each can be decided at
// once. The transport may cut it, so what matters most comes first:
//
//	charter
//	revocations, so that nobody believes for a moment whom they throw out
//	each member with a record: its certificate with what admits it, the record,
//	    the tombstones of it
//	certificates that wait for admission, so that some member sees and admits them
//	certificates without a record: an honest node has one soon, and one that was
//	    revoked has used its token
//	rekeys
//	what is not rooted, which only who believed it before can use, see [Registry.Restore]
//	admissions beyond the first of each certificate
func (r *Registry) Table() [][]byte {
	r.findRooted()
	t := table{r: r, done: map[trust.Hash]bool{}}
	t.object(r.charter.Object)
	for _, v := range r.Revocations() {
		t.object(v.Object)
	}
	t.members(true)
	for _, h := range r.unadmitted {
		if r.certs[h].revoked == nil && !r.ended(h, forgetAfter) { // else nobody would admit it
			t.certificate(h)
		}
	}
	hashes := slices.SortedFunc(maps.Keys(r.certs), trust.Hash.Compare)
	for _, rooted := range []bool{true, false} {
		if !rooted {
			t.members(false)
		}
		for _, h := range hashes {
			if c := r.certs[h]; (c.counts() || r.spent(c)) && !r.over(c.NotAfter) && c.rooted == rooted {
				t.certificate(h)
			}
		}
		for _, k := range r.Rekeys() {
			if r.certs[k.Signer].rooted == rooted {
				t.certificate(k.Signer)
				t.object(k.Object)
			}
		}
	}
	for _, h := range hashes {
		for _, a := range r.certs[h].admissions {
			if t.done[h] && r.certs[h].counts() && t.done[a.Admitter] && r.certs[a.Admitter].counts() {
				t.object(a.Object)
			}
		}
	}
	return t.out
}

// Lookup gives the objects of these hashes, each with what is needed to believe it,
// in order, revocations first; those that are unknown are left out.
func (r *Registry) Lookup(hashes ...trust.Hash) [][]byte {
	r.findRooted()
	t := table{r: r, done: map[trust.Hash]bool{}}
	var rest map[trust.Hash]func()
	for _, h := range hashes {
		if v := r.revocations.all[h]; v != nil {
			t.object(v.Object)
		}
	}
	for _, h := range hashes {
		if r.certs[h] != nil {
			t.certificate(h)
			continue
		}
		if rest == nil {
			rest = t.others()
		}
		if write := rest[h]; write != nil {
			write()
		}
	}
	return t.out
}

// Settled lists the objects on which all nodes agree that have heard the same, so
// that a difference is worth an exchange. They are, in this order and by hash:
//
//	charter
//	revocations, to be heard before those whom they throw out
//	certificates that are rooted, until they end, also of nodes that were revoked,
//	    since their tokens were used; those that wait for admission,
//	    until their token ends; records, tombstones and rekeys whose certificates
//	    are rooted
//
// Left out are admissions, of which each node keeps the first few that it heard;
// who lacks the only one shows it by the record, which it cannot believe. Left out
// is also what is not rooted: some nodes believe it and others do not, until it is
// vouched for anew. All that is left out comes with what rests on it, by [Registry.Lookup].
func (r *Registry) Settled() []trust.Hash {
	r.findRooted()
	var rest []trust.Hash
	for h, c := range r.certs {
		if c.rooted && !r.present().After(c.NotAfter) || !c.admitted && c.revoked == nil && !r.ended(h, 0) {
			rest = append(rest, h)
		}
	}
	for id, rec := range r.records {
		if !r.Rooted(rec.Certificate) {
			continue
		}
		rest = append(rest, rec.Hash)
		for _, t := range r.tombs[id] {
			if t.ByCA() || r.Rooted(t.Issuer) {
				rest = append(rest, t.Hash)
			}
		}
	}
	for _, k := range r.Rekeys() {
		if r.Rooted(k.Signer) {
			rest = append(rest, k.Hash)
		}
	}
	slices.SortFunc(rest, trust.Hash.Compare)
	out := []trust.Hash{r.charter.Hash}
	for _, v := range r.Revocations() {
		out = append(out, v.Hash)
	}
	return append(out, rest...)
}

// table collects objects, each once and after those that it rests on.
type table struct {
	r    *Registry
	done map[trust.Hash]bool
	out  [][]byte
}

func (t *table) object(o trust.Object) {
	if !t.done[o.Hash] {
		t.done[o.Hash] = true
		t.out = append(t.out, o.Raw)
	}
}

// certificate adds one after its witness, then that one's admission.
func (t *table) certificate(h trust.Hash) {
	c := t.r.certs[h]
	if c == nil || t.done[h] {
		return
	}
	t.done[h] = true
	first := c.first()
	if first != nil {
		t.certificate(first.Admitter)
	}
	t.out = append(t.out, c.Raw)
	if first != nil {
		t.object(first.Object)
	}
}

// members adds those with a record, or those among them that are not rooted.
func (t *table) members(rooted bool) {
	for _, id := range slices.SortedFunc(maps.Keys(t.r.records), mesh.NodeID.Compare) {
		if t.r.Rooted(t.r.records[id].Certificate) == rooted {
			t.record(id)
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(t.r.tombs), mesh.NodeID.Compare) {
		for _, tomb := range t.r.tombs[id] {
			if rec := t.r.records[id]; (!rooted || t.rootedTomb(tomb)) && (rec == nil || t.done[rec.Hash]) {
				t.tombstone(tomb)
			}
		}
	}
}

func (t *table) rootedTomb(tomb *trust.Tombstone) bool { return tomb.ByCA() || t.r.Rooted(tomb.Issuer) }

func (t *table) record(id mesh.NodeID) {
	if rec := t.r.records[id]; rec != nil {
		t.certificate(rec.Certificate)
		t.object(rec.Object)
	}
}

func (t *table) tombstone(tomb *trust.Tombstone) {
	t.record(tomb.Node)
	t.certificate(tomb.Issuer)
	t.object(tomb.Object)
}

// others tells how to add the objects that are no certificates.
func (t *table) others() map[trust.Hash]func() {
	r, out := t.r, map[trust.Hash]func(){}
	out[r.charter.Hash] = func() { t.object(r.charter.Object) }
	for id, rec := range r.records {
		out[rec.Hash] = func() { t.record(id) }
	}
	for _, all := range r.tombs {
		for _, tomb := range all {
			out[tomb.Hash] = func() { t.tombstone(tomb) }
		}
	}
	for _, k := range r.Rekeys() {
		out[k.Hash] = func() {
			t.certificate(k.Signer)
			t.object(k.Object)
		}
	}
	return out
}
