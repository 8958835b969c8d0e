package wg

import "time"

// attempt is the time in which a handshake is tried.
type attempt struct {
	since time.Time     // zero: none is
	next  time.Time     // when an initiation goes out
	pause time.Duration // until the one after that
	made  int           // initiations since it began, or since the last cookie
	late  time.Duration // of the last initiation, if that is not the owner's habit
}

// copies is in how many an initiation goes out. Who is late is not unlucky, but has too
// much to do, and so may the peer.
func (t *attempt) copies() int {
	if t.made > copiedTries || t.late > 0 {
		return 1
	}
	return min(t.made, maxCopies)
}

// repeat says when the next initiation goes out, after the one that does now.
func (t *attempt) repeat(now time.Time, jitter time.Duration) {
	t.late = max(0, now.Sub(t.next)-patience)
	t.next = now.Add(t.pause + min(lateRest*t.late, longestRest) + jitter)
	t.pause = min(2*t.pause, RekeyTry)
	t.made++
}

// want begins to try for a session, unless that is done or needless.
func (p *peer) want(now time.Time) {
	if p.current != nil && p.current.Alive(now) && !p.current.due(now) && p.current.counter.Load() < sendMessages {
		return
	}
	p.tryFor(now)
}

// tryFor begins to try for a session.
func (p *peer) tryFor(now time.Time) {
	if !p.try.since.IsZero() {
		return
	}
	// Not sooner after the last handshake message than a repetition: it may be
	// that the peer's answer is on the way.
	p.try = attempt{since: now, next: now, pause: firstTry}
	if next := p.sentAt.Add(firstTry); !p.sentAt.IsZero() && next.After(now) {
		p.try.next = next
	}
	p.goOn(now)
}

// goOn sends an initiation if one is due, or gives up.
func (p *peer) goOn(now time.Time) {
	if p.try.since.IsZero() || now.Before(p.try.next) {
		return
	}
	if now.Sub(p.try.since) >= GiveUpAfter {
		p.try = attempt{}
		p.close()
		p.m.do(GiveUp{p.Key})
		return
	}
	p.try.repeat(now, p.m.jitter())
	p.initiate(now)
}

func (p *peer) initiate(now time.Time) {
	if p.open.index != 0 && p.current != nil && p.current.Alive(now) {
		// A peer with which there is a session does not answer: it may have heard a
		// copy of us, and take our stamps for old ones.
		p.m.stamps.overtake(now)
	}
	at := p.m.stamp(now)
	p.close()
	index := p.m.table.reserve(p, p.m.rand)
	self := p.m.shown(now)
	static, err := p.secret(self, p.Key)
	var msg []byte
	if err == nil {
		msg, p.open, err = initiate(p.suite, self.private, p.m.newKey(), p.Key, static[:], at, index)
		clear(static[:])
	}
	if err != nil {
		p.m.table.release(index) // a peer's key was tried when it was added
		return
	}
	p.sendHandshake(now, &p.signer, msg, p.try.copies())
}

func (p *peer) sendHandshake(now time.Time, s *signer, msg []byte, copies int) {
	s.sign(now, msg)
	p.sentAt = now
	p.activity.noteSent(now, false)
	p.m.do(Send{p.Key, msg, copies})
}
