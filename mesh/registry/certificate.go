package registry

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
)

const (
	// maxAdmissions are kept per certificate, each by another node: one is enough,
	// a few survive revocations.
	maxAdmissions = 4
	// maxPerIdentity bounds the certificates of one token that are admitted for
	// one identity: a join makes one, a few more come from joining again.
	maxPerIdentity = 4
	// maxByToken bounds the identities that one token admits, however many uses it
	// is good for: twice the largest mesh.
	maxByToken = 4096
)

// maxIdentities bounds the identities admitted by a token that is good for so
// many uses; 0: any number. Members stop at the uses that they know of, so more
// come only from sides of a partition that admit at a time: two sides make twice as
// many, and the constant leaves room where uses are few.
func maxIdentities(uses uint64) int {
	if uses == 0 || uses > maxByToken/2 {
		return maxByToken
	}
	return int(max(2*uses, uses+16))
}

type certificate struct {
	*trust.Certificate
	id         mesh.NodeID
	admitted   bool               // it was, once; nothing takes that back
	revoked    *trust.Revocation  // nil: it is not
	admissions []*trust.Admission // by witnesses that were admitted when it came, oldest first
	rooted     bool               // as findRooted has found
	via        *trust.Admission   // that roots it; nil: the CA signed it
}

// counts tells whether its holder is a member, as far as it is the time; nil is
// unknown.
func (c *certificate) counts() bool { return c != nil && c.admitted && c.revoked == nil }

// joins are the certificates that were admitted by one token.
type joins struct {
	end   time.Time // of the token
	nodes map[mesh.NodeID][]trust.Hash
}

func (r *Registry) addCertificate(h trust.Hash, raw []byte) error {
	parsed, err := once(r.parsed, h, func() (*trust.Certificate, error) { return trust.ParseCertificate(raw, r.charter.CA) })
	if err != nil {
		return err
	}
	revoked := r.revocations.of(parsed)
	if revoked != nil && !r.revocations.spends(parsed) {
		r.waitNoMore(func(h trust.Hash) bool { return h == parsed.Hash })
		return fmt.Errorf("certificate of %s: %w", parsed.Name, ErrRevoked)
	}
	c := &certificate{Certificate: parsed, id: parsed.ID(), admitted: parsed.Credential == nil, revoked: revoked}
	wanted := slices.Contains(r.Missing(), c.Hash)
	r.certs[c.Hash] = c
	r.changes, r.rooted = r.changes+1, false
	if c.admitted {
		r.signedAt(c.NotBefore)
		r.settleFor(c.Hash)
		if !wanted && r.over(c.NotAfter) {
			return ErrStale // it may be the witness of what comes next; else it goes again
		}
		return nil
	}
	r.signedAt(c.Credential.NotBefore)
	r.unadmitted = append(r.unadmitted, c.Hash)
	r.settleFor(c.Hash)
	r.makeRoom()
	if !wanted && r.over(c.NotAfter) || c.revoked != nil && !c.admitted {
		return ErrStale // what admitted a revoked one, before it was, may come next
	}
	return nil
}

// decideAdmission believes an admission, refuses it, or lets it wait.
func (r *Registry) decideAdmission(a *trust.Admission) error {
	seen, witness := r.certs[a.Certificate], r.certs[a.Admitter]
	if witness != nil && witness.revoked != nil {
		return fmt.Errorf("admission by %s: %w", witness.Name, ErrRevoked)
	}
	if seen != nil && seen.revoked != nil && !r.revocations.spends(seen.Certificate) {
		return fmt.Errorf("admission: certificate of %s: %w", seen.Name, ErrRevoked)
	}
	if seen == nil || witness == nil || !witness.admitted {
		r.wait(waiting{
			hash: a.Hash, needs: []trust.Hash{a.Certificate, a.Admitter},
			retry: func() error { return r.decideAdmission(a) },
		})
		return nil
	}
	room, ok := r.roomFor(seen, witness)
	if !ok {
		return ErrStale
	}
	if err := a.Verify(seen.Certificate, witness.Certificate); err != nil {
		return err
	}
	if !seen.admitted {
		if err := r.room(seen.Certificate); err != nil {
			return fmt.Errorf("admission: %w", err)
		}
	}
	seen.admissions = append(room, a)
	r.changes, r.rooted = r.changes+1, false
	if !seen.admitted {
		seen.admitted = true
		serial := seen.Credential.Serial
		if r.joined[serial] == nil {
			r.joined[serial] = &joins{seen.Credential.NotAfter, map[mesh.NodeID][]trust.Hash{}}
		}
		// One that was forgotten, by a clock that was wrong, counts once when it comes again.
		if nodes := r.joined[serial].nodes; !slices.Contains(nodes[seen.id], seen.Hash) {
			nodes[seen.id] = append(nodes[seen.id], seen.Hash)
		}
		r.unadmitted = slices.DeleteFunc(r.unadmitted, func(h trust.Hash) bool { return h == seen.Hash })
		r.settleFor(seen.Hash)
	}
	return nil
}

