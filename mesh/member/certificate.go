package member

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
)

const (
	// warnBefore is how long before its end a certificate is reported: time enough for
	// whoever has the CA key to come back from a holiday.
	warnBefore = 14 * 24 * time.Hour
	// clockSkew is how far two hosts' clocks may be apart before it is worth a word,
	// and how much a clock may be set without one.
	clockSkew = 10 * time.Minute
	// jumpFor is how long a clock that was set is doubted. Who set it wrongly sets it
	// right within a day, or lives with what it says.
	jumpFor = 24 * time.Hour
)

// jump is by how much the wall clock was set, of late.
type jump struct {
	by time.Duration
	at time.Time
}

// Jumped says that the wall clock was set by so much, forward if it is positive.
func (m *Member) Jumped(now time.Time, d time.Duration) {
	m.jump = jump{m.jump.by + d, now}
	m.todo.dirty = true
}

// doubts tells whether the wall clock was set by so much, so lately, that nobody
// is dropped on its word.
func (m *Member) doubts(now time.Time) bool {
	since := now.Sub(m.jump.at)
	return m.jump.by.Abs() > clockSkew && since.Abs() < jumpFor
}

// clock is the time by which certificates are judged: never earlier than what
// the CA has signed, so a host whose clock starts in 1970 is not locked out.
func (m *Member) clock(now time.Time) time.Time {
	if newest := m.reg.Newest(); newest.After(now) {
		return newest
	}
	return now
}

// valid gives the judge of certificates at this moment. A clock that was set is not
// believed: who counted before counts on.
func (m *Member) valid(now time.Time) func(*trust.Certificate) bool {
	is := m.validBy(now)
	if m.doubts(now) {
		was := m.validBy(now.Add(-m.jump.by))
		return func(c *trust.Certificate) bool { return is(c) || was(c) }
	}
	return is
}

// validBy is that by what the wall clock shows. While our own certificate is out of its
// time as well, it is rather the clock that is wrong: then nobody is dropped. And if it
// shows an earlier time than the CA has signed, it is later than that, nobody knows by
// how much: who has joined since counts.
func (m *Member) validBy(wall time.Time) func(*trust.Certificate) bool {
	clock := m.clock(wall)
	switch {
	case !m.cert.ValidAt(clock):
		return anyTime
	case clock.After(wall):
		return func(c *trust.Certificate) bool { return clock.Before(c.NotAfter) }
	}
	return func(c *trust.Certificate) bool { return c.ValidAt(clock) }
}

// ownCertificate tells whether the own certificate makes this node a member, and
// whether the registry knows it at all.
func (m *Member) ownCertificate() (admitted, known bool) {
	c, admitted := m.reg.Certificate(m.cert.Hash)
	return admitted, c != nil
}

// followCertificate takes up the own certificate that the CA has renewed. raw is
// not nil if it is to be saved.
func (m *Member) followCertificate() (raw []byte) {
	for _, c := range m.reg.Certificates(m.id) {
		if c.Credential != nil || c.Hash == m.cert.Hash || !c.NotAfter.After(m.cert.NotAfter) {
			continue
		}
		m.cert, m.cfg.Certificate = c, c.Raw
		for _, h := range m.nets.holdings {
			h.alloc.SetRights(c.Rights.Pins, c.Rights.Ranges, c.Admitted, c.Rights.Permit)
		}
		return c.Raw
	}
	return nil
}

// revoked tells whether this node was thrown out.
func (m *Member) revoked() bool {
	_, yes := m.reg.Revoked(m.cert)
	return yes
}

// certificateFindings reports what ends soon, and what a wrong clock hides.
func (m *Member) certificateFindings(now time.Time, view *mesh.View, find func(level, code, format string, args ...any)) {
	date := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	clock, others, lasting := m.clock(now), 0, 0
	var ending []string
	for _, n := range view.Nodes {
		if n.ID == m.id || n.Left {
			continue
		}
		others++
		if n.Ends.After(clock) {
			lasting++
		}
		if n.Ends.Sub(clock) < warnBefore {
			ending = append(ending, fmt.Sprintf("%s (%s)", n.Name, n.Ends.UTC().Format(time.DateOnly)))
		}
	}
	switch {
	case clock.Before(m.cert.NotBefore), !m.cert.ValidAt(clock) && (m.doubts(now) || others > 0 && lasting == 0):
		find("error", "clock", "this node's certificate is valid from %s to %s, and by the clock it is not that time: set the clock", date(m.cert.NotBefore), date(m.cert.NotAfter))
	case !m.cert.ValidAt(clock):
		find("error", "certificate_ends", "this node's certificate has ended at %s, and others drop it by now: renew it with `meshctl cert renew`, or set the clock if it is wrong", date(m.cert.NotAfter))
	case m.doubts(now):
		find("warning", "clock", "this host's clock was set by %s: members whose certificates have ended by it are kept for a day, in case it is wrong", m.jump.by.Round(time.Second))
	case clock.Sub(now) > clockSkew:
		find("warning", "clock", "this host's clock is behind: the mesh has signed something as late as %s: set the clock", date(clock))
	case m.cert.NotAfter.Sub(clock) < warnBefore:
		find("warning", "certificate_ends", "this node's certificate ends at %s: renew it with `meshctl cert renew`", date(m.cert.NotAfter))
	}
	if len(ending) == 0 {
		return
	}
	slices.Sort(ending)
	more := ""
	if rest := len(ending) - maxNamed; rest > 0 {
		ending, more = ending[:maxNamed], fmt.Sprintf(" and of %d more", rest)
	}
	find("info", "certificate_ends", "certificates end soon: of %s%s: renew them with `meshctl cert renew`", strings.Join(ending, ", "), more)
}

// maxNamed bounds how many nodes one finding names.
const maxNamed = 8
