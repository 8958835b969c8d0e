package gossip

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"meshd/mesh"
	"meshd/mesh/exchange"
	"meshd/mesh/registry"
	"meshd/mesh/trust"
)

// loop is everything that Run's goroutine owns.
type loop struct {
	*Gossip
	ctx     context.Context
	sockets *sockets // nil with a transport from the options
	tasks   sync.WaitGroup
	slots   [2]chan struct{} // taken by those tasks that send, to members and to strangers

	inst     *instance // nil: none yet
	address  netip.AddrPort
	createAt time.Time // not before

	inside *exchange.Exchange // nil: there are no tunnels

	admitted map[mesh.NodeID]bool // by the last view; not to be changed
	others   int                  // members but us that have not left, by the last view

	known   map[[sha256.Size]byte]bool // hashes of the table's objects
	seen    recent                     // objects that came, for relaying each once
	taken   taken                      // what the core was given of late
	updates updates
	stale   bool // what others are told is

	stepAt   time.Time // not before, if there is nothing but messages
	encodeAt time.Time // not before, however stale
	urgent   bool      // what they are told next has news that gossip may not bring to all
	said     [][]byte  // our last few objects

	book   *book
	seeds  []string
	joinAt time.Time
	round  *instance   // that joins others now; nil: none does
	joins  chan joined // result of a round; one at a time
	again  bool        // there are new seeds, which that round does not know
	wants  wants

	fetchAt    time.Time // not before, while fetchPause is not 0
	fetchPause time.Duration

	differs comparison // of tables

	asked    chan uint64 // questions that were put to others
	answered uint64      // the last of them, until the core is told; 0: none

	saver   *saver
	held    [][]byte // to be said when the state is saved
	clocks  Clocks
	clone   bool // this daemon has to end
	leaving []chan error
	left    bool
	goodbye sync.WaitGroup
	parted  chan struct{} // goodbye was said
	last    *mesh.View    // to be shown then: by it the tunnels go, in which that is said

	shown *mesh.View // last; nil: none
	next  *mesh.View // to be shown when the state is saved; nil: none
}

// Run takes part until ctx is done, then saves what it knows and returns nil. It
// fails at once if it cannot listen, and with [ErrClone] if it has to end.
func (g *Gossip) Run(ctx context.Context) error {
	defer close(g.stopped)
	now := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := &loop{
		Gossip: g, ctx: ctx, slots: [2]chan struct{}{make(chan struct{}, sending), make(chan struct{}, sending)}, joins: make(chan joined, 1), asked: make(chan uint64), parted: make(chan struct{}), stale: true,
		book: newBook(g.opt.Peers, now), seeds: g.opt.Seeds, wants: wants{},
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
		case j := <-l.joins:
			l.joined(j)
		case <-l.moved:
			l.look()
		case a := <-l.answers:
			l.compare(a)
		case <-l.parted:
			if l.last != nil {
				l.show(l.last)
				l.last = nil
			}
		case ask := <-l.asked:
			l.answered = max(l.answered, ask)
		case <-timer.C:
		}
		l.drain()
		if wait := time.Until(l.stepAt); heard && wait > 0 {
			timer.Reset(wait)
			continue
		}
		if l.answered != 0 && len(l.inbox.waiting) == 0 { // the tables that came have been read
			l.opt.Core.Asked(l.answered)
			l.answered = 0
		}
		now := time.Now()
		l.lookAtClocks(now)
		if l.step(now); l.clone {
			return
		}
		l.connect(now)
		l.join(now)
		l.ask(now)
		l.saver.saveCaches(now)
		l.saver.check(now)
		now = time.Now()
		l.stepAt = now.Add(stepEvery)
		timer.Reset(l.wait(now))
	}
}

// beginLeave gives up membership, unless that could not be remembered: then all
// stays as it is.
func (l *loop) beginLeave(done chan error) {
	if err := l.opt.Store.Check(); err != nil && !l.left {
		done <- fmt.Errorf("leave mesh: %w", err)
		return
	}
	l.opt.Core.Leave(time.Now())
	l.leaving, l.left = append(l.leaving, done), true
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
	due(l.encodeAt, l.stale && l.saver.saved())
	due(l.createAt, l.inst == nil && l.address.IsValid())
	due(now, l.answered != 0)
	due(now.Add(clockEvery), l.opt.Clocks != nil)
	due(l.joinAt, l.inst != nil && !l.left && l.round == nil)
	if l.inst != nil && l.inst.count() > 0 {
		due(l.wants.next())
		due(l.fetchAt, l.fetchPause > 0)
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
		l.seeds, l.joinAt, l.again = w.seeds, time.Now(), l.round != nil
	}
	l.move(w.address)
}

