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