// roomFor gives the admissions to keep beside a new one by a witness; false: there
// is no room for it. The first ones stay, and later ones cannot push them out: each
// came when its witness was admitted already, so they lead back to the CA. But when
// none of them does any more without a revoked witness, one that does takes the
// place of the last.
func (r *Registry) roomFor(seen, witness *certificate) ([]*trust.Admission, bool) {
	kept := seen.admissions
	if len(kept) == 0 {
		return nil, true
	}
	r.findRooted()
	again := func(a *trust.Admission) bool {
		w := r.certs[a.Admitter]
		return w.id == witness.id && w.revoked == nil
	}
	switch {
	case !seen.rooted && witness.rooted:
		kept = append(kept[:1:1], slices.DeleteFunc(slices.Clone(kept[1:]), again)...)
		return kept[:min(len(kept), maxAdmissions-1)], true
	case len(kept) >= maxAdmissions || slices.ContainsFunc(kept, again):
		return nil, false
	}
	return kept, true
}

// findRooted finds out who is rooted: whose certificate leads back to the CA over
// witnesses of whom none was revoked.
func (r *Registry) findRooted() {
	if r.rooted {
		return
	}
	r.rooted = true
	if len(r.revocations.all) == 0 { // as nearly always, and then it is quick
		for _, c := range r.certs {
			c.rooted, c.via = c.admitted, nil
			if len(c.admissions) > 0 {
				c.via = c.admissions[0]
			}
		}
		return
	}
	var found []*certificate
	vouched := map[trust.Hash][]*certificate{} // by the witness's certificate
	for _, c := range r.certs {
		c.rooted, c.via = c.Credential == nil && c.counts(), nil
		if c.rooted {
			found = append(found, c)
		}
		for _, a := range c.admissions {
			vouched[a.Admitter] = append(vouched[a.Admitter], c)
		}
	}
	for len(found) > 0 {
		w := found[0]
		found = found[1:]
		for _, c := range vouched[w.Hash] {
			if c.rooted || !c.counts() && !r.spent(c) {
				continue
			}
			i := slices.IndexFunc(c.admissions, func(a *trust.Admission) bool { return a.Admitter == w.Hash })
			c.rooted, c.via = true, c.admissions[i]
			if c.counts() {
				found = append(found, c)
			}
		}
	}
}

// first is the admission that a certificate's proof begins with; nil: it needs
// none, or has none. Proofs have no cycles: one that is rooted goes by who was found
// to be so before it, and any other by who was admitted before it.
func (c *certificate) first() *trust.Admission {
	if c.rooted || len(c.admissions) == 0 {
		return c.via
	}
	return c.admissions[0]
}

// Rooted tells whether the certificate leads back to the CA over admissions of
// which no witness was revoked. Who comes new, and hears of the revocations first,
// believes such certificates and no others.
func (r *Registry) Rooted(h trust.Hash) bool {
	r.findRooted()
	c := r.certs[h]
	return c.counts() && c.rooted
}

// Unvouched is a certificate that counts here, or did until it was revoked, and not
// with who hears first of a revocation.
type Unvouched struct {
	Certificate *trust.Certificate
	Seen        time.Time // what the admission said that was believed
}

// Unvouched lists the certificates that count, or of which no more than the use of a
// token is left, and that are not rooted: whoever admitted
// them, or those who did, was revoked later. What was believed stays: a revocation
// throws out whom it names and nobody else. But an admission by a revoked witness
// that comes after the revocation is refused, since it may have been made at any
// time. So nodes differ about these certificates, by what they heard first, until a
// member whose own certificate is rooted vouches for them anew, with the same Seen.
// If nobody's is, the CA has to sign one: no member could convince a newcomer.
func (r *Registry) Unvouched() []Unvouched {
	r.findRooted()
	var out []Unvouched
	for _, c := range r.certs {
		if (c.counts() || r.spent(c)) && !c.rooted {
			out = append(out, Unvouched{c.Certificate, c.admissions[0].Seen})
		}
	}
	slices.SortFunc(out, func(a, b Unvouched) int { return a.Certificate.Hash.Compare(b.Certificate.Hash) })
	return out
}

