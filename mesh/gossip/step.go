package gossip

import (
	"slices"
	"time"

	"meshd/mesh"
)

// step lets the core act, and does what it says: save first, then show and speak.
func (l *loop) step(now time.Time) {
	out := l.opt.Core.Step(now)
	l.clone = l.clone || out.Clone
	l.seals.sweep(now)
	l.saver.keep(out, now)
	l.speech.stale = l.speech.stale || out.View != nil // some things only the time changes
	l.speech.hold(out.Broadcast)
	l.wants.set(out.Want, now)
	if out.Ask != 0 {
		l.asking.takeUp(out.Ask, now)
	}
	switch {
	case out.View != nil && l.parting.left:
		l.parting.last, l.toShow = out.View, nil
	case out.View != nil:
		l.toShow = out.View
	}
	saved := l.saver.saveNow(now)
	switch {
	case saved && l.toShow != nil:
		l.show(l.toShow)
		l.toShow = nil
	case !saved && out.View != nil && !l.parting.left:
		l.show(unclaimed(l.toShow, l.roster.view))
	}
	if saved {
		l.speak(now)
		l.askAround(now)
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
	had, _ := shown.Node(view.Self)
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

// show publishes a view; a reader that is slow skips one.
func (l *loop) show(view *mesh.View) {
	select {
	case <-l.views:
	default:
	}
	l.views <- view // this goroutine is the only sender
	l.roster.set(view)
	l.bounds.admit(l.roster.hosts())
	if l.inside != nil {
		l.inside.SetView(view)
	}
	if l.inst != nil {
		l.inst.admit(l.roster.admitted)
	}
}
