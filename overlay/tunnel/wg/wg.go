// Package wg is the WireGuard protocol as a pure state machine.
//
// A [Machine] holds one end's key and its peers. It takes handshake messages,
// wishes to send and the time, and gives back [Action]s and its next deadline:
// no clock, no goroutine, no lock, no socket. A [Session] is what a handshake
// ends in: many workers seal and open with it at once, and a [Table] finds it by
// the index in a packet, without a lock.
//
//	control loop, one goroutine          workers, any number
//	Machine: Receive Want Step Next      Table.Lookup  Session.Open  NoteReceived
//	   ── Use{peer, session} ──►         Session.Reserve  Seal  NoteSent
//	   ◄── NoteSent, NoteReceived said so: Want, Step ──
//
// The owner carries out actions in their order, calls Step when Next says so or
// a worker was told to ask for it, and gives times that never go back (those of
// time.Now do not). What arrives is not believed before it is authenticated; it
// is refused with one of this package's errors and changes nothing. A [Suite] is
// fixed for each peer: a message of another one is refused.
package wg

import (
	"errors"
	"time"
)

// Timers of the protocol. (WireGuard paper, section 6.)
const (
	RekeyAfter  = 120 * time.Second // the initiator makes a new session when it sends on one of this age
	RejectAfter = 180 * time.Second // no session is used any longer
	RekeyTry    = 5 * time.Second   // an initiation without response is repeated, the first ones sooner
	GiveUpAfter = 90 * time.Second  // and no more after this time
	KeepAlive   = 10 * time.Second  // received data is answered by something within this time

	// early is how much sooner the keepalive goes if the owner looks anyway, as every
	// second: with many peers each of theirs would wake an idle process else.
	early = time.Second
	// firstTry: an initiation or its response that gets lost would cost a new path
	// five seconds. So it is repeated after one, two and four at first.
	firstTry = time.Second
	// noAnswer: nothing was heard for so long after data was sent; the peer would
	// have answered after KeepAlive, and a handshake is given time for one try.
	noAnswer = KeepAlive + RekeyTry
	// lastMinute: an initiator that only receives renews the session early enough
	// for a try, and for the keepalive that would have told it.
	lastMinute = RejectAfter - KeepAlive - RekeyTry
	// maxCopies is in how many copies an initiation goes out at most: the second in two,
	// and so on. With half of all packets lost one of four handshakes in one copy
	// succeeds, and two of three in four, each copy that arrives being answered.
	maxCopies = 4
	// copiedTries is how many do: who has not answered by then, after some 40 s, is
	// gone rather than unlucky.
	copiedTries = 10
	// patience is how late an owner may be, since it does several things together. One
	// that is later with a repetition has too much to do, and rests lateRest times as
	// long before the next: many hosts on one machine, whose handshakes are not
	// answered in time, would else have no time for anything but more of them.
	patience    = 250 * time.Millisecond
	lateRest    = 8
	longestRest = 10 * time.Second
	// maxJitter keeps two ends that lost the same packet from repeating in step.
	maxJitter = 333 * time.Millisecond
	// goOverAfter: peers hear of a new key of ours in this time. Until then they are
	// shown the one before, which all know.
	goOverAfter = 5 * time.Second
	// formerFor is how long a key that was replaced is still good for handshakes:
	// all sessions have been renewed once by then.
	formerFor = RejectAfter
	// floodGap is the least time between two initiations of one peer.
	floodGap = 20 * time.Millisecond
	// cookieAge: cookies are made of a secret that changes that often.
	cookieAge = 120 * time.Second
	// cookieUse: a cookie is used for less than its age, since it was on the way.
	cookieUse = cookieAge - RekeyTry
)

const (
	// rejectMessages is the first counter that no message has. (WireGuard paper.)
	rejectMessages = 1<<64 - 1<<13 - 1
	// sendMessages is how many a session sends at most: so many less that the
	// counter cannot wrap while workers reserve, each a super-packet's segments.
	sendMessages = 1<<64 - 1<<24
)

// Why a message was refused. None of them carries data, so that refusing costs
// nothing; count them.
var (
	ErrMalformed = errors.New("not a message of the protocol")
	ErrMAC       = errors.New("first MAC is wrong: not meant for this key")
	ErrCookie    = errors.New("under load, and no valid cookie: one was sent")
	ErrRate      = errors.New("under load, and too many handshakes from this address")
	ErrForged    = errors.New("authentication failed")
	ErrUnknown   = errors.New("no such peer or index")
	ErrSuite     = errors.New("peer has another suite")
	ErrReplay    = errors.New("seen before, or too old")
	ErrCopy      = errors.New("copy of the initiation answered last: answered again") // that is no fault
	ErrFlood     = errors.New("too many initiations of this peer")
	ErrEnded     = errors.New("session has ended")
)
