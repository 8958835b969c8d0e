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
//	each member with a record: its certificate with what admits it, the record
//	certificates that wait for admission, so that some member sees and admits them
//	certificates without a record: an honest node has one soon
//	admissions beyond the first of each certificate
func (r *Registry) Table() [][]byte {
	out := [][]byte{r.charter.Raw}
	done := map[trust.Hash]bool{}
	for _, id := range slices.SortedFunc(maps.Keys(r.records), mesh.NodeID.Compare) {
		out = r.chain(r.records[id].Certificate, done, out)
		out = append(out, r.records[id].Raw)
	}
	for _, h := range r.unadmitted {
		if r.ended(h, forgetAfter) {
			done[h] = true // nobody would admit it
			continue
		}
		out = r.chain(h, done, out)
	}
	hashes := slices.SortedFunc(maps.Keys(r.certs), trust.Hash.Compare)
	for _, h := range hashes {
		out = r.chain(h, done, out)
	}
	for _, h := range hashes {
		for _, a := range r.certs[h].admissions[min(1, len(r.certs[h].admissions)):] {
			out = append(out, a.Raw)
		}
	}
	return out
}

// Lookup gives a certificate and what is needed to believe it, in order; nil if
// it is unknown.
func (r *Registry) Lookup(h trust.Hash) [][]byte { return r.chain(h, map[trust.Hash]bool{}, nil) }

// chain appends a certificate after its first witness, then that one's admission.
// The first admission alone leads back to the CA: a later one may be by a witness
// who owes its own admission to this very certificate.
func (r *Registry) chain(h trust.Hash, done map[trust.Hash]bool, out [][]byte) [][]byte {
	c := r.certs[h]
	if c == nil || done[h] {
		return out
	}
	done[h] = true
	if len(c.admissions) == 0 {
		return append(out, c.Raw)
	}
	out = r.chain(c.admissions[0].Admitter, done, out)
	return append(out, c.Raw, c.admissions[0].Raw)
}
