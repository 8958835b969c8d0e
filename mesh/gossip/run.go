package gossip

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"meshd/mesh"
	"meshd/mesh/member"
	"meshd/mesh/trust"
)

// loop is everything that Run's goroutine owns.
type loop struct {
	*Gossip
	ctx     context.Context
	sockets *sockets // nil with a transport from the options
	tasks   sync.WaitGroup
	slots   chan struct{} // taken by those tasks that send

	inst     *instance // nil: none yet
	address  netip.AddrPort
	createAt time.Time // not before

	known map[[sha256.Size]byte]bool // hashes of the table's objects
	seen  recent                     // objects that came, for relaying each once
	stale bool                       // the encoded table is
	said  [][]byte                   // our last few objects

	book   *book
	joinAt time.Time
	round  *instance  // that joins others now; nil: none does
	joins  chan error // result of a round; one at a time
	wants  wants

	unsaved *member.State // what SaveState has not taken yet
	saveAt  time.Time
	held    [][]byte // to be said after that
	leaving []chan error
	left    bool
	goodbye sync.WaitGroup

	tableUnsaved bool
	tableAt      time.Time
	peersAt      time.Time

	live     map[mesh.NodeID]bool
	gone     map[mesh.NodeID]time.Time
	lastSync time.Time
	refused  uint64
}

// Run takes part until ctx is done, then saves what it knows and returns nil. It
// fails at once if it cannot listen.
func (g *Gossip) Run(ctx context.Context) error {
	defer close(g.stopped)
	now := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := &loop{
		Gossip: g, ctx: ctx, slots: make(chan struct{}, sending), joins: make(chan error, 1), stale: true,
		book: newBook(g.opt.Peers, now), wants: wants{}, tableAt: now.Add(tableEvery),
		gone: map[mesh.NodeID]time.Time{},
	}
	if g.opt.Transport == nil {
		s, err := listen(g.opt.Bind)
		if err != nil {
			return fmt.Errorf("gossip: %w", err)
		}
		defer s.close()
		l.sockets = s
		s.know(l.book.known)
	}
	l.move(g.opt.Bind)
	l.move(g.opt.Advertise)
	l.obey()
	l.run()
	cancel()
	l.finish()
	return nil
}

func (l *loop) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case m := <-l.inbox:
			l.receive(m)
		case <-l.poke:
			l.obey()
		case done := <-l.Gossip.leave:
			l.opt.Core.Leave(time.Now())
			l.leaving, l.left = append(l.leaving, done), true
		case err := <-l.joins:
			l.joined(err)
		case <-l.moved:
		case <-timer.C:
		}
		l.drain()
		l.look()
		now := time.Now()
		l.step(now)
		l.connect(now)
		l.join(now)
		l.ask(now)
		l.save(now)
		timer.Reset(l.wait(time.Now()))
	}
}