// move notes the address at which members reach us, unless it tells nothing.
func (l *loop) move(address netip.AddrPort) {
	if !address.IsValid() || address.Addr().IsUnspecified() {
		return
	}
	if address.Port() == 0 {
		if l.sockets == nil {
			return
		}
		address = netip.AddrPortFrom(address.Addr(), l.sockets.port())
	}
	l.address = plain(address)
}

// connect makes the memberlist instance, or a new one after a move.
func (l *loop) connect(now time.Time) {
	if !l.address.IsValid() || l.inst != nil && (l.inst.address == l.address || l.left) || now.Before(l.createAt) {
		return
	}
	if l.inst != nil {
		l.inst.shutdown()
		l.inst = nil
	}
	inst, err := l.create(l.address)
	if err != nil {
		l.createAt = now.Add(createAgain)
		l.say.say(slog.LevelError, "gossip does not start, trying on", "address", l.address, "err", err)
		return
	}
	l.opt.Log.Debug("gossip runs", "name", inst.name, "address", inst.address)
	inst.admit(l.admitted)
	l.inst, l.joinAt = inst, now
	l.running.Store(inst)
	for _, o := range l.said {
		inst.publish(o)
	}
	l.look()
}

func (l *loop) create(address netip.AddrPort) (*instance, error) {
	var t memberlist.Transport
	var err error
	if l.sockets != nil {
		t, err = l.sockets.transport(address)
	} else {
		t, err = l.opt.Transport(address)
	}
	if err != nil {
		return nil, err
	}
	return l.newInstance(address, t)
}

// look notes who is live.
func (l *loop) look() {
	if l.inst == nil {
		return
	}
	now, live := time.Now(), slices.Collect(maps.Values(l.inst.others()))
	wasAlone := !l.book.alone.IsZero()
	l.book.see(live, now)
	if !wasAlone && len(live) == 0 {
		l.joinAt = now // the pause was for a node with company
	}
	if l.sockets != nil {
		l.sockets.know(live, l.book.known)
	}
}

// receive hands one message to the core.
func (l *loop) receive(m message) {
	defer l.inbox.done(m)
	switch m.kind {
	case msgObjects:
		for _, o := range m.objects {
			if !l.updates.tooMany(o, time.Now()) && l.take(o) {
				l.pass(o)
			}
		}
	case msgWant:
		l.answer(m)
	case msgState:
		l.takeAll(m.objects, maxSpread)
		l.opt.Core.Synced()
	}
}

// takeAll gives what an exchange has brought to the core, but for records of who says
// too much, and relays of what is news as many objects as it may. It tells what the core
// has had, and how many more may be relayed.
func (l *loop) takeAll(objects [][]byte, spread int) (given [][]byte, _ int) {
	for _, o := range objects {
		if l.updates.tooManyRecords(o, time.Now()) {
			continue
		}
		given = append(given, o)
		if l.take(o) && spread > 0 {
			l.pass(o)
			spread--
		}
	}
	return given, spread
}

// Set implements [exchange.Objects].
func (l *loop) Set() *exchange.Set { return l.told.Load().set }

// Get implements [exchange.Objects].
func (l *loop) Get(ctx context.Context, hashes []trust.Hash) (out [][]byte, err error) {
	err = l.Do(ctx, func(time.Time) {
		if l.saver.saved() { // else something might rest on what is not
			out = l.opt.Core.Lookup(hashes...)
		}
	})
	return out, err
}

// Put implements [exchange.Objects]. Others get their turn after each batch, and no
// object waits in a queue.
func (l *loop) Put(ctx context.Context, objects [][]byte, whole bool) (decided [][]byte, err error) {
	spread := maxSpread
	for rest := newest(objects); ; {
		now, later := rest[:min(len(rest), batch)], rest[min(len(rest), batch):]
		err := l.Do(ctx, func(time.Time) {
			var given [][]byte
			if given, spread = l.takeAll(now, spread); whole && len(later) == 0 {
				l.opt.Core.Synced()
			}
			decided = append(decided, given...)
		})
		if err != nil || len(later) == 0 {
			return decided, err
		}
		rest = later
	}
}

// take gives one object to the core, and tells whether it is news.
func (l *loop) take(object []byte) bool {
	hash := sha256.Sum256(object)
	now := time.Now()
	if l.known[hash] || l.taken.has(hash, now) {
		return false
	}
	err := l.opt.Core.Receive(object)
	if errors.Is(err, registry.ErrStale) {
		l.taken.add(hash)
		return false // whoever lacks what is newer gets that
	}
	if err != nil {
		l.say.say(slog.LevelWarn, "object refused", "err", err)
		return false
	}
	l.stale = true
	l.taken.add(hash)
	return l.seen.add(hash)
}

// finish ends what Run has begun, and saves.
func (l *loop) finish() {
	l.goodbye.Wait()
	if l.inst != nil {
		l.inst.shutdown()
	}
	l.tasks.Wait()
	l.saver.tableChanged = l.saver.tableChanged || l.stale
	l.saver.finish()
}
