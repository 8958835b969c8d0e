// Package registry holds the signed objects of one mesh that a node believes.
//
//	certificate by the CA ──────────────► admitted
//	certificate by a token ──► unadmitted ───┬───► admitted
//	                     Admission by an admitted member
//	Record ─────► waits for its certificate to be admitted ──► newest one counts
//	Tombstone ──► waits for its issuer, and for a record that it reaches; a member's
//	              counts with a second one, by another member
//	Rekey ──────► waits for its signer
//	Revocation ─► at once, for ever: whom it covers is nobody any more
//
// Objects may arrive in any order and any number of times, from anybody. One that
// cannot be decided yet waits in a bounded room; what is missing can be asked for
// with [Registry.Missing]. Who was offered the same objects, each once more after
// all of them, believes the same. There are three exceptions: floods, see
// [Registry.CheckRoom]; time, see [Registry.Expire]; and what a revoked witness
// has admitted, see [Registry.Unvouched].
//
// A Registry is not safe for concurrent use; its owner is one goroutine.
package registry

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
)

// maxWaiting bounds what cannot be decided yet. Nobody vouches for it, so the
// oldest makes room: an honest object is sent again.
const maxWaiting = 1024

// Errors that callers decide by.
var (
	// ErrStale says that an object is older than, or the same as, what is known, or
	// that nothing rests on it. It is no fault of the sender.
	ErrStale = errors.New("already known")
	// ErrRevoked says that an object is of a node, or by a token, that the CA has
	// revoked. It is no fault of a sender who has not heard of that.
	ErrRevoked = fmt.Errorf("%w: revoked", trust.ErrForbidden)
)

// Registry is the set of believed objects.
type Registry struct {
	id          mesh.ID
	parsed      *Parsed // nil: nobody shares
	charter     *trust.Charter
	forked      bool // another one of its version was seen
	revocations revocations
	certs       map[trust.Hash]*certificate
	unadmitted  []trust.Hash // in order of arrival
	joined      map[trust.Serial]*joins
	records     map[mesh.NodeID]*trust.Record
	tombs       map[mesh.NodeID][]*trust.Tombstone // newest first
	rekeys      map[mesh.NodeID][]*trust.Rekey     // by signer, newest first
	waiting     []*waiting                         // in order of arrival
	isWaiting   map[trust.Hash]bool
	changes     uint64
	waits       uint64       // grows with every change of what waits, but for those that changes tells of
	missing     []trust.Hash // as Missing has found it
	missingAt   [2]uint64    // at these changes and waits
	rooted      bool         // it was found out who is
	newest      time.Time    // latest moment that the CA has signed
	now         time.Time    // as Expire was told
	pruneAt     time.Time    // when Expire looks again
}

// waiting is an object that cannot be decided yet.
type waiting struct {
	hash   trust.Hash
	needs  []trust.Hash // certificates that are unknown or unadmitted
	node   mesh.NodeID  // of which it needs a newer record, if it needs no certificate
	retry  func() error
	leases []mesh.Lease // of a record
}

