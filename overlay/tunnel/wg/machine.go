package wg

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"meshd/mesh"
)

// Config is what a machine is made of.
type Config struct {
	PrivateKey [32]byte
	// LastStamp is the newest [Save] that was carried out, or what Stamp gave when
	// the last run ended. Without it, if the clock was set back, peers refuse
	// our first handshake after a restart, and begin one themselves.
	LastStamp time.Time
	Rand      io.Reader // nil: crypto/rand; tests give another
}

// Peer is another end.
type Peer struct {
	Key    mesh.Key
	PSK    [32]byte // zero: none
	Suite  Suite
	Handle any // the owner's, comparable; Session.Handle gives it back
	// Keepalive is the greatest time without a message; zero: silence is fine.
	Keepalive time.Duration
}

// Machine is one end of the protocol. Its methods, but for Table, belong to one
// goroutine. Returned actions and packets are the caller's.
type Machine struct {
	// fixed at construction
	rand  io.Reader
	table *Table

	self       end
	former     *end      // key before self; nil: none is good any more
	goOverAt   time.Time // when peers are shown self, and not former
	formerEnds time.Time

	peers     map[mesh.Key]*peer
	order     []*peer // as they were given, so that runs repeat
	stamps    stamps
	limiter   limiter
	underLoad bool
	answered  answered
	out       []Action // of the call that runs
}

// New builds a machine without peers.
func New(cfg Config) (*Machine, error) {
	for _, s := range suites[1:] {
		if _, err := s.newAEAD(make([]byte, 32)); err != nil {
			return nil, fmt.Errorf("make cipher %s: %w", s.name, err) // a Go built or told to refuse it
		}
	}
	m := &Machine{
		rand:    cfg.Rand,
		table:   newTable(),
		peers:   map[mesh.Key]*peer{},
		stamps:  stamps{last: cfg.LastStamp, saved: cfg.LastStamp},
		limiter: limiter{buckets: map[netip.Addr]bucket{}},
	}
	if m.rand == nil {
		m.rand = rand.Reader
	}
	var err error
	m.self, err = newEnd(cfg.PrivateKey, m.rand)
	return m, err
}

// Table gives the sessions by index. It is the same for the machine's life, and
// may be used by any goroutine.
func (m *Machine) Table() *Table { return m.table }

// Slept says that the host was asleep, for a time that no time given here counts.
// Sessions that have become too old meanwhile end with the next Step.
func (m *Machine) Slept(d time.Duration) {
	for _, p := range m.order {
		for _, s := range []*Session{p.previous, p.current, p.next} {
			if s != nil {
				s.slept.Add(int64(d))
			}
		}
	}
}

// Stamp gives the greatest timestamp that was used: saved when the daemon ends in
// order, the next run need not begin ahead of its clock.
func (m *Machine) Stamp() time.Time { return m.stamps.last }

// UnderLoad tells whether there are more handshakes than can be served: only
// those with a cookie are, until it is told otherwise.
func (m *Machine) UnderLoad(on bool) { m.underLoad = on }

// SetPeers says who all the peers are. Sessions go on unless the peer, its secret,
// its suite or its handle is another. A peer is the same also with another key, if
// its handle is: then messages with the key before are taken for some minutes. A
// peer that can not be one is left out, and named in the error.
func (m *Machine) SetPeers(now time.Time, peers []Peer) ([]Action, error) {
	var errs []error
	old, rekeyed := m.peers, m.rekey(now, peers)
	for _, p := range rekeyed {
		delete(old, p.former)
	}
	m.peers, m.order = make(map[mesh.Key]*peer, len(peers)), nil
	for _, want := range peers {
		if m.peers[want.Key] != nil {
			errs = append(errs, fmt.Errorf("peer %s is there twice", want.Key))
			continue
		}
		p := rekeyed[want.Key]
		if p == nil {
			p = old[want.Key]
		}
		if p == nil {
			var err error
			if p, err = m.newPeer(now, want); err != nil {
				errs = append(errs, fmt.Errorf("add peer %s: %w", want.Key, err))
				continue
			}
		} else if err := p.change(now, want); err != nil {
			errs = append(errs, fmt.Errorf("change peer %s: %w", want.Key, err))
			continue
		}
		if old[want.Key] == p {
			delete(old, want.Key)
		}
		m.peers[want.Key] = p
		m.order = append(m.order, p)
	}
	for _, p := range old {
		p.forget()
	}
	return m.flush(), errors.Join(errs...)
}

// rekey gives those their new keys that have others, before anybody who shows a former
// one can be taken for them.
func (m *Machine) rekey(now time.Time, peers []Peer) map[mesh.Key]*peer {
	byHandle, out := map[any]*peer{}, map[mesh.Key]*peer{}
	for _, p := range m.order {
		if p.Handle != nil {
			byHandle[p.Handle] = p
		}
	}
	for _, want := range peers {
		if p := byHandle[want.Handle]; p != nil && p.Key != want.Key && out[want.Key] == nil && p.rekey(now, want.Key) {
			out[want.Key] = p
			delete(byHandle, want.Handle)
		}
	}
	return out
}

// SetEndpoint tells where the owner sends to from now on, so that a message from
// elsewhere is a [Move] again.
func (m *Machine) SetEndpoint(key mesh.Key, endpoint netip.AddrPort) {
	if p := m.peers[key]; p != nil {
		p.activity.moved.Store(false) // first: what a worker stores between the two is told
		p.activity.endpoint.Store(&endpoint)
	}
}

