package gossip

import (
	"net/netip"
	"slices"
	"time"

	"meshd/mesh"
)

const (
	// eldersAsked is how many of those that were admitted first are told of a claim, and
	// asked before it is held, of those that are there: others who claim do so as well.
	eldersAsked = 2
	// mostAsked is how many are asked in all: the elders may lack the same news as we.
	mostAsked = eldersAsked + 1
	// askRest is how much longer the others are waited for when one elder has answered,
	// and the pause after none has.
	askRest = time.Second
	// maxAsks is how often a question is put: whom none answers is on its own.
	maxAsks = 10
)

// asking is the question of the core that is put to others.
//
//	the core ── Ask ──► saved, said, encoded ──► exchanges ──► Asked
//	                              ▲                  │ no elder answers
//	                              └───── a second ───┘
type asking struct {
	ask      uint64      // the newest; 0: none waits
	at       time.Time   // when it is to be put
	out      bool        // it is being put
	times    int         // that it was
	results  chan result // of each that was
	answered uint64      // the last that was answered, until the core is told; 0: none
}

type result struct {
	ask uint64
	ok  bool
}

// takeUp takes a question in place of any before.
func (a *asking) takeUp(ask uint64, now time.Time) {
	a.ask, a.at, a.out, a.times = ask, now, false, 0
}

// askAround exchanges with a few members what is said by now, and then has the core told.
// Gossip may think that nobody is there, and be wrong.
func (l *loop) askAround(now time.Time) {
	a := &l.asking
	if a.ask == 0 || a.out || now.Before(a.at) {
		return
	}
	if l.speech.stale {
		l.encode()
	}
	whom := l.whomToAsk()
	if len(whom) == 0 {
		a.answered, a.ask = max(a.answered, a.ask), 0 // nobody is there
		return
	}
	a.out = true
	ask, inst := a.ask, l.inst
	l.tasks.Go(func() {
		r := result{ask, l.put(inst, whom)}
		select {
		case a.results <- r:
		case <-l.ctx.Done():
		}
	})
}

// noteAsked takes a result in: a question that no elder has answered is put again.
func (l *loop) noteAsked(r result, now time.Time) {
	a := &l.asking
	newest := r.ask == a.ask // else another one is being put
	if newest {
		a.out, a.at, a.times = false, now.Add(askRest), a.times+1
	}
	if !r.ok && !(newest && a.times == maxAsks) {
		return
	}
	a.answered = max(a.answered, r.ask)
	if newest {
		a.ask = 0
	}
}

// whom is a member that is to be asked.
type whom struct {
	id    mesh.NodeID
	at    netip.AddrPort // where its gossip is; zero: it is to be met in the tunnels
	elder bool
}

// whomToAsk draws them: elders that gossip takes for alive or that were met in the tunnels,
// and others by lot.
func (l *loop) whomToAsk() (out []whom) {
	at := l.addresses()
	choose := func(most int, elder bool, of ...mesh.NodeID) {
		for _, id := range of {
			if len(out) < most && !slices.ContainsFunc(out, func(w whom) bool { return w.id == id }) {
				out = append(out, whom{id, at[id], elder})
			}
		}
	}
	choose(eldersAsked, true, slices.DeleteFunc(l.roster.view.Elders(), func(id mesh.NodeID) bool {
		return !at[id].IsValid() && (l.inside == nil || !l.inside.Met(id))
	})...)
	if l.inst != nil {
		for _, name := range l.some(mostAsked) {
			if id, ok := parseName(name); ok {
				choose(mostAsked, false, id)
			}
		}
	}
	if l.inside != nil {
		choose(mostAsked, false, l.inside.Others(mostAsked)...)
	}
	return out
}

// addresses are those of the live nodes. Where one has several names, as when somebody has
// made them up, that one counts which is at a host of its record.
func (l *loop) addresses() map[mesh.NodeID]netip.AddrPort {
	out := map[mesh.NodeID]netip.AddrPort{}
	if l.inst == nil {
		return out
	}
	for name, at := range l.inst.others() {
		id, ok := parseName(name)
		if _, twice := out[id]; ok && (!twice || l.roster.isAt(id, bare(at.Addr()))) {
			out[id] = at
		}
	}
	return out
}

// put exchanges with all of them, and tells whether an elder has answered; if there is
// none, whether anybody has.
func (l *loop) put(inst *instance, all []whom) bool {
	elders := slices.ContainsFunc(all, func(w whom) bool { return w.elder })
	answers := make(chan bool, len(all))
	for _, w := range all {
		l.tasks.Go(func() { answers <- l.exchangeNow(inst, w.id, w.at) == nil && w.elder == elders })
	}
	heard, enough := false, (<-chan time.Time)(nil)
	for range all {
		select {
		case ok := <-answers:
			if ok && !heard {
				heard, enough = true, time.After(askRest)
			}
		case <-enough:
			return true
		}
	}
	return heard
}
