package overlay

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"meshd/mesh"
	"meshd/overlay/plan"
	"meshd/tun"
)

// Network is what a host has in some ranges of addresses that is not ours.
type Network interface {
	// Uses lists routes, gateways and addresses.
	Uses(ctx context.Context, ranges ...netip.Prefix) ([]tun.Use, error)
	// Connections lists the TCP connections from elsewhere to the ranges.
	Connections(ctx context.Context, ranges ...netip.Prefix) ([]tun.Use, error)
}

// CheckHost fails with [ErrOverlap] if a node with these ranges and own addresses
// would take traffic that the host has already. Run does the same before it
// touches the host; whoever knows the ranges earlier can spare the rest.
func CheckHost(ctx context.Context, host Network, ranges, own []netip.Prefix, log *slog.Logger) error {
	uses, err := host.Uses(ctx, ranges...)
	if err != nil {
		return err
	}
	connections, err := host.Connections(ctx, ranges...)
	if err != nil {
		log.Warn("TCP connections not read, not looking whether one would be cut off", "err", err)
	}
	overlaps := plan.Overlaps(ranges, own, slices.Concat(uses, connections))
	if len(overlaps) > 0 {
		return fmt.Errorf("%w: %s", ErrOverlap, overlaps[0])
	}
	return nil
}

// fit leaves out of a view those networks which would take traffic that this host
// has already, but for such as it carries by now.
func (n *Node) fit(ctx context.Context, view *mesh.View, own []netip.Prefix) (*mesh.View, []mesh.Finding) {
	carried, left := map[string]mesh.Network{}, []mesh.Finding(nil)
	for _, network := range view.Networks {
		if network.Name != mesh.DefaultNetwork && n.carried[network.Name] != network {
			if err := CheckHost(ctx, n.opt.Host, network.Ranges(), own, n.opt.Log); err != nil {
				left = append(left, mesh.Finding{Level: "error", Code: "network_left_out",
					Message: fmt.Sprintf("network %s is not carried on this host: %v", network.Name, err)})
				continue
			}
		}
		carried[network.Name] = network
	}
	n.carried = carried
	if len(left) == 0 {
		return view, nil
	}
	fitting := *view
	isCarried := func(name string) bool { _, ok := carried[name]; return ok }
	fitting.Networks = slices.DeleteFunc(slices.Clone(view.Networks), func(network mesh.Network) bool { return !isCarried(network.Name) })
	fitting.Nodes = slices.Clone(view.Nodes)
	for i := range fitting.Nodes {
		leases := slices.Clone(fitting.Nodes[i].Leases)
		fitting.Nodes[i].Leases = slices.DeleteFunc(leases, func(l mesh.Lease) bool { return !isCarried(l.Network) })
	}
	return &fitting, left
}

// lookAtUses learns what the host has in the ranges of the mesh, and tells
// whether that has changed.
func (n *Node) lookAtUses(ctx context.Context, view *mesh.View) (changed bool, err error) {
	uses, err := n.opt.Host.Uses(ctx, view.Ranges()...)
	if err != nil {
		return false, err
	}
	was := n.uses.Swap(&uses)
	return was != nil && !slices.Equal(*was, uses), nil
}
