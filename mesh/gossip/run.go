package gossip

import (
	"context"
	"fmt"
	"sync"
	"time"

	"meshd/mesh"
	"meshd/mesh/exchange"
)

// loop is everything that Run's goroutine owns.
type loop struct {
	*Gossip
	ctx     context.Context
	sockets *sockets           // nil with a transport from the options
	inside  *exchange.Exchange // nil: there are no tunnels
	inst    *instance          // nil: none yet
	tasks   sync.WaitGroup
	slots   [2]chan struct{} // taken by those tasks that send, to members and to strangers

	book     *book
	saver    *saver
	place    place
	search   search
	roster   roster
	intake   intake
	wants    wants
	fetching fetching
	differs  comparison // of tables
	asking   asking
	speech   speech
	toShow   *mesh.View // when the state is saved; nil: nothing
	parting  parting

	clocks Clocks
	clone  bool      // this daemon has to end
	stepAt time.Time // not before, if there is nothing but messages
}

// Run takes part until ctx is done, then saves what it knows and returns nil. It
// fails at once if it cannot listen, and with [ErrClone] if it has to end.
func (g *Gossip) Run(ctx context.Context) error {
	defer close(g.stopped)
	now := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := &loop{
		Gossip: g, ctx: ctx, slots: [2]chan struct{}{make(chan struct{}, sending), make(chan struct{}, sending)},
		book: newBook(g.opt.Peers, now), search: search{seeds: g.opt.Seeds, joins: make(chan joined, 1)}, wants: wants{},
		roster: roster{view: &mesh.View{}}, asking: asking{results: make(chan result)}, speech: speech{stale: true}, parting: parting{parted: make(chan struct{})},
	}
	l.saver = &saver{store: g.opt.Store, table: g.opt.Core.Table, book: l.book, say: g.say, use: l.use, unsaved: &g.unsaved, tableAt: now.Add(tableEvery), checkAt: now.Add(checkEvery)}
	if g.opt.Transport == nil {
		s, err := listen(g.opt.Bind)
		if err != nil {
			return fmt.Errorf("gossip: %w", err)
		}
		defer s.close()
		l.sockets = s
		s.know(l.book.known)
	}
	if g.opt.Tunnels != nil {
		l.inside = exchange.New(g.opt.Tunnels, l, g.opt.Log)
		l.tasks.Go(func() { l.inside.Run(ctx) })
	}
	l.move(g.opt.Bind)
	l.obey()
	l.run()
	cancel()
	l.finish()
	if l.clone {
		return fmt.Errorf("gossip: %w", ErrClone)
	}
	return nil
}

func (l *loop) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		heard := false
		select {
		case <-l.ctx.Done():
			return
		case m := <-l.inbox.waiting:
			l.receive(m)
			heard = true
		case <-l.poke:
			l.obey()
		case done := <-l.Gossip.leave:
			l.beginLeave(done)
		case c := <-l.calls:
			c.do(time.Now())
			close(c.done)
		case j := <-l.search.joins:
			l.joined(j)
		case <-l.moved:
			l.look()
		case a := <-l.answers:
			l.compare(a)
		case <-l.parting.parted:
			if l.parting.last != nil {
				l.show(l.parting.last)
				l.parting.last = nil
			}
		case r := <-l.asking.results:
			l.noteAsked(r, time.Now())
		case <-timer.C:
		}
		l.drain()
		urgent := l.speech.urgent && l.saver.saved() // else it is not said anyway
		if wait := time.Until(l.stepAt); heard && wait > 0 && !urgent {
			timer.Reset(wait)
			continue
		}
		if l.asking.answered != 0 && len(l.inbox.waiting) == 0 { // the tables that came have been read
			l.opt.Core.Asked(l.asking.answered)
			l.asking.answered = 0
		}
		began := time.Now()
		now := began
		l.lookAtClocks(now)
		if l.step(now); l.clone {
			return
		}
		l.connect(now)
		l.join(now)
		l.request(now)
		l.saver.saveCaches(now)
		l.saver.check(now)
		now = time.Now()
		l.stepAt = now.Add(rest(stepEvery, now.Sub(began)))
		timer.Reset(l.wait(now))
	}
}

// drain takes in what else has come, so that a burst costs one step.
func (l *loop) drain() {
	for range batch {
		select {
		case m := <-l.inbox.waiting:
			l.receive(m)
		default:
			return
		}
	}
}

// wait is how long nothing is due.
func (l *loop) wait(now time.Time) time.Duration {
	next := now.Add(time.Hour)
	due := func(at time.Time, ok bool) {
		if ok && at.Before(next) {
			next = at
		}
	}
	due(l.opt.Core.Next())
	due(l.saver.next())
	due(l.speech.encodeAt, l.speech.stale && l.saver.saved())
	due(l.place.createAt, l.inst == nil && l.place.address.IsValid())
	due(l.place.renewAt, l.wornOut())
	due(now, l.asking.answered != 0)
	due(l.asking.at, l.asking.ask != 0 && !l.asking.out && l.saver.saved())
	due(now.Add(clockEvery), l.opt.Clocks != nil)
	due(l.search.at, l.inst != nil && !l.parting.left && l.search.round == nil)
	if l.inst != nil && l.inst.count() > 0 {
		due(l.wants.next())
		due(l.fetching.at, l.fetching.pause > 0)
	}
	// A core that is never content must not keep us from everything else.
	return max(next.Sub(now), 5*time.Millisecond)
}

// obey takes up what callers have set.
func (l *loop) obey() {
	l.mu.Lock()
	w := l.wish
	l.wish = wish{}
	l.mu.Unlock()
	if w.newPorts {
		l.opt.Core.SetEndpoints(w.endpoints)
	}
	if w.newSeeds {
		l.search.seeds, l.search.at, l.search.again = w.seeds, time.Now(), l.search.round != nil
	}
	l.move(w.address)
}

// finish ends what Run has begun, and saves.
func (l *loop) finish() {
	l.parting.goodbye.Wait()
	if l.inst != nil {
		l.inst.shutdown()
	}
	l.tasks.Wait()
	l.saver.tableChanged = l.saver.tableChanged || l.speech.stale
	l.saver.finish()
}
