package registry

import (
	"cmp"
	"slices"
	"time"

	"meshd/mesh/trust"
)

const (
	// maxUnadmitted bounds the certificates by a token that nobody has admitted
	// yet. An honest one that has to make room is sent again.
	maxUnadmitted = 256
	// forgetAfter is how long an unadmitted certificate outlives its token: no
	// member admits it any more, and clocks are not apart by as much.
	forgetAfter = time.Hour
)

// Expire says what time it is, and forgets the unadmitted certificates whose token
// ended an hour before. Certificate own is kept, but no longer in the table.
func (r *Registry) Expire(now time.Time, own trust.Hash) {
	r.now = now
	old := map[trust.Hash]bool{}
	for _, h := range r.unadmitted {
		if h != own && r.ended(h, forgetAfter) {
			old[h] = true
		}
	}
	if len(old) == 0 {
		return
	}
	for h := range old {
		delete(r.certs, h)
	}
	r.unadmitted = slices.DeleteFunc(r.unadmitted, func(h trust.Hash) bool { return old[h] })
	r.waiting = slices.DeleteFunc(r.waiting, func(w waiting) bool {
		return slices.ContainsFunc(w.needs, func(h trust.Hash) bool { return old[h] })
	})
	r.changes++
}

// ended tells whether a certificate's token ended so long ago.
func (r *Registry) ended(h trust.Hash, ago time.Duration) bool {
	now := r.now
	if r.newest.After(now) {
		now = r.newest
	}
	return now.Sub(r.certs[h].Credential.NotAfter) > ago
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