// New makes a registry of the mesh that the charter founds.
func New(charter *trust.Charter) *Registry {
	r := &Registry{
		id:        charter.ID(),
		certs:     map[trust.Hash]*certificate{},
		joined:    map[trust.Serial]*joins{},
		records:   map[mesh.NodeID]*trust.Record{},
		tombs:     map[mesh.NodeID][]*trust.Tombstone{},
		isWaiting: map[trust.Hash]bool{},
		rekeys:    map[mesh.NodeID][]*trust.Rekey{},
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
	h := trust.Hash(sha256.Sum256(raw))
	if r.certs[h] != nil || r.revocations.all[h] != nil || r.isWaiting[h] {
		return ErrStale
	}
	switch kind {
	case trust.KindCharter:
		return r.addCharter(raw)
	case trust.KindCertificate:
		return r.addCertificate(h, raw)
	case trust.KindAdmission:
		return decide(r, h, raw, trust.ParseAdmission, r.decideAdmission)
	case trust.KindRecord:
		return decide(r, h, raw, trust.ParseRecord, r.decideRecord)
	case trust.KindRevocation:
		return r.addRevocation(raw)
	case trust.KindTombstone:
		return decide(r, h, raw, trust.ParseTombstone, r.decideTombstone)
	case trust.KindRekey:
		return decide(r, h, raw, trust.ParseRekey, r.decideRekey)
	default:
		return fmt.Errorf("%w: kind %d is not for gossip", trust.ErrMalformed, kind)
	}
}

// decide decides on what a member has signed.
func decide[T any](r *Registry, h trust.Hash, raw []byte, parse func([]byte) (*T, error), decide func(*T) error) error {
	o, err := once(r.parsed, h, func() (*T, error) { return parse(raw) })
	if err != nil {
		return err
	}
	return decide(o)
}

// AddOwn takes in the record that this node has just signed.
func (r *Registry) AddOwn(rec *trust.Record) error {
	rec, err := once(r.parsed, rec.Hash, func() (*trust.Record, error) { return rec, nil })
	if err != nil {
		return err
	}
	return r.decideRecord(rec)
}

// Restore takes in a table that this node has saved, whatever its order. Here what
// was believed stays so: revocations come last, as they did.
func (r *Registry) Restore(table [][]byte) {
	var last [][]byte
	for _, raw := range table {
		if kind, err := trust.KindOf(raw); err == nil && kind == trust.KindRevocation {
			last = append(last, raw)
			continue
		}
		_ = r.Add(raw) // what a newer or older version wrote is fetched again
	}
	for _, raw := range last {
		_ = r.Add(raw)
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
	for id, rec := range r.records {
		if rec.CheckOutside(c.Ranges()) != nil {
			r.dropRecord(id)
		}
	}
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

// decideRecord believes a record, refuses it, or lets it wait.
func (r *Registry) decideRecord(rec *trust.Record) error {
	cert, err := r.signer("record", rec.Certificate, waiting{
		hash: rec.Hash, leases: rec.Leases, retry: func() error { return r.decideRecord(rec) },
	})
	if cert == nil {
		return err
	}
	if old := r.records[cert.id]; old != nil {
		if !newer(rec, old) {
			return ErrStale
		}
		rec.Follows(old)
	}
	if err := rec.Verify(cert.Certificate, r.charter.Ranges()); err != nil {
		return err
	}
	r.records[cert.id] = rec
	r.changes++
	if reached := func(w *waiting) bool { return w.node == cert.id }; slices.ContainsFunc(r.waiting, reached) {
		r.settle(reached)
	}
	return nil
}

// dropRecord makes room for an older record of a node, which may count again, and for
// the tombstones that reach it.
func (r *Registry) dropRecord(id mesh.NodeID) {
	delete(r.records, id)
	r.setTombs(id, slices.DeleteFunc(slices.Clone(r.tombs[id]), func(t *trust.Tombstone) bool { return !t.ByCA() }))
}

// newer orders records of one node. Two of one version come from a clone or a
// restored backup; the larger hash makes everybody pick the same.
func newer(a, b *trust.Record) bool {
	if d := a.Version.Compare(b.Version); d != 0 {
		return d > 0
	}
	return a.Hash.Compare(b.Hash) > 0
}

// signer finds the certificate that something was signed with. It gives none and no
// error while that is unknown or unadmitted: w waits for it then.
func (r *Registry) signer(what string, h trust.Hash, w waiting) (*certificate, error) {
	cert := r.certs[h]
	switch {
	case cert != nil && cert.revoked != nil:
		return nil, fmt.Errorf("%s by %s: %w", what, cert.Name, ErrRevoked)
	case cert == nil || !cert.admitted:
		w.needs = []trust.Hash{h}
		r.wait(w)
		return nil, nil
	}
	return cert, nil
}

func (r *Registry) wait(w waiting) {
	r.waits++
	if len(r.waiting) >= maxWaiting {
		delete(r.isWaiting, r.waiting[0].hash)
		r.waiting[0] = nil
		r.waiting = r.waiting[1:]
	}
	r.waiting = append(r.waiting, &w)
	r.isWaiting[w.hash] = true
}

// settle decides again what waited for something that has come. Errors are dropped:
// the sender is long gone.
func (r *Registry) settle(came func(*waiting) bool) {
	r.waits++
	var ready []*waiting
	r.waiting = slices.DeleteFunc(r.waiting, func(w *waiting) bool {
		if !came(w) {
			return false
		}
		delete(r.isWaiting, w.hash)
		ready = append(ready, w)
		return true
	})
	for _, w := range ready {
		_ = w.retry()
	}
}

// settleFor is settle of what waited for a certificate, to be known or admitted.
func (r *Registry) settleFor(h trust.Hash) {
	r.settle(func(w *waiting) bool { return slices.Contains(w.needs, h) })
}

// waitNoMore forgets what waits for certificates that are not to come.
func (r *Registry) waitNoMore(gone func(trust.Hash) bool) {
	r.waits++
	r.waiting = slices.DeleteFunc(r.waiting, func(w *waiting) bool {
		never := slices.ContainsFunc(w.needs, gone)
		if never {
			delete(r.isWaiting, w.hash)
		}
		return never
	})
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

// Record finds the newest record of a node. It stays until a newer one comes, the
// node's last certificate has ended, or the CA says that this one counts no more: by
// revoking the certificate that it names, or with a network around its endpoints.
func (r *Registry) Record(id mesh.NodeID) (*trust.Record, bool) {
	rec, ok := r.records[id]
	return rec, ok
}

// Members lists, sorted by ID, the identities that hold an admitted certificate
// which valid accepts and nobody revoked, each with the certificate that counts:
// the one its record names, else, so that it stays a member, the one that ends last.
func (r *Registry) Members(valid func(*trust.Certificate) bool) []Member {
	best := make(map[mesh.NodeID]*certificate, len(r.records))
	for _, c := range r.certs {
		if !c.counts() || !valid(c.Certificate) {
			continue
		}
		if old := best[c.id]; old == nil || r.prefers(c, old) {
			best[c.id] = c
		}
	}
	out := make([]Member, 0, len(best))
	for id, c := range best {
		out = append(out, Member{ID: id, Certificate: c.Certificate, Record: r.records[id], tombs: r.counting(id)})
	}
	slices.SortFunc(out, func(a, b Member) int { return a.ID.Compare(b.ID) })
	return out
}

// prefers tells whether a, and not b, is the one of a node's certificates to go by.
func (r *Registry) prefers(a, b *certificate) bool {
	if rec := r.records[a.id]; rec != nil && (rec.Certificate == a.Hash) != (rec.Certificate == b.Hash) {
		return rec.Certificate == a.Hash
	}
	return endsLater(a.Certificate, b.Certificate) > 0
}

// Member is one admitted identity.
type Member struct {
	ID          mesh.NodeID
	Certificate *trust.Certificate
	Record      *trust.Record // nil: none seen yet
	tombs       []*trust.Tombstone
}

// Leases lists what the record leases under the certificate, whether void or not.
// It is empty if the record names another certificate, whose time is over: a lease
// was verified against the certificate that its record names, and must not borrow
// the pin or the seniority of another.
func (m Member) Leases() []mesh.Lease {
	if m.Record == nil || m.Record.Certificate != m.Certificate.Hash {
		return nil
	}
	return m.Record.Leases
}

// Void finds the newest tombstone that voids a lease of the record, if any does: it
// is free then to be claimed by others.
func (m Member) Void(l mesh.Lease) (*trust.Tombstone, bool) {
	for _, t := range m.tombs {
		if m.Record != nil && t.Voids(m.Record.Version, l) {
			return t, true
		}
	}
	return nil, false
}

// Expired tells whether a tombstone voids any lease of the record, and why.
func (m Member) Expired() mesh.Expiry {
	expired := mesh.NotExpired
	for _, l := range m.Leases() {
		if t, void := m.Void(l); void && l.State != mesh.Released {
			expired = mesh.NotHeard
			if t.Reason == trust.Forgotten {
				expired = mesh.Forgotten
			}
		}
	}
	return expired
}
