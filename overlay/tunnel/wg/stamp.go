package wg

import (
	"bytes"
	"encoding/binary"
	"time"
)

// stamp is a TAI64N timestamp as in an initiation: a peer takes only greater ones
// than it has seen, so that an old initiation can not be replayed.
type stamp [12]byte

// stampStep is how exact a stamp is: about 17 ms, as others do, so that it tells
// less of a host's clock.
const stampStep = 1 << 24

// coarse drops what a stamp does not tell.
func coarse(t time.Time) time.Time {
	return time.Unix(t.Unix(), int64(t.Nanosecond()&^(stampStep-1)))
}

func stampOf(t time.Time) (s stamp) {
	binary.BigEndian.PutUint64(s[:], 1<<62+10+uint64(t.Unix())) // TAI was 10 s ahead in 1970
	binary.BigEndian.PutUint32(s[8:], uint32(t.Nanosecond()))
	return s
}

func (s stamp) after(o stamp) bool { return bytes.Compare(s[:], o[:]) > 0 }

// stamps gives stamps that only grow, whatever the clock does, and over restarts
// if the owner saves what it is told to.
type stamps struct {
	last  time.Time // the greatest one given
	saved time.Time // none greater was given in an earlier run
}

// Each save reserves a stretch ahead, so that they are rare. It is short where
// stamps are ahead of the clock: many restarts shall not drive them further away.
const (
	reserve      = time.Minute
	reserveAhead = time.Second // about 60 initiations
)

// next gives a stamp. save tells that saved has changed, and must be saved before
// the stamp is used.
func (s *stamps) next(now time.Time) (st stamp, save bool) {
	t, ahead := coarse(now), reserve
	if !t.After(s.last) {
		t, ahead = coarse(s.last.Add(stampStep)), reserveAhead
	}
	s.last = t
	if save = t.After(s.saved); save {
		s.saved = t.Add(ahead)
	}
	return stampOf(t), save
}

// overtake has the next stamp be greater than those that a copy of this end, made
// from what was saved, has given in its first second: such a copy begins where
// the last stretch ends. Stamps get ahead of the clock by it, but not by more than
// a few reserves.
func (s *stamps) overtake(now time.Time) {
	if s.saved.Before(now.Add(2 * reserve)) {
		s.last = s.saved.Add(reserveAhead)
	}
}
