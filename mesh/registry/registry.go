// Package registry holds the signed objects of one mesh that a node believes:
// charter, certificates, admissions and the newest record of every member.
//
// Objects may arrive in any order and any number of times, from anybody. One
// that cannot be decided yet, because the certificate it speaks of is unknown or
// not admitted, waits in a bounded room until that changes; what is missing can
// be asked for with [Registry.Missing]. What is believed never depends on the
// order of arrival, but for floods, see [Registry.CheckRoom].
//
//	certificate by the CA ──────────────► admitted
//	certificate by a token ──► unadmitted ───┬───► admitted
//	                     Admission by an admitted member
//	Record ──► waits for its certificate to be admitted ──► newest one counts
//
// A Registry is not safe for concurrent use; its owner is one goroutine.
package registry

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
)

const (
	// maxWaiting bounds the records and admissions that cannot be decided yet.
	// Nobody vouches for them, so the oldest makes room: an honest one is sent again.
	maxWaiting = 1024
	// maxAdmissions are kept per certificate: one is enough, a few survive revocations.
	maxAdmissions = 4
	// maxPerIdentity bounds the certificates of one token that are admitted for
	// one identity: a join makes one, a few more come from joining again.
	maxPerIdentity = 4
)

// maxIdentities bounds the identities admitted by a token that is good for so
// many uses (1 or more). Members stop at the uses that they know of, so more come
// only from sides of a partition that admit at a time: two sides make twice as
// many, and the constant leaves room where uses are few.
func maxIdentities(uses uint64) int {
	uses = min(uses, 1<<30)
	return int(max(2*uses, uses+16))
}

// ErrStale says that an object is older than, or the same as, what is known.
// It is no fault of the sender.
var ErrStale = errors.New("already known")

// Registry is the set of believed objects.
type Registry struct {
	id         mesh.ID
	charter    *trust.Charter
	forked     bool // another one of its version was seen
	certs      map[trust.Hash]*certificate
	unadmitted []trust.Hash                         // in order of arrival
	joined     map[trust.Serial]map[mesh.NodeID]int // by credential: certificates admitted
	records    map[mesh.NodeID]*trust.Record
	waiting    []waiting
	changes    uint64
	waits      uint64       // grows with every change of what waits, but for those that changes tells of
	missing    []trust.Hash // as Missing has found it
	missingAt  [2]uint64    // at these changes and waits
	newest     time.Time    // latest moment that the CA has signed
	now        time.Time    // as Expire was told
}

type certificate struct {
	*trust.Certificate
	admitted   bool
	admissions []*trust.Admission // by witnesses that were admitted when it came, oldest first
}

// waiting is an object that needs certificates which are unknown or unadmitted.
type waiting struct {
	hash   trust.Hash
	needs  []trust.Hash
	retry  func() error
	leases []mesh.Lease // of a record
}

// New makes a registry of the mesh that the charter founds.
func New(charter *trust.Charter) *Registry {
	r := &Registry{
		id:      charter.ID(),
		certs:   map[trust.Hash]*certificate{},
		joined:  map[trust.Serial]map[mesh.NodeID]int{},
		records: map[mesh.NodeID]*trust.Record{},
	}
	r.setCharter(charter)
	return r
}

// Charter is the newest charter.
func (r *Registry) Charter() *trust.Charter { return r.charter }

// Changes grows with every change of what is believed.
func (r *Registry) Changes() uint64 { return r.changes }

// Newest is the latest moment that the CA has signed: the present cannot be
// earlier. Members' signatures do not count, or one of them could push
// everybody's clock forward.
func (r *Registry) Newest() time.Time { return r.newest }

// Add takes one object in. A nil error means that it is new and either believed
// or waiting; [ErrStale] that it adds nothing.
func (r *Registry) Add(raw []byte) error {
	kind, err := trust.KindOf(raw)
	if err != nil {
		return err
	}
	switch kind {
	case trust.KindCharter:
		return r.addCharter(raw)
	case trust.KindCertificate:
		return r.addCertificate(raw)
	case trust.KindAdmission:
		return r.addAdmission(raw)
	case trust.KindRecord:
		return r.addRecord(raw)
	default:
		return fmt.Errorf("%w: kind %d is not for gossip", trust.ErrMalformed, kind)
	}
}

func (r *Registry) addCharter(raw []byte) error {
	c, err := trust.ParseCharter(raw, r.id)
	if err != nil {
		return err
	}
	switch {
	case c.Version > r.charter.Version:
		r.forked = false
	case c.Version == r.charter.Version && c.Hash != r.charter.Hash && !r.forked:
		r.forked = true
		r.changes++
	}
	if !c.Newer(r.charter) {
		return ErrStale
	}
	r.setCharter(c)
	// Nobody who has this charter first would believe them.
	maps.DeleteFunc(r.records, func(_ mesh.NodeID, rec *trust.Record) bool { return rec.CheckOutside(c.Ranges()) != nil })
	return nil
}