// drain takes in what else has come, so that a burst costs one step.
func (l *loop) drain() {
	for range batch {
		select {
		case m := <-l.inbox:
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
	due(l.saveAt, l.unsaved != nil)
	due(l.createAt, l.inst == nil && l.address.IsValid())
	due(l.joinAt, l.inst != nil && !l.left && l.round == nil)
	if len(l.live) > 0 {
		due(l.wants.next())
	}
	due(l.tableAt, l.tableUnsaved)
	due(l.peersAt, l.book.changed)
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
		l.opt.Core.SetEndpoints(time.Now(), w.endpoints)
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
	l.inst, l.joinAt = inst, now
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
	inst, err := l.newInstance(address, t)
	if err != nil {
		return nil, errors.Join(err, t.Shutdown())
	}
	return inst, nil
}

// look notes who is live.
func (l *loop) look() {
	if l.inst == nil {
		return
	}
	now, others := time.Now(), l.inst.others()
	addresses := slices.Collect(maps.Values(others))
	wasAlone := !l.book.alone.IsZero()
	l.book.see(addresses, now)
	if l.sockets != nil {
		l.sockets.know(addresses, l.book.known)
	}
	if !wasAlone && len(others) == 0 {
		l.joinAt = now // the pause was for a node with company
	}
	live := identities(others)
	for id := range l.live {
		if !live[id] {
			l.gone[id] = now
		}
	}
	for id := range live {
		delete(l.gone, id)
	}
	for len(l.gone) > maxPeers {
		for id := range l.gone { // any: it is a hint
			delete(l.gone, id)
			break
		}
	}
	l.live = live
	l.stats.Store(&Stats{
		Name: l.inst.name, Address: l.inst.address,
		Live: slices.SortedFunc(maps.Keys(live), mesh.NodeID.Compare), Gone: maps.Clone(l.gone),
		LastSync: l.lastSync, Refused: l.refused,
	})
}

// receive hands one message to the core.
func (l *loop) receive(m message) {
	switch m.kind {
	case msgObjects:
		for _, o := range m.objects {
			if l.take(o) {
				l.pass(o)
			}
		}
	case msgWant:
		l.answer(m)
	case msgState:
		spread := maxSpread
		for _, o := range m.objects {
			if l.take(o) && spread > 0 {
				l.pass(o)
				spread--
			}
		}
		l.lastSync = time.Now()
		l.opt.Core.Synced(l.lastSync)
	}
}

// take gives one object to the core, and tells whether it is news.
func (l *loop) take(object []byte) bool {
	hash := sha256.Sum256(object)
	if l.known[hash] {
		return false
	}
	if err := l.opt.Core.Receive(time.Now(), object); err != nil {
		l.refused++
		l.say.say(slog.LevelWarn, "object refused", "err", err)
		return false
	}
	l.stale = true
	return l.seen.add(hash)
}

// pass relays an object that is news, so that a broadcast reaches all: its
// author sends it to a few members only.
func (l *loop) pass(object []byte) {
	if l.inst != nil && len(object) <= trust.MaxBroadcast {
		l.inst.relay(object)
	}
}

// step lets the core act, and does what it says: save first, then speak.
func (l *loop) step(now time.Time) {
	out := l.opt.Core.Step(now)
	if out.Save != nil {
		l.unsaved, l.saveAt = out.Save, now
	}
	if len(out.Broadcast) > 0 {
		l.stale = true
		l.held = append(l.held, out.Broadcast...)
		l.held = l.held[max(0, len(l.held)-maxHeld):]
	}
	l.wants.set(out.Want, now)
	if out.View != nil {
		l.show(out.View)
	}
	if l.unsaved != nil && !now.Before(l.saveAt) {
		if err := l.opt.Store.SaveState(*l.unsaved); err != nil {
			l.saveAt = now.Add(saveAgain)
			l.say.say(slog.LevelError, "state is not saved, so nothing new is said; trying on", "err", err)
		} else {
			l.unsaved = nil
			l.tableAt = now // has the admission, without which a lease counts for nothing after a restart alone
		}
	}
	if l.unsaved == nil {
		l.speak()
	}
}

// speak says what was held back until the state was saved.
func (l *loop) speak() {
	if l.stale {
		l.encode()
	}
	said := l.held
	l.held = nil
	for _, o := range said {
		if len(o) > trust.MaxBroadcast {
			// It is in the table, and is fetched from there.
			continue
		}
		if l.inst != nil {
			l.inst.publish(o)
		}
	}
	l.said = append(l.said, said...)
	l.said = l.said[max(0, len(l.said)-saidAgain):]
	if len(l.leaving) > 0 {
		l.sayGoodbye()
	}
}

// encode makes the table that exchanges carry.
func (l *loop) encode() {
	table := l.opt.Core.Table()
	encoded := appendObjects(nil, maxState-maxName-2, table)
	l.table.Store(&encoded)
	known := make(map[[sha256.Size]byte]bool, len(table))
	for _, o := range table {
		known[sha256.Sum256(o)] = true
	}
	if !maps.Equal(known, l.known) {
		l.tableUnsaved = true
	}
	l.known, l.stale = known, false
}

// show publishes a view; a reader that is slow skips one.
func (l *loop) show(view *mesh.View) {
	select {
	case <-l.views:
	default:
	}
	l.views <- view // this goroutine is the only sender
}

// join looks for members, one round at a time.
func (l *loop) join(now time.Time) {
	if l.inst == nil || l.left || l.round != nil || now.Before(l.joinAt) {
		return
	}
	l.round = l.inst
	inst, alone := l.inst, !l.book.alone.IsZero()
	known, live := slices.Clone(l.book.known), slices.Collect(maps.Values(inst.others()))
	own := []netip.AddrPort{inst.address}
	if l.sockets != nil {
		for _, a := range []netip.Addr{l.opt.Bind.Addr(), netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
			own = append(own, netip.AddrPortFrom(a, l.sockets.port()))
		}
	}
	l.tasks.Go(func() {
		seeds := l.resolveSeeds(alone)
		l.joins <- inst.join(targets(alone, seeds, known, live, own))
	})
}

// resolveSeeds looks all seeds up, or one of them if we have company.
func (l *loop) resolveSeeds(all bool) []netip.AddrPort {
	seeds := l.opt.Seeds
	if n := len(seeds); !all && n > 1 {
		i := rand.IntN(n)
		seeds = seeds[i : i+1]
	}
	found := make([][]netip.AddrPort, len(seeds))
	var wait sync.WaitGroup
	for i, s := range seeds {
		wait.Go(func() {
			addresses, err := resolve(l.ctx, s)
			if err != nil && l.ctx.Err() == nil {
				l.say.say(slog.LevelWarn, "seed not found, trying on", "seed", s, "err", err)
			}
			found[i] = addresses
		})
	}
	wait.Wait()
	return slices.Concat(found...)
}

// join exchanges tables with each address, all at the same time. The error is
// one of them, if none answered.
func (i *instance) join(addresses []netip.AddrPort) error {
	results := make([]error, len(addresses))
	var wait sync.WaitGroup
	for n, a := range addresses {
		wait.Go(func() { _, results[n] = i.list.Join([]string{a.String()}) })
	}
	wait.Wait()
	if len(results) == 0 || slices.Contains(results, nil) {
		return nil
	}
	return results[0]
}

// joined ends a round.
func (l *loop) joined(err error) {
	now := time.Now()
	if l.round == l.inst { // else a new instance begins at once
		l.joinAt = now.Add(l.book.pause(now))
	}
	l.round = nil
	if err != nil && !l.book.alone.IsZero() {
		l.say.say(slog.LevelInfo, "no member answers yet, trying on", "err", err)
	}
}

// ask sends wants that are due to two random members: one may lack what we want.
func (l *loop) ask(now time.Time) {
	if l.inst == nil || len(l.live) == 0 {
		return
	}
	hashes := l.wants.take(now)
	if len(hashes) == 0 {
		return
	}
	for _, name := range l.some(2) {
		l.send(name, encodeWant(l.inst.name, hashes))
	}
}

// some draws up to n live members.
func (l *loop) some(n int) []string {
	names := slices.Collect(maps.Keys(l.inst.others()))
	rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	return names[:min(n, len(names))]
}

// answer sends what a member asked for.
func (l *loop) answer(m message) {
	if l.inst == nil || m.from == l.inst.name {
		return
	}
	var objects [][]byte
	sent := map[string]bool{}
	for _, h := range m.hashes {
		for _, o := range l.opt.Core.Lookup(h) {
			if !sent[string(o)] {
				sent[string(o)] = true
				objects = append(objects, o)
			}
		}
	}
	if len(objects) > 0 {
		l.send(m.from, encodeObjects(maxAnswer, objects...))
	}
}

// send delivers by stream, beside the loop. If too much is on its way it is
// left out: who wants something asks again.
func (l *loop) send(name string, msg []byte) {
	select {
	case l.slots <- struct{}{}:
	default:
		l.dropped.Add(1)
		return
	}
	inst := l.inst
	l.tasks.Go(func() {
		defer func() { <-l.slots }()
		if err := inst.send(name, msg); err != nil && inst.ctx.Err() == nil {
			l.say.say(slog.LevelDebug, "message not delivered", "err", err)
		}
	})
}

// sayGoodbye tells some members by stream what the broadcast says, and then
// memberlist, which makes the others stop probing us.
func (l *loop) sayGoodbye() {
	waiting := l.leaving
	l.leaving = nil
	inst := l.inst
	var names []string
	var msg []byte
	if inst != nil {
		names, msg = l.some(goodbyes), encodeObjects(maxAnswer, l.said...)
	}
	l.goodbye.Go(func() {
		told := make(chan error, len(names))
		for _, name := range names {
			l.tasks.Go(func() { told <- inst.send(name, msg) })
		}
		timer := time.NewTimer(dialTimeout)
		defer timer.Stop()
		var errs []error
		for len(errs) < len(names) {
			var err error
			select {
			case err = <-told:
			case <-timer.C:
				err = context.DeadlineExceeded
			}
			if err == nil {
				errs = nil
				break
			}
			errs = append(errs, err)
		}
		if len(errs) > 0 {
			l.opt.Log.Warn("left, and could tell no other member so", "err", errors.Join(errs...))
		}
		if inst != nil {
			_ = inst.list.Leave(leaveWait) // it is a courtesy
		}
		for _, done := range waiting {
			done <- nil
		}
	})
}

// save writes the caches that have changed.
func (l *loop) save(now time.Time) {
	if l.tableUnsaved && !now.Before(l.tableAt) {
		l.tableAt = now.Add(tableEvery)
		l.saveTable()
	}
	if l.book.changed && !now.Before(l.peersAt) {
		l.peersAt = now.Add(peersEvery)
		l.savePeers()
	}
}

func (l *loop) saveTable() {
	l.tableUnsaved = false
	if err := l.opt.Store.SaveTable(l.opt.Core.Table()); err != nil {
		l.tableUnsaved = true
		l.say.say(slog.LevelWarn, "table not saved, trying on", "err", err)
	}
}

func (l *loop) savePeers() {
	l.book.changed = false
	if err := l.opt.Store.SavePeers(l.book.known); err != nil {
		l.book.changed = true
		l.say.say(slog.LevelWarn, "peers not saved, trying on", "err", err)
	}
}

// finish ends what Run has begun, and saves.
func (l *loop) finish() {
	l.goodbye.Wait()
	if l.inst != nil {
		l.inst.shutdown()
	}
	l.tasks.Wait()
	if l.unsaved != nil {
		if err := l.opt.Store.SaveState(*l.unsaved); err != nil {
			l.opt.Log.Error("state is not saved", "err", err)
		}
	}
	if l.tableUnsaved {
		l.saveTable()
	}
	if l.book.changed {
		l.savePeers()
	}
}

// recent remembers the last few thousand hashes.
type recent struct{ young, old map[[sha256.Size]byte]bool }

// recentSize is how many are remembered at least: all objects of a large mesh,
// in 300 KB.
const recentSize = 4096

// add tells whether a hash was not remembered.
func (r *recent) add(h [sha256.Size]byte) bool {
	if r.young[h] || r.old[h] {
		return false
	}
	if r.young == nil || len(r.young) >= recentSize {
		r.young, r.old = map[[sha256.Size]byte]bool{}, r.young
	}
	r.young[h] = true
	return true
}
