package wg

import (
	"crypto/cipher"
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"meshd/mesh"
)

// Session is the keys of one handshake. All methods may be called by any number
// of goroutines at once, and none allocates.
//
// A worker that sends a train:
//
//	first, ok := s.Reserve(n)        // not ok: ask for a handshake, hold the data
//	train = s.Seal(train, first+i, packet)       // n times
//	if s.NoteSent(now, true) { have the control loop call Machine.Want }
//
// and one that has received:
//
//	s := table.Lookup(index); s.Alive(now)
//	packet, err := s.Open(datagram)              // several times
//	if s.NoteReceived(now, data, from) { have the control loop call Machine.Step }
//
// Go's ciphers hide their keys, so that these can not be overwritten when the
// session ends. What the handshake derived is overwritten as soon as the ciphers
// are made; the ciphers go with the last reference to the session: drop it when
// the machine says so.
type Session struct {
	// fixed at construction
	suite         *suite
	peer          mesh.Key
	handle        any
	local, remote uint32 // indices
	initiator     bool
	created       time.Time
	send, receive cipher.AEAD
	activity      *activity // of the peer

	ended   atomic.Bool
	watched atomic.Bool // the machine wants to know when something arrives
	heard   atomic.Bool // something has arrived
	late    atomic.Bool // something has in its last minute

	slept atomic.Int64 // nanoseconds that the host was asleep since

	renewing bool // owned by the machine: late has led to a handshake

	_       [64]byte // senders and receivers share no cache line
	counter atomic.Uint64
	_       [64]byte

	mu     sync.Mutex // guards window
	window window
}

// Peer gives the peer's public key.
func (s *Session) Peer() mesh.Key { return s.peer }

// Handle gives what [Peer] had as its Handle.
func (s *Session) Handle() any { return s.handle }

// Created is when the handshake was made.
func (s *Session) Created() time.Time { return s.created }

// Alive tells whether the session may still be used.
func (s *Session) Alive(now time.Time) bool {
	return s.age(now) < RejectAfter && !s.ended.Load()
}

func (s *Session) age(now time.Time) time.Duration {
	return now.Sub(s.created) + time.Duration(s.slept.Load())
}

// Reserve gives n counters, the first of which is returned. It fails when the
// session has ended.
func (s *Session) Reserve(n int) (first uint64, ok bool) {
	if s.ended.Load() || s.counter.Load() > sendMessages-uint64(n) {
		return 0, false
	}
	end := s.counter.Add(uint64(n))
	return end - uint64(n), end <= sendMessages
}

// Padded is to how many bytes a packet of n is padded: a multiple of 16, so that
// lengths tell less, but never more than the MTU.
func Padded(n, mtu int) int { return max(n, min((n+15)&^15, mtu)) }

// Seal appends a transport message to dst, which must have room for the packet
// and [Overhead]. Each reserved counter serves once. packet and dst's room must
// not overlap; it is not padded.
func (s *Session) Seal(dst []byte, counter uint64, packet []byte) []byte {
	out := dst[:len(dst)+HeaderSize]
	return s.finish(s.send.Seal(out, s.header(out, counter), packet, nil), len(dst), counter)
}

// SealPadded is Seal with zeros after the packet, up to size bytes. The packet is
// copied first, since what follows it belongs to others.
func (s *Session) SealPadded(dst []byte, counter uint64, packet []byte, size int) []byte {
	out := dst[:len(dst)+HeaderSize]
	body := out[len(out) : len(out)+size]
	clear(body[copy(body, packet):])
	return s.finish(s.send.Seal(out, s.header(out, counter), body, nil), len(dst), counter)
}

// header lays the nonce where the header's last 12 bytes will be: whatever is
// passed to a cipher through its interface would be allocated otherwise.
func (s *Session) header(out []byte, counter uint64) (nonce []byte) {
	nonce = out[len(out)-12:]
	s.suite.nonce(nonce, counter)
	return nonce
}

func (s *Session) finish(out []byte, start int, counter uint64) []byte {
	binary.LittleEndian.PutUint32(out[start:], s.suite.types+uint32(transport))
	binary.LittleEndian.PutUint32(out[start+4:], s.remote)
	binary.LittleEndian.PutUint64(out[start+8:], counter)
	return out
}

