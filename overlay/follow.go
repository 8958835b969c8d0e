package overlay

import (
	"context"
	"slices"
	"time"

	"meshd/mesh"
	"meshd/overlay/plan"
)

// follow turns views into plans.
func (n *Node) follow(ctx context.Context) error {
	report := newReporter(n.opt.Log)
	take := func(view *mesh.View) error {
		report.say(mesh.Diff(n.view.Swap(view), view), time.Now())
		n.prober.SetView(view)
		return n.replan(ctx)
	}
	for {
		var planned chan struct{}
		select {
		case <-ctx.Done():
			return nil
		case view := <-n.opt.Mesh.Views():
			if err := take(view); err != nil {
				return err
			}
			continue
		case planned = <-n.waiting:
		}
		select {
		case view := <-n.opt.Mesh.Views():
			if err := take(view); err != nil {
				return err
			}
		default:
		}
		close(planned)
	}
}

// Planned waits until the node has planned by all that the mesh has shown it so far:
// what was changed at the mesh is then known to the doors of containers, too.
func (n *Node) Planned(ctx context.Context) {
	planned := make(chan struct{})
	select {
	case n.waiting <- planned:
	case <-n.stopped:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-planned:
	case <-n.stopped:
	case <-ctx.Done():
	}
}

// replan builds the plan from the newest view and underlay. It fails if the
// first plan would take traffic that this host has already; what appears later
// is a finding, and nothing is torn down for it. A network besides the default one
// that would take such traffic is left out: somebody else may have made it.
func (n *Node) replan(ctx context.Context) error {
	n.planMu.Lock()
	defer n.planMu.Unlock()
	view := n.view.Load()
	if view == nil {
		return nil
	}
	self, _ := view.Node(view.Self)
	own := plan.Own(self.Control, self.Leases)
	if !n.planned {
		if err := CheckHost(ctx, n.opt.Host, plan.Needed(view.Control, view.Networks), own, n.opt.Log); err != nil {
			return err
		}
		if _, err := n.lookAtUses(ctx, view); err != nil {
			return err
		}
		n.planned = true
	}
	all := view
	view, left := n.fit(ctx, all, own)
	if len(left) > 0 {
		if _, err := n.lookAtUses(ctx, all); err != nil { // when they go, it is to be noticed
			n.opt.Log.Warn("uses of the mesh's ranges not read, will be tried again", "err", err)
		}
	}
	under := n.underlay.Load()
	opt := plan.Options{Link: n.opt.Link, MTU: n.mtu(), NoIPv6: under.NoIPv6, NoMasquerade: n.opt.NoMasquerade, Others: under.Bridges, Paths: n.prober.Paths()}
	n.prober.SetMTU(opt.MTU)
	opt.Containers = n.contain(view, opt)
	p := plan.Build(view, opt)
	p.Health = slices.Concat(p.Health, left, plan.Stranded(view), n.delegate())
	for _, o := range plan.Overlaps(view.Ranges(), own, *n.uses.Load()) {
		p.Health = append(p.Health, mesh.Finding{Level: "error", Code: "overlap", Message: o.String()})
	}
	n.health.Store(&p.Health)
	n.loop.Set(&p)
	return nil
}
