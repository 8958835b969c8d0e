package member

import (
	"time"

	"meshd/mesh/trust"
)

// outbidEvery limits how often a node answers to foreign records of its identity.
const outbidEvery = 3 * time.Second

// twin is somebody else who speaks with this node's identity: a daemon on a copy
// of its state, or its own past before a backup was restored. The record is the
// challenge: it is outbid once, and only a daemon that lives answers to that.
type twin struct {
	nonce uint64
	epoch uint64 // in which we outbid it
	times int    // how often we outbid it again
}

// undecided is how often two outbid each other again before the nonces alone
// decide: what each one hears of the other's age is some seconds old, so of two
// that started together both may take themselves for the older one.
const undecided = 3

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
	if m.published == nil {
		m.raise(rec.Version.Epoch + 1)
		return false
	}
	m.twinAt = now
	if !m.outbidAt.IsZero() && now.Sub(m.outbidAt) < outbidEvery {
		m.wakeAt(m.outbidAt.Add(outbidEvery))
		return false
	}
	times := 0
	if m.twin.nonce == rec.Nonce && rec.Version.Epoch > m.twin.epoch {
		if m.youngerThan(rec, now) || m.twin.times >= undecided && m.cfg.Nonce > rec.Nonce {
			return true
		}
		times = m.twin.times + 1
	}
	m.outbidAt = now
	m.raise(rec.Version.Epoch + 1)
	m.twin = twin{nonce: rec.Nonce, epoch: m.state.Epoch, times: times}
	return false
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
	return max(0, now.Sub(m.started)+m.slept).Truncate(time.Second)
}
