package gossip

import (
	"maps"
	"time"

	"meshd/mesh"
	"meshd/mesh/exchange"
	"meshd/mesh/trust"
)

const (
	// A node says something new when it starts, leases or moves, a few times in a
	// row at most. Beyond that others hear of its newest record about once a second.
	recordsBurst = 16
	recordsEvery = time.Second
	// All else: one member may admit hundreds of nodes that start together.
	othersBurst = 512
	othersEvery = time.Second / 16
	// maxAuthors bounds what is remembered: above the size of any mesh.
	maxAuthors = 4096
)

// updates bounds how much of what one member signs is relayed, so that one which
// signs a hundred records a second does not make all others relay a hundred. What is
// left out is in the set, which the exchanges compare.
type updates struct {
	authors map[author]*exchange.Allowance
	muted   map[author]time.Time // until when
}

// author is who signs, by its certificate, and whether it signs records.
type author struct {
	certificate trust.Hash
	records     bool
}

// authorOf tells who has signed an object by its own word; nobody, if it is an
// object of the CA or a certificate.
func authorOf(object []byte) (author, bool) {
	kind, err := trust.KindOf(object)
	if err != nil {
		return author{}, false
	}
	var by trust.Hash
	switch kind {
	case trust.KindRecord:
		if r, err := trust.ParseRecord(object); err == nil {
			return author{r.Certificate, true}, true
		}
	case trust.KindAdmission:
		if a, err := trust.ParseAdmission(object); err == nil {
			by = a.Admitter
		}
	case trust.KindTombstone:
		if t, err := trust.ParseTombstone(object); err == nil {
			by = t.Issuer
		}
	case trust.KindRekey:
		if r, err := trust.ParseRekey(object); err == nil {
			by = r.Signer
		}
	default:
	}
	return author{by, false}, by != trust.Hash{}
}

// note counts an object that was believed, and tells whether it may be relayed. If
// not, nothing of its author is taken from gossip for a while.
func (u *updates) note(object []byte, now time.Time) bool {
	by, ok := authorOf(object)
	if !ok {
		return true
	}
	a := u.authors[by]
	if a == nil {
		if u.authors == nil || len(u.authors) >= maxAuthors {
			u.authors = map[author]*exchange.Allowance{}
		}
		a = &exchange.Allowance{Most: othersBurst, Every: othersEvery}
		if by.records {
			a = &exchange.Allowance{Most: recordsBurst, Every: recordsEvery}
		}
		u.authors[by] = a
	}
	if a.Take(now) {
		return true
	}
	if u.muted == nil {
		u.muted = map[author]time.Time{}
	}
	u.muted[by] = now.Add(a.Every)
	return false
}

// tooManyRecords is tooMany for what exchanges bring: all else but records they must
// bring at once, since it is what gossip has left out.
func (u *updates) tooManyRecords(object []byte, now time.Time) bool {
	kind, err := trust.KindOf(object)
	return err == nil && kind == trust.KindRecord && u.tooMany(object, now)
}

// tooMany tells whether an object's author has said too much of late. Only what was
// verified counts against it, so nobody can silence another.
func (u *updates) tooMany(object []byte, now time.Time) bool {
	if len(u.muted) == 0 {
		return false
	}
	maps.DeleteFunc(u.muted, func(_ author, until time.Time) bool { return !now.Before(until) })
	by, ok := authorOf(object)
	_, muted := u.muted[by]
	return ok && muted
}

// subject is of what an honest node has one object: a member's record, and what one
// issuer says of an epoch of another's.
type subject struct {
	signer trust.Hash
	of     mesh.NodeID
	epoch  uint64
}

// newest leaves out of what one node has sent at once all but the newest object of each
// subject: who signs thousands of records would have each of them verified.
func newest(objects [][]byte) [][]byte {
	type best struct {
		at      int
		version mesh.Version
	}
	found, left := map[subject]best{}, map[int]bool{}
	for i, o := range objects {
		about, version, ok := subjectOf(o)
		if !ok {
			continue
		}
		b, twice := found[about]
		switch {
		case twice && b.version.Compare(version) >= 0:
			left[i] = true
			continue
		case twice:
			left[b.at] = true
		}
		found[about] = best{i, version}
	}
	if len(left) == 0 {
		return objects
	}
	out := make([][]byte, 0, len(objects)-len(left))
	for i, o := range objects {
		if !left[i] {
			out = append(out, o)
		}
	}
	return out
}

func subjectOf(object []byte) (subject, mesh.Version, bool) {
	switch kind, _ := trust.KindOf(object); kind {
	case trust.KindRecord:
		if r, err := trust.ParseRecord(object); err == nil {
			return subject{signer: r.Certificate}, r.Version, true
		}
	case trust.KindTombstone:
		if t, err := trust.ParseTombstone(object); err == nil {
			return subject{t.Issuer, t.Node, t.Version.Epoch}, t.Version, true
		}
	default:
	}
	return subject{}, mesh.Version{}, false
}