// Certificate finds a certificate, and tells whether it counts: it is admitted and
// not revoked.
func (r *Registry) Certificate(h trust.Hash) (cert *trust.Certificate, counts bool) {
	c := r.certs[h]
	if c == nil {
		return nil, false
	}
	return c.Certificate, c.counts()
}

// Certificates lists those of a node that count, the one that ends last first.
func (r *Registry) Certificates(id mesh.NodeID) []*trust.Certificate {
	var out []*trust.Certificate
	for _, c := range r.certs {
		if c.id == id && c.counts() {
			out = append(out, c.Certificate)
		}
	}
	slices.SortFunc(out, func(a, b *trust.Certificate) int { return endsLater(b, a) })
	return out
}

// endsLater orders certificates by their end.
func endsLater(a, b *trust.Certificate) int {
	return cmp.Or(a.NotAfter.Compare(b.NotAfter), a.Hash.Compare(b.Hash))
}

// Unadmitted lists the certificates that wait for a witness, oldest first.
func (r *Registry) Unadmitted() []*trust.Certificate {
	out := make([]*trust.Certificate, 0, len(r.unadmitted))
	for _, h := range r.unadmitted {
		if c := r.certs[h]; c.revoked == nil {
			out = append(out, c.Certificate)
		}
	}
	return out
}

// spent tells whether a certificate that is revoked stays for the use of its token,
// and for nothing else: else a host that was thrown out would come back with it.
func (r *Registry) spent(c *certificate) bool {
	return c.revoked != nil && len(c.admissions) > 0 && r.revocations.spends(c.Certificate)
}

// Admitted tells whether a certificate was admitted once, be it revoked since.
func (r *Registry) Admitted(h trust.Hash) bool {
	c := r.certs[h]
	return c != nil && c.admitted
}

// Uses counts the identities that were admitted with a credential, those among
// them that have been revoked since.
func (r *Registry) Uses(credential trust.Serial) int {
	if j := r.joined[credential]; j != nil {
		return len(j.nodes)
	}
	return 0
}

// CheckRoom tells whether a certificate by a token may still be admitted. It is a
// stop against floods: an admitted node must not fill everybody's memory and
// tables with what it vouches for.
//
// The first ones stay, so what is refused depends on the order of arrival. That is
// harmless because honest nodes stay far below both bounds, and then nothing is
// refused anywhere. Above them all come from a token in bad hands. Nodes may then
// differ about which of its certificates count, but never about one that was
// admitted before the flood: what was believed stays, since others may have been
// admitted by it.
func (r *Registry) CheckRoom(c *trust.Certificate) error {
	if r.revocations.of(c) != nil {
		return ErrRevoked
	}
	return r.room(c)
}

func (r *Registry) room(c *trust.Certificate) error {
	var ids map[mesh.NodeID][]trust.Hash
	if j := r.joined[c.Credential.Serial]; j != nil {
		ids = j.nodes
	}
	switch has, uses := ids[c.ID()], c.Credential.Uses; {
	case slices.Contains(has, c.Hash):
		return nil
	case len(has) >= maxPerIdentity:
		return fmt.Errorf("%w: its node has %d certificates of this token", trust.ErrForbidden, len(has))
	case len(has) == 0 && len(ids) >= maxIdentities(uses):
		return fmt.Errorf("%w: %d nodes have joined with this token, which is good for %d", trust.ErrForbidden, len(ids), cmp.Or(uses, maxByToken))
	}
	return nil
}

// recount forgets who joined by tokens that ended long ago, as far as nothing of
// that is left.
func (r *Registry) recount() {
	nodes := map[trust.Serial]map[mesh.NodeID][]trust.Hash{}
	for _, c := range r.certs {
		if c.Credential == nil || !c.admitted {
			continue
		}
		if nodes[c.Credential.Serial] == nil {
			nodes[c.Credential.Serial] = map[mesh.NodeID][]trust.Hash{}
		}
		nodes[c.Credential.Serial][c.id] = append(nodes[c.Credential.Serial][c.id], c.Hash)
	}
	maps.DeleteFunc(r.joined, func(s trust.Serial, j *joins) bool {
		if r.over(j.end) {
			j.nodes = nodes[s]
		}
		return len(j.nodes) == 0
	})
}