// Forked tells whether the CA was seen to sign two charters of the newest version.
func (r *Registry) Forked() bool { return r.forked }

func (r *Registry) setCharter(c *trust.Charter) {
	r.charter = c
	r.signedAt(c.Created)
	r.changes++
}

func (r *Registry) signedAt(t time.Time) {
	if t.After(r.newest) {
		r.newest = t
	}
}

func (r *Registry) addCertificate(raw []byte) error {
	c, err := trust.ParseCertificate(raw, r.charter.CA)
	if err != nil {
		return err
	}
	if r.certs[c.Hash] != nil {
		return ErrStale
	}
	r.certs[c.Hash] = &certificate{Certificate: c, admitted: c.Credential == nil}
	r.changes++
	if c.Credential == nil {
		r.signedAt(c.NotBefore)
		r.settle()
		return nil
	}
	r.signedAt(c.Credential.NotBefore)
	r.unadmitted = append(r.unadmitted, c.Hash)
	r.settle()
	r.makeRoom()
	return nil
}

func (r *Registry) addAdmission(raw []byte) error {
	a, err := trust.ParseAdmission(raw)
	if err != nil {
		return err
	}
	if r.isWaiting(a.Hash) {
		return ErrStale
	}
	return r.decideAdmission(a)
}

// decideAdmission believes an admission, refuses it, or lets it wait.
func (r *Registry) decideAdmission(a *trust.Admission) error {
	seen, witness := r.certs[a.Certificate], r.certs[a.Admitter]
	if seen == nil || witness == nil || !witness.admitted {
		r.wait(waiting{
			hash: a.Hash, needs: []trust.Hash{a.Certificate, a.Admitter},
			retry: func() error { return r.decideAdmission(a) },
		})
		return nil
	}
	// The first ones stay: each came when its witness was admitted already, so
	// they lead back to the CA. Later ones must not be able to push them out.
	known := func(x *trust.Admission) bool { return x.Hash == a.Hash }
	if len(seen.admissions) >= maxAdmissions || slices.ContainsFunc(seen.admissions, known) {
		return ErrStale
	}
	if err := a.Verify(seen.Certificate, witness.Certificate); err != nil {
		return err
	}
	if !seen.admitted {
		if err := r.CheckRoom(seen.Certificate); err != nil {
			return fmt.Errorf("admission: %w", err)
		}
	}
	seen.admissions = append(seen.admissions, a)
	r.changes++
	if !seen.admitted {
		seen.admitted = true
		serial := seen.Credential.Serial
		if r.joined[serial] == nil {
			r.joined[serial] = map[mesh.NodeID]int{}
		}
		r.joined[serial][seen.ID()]++
		r.unadmitted = slices.DeleteFunc(r.unadmitted, func(h trust.Hash) bool { return h == seen.Hash })
		r.settle()
	}
	return nil
}

func (r *Registry) addRecord(raw []byte) error {
	rec, err := trust.ParseRecord(raw)
	if err != nil {
		return err
	}
	if r.isWaiting(rec.Hash) {
		return ErrStale
	}
	return r.decideRecord(rec)
}

// decideRecord believes a record, refuses it, or lets it wait.
func (r *Registry) decideRecord(rec *trust.Record) error {
	cert := r.certs[rec.Certificate]
	if cert == nil || !cert.admitted {
		r.wait(waiting{
			hash: rec.Hash, needs: []trust.Hash{rec.Certificate}, leases: rec.Leases,
			retry: func() error { return r.decideRecord(rec) },
		})
		return nil
	}
	id := cert.ID()
	if old := r.records[id]; old != nil && !newer(rec, old) {
		return ErrStale
	}
	if err := rec.Verify(cert.Certificate, r.charter.Ranges()); err != nil {
		return err
	}
	r.records[id] = rec
	r.changes++
	return nil
}

// newer orders records of one node. Two of one version come from a clone or a
// restored backup; the larger hash makes everybody pick the same.
func newer(a, b *trust.Record) bool {
	if d := a.Version.Compare(b.Version); d != 0 {
		return d > 0
	}
	return a.Hash.Compare(b.Hash) > 0
}

func (r *Registry) isWaiting(h trust.Hash) bool {
	return slices.ContainsFunc(r.waiting, func(w waiting) bool { return w.hash == h })
}

func (r *Registry) wait(w waiting) {
	r.waits++
	if len(r.waiting) >= maxWaiting {
		r.waiting = slices.Delete(r.waiting, 0, 1)
	}
	r.waiting = append(r.waiting, w)
}

