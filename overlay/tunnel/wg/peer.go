package wg

import (
	"bytes"
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
	asked  time.Time // when an older one was answered by a handshake of ours

	open   opened    // our initiation without a response
	sentAt time.Time // when the last initiation or response went out
	try    attempt

	previous, current, next *Session

	looked time.Time     // when step ran last
	kept   time.Time     // when the persistent keepalive was last seen to
	jitter time.Duration // of the next handshake for lack of an answer
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
		if p.m.answered.session == *s {
			p.m.answered = answered{} // nothing keeps its keys
		}
		*s = nil
	}
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
