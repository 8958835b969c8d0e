package wg

import "time"

// keepalive sends an empty message, if there is a session.
func (p *peer) keepalive(now time.Time) {
	s := p.current
	if s == nil || !s.Alive(now) {
		return
	}
	counter, ok := s.Reserve(1)
	if !ok {
		return
	}
	p.activity.noteSent(now, false)
	p.m.do(Send{p.Key, s.Seal(make([]byte, 0, Overhead), counter, nil), 1})
	if s.due(now) {
		p.tryFor(now)
	}
}

// step does what is due.
func (p *peer) step(now time.Time) {
	a := p.activity
	p.looked = now
	p.move()
	p.confirm()
	p.follow()
	for _, s := range []**Session{&p.previous, &p.next} {
		if *s != nil && !(*s).Alive(now) {
			p.end(s)
		}
	}
	if p.current != nil && !p.current.Alive(now) {
		p.end(&p.current)
		p.m.do(Use{p.Key, nil})
	}
	if s := p.current; s != nil && s.late.Load() && !s.renewing {
		s.renewing = true
		p.tryFor(now)
	}
	if at := p.noAnswerAt(); !at.IsZero() && !now.Before(at) {
		a.awaiting.Store(0)
		p.jitter = p.m.jitter()
		p.tryFor(now)
	}
	if at := a.owed.Load(); at != 0 && !now.Before(a.time(at).Add(KeepAlive-early)) {
		a.owed.Store(0)
		p.keepalive(now)
	}
	if at := p.keepaliveAt(); !at.IsZero() && !now.Before(at) {
		p.kept = now
		p.keepalive(now)
		p.want(now)
	}
	p.goOn(now)
}

// noAnswerAt is when the silence of the peer calls for a handshake.
func (p *peer) noAnswerAt() time.Time {
	if at := p.activity.awaiting.Load(); at != 0 {
		return p.activity.time(at).Add(noAnswer + p.jitter)
	}
	return time.Time{}
}

// keepaliveAt is when the persistent keepalive is due.
func (p *peer) keepaliveAt() time.Time {
	if p.Keepalive <= 0 {
		return time.Time{}
	}
	last := p.kept
	for _, at := range []int64{p.activity.sent.Load(), p.activity.received.Load()} {
		if t := p.activity.time(at); at != 0 && t.After(last) {
			last = t
		}
	}
	return last.Add(p.Keepalive)
}

// deadline is when step is due; zero: never.
func (p *peer) deadline() time.Time {
	var next time.Time
	due := func(at time.Time) {
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	if !p.try.since.IsZero() {
		due(p.try.next)
	}
	for _, s := range []*Session{p.previous, p.current, p.next} {
		if s != nil {
			due(s.created.Add(RejectAfter - time.Duration(s.slept.Load())))
			// What workers note is due KeepAlive later at the soonest: by looking
			// that often nothing is missed, and they need not say it.
			due(p.looked.Add(KeepAlive))
		}
	}
	if at := p.activity.owed.Load(); at != 0 {
		due(p.activity.time(at).Add(KeepAlive))
	}
	due(p.noAnswerAt())
	due(p.keepaliveAt())
	return next
}
