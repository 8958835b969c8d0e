package member

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
)

const (
	// admitTurn is how long a witness waits for each one before it in the order
	// that the members take for a certificate: a broadcast is heard by then, so
	// about one admission is made, not one per member.
	admitTurn = 500 * time.Millisecond
	// admitTurns bounds the waiting in line where many members are away; all
	// the others draw lots over as much time again.
	admitTurns = 4
	// reportRefusals is how long a refused certificate is in the health report.
	// Tables carry it on, so a bad guest could else leave all nodes degraded for ever.
	reportRefusals = 10 * time.Minute
	// maxReasons bounds what guests can put into the health report.
	maxReasons = 4
)

// guests are the certificates that ask to be admitted.
type guests struct {
	turns   map[trust.Hash]time.Time // when it is our turn to witness
	refused map[trust.Hash]refusal

	newcomer   bool      // this daemon started without being admitted
	askAt      time.Time // when it asks who has admitted it; zero: it has heard no table yet
	admittedAt time.Time // when it was, nevertheless
}

// refusal is a certificate's that we will not admit.
type refusal struct {
	reason string
	since  time.Time
}

// witness admits certificates that a token has signed, once it is our turn.
func (m *Member) witness(now time.Time) {
	admitted, _ := m.ownCertificate()
	if admitted && m.guests.newcomer && m.guests.admittedAt.IsZero() {
		m.guests.admittedAt = now
	}
	waiting, g := map[trust.Hash]bool{}, &m.guests
	for _, c := range m.reg.Unadmitted() {
		waiting[c.Hash] = true
		if !admitted || m.state.Left || c.ID() == m.id {
			continue
		}
		if reason := m.refusal(c, now); reason != "" {
			g.refuse(c, reason, now)
			continue
		}
		delete(g.refused, c.Hash)
		m.vouchInTurn(c, m.clock(now), now)
	}
	m.vouchAnew(waiting, now)
	maps.DeleteFunc(g.turns, func(h trust.Hash, _ time.Time) bool { return !waiting[h] })
	maps.DeleteFunc(g.refused, func(h trust.Hash, _ refusal) bool { return !waiting[h] })
}

// refuse remembers why a certificate is not admitted, and since when.
func (g *guests) refuse(c *trust.Certificate, reason string, now time.Time) {
	reason = fmt.Sprintf("node %s (%s) asks to join and is not admitted: %s", c.Name, c.ID().Short(), reason)
	if g.refused[c.Hash].reason != reason {
		g.refused[c.Hash] = refusal{reason, now}
	}
	delete(g.turns, c.Hash)
}

// reasons lists who was not admitted lately, and why.
func (g guests) reasons(now time.Time) []string {
	var out []string
	for _, r := range g.refused {
		if now.Sub(r.since) < reportRefusals {
			out = append(out, r.reason)
		}
	}
	slices.Sort(out)
	return out[:min(len(out), maxReasons)]
}

// refusal says why we do not vouch for a certificate; empty: we do.
func (m *Member) refusal(c *trust.Certificate, now time.Time) string {
	clock := m.clock(now)
	switch cred := c.Credential; {
	case clock.After(cred.NotAfter):
		return "its token has expired; it needs a new one"
	case cred.Uses > 0 && m.reg.Uses(cred.Serial) >= int(min(cred.Uses, 1<<31)):
		return fmt.Sprintf("its token was good for %d, and so many have joined; make one with --uses", cred.Uses)
	}
	if !m.cert.ValidAt(clock) {
		return "our own certificate is out of its time"
	}
	if err := m.reg.CheckRoom(c); err != nil {
		return err.Error()
	}
	return ""
}

// lot draws how long to wait before vouching for an object, or burying its node.
// Everybody orders the members by the distance of their IDs to the object's hash, so
// each knows its turn. The node that it is of has none. Who was admitted a moment ago goes last: of a
// crowd that starts together each would else vouch for all others.
func (m *Member) lot(object trust.Hash, of mesh.NodeID, now time.Time) time.Duration {
	ticket := func(id mesh.NodeID) uint32 {
		return binary.BigEndian.Uint32(id[:4]) ^ binary.BigEndian.Uint32(object[:4])
	}
	own, turn := ticket(m.id), 0
	for _, n := range m.members(now) {
		if n.ID != of && ticket(n.ID) < own && (n.Record == nil || !n.Record.Left) {
			turn++
		}
	}
	fresh := !m.guests.admittedAt.IsZero() && now.Sub(m.guests.admittedAt) < admitTurns*admitTurn
	if turn < admitTurns && !fresh {
		return time.Duration(turn) * admitTurn
	}
	return admitTurns*admitTurn + time.Duration(uint64(own)*uint64(admitTurns*admitTurn)>>32)
}

// vouchAnew vouches for certificates that only witnesses who have been revoked
// since have admitted, so that those who join later believe them too. Seen is what
// was believed of it, and not before our own certificate began.
func (m *Member) vouchAnew(waiting map[trust.Hash]bool, now time.Time) {
	if !m.vouches(now) || !m.reg.Rooted(m.cert.Hash) {
		return
	}
	for _, u := range m.reg.Unvouched() {
		c, seen := u.Certificate, u.Seen
		if seen.Before(m.cert.NotBefore) {
			seen = m.cert.NotBefore
		}
		if c.ID() == m.id || seen.After(c.Credential.NotAfter) || !m.cert.ValidAt(seen) {
			continue
		}
		waiting[c.Hash] = true
		m.vouchInTurn(c, seen, now)
	}
}

// vouchInTurn admits a certificate, as seen at some time, once it is our turn.
func (m *Member) vouchInTurn(c *trust.Certificate, seen, now time.Time) {
	turns := m.guests.turns
	if _, drawn := turns[c.Hash]; !drawn {
		turns[c.Hash] = now.Add(m.lot(c.Hash, c.ID(), now))
	}
	if !now.Before(turns[c.Hash]) {
		m.admit(c, seen)
		delete(turns, c.Hash)
	}
}

func (m *Member) admit(c *trust.Certificate, seen time.Time) {
	a := trust.Admission{Certificate: c.Hash, Admitter: m.cert.Hash, Seen: seen}
	raw := a.Sign(m.cfg.Identity)
	if m.Receive(raw) == nil {
		m.todo.outBound = append(m.todo.outBound, raw)
	}
}
