package wg

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// answer takes an initiation that is authentic, with its first MAC.
func (p *peer) answer(now time.Time, mac [macSize]byte, r *received, from netip.AddrPort) error {
	if !r.at.after(p.latest) {
		if r.at != p.latest && r.peer == p.Key {
			p.askBack(now)
		}
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
	p.sendHandshake(now, to, msg, 1)
	p.m.answered = answered{mac, p, p.next, msg}
	return nil
}

// askBack makes a handshake of our own, since the peer has shown an old stamp: either
// somebody has repeated what it once said, and then it costs one handshake in a while,
// or it does not know which stamps it has shown, as after a restore, and cannot reach
// us by itself until its clock is past them.
func (p *peer) askBack(now time.Time) {
	if !p.asked.IsZero() && now.Sub(p.asked) < RekeyTry {
		return
	}
	p.asked = now
	p.tryFor(now)
}

// answered is the last initiation that was: who repeats it may not have the response.
type answered struct {
	mac      [macSize]byte // the initiation's first one, so that it is the same message
	peer     *peer
	session  *Session
	response []byte
}

// again answers a copy of that initiation, at no cost to speak of, unless it is known
// that the peer has the response; the error tells which.
func (a *answered) again() error {
	if a.peer == nil || a.peer.next != a.session || a.session.heard.Load() {
		return ErrReplay
	}
	a.peer.m.do(Send{a.peer.Key, a.response, 1})
	return ErrCopy
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