// settle decides again what waited. Errors are dropped: the sender is long gone.
func (r *Registry) settle() {
	r.waits++
	old := r.waiting
	r.waiting = nil
	for _, w := range old {
		_ = w.retry()
	}
}

// Missing lists the certificates that waiting objects need and that are unknown.
func (r *Registry) Missing() []trust.Hash {
	if at := [2]uint64{r.changes, r.waits}; r.missingAt != at {
		r.missing, r.missingAt = r.findMissing(), at
	}
	return r.missing
}

func (r *Registry) findMissing() []trust.Hash {
	missing := map[trust.Hash]bool{}
	for _, w := range r.waiting {
		for _, h := range w.needs {
			if r.certs[h] == nil {
				missing[h] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(missing), trust.Hash.Compare)
}

// Unproven lists the leases in records that wait. Whoever has the gossip key can
// make such a record; some are of members whose admission is still on its way.
func (r *Registry) Unproven() []mesh.Lease {
	var out []mesh.Lease
	for _, w := range r.waiting {
		out = append(out, w.leases...)
	}
	return out
}

// Certificate finds a certificate, and tells whether it is admitted.
func (r *Registry) Certificate(h trust.Hash) (cert *trust.Certificate, admitted bool) {
	c := r.certs[h]
	if c == nil {
		return nil, false
	}
	return c.Certificate, c.admitted
}

// Unadmitted lists the certificates that wait for a witness, oldest first.
func (r *Registry) Unadmitted() []*trust.Certificate {
	out := make([]*trust.Certificate, 0, len(r.unadmitted))
	for _, h := range r.unadmitted {
		out = append(out, r.certs[h].Certificate)
	}
	return out
}

// Uses counts the identities that were admitted with a credential.
func (r *Registry) Uses(credential trust.Serial) int { return len(r.joined[credential]) }

// CheckRoom tells whether a certificate by a token may still be admitted. It is a
// stop against floods: an admitted node must not fill everybody's memory and
// tables with what it vouches for.
//
// The first ones stay, so what is refused depends on the order of arrival, the
// only such thing in this package. That is harmless because honest nodes stay far
// below both bounds, and then nothing is refused anywhere. Above them all come
// from a token in bad hands. Nodes may then differ about which of its
// certificates count, but never about one that was admitted before the flood:
// what was believed stays, since others may have been admitted by it.
func (r *Registry) CheckRoom(c *trust.Certificate) error {
	ids, id := r.joined[c.Credential.Serial], c.ID()
	switch uses := c.Credential.Uses; {
	case ids[id] >= maxPerIdentity:
		return fmt.Errorf("%w: its node has %d certificates of this token", trust.ErrForbidden, ids[id])
	case ids[id] == 0 && uses > 0 && len(ids) >= maxIdentities(uses):
		return fmt.Errorf("%w: %d nodes have joined with this token, which is good for %d", trust.ErrForbidden, len(ids), uses)
	}
	return nil
}

// Record finds the newest record of a node.
func (r *Registry) Record(id mesh.NodeID) (*trust.Record, bool) {
	rec, ok := r.records[id]
	return rec, ok
}

// Members lists, sorted by ID, the identities that hold an admitted certificate
// which valid accepts, each with the certificate that counts: the one its record
// names, else, so that it stays a member, the one that ends last.
func (r *Registry) Members(valid func(*trust.Certificate) bool) []Member {
	best := map[mesh.NodeID]*trust.Certificate{}
	for _, c := range r.certs {
		if !c.admitted || !valid(c.Certificate) {
			continue
		}
		id := c.ID()
		if old := best[id]; old == nil || r.prefers(id, c.Certificate, old) {
			best[id] = c.Certificate
		}
	}
	out := make([]Member, 0, len(best))
	for id, c := range best {
		out = append(out, Member{ID: id, Certificate: c, Record: r.records[id]})
	}
	slices.SortFunc(out, func(a, b Member) int { return a.ID.Compare(b.ID) })
	return out
}

func (r *Registry) prefers(id mesh.NodeID, a, b *trust.Certificate) bool {
	if rec := r.records[id]; rec != nil && (rec.Certificate == a.Hash) != (rec.Certificate == b.Hash) {
		return rec.Certificate == a.Hash
	}
	return cmp.Or(a.NotAfter.Compare(b.NotAfter), a.Hash.Compare(b.Hash)) > 0
}

// Member is one admitted identity.
type Member struct {
	ID          mesh.NodeID
	Certificate *trust.Certificate
	Record      *trust.Record // nil: none seen yet
}

// Leases lists what the record leases under the certificate. It is empty if the
// record names another one, whose time is over: a lease was verified against the
// certificate that its record names, and must not borrow the pin or the seniority
// of another.
func (m Member) Leases() []mesh.Lease {
	if m.Record == nil || m.Record.Certificate != m.Certificate.Hash {
		return nil
	}
	return m.Record.Leases
}
