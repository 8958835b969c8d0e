package registry

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
)

const (
	// maxUnadmitted bounds the certificates by a token that nobody has admitted
	// yet. An honest one that has to make room is sent again.
	maxUnadmitted = 256
	// forgetAfter is how long a certificate outlives its end, or its token's while
	// nobody has admitted it: then it counts nowhere any more, since clocks are not
	// apart by as much.
	forgetAfter = time.Hour
	// pruneEvery bounds how often it is looked what has ended.
	pruneEvery = time.Minute
)

// Expire says what time it is, and forgets what ended an hour before: certificates,
// but for witnesses to whom others lead back; unadmitted ones by their token's
// end; and with the last certificate of a node its record and tombstones.
// Certificate own is kept. The owner says no time that it has reason to doubt.
//
// What was forgotten and is offered again draws [ErrStale], unless something waits
// for it.
func (r *Registry) Expire(now time.Time, own trust.Hash) {
	r.now = now
	old := map[trust.Hash]bool{}
	for _, h := range r.unadmitted {
		if h != own && r.ended(h, forgetAfter) {
			old[h] = true
		}
	}
	r.forget(old)
	if next := r.pruneAt.Sub(r.present()); 0 < next && next <= pruneEvery {
		return
	}
	r.pruneAt = r.present().Add(pruneEvery)
	r.prune(own)
}

// present is the time, as far as it is known.
func (r *Registry) present() time.Time {
	if r.newest.After(r.now) {
		return r.newest
	}
	return r.now
}

// over tells whether an end is so long ago that it is forgotten.
func (r *Registry) over(end time.Time) bool { return r.present().Sub(end) > forgetAfter }

// ended tells whether a certificate's token ended so long ago.
func (r *Registry) ended(h trust.Hash, ago time.Duration) bool {
	return r.present().Sub(r.certs[h].Credential.NotAfter) > ago
}

// prune drops the certificates that have ended and that nothing leads back to, and
// what was said by and of nodes that have no other.
func (r *Registry) prune(own trust.Hash) {
	r.findRooted()
	needed, members := map[trust.Hash]bool{}, map[mesh.NodeID]bool{}
	need := func(h trust.Hash) {
		for c := r.certs[h]; c != nil && !needed[c.Hash]; {
			needed[c.Hash] = true
			a := c.first()
			if a == nil {
				return
			}
			c = r.certs[a.Admitter]
		}
	}
	for h, c := range r.certs {
		switch {
		case h == own, !c.admitted, (c.counts() || r.spent(c)) && !r.over(c.NotAfter):
			need(h)
			members[c.id] = members[c.id] || c.counts()
		case !r.over(c.NotAfter):
			needed[h] = true // revoked
		}
	}
	before := len(r.records) + len(r.tombs) + len(r.rekeys) + len(r.certs)
	maps.DeleteFunc(r.records, func(id mesh.NodeID, _ *trust.Record) bool { return !members[id] })
	maps.DeleteFunc(r.rekeys, func(id mesh.NodeID, _ []*trust.Rekey) bool { return !members[id] })
	maps.DeleteFunc(r.tombs, func(id mesh.NodeID, all []*trust.Tombstone) bool {
		old := slices.ContainsFunc(all, func(t *trust.Tombstone) bool { return !t.ByCA() || r.over(t.At) })
		return !members[id] && old
	})
	for _, rec := range r.records {
		need(rec.Certificate)
	}
	for _, all := range r.tombs {
		for _, t := range all {
			need(t.Issuer)
		}
	}
	for _, all := range r.rekeys {
		for _, k := range all {
			need(k.Signer)
		}
	}
	maps.DeleteFunc(r.certs, func(h trust.Hash, _ *certificate) bool { return !needed[h] })
	if before == len(r.records)+len(r.tombs)+len(r.rekeys)+len(r.certs) {
		return
	}
	for _, c := range r.certs {
		c.admissions = slices.DeleteFunc(slices.Clone(c.admissions), func(a *trust.Admission) bool { return !needed[a.Admitter] })
	}
	r.recount()
	r.changes, r.rooted = r.changes+1, false
}

// makeRoom drops an unadmitted certificate if there are too many: one whose token
// has ended, else one of the token that has the most, so that a flood with one
// token drives out only its own; of these the oldest. The newest stays: what
// admits it may be next.
func (r *Registry) makeRoom() {
	if len(r.unadmitted) <= maxUnadmitted {
		return
	}
	crowd := map[trust.Serial]int{}
	for _, h := range r.unadmitted {
		crowd[r.certs[h].Credential.Serial]++
	}
	rank := func(h trust.Hash) int {
		n := crowd[r.certs[h].Credential.Serial]
		if r.ended(h, 0) {
			n += maxUnadmitted + 1
		}
		return n
	}
	worst := slices.MaxFunc(r.unadmitted[:len(r.unadmitted)-1], func(a, b trust.Hash) int { return cmp.Compare(rank(a), rank(b)) })
	delete(r.certs, worst)
	r.unadmitted = slices.DeleteFunc(r.unadmitted, func(h trust.Hash) bool { return h == worst })
}
