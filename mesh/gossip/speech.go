package gossip

import (
	"crypto/sha256"
	"maps"
	"slices"
	"time"

	"meshd/mesh/exchange"
	"meshd/mesh/trust"
)

// speech is what this node says, and what it tells who asks.
type speech struct {
	stale    bool      // what others are told is
	encodeAt time.Time // not before, however stale
	urgent   bool      // what they are told next has news that gossip may not bring to all
	held     [][]byte  // to be said when the state is saved
	said     [][]byte  // our last few objects
}

// hold keeps objects until they may be said.
func (s *speech) hold(objects [][]byte) {
	s.stale = s.stale || len(objects) > 0
	s.held = append(s.held, objects...)
	s.held = s.held[max(0, len(s.held)-maxHeld):]
}

// speak says what was held back until the state was saved.
func (l *loop) speak(now time.Time) {
	s := &l.speech
	said := s.held
	s.held = nil
	s.urgent = s.urgent || len(said) > 0 && l.unheard() || slices.ContainsFunc(said, func(o []byte) bool { return len(o) > trust.MaxBroadcast })
	if s.stale && (!now.Before(s.encodeAt) || s.urgent || len(l.parting.waiting) > 0) {
		l.encode()
		s.encodeAt = now.Add(rest(encodeEvery, time.Since(now)))
	}
	for _, o := range said {
		if len(o) > trust.MaxBroadcast {
			// It is in the table, and is fetched from there.
			continue
		}
		if l.inst != nil {
			l.inst.publish(o)
		}
	}
	s.said = append(s.said, said...)
	s.said = s.said[max(0, len(s.said)-saidAgain):]
	if len(l.parting.waiting) > 0 {
		l.sayGoodbye()
	}
}

// encodeEvery bounds how often what others are told is made anew, which takes a millisecond
// for 200 members, while objects come by the hundred, as when a large mesh
// starts. An exchange may lack what came since; it is being broadcast.
const encodeEvery = 250 * time.Millisecond

// encode makes what others are told.
func (l *loop) encode() {
	table := l.opt.Core.Table()
	known := make(map[[sha256.Size]byte]bool, len(table))
	for _, o := range table {
		known[sha256.Sum256(o)] = true
	}
	if !maps.Equal(known, l.intake.known) {
		l.saver.tableChanged = true
	}
	l.intake.known, l.speech.stale = known, false
	l.told.Store(&told{table, exchange.NewSet(l.opt.Core.Settled())})
	if l.speech.urgent && l.inside != nil {
		l.inside.Hurry()
	}
	l.speech.urgent = false
}
