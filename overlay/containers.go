package overlay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"meshd/mesh"
	"meshd/overlay/attach"
	"meshd/overlay/plan"
	"meshd/overlay/status"
)

// Containers gives those of this host addresses from this node's leases.
// attach.Manager is one.
type Containers interface {
	// Sync takes the mesh as it is now.
	Sync(attach.World)
	// Networks tells which networks they use, and how they hang on this host.
	Networks() []attach.Network
	// Collect takes back what has been left over for a while, and gives it.
	Collect(ctx context.Context, now time.Time) ([]attach.Attachment, error)
	// List gives what is attached.
	List() []attach.Attachment
	// Findings tells what is wrong with them.
	Findings() []mesh.Finding
}

// Delegate hands this node's subnet to programs that give out its addresses on this
// host. subnetenv.File is one.
type Delegate interface {
	// Apply tells them of a subnet. One that is not live is not theirs any more.
	Apply(attach.Subnet) error
}

// collectEvery is how often containers are looked for that have gone.
const collectEvery = 5 * time.Second

// ErrNoFirewall refuses containers where nothing would check what they send.
var ErrNoFirewall = errors.New("this host has no nftables, without which its containers could reach every network and pass for others: see the daemon's log")

// ContainersChanged has the mesh and the host follow what Containers says of its
// networks. It returns when packets of containers are kept apart as they should be
// and the host carries them, as far as it holds leases. It fails with [ErrNoFirewall]
// if there are any and nothing can keep them apart. For one caller at a time.
func (n *Node) ContainersChanged(ctx context.Context) error {
	if n.unfiltered() {
		return ErrNoFirewall
	}
	n.useMu.Lock()
	err := n.tellUses(ctx, n.opt.Containers.Networks())
	n.useMu.Unlock()
	if err != nil {
		return err
	}
	if err := n.replan(ctx); err != nil {
		return err
	}
	return n.loop.Await(ctx)
}

// tellUses tells the mesh of the networks that containers use, but for those whose
// lease was given back and that nobody has asked for since. Called with useMu.
func (n *Node) tellUses(ctx context.Context, networks []attach.Network) error {
	idle := map[string]bool{}
	for _, c := range networks {
		idle[c.Name] = n.released[c.Name] && !c.InUse && !c.Waiting
	}
	maps.DeleteFunc(n.released, func(name string, _ bool) bool { return !idle[name] })
	used, inUse := Uses(slices.DeleteFunc(slices.Clone(networks), func(c attach.Network) bool { return idle[c.Name] }))
	if slices.Equal(used, n.used) && slices.Equal(inUse, n.inUse) {
		return nil
	}
	if err := n.opt.Mesh.Use(ctx, used, inUse); err != nil {
		return err
	}
	n.used, n.inUse = used, inUse
	return nil
}

// Release gives the lease in a network back, until a container waits for one there
// or the daemon starts again. It fails with [status.ErrLeaseInUse] if one has an
// address of it, or waits already, and with [status.ErrNotNow] if there is none.
func (n *Node) Release(ctx context.Context, network string) error {
	if network == mesh.DefaultNetwork {
		return fmt.Errorf("release lease: %w: every node has one in network %s", status.ErrNotAllowed, network)
	}
	var networks []attach.Network
	if n.opt.Containers != nil {
		networks = n.opt.Containers.Networks()
	}
	n.useMu.Lock()
	defer n.useMu.Unlock()
	i := slices.IndexFunc(networks, func(c attach.Network) bool { return c.Name == network })
	switch {
	case i < 0 || n.released[network]:
		return fmt.Errorf("release lease: %w: there is none in network %s", status.ErrNotNow, network)
	case networks[i].InUse || networks[i].Waiting:
		return fmt.Errorf("release lease: %w: network %s", status.ErrLeaseInUse, network)
	}
	n.released[network] = true
	err := n.tellUses(ctx, networks)
	if err != nil {
		delete(n.released, network)
	}
	return err
}

// unfiltered tells whether there are containers, or somebody wants one, on a host
// without a firewall.
func (n *Node) unfiltered() bool {
	return n.opt.Firewall == nil && n.opt.Containers != nil && len(n.opt.Containers.Networks()) > 0
}

// Networks are those of the mesh, as far as this node knows.
func (n *Node) Networks() []mesh.Network {
	if view := n.view.Load(); view != nil {
		return view.Networks
	}
	return nil
}

// Uses lists the networks in which this node needs a lease, and those in which
// something has addresses from it.
func Uses(networks []attach.Network) (used, inUse []string) {
	for _, c := range networks {
		used = append(used, c.Name)
		if c.InUse {
			inUse = append(inUse, c.Name)
		}
	}
	return used, inUse
}

// contain tells the containers of the mesh, and the plan of the containers.
func (n *Node) contain(view *mesh.View, opt plan.Options) map[string]plan.Containers {
	if n.opt.Containers == nil {
		return nil
	}
	n.opt.Containers.Sync(attach.World{View: view, MTU: opt.MTU, NoIPv6: opt.NoIPv6})
	all := map[string]plan.Containers{}
	var subnets []attach.Subnet
	for _, c := range n.opt.Containers.Networks() {
		subnets = append(subnets, c.Subnet)
		all[c.Name] = plan.Containers{Bridge: c.Bridge, Ports: c.Ports, Former: c.Former, Delegated: c.Delegated}
	}
	if !reflect.DeepEqual(subnets, n.subnets) { // their links are to follow, at once
		n.subnets = subnets
		select {
		case n.moved <- struct{}{}:
		default:
		}
	}
	return all
}

// delegate hands on the subnet of the network that others give addresses of.
func (n *Node) delegate() []mesh.Finding {
	if n.opt.Delegate == nil {
		return nil
	}
	var s attach.Subnet
	for _, c := range n.opt.Containers.Networks() {
		if c.Delegated {
			s = c.Subnet
		}
	}
	if err := n.opt.Delegate.Apply(s); err != nil {
		return []mesh.Finding{{Level: "error", Code: "subnet_not_told", Message: err.Error()}}
	}
	return nil
}

// tend looks after the containers, from the first view on, until ctx is done.
func (n *Node) tend(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var said string
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.moved:
		case <-timer.C:
		}
		if n.view.Load() == nil {
			timer.Reset(50 * time.Millisecond)
			continue
		}
		timer.Reset(collectEvery)
		err := n.collect(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			said = ""
		case err.Error() != said:
			said = err.Error()
			n.opt.Log.Warn("containers not looked after, will be tried again", "err", err)
		}
	}
}

func (n *Node) collect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, collectEvery)
	defer cancel()
	var obstacles []string
	if f := n.opt.Firewall; f != nil && len(n.opt.Containers.Networks()) > 0 {
		var err error
		if obstacles, err = f.Obstacles(ctx); err != nil {
			return err
		}
	}
	n.obstacles.Store(&obstacles)
	ended, err := n.opt.Containers.Collect(ctx, time.Now())
	for _, a := range ended {
		n.opt.Log.Info("container has gone, its addresses are free", "id", a.ID, "network", a.Network, "addresses", a.Addresses)
	}
	return err
}
