package member

import (
	"net/netip"
	"slices"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
)

const (
	// outbidEvery limits how often a node answers to foreign records of its identity.
	outbidEvery = 3 * time.Second
	// answerWithin is how long after our word a twin that lives is heard: it may have
	// answered to another a moment before, and records take a second or two to come round.
	answerWithin = outbidEvery + 2*time.Second
	// askAfter is how long after our word others are asked what a twin has answered, in
	// time to hear of it before it is taken for gone.
	askAfter = outbidEvery + time.Second
	// mostLate is how late a word of a twin that lives is heard at most. By as much it looks
	// younger than it is; one that looks younger by more is dead, and grows no older.
	mostLate = 2 * answerWithin
	// undecided is how often two outbid each other again before the nonces alone
	// decide: what each one hears of the other's age is some seconds old, so of two
	// that started together both may take themselves for the older one.
	undecided = 3
	// objectionAfter is how long after the first word of a run others are asked what they
	// have heard, if there was a run before: a copy that says that it is where
	// the other one is hears no gossip, which goes there.
	objectionAfter = 2 * time.Second
	// nobodyFor is how long a host with addresses waits to reach one of those whom it
	// expects, before it goes on as if nobody were to object: gossip may be blocked
	// where tunnels are not.
	nobodyFor = 30 * time.Second
)

// twin is somebody else who speaks with this node's identity: a daemon on a copy
// of its state, or its own past before a backup was restored. The record is the
// challenge: it is outbid once, and only a daemon that lives answers to that.
//
// Peers believe whoever shook hands with them last, and send where the newest record
// says. So of two daemons the one that is younger, or runs where its last run did not,
// has no tunnels and says no endpoints until it is known that it is alone; and the
// other one makes its tunnels anew.
type twin struct {
	// whom we outbid last; there may be several
	nonce    uint64
	epoch    uint64 // in which we did
	times    int    // how often we did again
	outbidAt time.Time

	// whom we heard last
	speaker uint64 // its nonce
	version mesh.Version
	heard   time.Time
	near    bool // it is not known to be gone
	elder   bool // it has run for longer, by any of its words, and grows older

	contests uint64    // how often it was found to speak, or to be gone
	askAt    time.Time // when others are asked what it says; zero: they were, or nobody is to be asked
}

// doubt is whether this daemon may run on a copy of another one's state, as one does that
// runs where its last run did not.
type doubt struct {
	was    []netip.Addr // at which the last run was reached; empty: not known
	before bool         // there was a run before
	spoke  time.Time    // when this run did first; zero: it has not
	placed time.Time    // since when it has endpoints; zero: it has none
	met    time.Time    // when it first had exchanged with somebody; zero: it has not
	sure   bool         // that it is no copy: it was where the last run was, or nobody has answered
}

// meetTwin answers to a record of our own identity that we did not sign and that
// is not older than ours. It reports that a twin lives which has run for longer.
//
//	we have said nothing yet      it is our past: go on above it
//	the first time that it speaks it may be: outbid it, once
//	it speaks above that          it has read ours, so it lives: the one that has run
//	                              for less long ends, the other outbids again
func (m *Member) meetTwin(now time.Time) (clone bool) {
	rec, ok := m.reg.Record(m.id)
	if !ok || rec.Nonce == m.cfg.Nonce || rec.Version.Compare(m.version()) < 0 || rec.Version.Epoch >= trust.MaxEpoch {
		return false
	}
	if m.own.published == nil {
		m.raise(rec.Version.Epoch + 1)
		return false
	}
	t := &m.twin
	t.elder = m.youngerThan(rec, now) || t.elder && t.speaker == rec.Nonce && m.uptime(now)-rec.Uptime < mostLate
	t.speaker, t.heard, t.near = rec.Nonce, now, true
	if t.version != rec.Version && !t.elder {
		t.contests++
	}
	t.version = rec.Version
	if !t.outbidAt.IsZero() && now.Sub(t.outbidAt) < outbidEvery {
		m.wakeAt(t.outbidAt.Add(outbidEvery))
		return false
	}
	times := 0
	if t.nonce == rec.Nonce && rec.Version.Epoch > t.epoch {
		if t.elder || t.times >= undecided && m.cfg.Nonce > rec.Nonce {
			return true
		}
		times = t.times + 1
	}
	m.raise(rec.Version.Epoch + 1)
	t.nonce, t.epoch, t.times, t.outbidAt, t.askAt = rec.Nonce, m.state.Epoch, times, now, now.Add(askAfter)
	return false
}