// Receive takes a datagram for which [IsHandshake] holds. The error says why it
// was refused; there may be actions nevertheless.
func (m *Machine) Receive(now time.Time, datagram []byte, from netip.AddrPort) ([]Action, error) {
	s, k, ok := classify(datagram)
	if !ok || k == transport {
		return nil, ErrMalformed
	}
	err := m.receive(now, s, k, datagram, from)
	return m.flush(), err
}

func (m *Machine) receive(now time.Time, s *suite, k kind, msg []byte, from netip.AddrPort) error {
	if k == cookieReply {
		return m.takeCookie(now, s, msg)
	}
	at := m.addressed(now, msg)
	if at == nil {
		return ErrMAC
	}
	if m.underLoad {
		if !at.checker.valid2(now, msg, from) {
			m.do(Reply{from, at.checker.reply(now, s, msg, from)})
			return ErrCookie
		}
		if !m.limiter.allow(now, from.Addr()) {
			return ErrRate
		}
	}
	if k == initiation {
		return m.takeInitiation(now, s, at, msg, from)
	}
	return m.takeResponse(now, s, msg, from)
}

func (m *Machine) takeInitiation(now time.Time, s *suite, at *end, msg []byte, from netip.AddrPort) error {
	mac := mac1(msg)
	if m.answered.mac == mac {
		return m.answered.again()
	}
	r, err := readInitiation(s, at.private, msg)
	if err != nil {
		return err
	}
	p := m.peer(now, r.peer)
	if p == nil {
		return ErrUnknown
	}
	if p.suite != s {
		return ErrSuite
	}
	static, err := p.secret(at, r.peer)
	if err == nil {
		err = r.prove(static[:], msg)
		clear(static[:])
	}
	if err != nil {
		return err
	}
	return p.answer(now, mac, &r, from)
}

// peer is the one that had a key until a moment ago, or has it. In this order, since
// one that shows another's former key has copied it.
func (m *Machine) peer(now time.Time, key mesh.Key) *peer {
	for _, p := range m.order {
		if p.former == key && now.Before(p.formerEnds) {
			return p
		}
	}
	return m.peers[key]
}

func (m *Machine) takeResponse(now time.Time, s *suite, msg []byte, from netip.AddrPort) error {
	index := binary.LittleEndian.Uint32(msg[8:])
	p := m.table.peer(index)
	if p == nil {
		return ErrUnknown
	}
	p.confirm() // what was heard before the response
	if p.open.index != index {
		return ErrUnknown
	}
	if p.suite != s {
		return ErrSuite
	}
	return p.complete(now, msg, from)
}

func (m *Machine) takeCookie(now time.Time, s *suite, msg []byte) error {
	p := m.table.peer(binary.LittleEndian.Uint32(msg[4:]))
	if p == nil {
		return ErrUnknown
	}
	if p.suite != s {
		return ErrSuite
	}
	err := p.signer.take(now, msg)
	if err == nil {
		p.try.made = 0 // nothing was lost: the peer has much to do
	}
	return err
}

// Want says that data waits for the peer, or that [Session.NoteSent] asked for a
// new session. It may be called again and again.
func (m *Machine) Want(now time.Time, key mesh.Key) []Action {
	if p := m.peers[key]; p != nil {
		p.want(now)
	}
	return m.flush()
}

// Renew makes sessions with all peers anew: a copy of this end may have made some,
// and peers speak with that one. The present ones go on until then.
func (m *Machine) Renew(now time.Time) []Action {
	m.stamps.overtake(now)
	for _, p := range m.order {
		p.tryFor(now)
	}
	return m.flush()
}

// Step does what is due.
func (m *Machine) Step(now time.Time) []Action {
	if !now.Before(m.formerEnds) {
		m.former = nil // Go's library hides the key, which goes with the last reference
	}
	for _, p := range m.order {
		p.step(now)
	}
	return m.flush()
}

// Next tells when Step is due; false: not before something happens. Workers may
// bring it nearer, but not by much: it is asked for again after each Step, which
// is due every 10 s as long as there is any session.
func (m *Machine) Next() (next time.Time, ok bool) {
	if m.former != nil {
		next, ok = m.formerEnds, true
	}
	for _, p := range m.order {
		if at := p.deadline(); !at.IsZero() && (!ok || at.Before(next)) {
			next, ok = at, true
		}
	}
	return next, ok
}

func (m *Machine) do(a Action) { m.out = append(m.out, a) }

func (m *Machine) flush() []Action {
	out := m.out
	m.out = nil
	return out
}

// stamp gives the stamp of an initiation, which may have to be saved first.
func (m *Machine) stamp(now time.Time) stamp {
	st, save := m.stamps.next(now)
	if save {
		m.do(Save{m.stamps.saved})
	}
	return st
}

// jitter spreads what several ends would do at once.
func (m *Machine) jitter() time.Duration {
	var b [2]byte
	read(m.rand, b[:])
	return time.Duration(binary.LittleEndian.Uint16(b[:])) * (maxJitter / (1 << 16))
}

// read fills b. crypto/rand never fails; a test's reader must not either.
func read(r io.Reader, b []byte) {
	if _, err := io.ReadFull(r, b); err != nil {
		panic(fmt.Sprintf("wg: random source: %v", err))
	}
}
