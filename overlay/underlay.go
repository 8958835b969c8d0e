package overlay

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"meshd/tun"
)

// tunnelOverhead is what a tunnel packet adds, in bytes: IPv6 40, UDP 8,
// WireGuard's header 16 and tag 16. IPv4 takes 20 less, but a path may change.
const tunnelOverhead = 40 + 8 + 16 + 16

const (
	// lookAround is when the underlay is read even if no event came: one may have been
	// lost, and of sysctls there are none.
	lookAround = 30 * time.Second
	// lookSoon is the same while a sysctl is not as it should be: somebody may mend it, and
	// look whether it helped.
	lookSoon = 10 * time.Second
	// lookAgain is when it is read again after that went wrong.
	lookAgain = time.Second
)

// watch follows the host: repairs what others change, and tells the mesh where
// this node can be reached.
func (n *Node) watch(ctx context.Context, events <-chan struct{}) error {
	timer := time.NewTimer(lookSoon)
	defer timer.Stop()
	var p pace
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-events:
			if !pause(ctx, p.next(time.Now())) {
				return nil
			}
			select {
			case <-events: // came meanwhile
			default:
			}
			n.loop.Repair()
		case <-n.changed:
			if err := n.replan(ctx); err != nil {
				return err
			}
		case <-timer.C:
		}
		next := lookAround
		if err := n.lookAtUnderlay(ctx); err != nil && ctx.Err() == nil {
			n.opt.Log.Warn("underlay not read, will be tried again", "err", err)
			next = lookAgain
		} else if u := n.underlay.Load(); u != nil && (u.NoForwarding || u.NoIPv6) {
			next = lookSoon
		}
		timer.Reset(next)
	}
}

// lookAtUnderlay learns how this host can be reached, and passes it on.
func (n *Node) lookAtUnderlay(ctx context.Context) error {
	view := n.view.Load()
	var ranges []netip.Prefix
	if view != nil {
		ranges = view.Ranges()
	}
	u, err := n.opt.Host.Underlay(ctx, ranges...)
	if err != nil {
		return err
	}
	moved := false
	if view != nil {
		if moved, err = n.lookAtUses(ctx, view); err != nil {
			return err
		}
	}
	old := n.underlay.Swap(&u)
	n.opt.Mesh.SetEndpoints(n.endpoints(u))
	if addr, ok := n.gossipAddress(u); ok {
		n.opt.Mesh.SetAddress(addr)
	}
	if old == nil {
		return nil
	}
	if old.MTU != u.MTU || old.NoIPv6 != u.NoIPv6 {
		n.opt.Log.Info("underlay changed", "mtu", u.MTU)
	} else if !moved && slices.Equal(old.Bridges, u.Bridges) {
		return nil
	}
	return n.replan(ctx)
}

// endpoints are where peers reach the tunnel.
func (n *Node) endpoints(u tun.Underlay) []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range *n.advertise.Load() {
		if a.Port() == 0 {
			a = netip.AddrPortFrom(a.Addr(), n.opt.TunnelPort)
		}
		out = append(out, a)
	}
	if len(out) == 0 {
		for _, a := range u.Addresses {
			out = append(out, netip.AddrPortFrom(a, n.opt.TunnelPort))
		}
	}
	return out
}

// gossipAddress is where members reach gossip: the first address of the tunnel,
// with gossip's own port.
func (n *Node) gossipAddress(u tun.Underlay) (netip.AddrPort, bool) {
	if all := n.endpoints(u); len(all) > 0 {
		return netip.AddrPortFrom(all[0].Addr(), n.opt.GossipPort), true
	}
	return netip.AddrPort{}, false
}

// mtu is that of the TUN device.
func (n *Node) mtu() int {
	if mtu := n.mtuSet.Load(); mtu != 0 {
		return int(mtu)
	}
	under := 1500
	if u := n.underlay.Load(); u != nil && u.MTU != 0 {
		under = u.MTU
	}
	return max(under-tunnelOverhead, 1280) // IPv6 does not work below
}
