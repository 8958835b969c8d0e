package wg

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"meshd/mesh"
)

// peer is what the machine holds of one peer.
//
// A peer has up to three sessions:
//
//	next ── a message arrives ──► current ──► previous ── another comes ──► ended
//	 ▲                               ▲
//	 we answered                     we initiated, and got the response
//
// Data goes out on current. next is ours to use only once the initiator has shown
// that it has it. previous is for what is on the way.
//
// If both ends initiate at once, there are two handshakes that cross. Ours and
// the peer's have a state each, so that both can be completed, and whichever is
// used first on both sides is kept. Two ends may still come to use one each, which
// both can read: then the one with the smaller key follows the other (follow).
type peer struct {
	m        *Machine  // whose peer it is
	activity *activity // what workers tell

	Peer
	suite  *suite
	static [32]byte // secret of both static keys

	former     mesh.Key  // key before the present one
	formerEnds time.Time // when it is no longer good

	signer signer
	latest stamp     // greatest stamp in an initiation of the peer
	heard  time.Time // when that came

	open   opened    // our initiation without a response
	sentAt time.Time // when the last initiation or response went out
	try    attempt

	previous, current, next *Session

	looked time.Time     // when step ran last
	kept   time.Time     // when the persistent keepalive was last seen to
	jitter time.Duration // of the next handshake for lack of an answer
}

// attempt is the time in which a handshake is tried.
type attempt struct {
	since time.Time     // zero: none is
	next  time.Time     // when an initiation goes out
	pause time.Duration // until the one after that
}

func (m *Machine) newPeer(now time.Time, want Peer) (*peer, error) {
	static, err := m.newPeerKey(want.Key)
	if err != nil {
		return nil, err
	}
	p := &peer{m: m, activity: &activity{base: now}, static: static, signer: signer{macKeys: macKeysOf(want.Key)}, jitter: m.jitter()}
	p.Key = want.Key
	return p, p.change(now, want)
}

// newPeerKey gives the secret that we share with whoever has the key.
func (m *Machine) newPeerKey(key mesh.Key) (static [32]byte, err error) {
	shared, err := exchange(m.self.private, key[:])
	if err != nil {
		return static, errors.New("not a public key")
	}
	static = [32]byte(shared)
	clear(shared)
	if key == m.self.public || m.former != nil && key == m.former.public {
		return static, errors.New("that is this end")
	}
	return static, nil
}

// rekey takes over another key of the peer, unless it is not one.
func (p *peer) rekey(now time.Time, key mesh.Key) bool {
	next, err := p.m.newPeerKey(key)
	if err != nil {
		return false
	}
	p.former, p.formerEnds = p.Key, now.Add(formerFor)
	p.Key, p.static, p.signer = key, next, signer{macKeys: macKeysOf(key)}
	return true
}

// secret is that of two static keys, of which those in use are the most frequent.
func (p *peer) secret(self *end, key mesh.Key) (static [32]byte, err error) {
	if self == &p.m.self && key == p.Key {
		return p.static, nil
	}
	s, err := exchange(self.private, key[:])
	if err == nil {
		static = [32]byte(s)
		clear(s)
	}
	return static, err
}

// change takes over what is wanted. Sessions made in another way are ended.
func (p *peer) change(now time.Time, want Peer) error {
	if !want.Suite.valid() {
		return fmt.Errorf("%s is not a suite", want.Suite)
	}
	if p.suite != nil && (p.PSK != want.PSK || p.Suite != want.Suite || p.Handle != want.Handle) {
		p.reset()
	}
	if want.Keepalive != p.Keepalive {
		p.kept = now.Add(-want.Keepalive) // one is due
	}
	p.Peer, p.suite = want, suites[want.Suite]
	return nil
}

// forget ends all, and overwrites secrets.
func (p *peer) forget() {
	p.reset()
	clear(p.static[:])
	clear(p.PSK[:])
}

// reset ends all sessions and handshakes.
func (p *peer) reset() {
	p.close()
	used := p.current != nil
	for _, s := range []**Session{&p.previous, &p.current, &p.next} {
		p.end(s)
	}
	p.try, p.sentAt = attempt{}, time.Time{}
	if used {
		p.m.do(Use{p.Key, nil})
	}
}

// close forgets our initiation; a response to it comes too late.
func (p *peer) close() {
	p.m.table.release(p.open.index)
	p.open = opened{}
}