// asksForTwin tells whether to ask others what they have heard of a twin.
func (m *Member) asksForTwin(now time.Time) bool {
	at := m.twin.askAt
	if at.IsZero() || now.Before(at) {
		if !at.IsZero() {
			m.wakeAt(at)
		}
		return false
	}
	m.twin.askAt = time.Time{}
	return true
}

// youngerThan tells whether this daemon has run for less long than the one that
// signed a record. Of two that started in the same second the one that drew the
// smaller nonce stays.
func (m *Member) youngerThan(rec *trust.Record, now time.Time) bool {
	if up := m.uptime(now); up != rec.Uptime {
		return up < rec.Uptime
	}
	return m.cfg.Nonce > rec.Nonce
}

// uptime is how long this daemon has run, in seconds as records tell it.
func (m *Member) uptime(now time.Time) time.Duration {
	return max(0, now.Sub(m.started)+m.away.slept).Truncate(time.Second)
}

// doubtItself notes when nobody has answered for as long as a twin would take.
func (m *Member) doubtItself(now time.Time) {
	t := &m.twin
	switch {
	case len(m.own.endpoints) == 0:
		m.doubt.placed = time.Time{}
	case m.doubt.placed.IsZero():
		m.doubt.placed = now
	}
	if m.contact.exchanged && m.doubt.met.IsZero() {
		m.doubt.met = now
	}
	passed := func(at time.Time) bool {
		if now.Before(at) {
			m.wakeAt(at)
			return false
		}
		return true
	}
	if t.near && passed(t.heard.Add(answerWithin)) {
		t.contests++
		t.near = false
	}
	if !m.doubt.sure && !m.doubt.placed.IsZero() {
		m.doubt.sure = !m.isElsewhere() || !m.doubt.spoke.IsZero() && passed(m.objectedBy())
	}
}

// objectedBy is when a twin would have been heard that could hear this run: not by what
// was said before there was a network, nor before anybody was reached who is there.
func (m *Member) objectedBy() time.Time {
	t := &m.twin
	if m.doubt.met.IsZero() && m.expectsOthers() {
		return latest(m.doubt.placed.Add(nobodyFor), t.heard.Add(answerWithin))
	}
	return latest(latest(m.doubt.spoke, t.heard), latest(m.doubt.placed, m.doubt.met)).Add(answerWithin)
}

// withheld tells whether this daemon may be the copy of one that runs. A restart on the
// same host is none: it costs no traffic. That it knows of nobody else says nothing: the
// table of others is a cache.
func (m *Member) withheld() bool {
	return m.twin.near && m.twin.elder || !m.doubt.sure && m.isElsewhere()
}

// waits tells whether this daemon has to say that it is withheld: without a network it
// misses nothing by that, and is as ready as one can be there.
func (m *Member) waits() bool { return m.withheld() && len(m.own.endpoints) > 0 }

// isElsewhere tells whether this host has none of the addresses of the last run, or none
// yet: a tunnel that waits for the network would be quicker than who reads what came.
func (m *Member) isElsewhere() bool {
	same := func(e netip.AddrPort) bool { return slices.Contains(m.doubt.was, e.Addr()) }
	return len(m.doubt.was) > 0 && !slices.ContainsFunc(m.own.endpoints, same)
}

// told are the endpoints that others are told.
func (m *Member) told() []netip.AddrPort {
	if m.withheld() {
		return nil
	}
	return m.own.endpoints
}

// noteSpoken remembers when this run spoke first, and where the next one is to expect
// itself.
func (m *Member) noteSpoken(now time.Time) {
	if m.doubt.spoke.IsZero() {
		m.doubt.spoke = now
		m.wakeAt(now.Add(answerWithin))
		if m.doubt.before {
			m.twin.askAt = now.Add(objectionAfter)
		}
	}
	if m.withheld() || len(m.own.endpoints) == 0 {
		return
	}
	m.state.Addresses = nil
	for _, e := range m.own.endpoints {
		m.state.Addresses = append(m.state.Addresses, e.Addr())
	}
}
