package gossip

import (
	"context"
	"crypto/sha256"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"meshd/mesh"
	"meshd/mesh/exchange"
	"meshd/mesh/trust"
)

// step lets the core act, and does what it says: save first, then show and speak.
func (l *loop) step(now time.Time) {
	out := l.opt.Core.Step(now)
	l.clone = l.clone || out.Clone
	l.seals.sweep(now)
	l.saver.keep(out, now)
	l.stale = l.stale || out.View != nil // some things only the time changes
	if len(out.Broadcast) > 0 {
		l.stale = true
		l.held = append(l.held, out.Broadcast...)
		l.held = l.held[max(0, len(l.held)-maxHeld):]
	}
	l.wants.set(out.Want, now)
	if out.Ask != 0 {
		l.askAround(out.Ask)
	}
	switch {
	case out.View != nil && l.left:
		l.last, l.next = out.View, nil
	case out.View != nil:
		l.next = out.View
	}
	saved := l.saver.saveNow(now)
	switch {
	case saved && l.next != nil:
		l.show(l.next)
		l.next = nil
	case !saved && out.View != nil && !l.left:
		l.show(unclaimed(l.next, l.shown))
	}
	if saved {
		l.speak(now)
	}
}

// unclaimed is a view without what rests on a state that is not saved: subnets that
// this node has claimed since it started are not its own yet, unless they were shown as
// that before. All else counts at once, such as who was revoked.
func unclaimed(view, shown *mesh.View) *mesh.View {
	i := slices.IndexFunc(view.Nodes, func(n mesh.Node) bool { return n.ID == view.Self })
	if i < 0 {
		return view
	}
	var had mesh.Node
	if shown != nil {
		had, _ = shown.Node(view.Self)
	}
	isNew := func(l mesh.Lease) bool {
		return l.State == mesh.Held && l.ClaimEpoch == view.Epoch && !slices.ContainsFunc(had.Leases, func(o mesh.Lease) bool {
			return o.State == mesh.Held && o.Network == l.Network && o.Since.Equal(l.Since) && slices.Equal(o.Prefixes, l.Prefixes)
		})
	}
	self := view.Nodes[i]
	if !slices.ContainsFunc(self.Leases, isNew) {
		return view
	}
	self.Leases = slices.Clone(self.Leases)
	out := *view
	for n, l := range self.Leases {
		if !isNew(l) {
			continue
		}
		self.Leases[n].State = mesh.Pending
		if l.Network == mesh.DefaultNetwork && view.State == mesh.Ready {
			out.State = mesh.Probing
		}
	}
	out.Nodes = slices.Clone(view.Nodes)
	out.Nodes[i] = self
	return &out
}

// speak says what was held back until the state was saved.
func (l *loop) speak(now time.Time) {
	said := l.held
	l.held = nil
	l.urgent = l.urgent || len(said) > 0 && l.unheard() || slices.ContainsFunc(said, func(o []byte) bool { return len(o) > trust.MaxBroadcast })
	if l.stale && (!now.Before(l.encodeAt) || len(l.leaving) > 0) {
		l.encode()
		l.encodeAt = now.Add(encodeEvery)
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
	l.said = append(l.said, said...)
	l.said = l.said[max(0, len(l.said)-saidAgain):]
	if len(l.leaving) > 0 {
		l.sayGoodbye()
	}
}

// unheard tells whether some member does not seem to hear gossip.
func (l *loop) unheard() bool {
	if l.inst == nil {
		return true
	}
	heard := map[mesh.NodeID]bool{}
	for name := range l.inst.others() {
		if id, ok := parseName(name); ok && l.admitted[id] {
			heard[id] = true
		}
	}
	return len(heard) < l.others
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
	if !maps.Equal(known, l.known) {
		l.saver.tableChanged = true
	}
	l.known, l.stale = known, false
	l.told.Store(&told{table, exchange.NewSet(l.opt.Core.Settled())})
	if l.urgent && l.inside != nil {
		l.inside.Hurry()
	}
	l.urgent = false
}

// show publishes a view; a reader that is slow skips one.
func (l *loop) show(view *mesh.View) {
	select {
	case <-l.views:
	default:
	}
	l.views <- view // this goroutine is the only sender
	l.shown = view
	l.admitted = make(map[mesh.NodeID]bool, len(view.Nodes))
	l.others = 0
	at := map[netip.Addr]bool{}
	for _, n := range view.Nodes {
		l.admitted[n.ID] = true
		for _, e := range n.Endpoints {
			at[bare(e.Addr())] = true
		}
		if n.ID != view.Self && !n.Left {
			l.others++
		}
	}
	l.bounds.admit(at)
	if l.inside != nil {
		l.inside.SetView(view)
	}
	if l.inst != nil {
		l.inst.admit(l.admitted)
	}
}

// pass relays an object that is news, so that a broadcast reaches all: its
// author sends it to a few members only.
func (l *loop) pass(object []byte) {
	if !l.updates.note(object, time.Now()) {
		return // whoever lacks it finds that by a digest
	}
	if l.inst != nil && len(object) <= trust.MaxBroadcast {
		l.inst.relay(object)
	}
}

// sayGoodbye tells some members by stream and through tunnels what the broadcast
// says, and then memberlist, which makes the others stop probing us.
func (l *loop) sayGoodbye() {
	waiting := l.leaving
	l.leaving = nil
	inst := l.inst
	var names []string
	var msg []byte
	if inst != nil {
		names, msg = l.some(goodbyes), encodeObjects(maxAnswer, l.said...)
	}
	inside := l.inside
	var ids []mesh.NodeID
	if inside != nil {
		ids = inside.Others(goodbyes)
	}
	l.goodbye.Go(func() {
		told := make(chan error, len(names)+len(ids))
		for _, id := range ids {
			l.tasks.Go(func() { told <- inside.With(l.ctx, id) })
		}
		for _, name := range names {
			l.tasks.Go(func() { told <- inst.send(name, msg) })
		}
		timer := time.NewTimer(dialTimeout)
		defer timer.Stop()
		var errs []error
		for len(errs) < cap(told) {
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
		select {
		case l.parted <- struct{}{}:
		case <-l.ctx.Done():
		}
	})
}

// recent remembers the last few thousand hashes.
type recent struct{ young, old map[[sha256.Size]byte]bool }

// recentSize is how many are remembered at least: all objects of a large mesh,
// in 300 KB.
const recentSize = 4096

// has tells whether a hash is remembered.
func (r *recent) has(h [sha256.Size]byte) bool { return r.young[h] || r.old[h] }

// takenFor is how long an object that the core took in, or found outdated, is not
// given to it again. Everybody sends an object to everybody about ten times within
// some seconds. What the core forgets in that time comes again later.
const takenFor = 10 * time.Second

// taken are the objects that the core has had of late.
type taken struct {
	recent
	since time.Time
}

func (t *taken) has(h [sha256.Size]byte, now time.Time) bool {
	if now.Sub(t.since) >= takenFor {
		*t = taken{since: now}
	}
	return t.recent.has(h)
}

// add tells whether a hash was not remembered.
func (r *recent) add(h [sha256.Size]byte) bool {
	if r.has(h) {
		return false
	}
	if r.young == nil || len(r.young) >= recentSize {
		r.young, r.old = map[[sha256.Size]byte]bool{}, r.young
	}
	r.young[h] = true
	return true
}