// end makes a session useless.
func (p *peer) end(s **Session) {
	if *s != nil {
		(*s).ended.Store(true)
		p.m.table.release((*s).local)
		*s = nil
	}
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
	p.try.next = now.Add(p.try.pause + p.m.jitter())
	p.try.pause = min(2*p.try.pause, RekeyTry)
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
	p.sendHandshake(now, &p.signer, msg)
}

func (p *peer) sendHandshake(now time.Time, s *signer, msg []byte) {
	s.sign(now, msg)
	p.sentAt = now
	p.activity.noteSent(now, false)
	p.m.do(Send{p.Key, msg})
}

// answer takes an initiation that is authentic.
func (p *peer) answer(now time.Time, r *received, from netip.AddrPort) error {
	if !r.at.after(p.latest) {
		return ErrReplay
	}
	if d := now.Sub(p.heard); !p.heard.IsZero() && d >= 0 && d < floodGap {
		return ErrFlood
	}
	index := p.m.table.reserve(p, p.m.rand)
	remote := r.index
	msg, send, receive, err := r.respond(p.m.newKey(), &p.PSK, index)
	if err != nil {
		p.m.table.release(index)
		return err
	}
	p.latest, p.heard = r.at, now
	p.arrived(now, from)
	p.confirm() // if the peer has used next, it is more than the answer to a lost one
	p.end(&p.next)
	p.end(&p.previous)
	p.next = p.session(now, index, remote, &send, &receive, false)
	p.next.watched.Store(true)
	p.m.table.put(p.next)
	to := &p.signer
	if r.peer != p.Key {
		to = &signer{macKeys: macKeysOf(r.peer)} // it may not know yet that we know its new key
	}
	p.sendHandshake(now, to, msg)
	return nil
}

// complete takes the response to our initiation.
func (p *peer) complete(now time.Time, msg []byte, from netip.AddrPort) error {
	send, receive, err := p.open.finish(&p.PSK, msg)
	if err != nil {
		return err
	}
	s := p.session(now, p.open.index, binary.LittleEndian.Uint32(msg[4:]), &send, &receive, true)
	p.open = opened{} // its index is the session's now
	p.arrived(now, from)
	p.end(&p.previous)
	if p.next != nil {
		// The peer's handshake crosses ours: it may use either.
		p.end(&p.current)
		p.previous, p.next = p.next, nil
		p.watchPrevious()
	} else {
		p.previous = p.current
	}
	p.m.table.put(s)
	p.use(s)
	p.keepalive(now) // which shows the peer that we have the session
	return nil
}

func (p *peer) session(now time.Time, local, remote uint32, send, receive *[32]byte, initiator bool) *Session {
	s := &Session{
		suite: p.suite, peer: p.Key, handle: p.Handle, local: local, remote: remote, initiator: initiator, created: now,
		send: p.suite.aead(send), receive: p.suite.aead(receive), activity: p.activity,
	}
	clear(send[:])
	clear(receive[:])
	p.looked = now // the owner asks for the next deadline after this
	return s
}

// arrived notes an authentic handshake message.
func (p *peer) arrived(now time.Time, from netip.AddrPort) {
	p.activity.noteReceived(now, false)
	p.activity.moveTo(from)
	p.move()
}

func (p *peer) move() {
	if p.activity.moved.Swap(false) {
		p.m.do(Move{p.Key, *p.activity.endpoint.Load()})
	}
}

// use makes s current; the handshake is done.
func (p *peer) use(s *Session) {
	p.current = s
	p.try = attempt{}
	p.close()
	p.m.do(Use{p.Key, s})
}

// confirm makes next current, once it is known that the peer has it.
func (p *peer) confirm() {
	if p.next == nil || !p.next.heard.Load() {
		return
	}
	s := p.next
	s.watched.Store(false)
	p.end(&p.previous)
	p.previous, p.next = p.current, nil
	p.use(s)
}

// watchPrevious prepares follow, at the end which has to.
func (p *peer) watchPrevious() {
	if p.previous != nil {
		p.previous.heard.Store(false)
		p.previous.watched.Store(bytes.Compare(p.m.self.public[:], p.Key[:]) < 0)
	}
}

// follow uses that of two crossing sessions which the other end uses.
func (p *peer) follow() {
	if p.previous == nil || !p.previous.watched.Load() || !p.previous.heard.Load() {
		return
	}
	s := p.previous
	s.watched.Store(false)
	p.previous = p.current
	p.watchPrevious()
	p.use(s)
}

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
	p.m.do(Send{p.Key, s.Seal(make([]byte, 0, Overhead), counter, nil)})
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
	if at := a.owed.Load(); at != 0 && !now.Before(a.time(at).Add(KeepAlive)) {
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