// Open gives the packet in a transport message, decrypted in place; the datagram
// is of no more use, whatever comes out. The packet may be padded, and is empty in
// a keepalive. It was seen for the first time, and its sender has the session's
// keys: whether he may send such a packet is for the caller to check.
func (s *Session) Open(datagram []byte) (packet []byte, err error) {
	if len(datagram) < Overhead || binary.LittleEndian.Uint32(datagram) != s.suite.types+uint32(transport) ||
		binary.LittleEndian.Uint32(datagram[4:]) != s.local {
		return nil, ErrMalformed
	}
	if s.ended.Load() {
		return nil, ErrEnded
	}
	counter := binary.LittleEndian.Uint64(datagram[8:])
	if counter >= rejectMessages {
		return nil, ErrReplay
	}
	nonce := datagram[4:HeaderSize]
	s.suite.nonce(nonce, counter)
	packet, err = s.receive.Open(datagram[HeaderSize:HeaderSize], nonce, datagram[HeaderSize:], nil)
	if err != nil {
		return nil, ErrForged
	}
	s.mu.Lock()
	fresh := s.window.accept(counter)
	s.mu.Unlock()
	if !fresh {
		return nil, ErrReplay
	}
	return packet, nil
}

// NoteSent says that messages were sent, and whether one of them was data, not a
// keepalive. Call it once per train. want tells that a new session is due: have
// the control loop call [Machine.Want]. It is told once a second at most.
func (s *Session) NoteSent(now time.Time, data bool) (want bool) {
	s.activity.noteSent(now, data)
	return s.due(now) && s.activity.tell(now)
}

// NoteReceived says that messages from that address were opened, and whether one
// of them was data, not a keepalive. Call it once per train. step tells that the
// machine should look at it at once: have the control loop call [Machine.Step].
func (s *Session) NoteReceived(now time.Time, data bool, from netip.AddrPort) (step bool) {
	s.activity.noteReceived(now, data)
	if s.activity.moveTo(from) {
		step = true
	}
	if !s.heard.Load() {
		s.heard.Store(true)
	}
	if s.watched.Load() {
		step = true
	}
	if s.initiator && s.age(now) >= lastMinute && !s.late.Load() && s.late.CompareAndSwap(false, true) {
		step = true
	}
	return step
}

// due tells whether who sends should ask for another session.
func (s *Session) due(now time.Time) bool {
	return s.initiator && s.age(now) >= RekeyAfter || s.counter.Load() >= s.suite.rekeyMessages
}

// activity is what workers tell the machine of a peer, over all its sessions.
// Times are nanoseconds since base, at least 1; zero is never.
type activity struct {
	base time.Time // fixed at construction

	sent     atomic.Int64 // last message
	received atomic.Int64
	awaiting atomic.Int64 // first data sent since the last message received
	owed     atomic.Int64 // first data received since the last message sent
	told     atomic.Int64 // when a worker was last told to call Want

	endpoint atomic.Pointer[netip.AddrPort]
	moved    atomic.Bool // endpoint has changed since the machine looked
}

func (a *activity) at(now time.Time) int64 { return max(1, int64(now.Sub(a.base))) }

func (a *activity) time(at int64) time.Time { return a.base.Add(time.Duration(at)) }

// Most stores below are needed once per change of direction: a load is cheaper
// for the other workers.

func (a *activity) noteSent(now time.Time, data bool) {
	t := a.at(now)
	a.sent.Store(t)
	if a.owed.Load() != 0 {
		a.owed.Store(0)
	}
	if data && a.awaiting.Load() == 0 {
		a.awaiting.CompareAndSwap(0, t)
	}
}

func (a *activity) noteReceived(now time.Time, data bool) {
	t := a.at(now)
	a.received.Store(t)
	if a.awaiting.Load() != 0 {
		a.awaiting.Store(0)
	}
	if data && a.owed.Load() == 0 {
		a.owed.CompareAndSwap(0, t)
	}
}

func (a *activity) tell(now time.Time) bool {
	t, last := a.at(now), a.told.Load()
	return (last == 0 || t-last >= int64(time.Second) || t < last) && a.told.CompareAndSwap(last, t)
}

func (a *activity) moveTo(from netip.AddrPort) bool {
	if at := a.endpoint.Load(); at != nil && *at == from {
		return false
	}
	a.store(from)
	return true
}

// store is apart, since what it stores is allocated.
func (a *activity) store(from netip.AddrPort) {
	a.endpoint.Store(&from)
	a.moved.Store(true)
}
