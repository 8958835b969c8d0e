// Package plan turns what a node knows of the mesh into what its host should do.
//
// [Build] is a pure function, so every decision about who gets which traffic is
// made, and can be read and tested, in one place.
package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"meshd/mesh"
	"meshd/overlay/tunnel"
	"meshd/tun"
)

// Plan is everything that the adapters of a host should make true.
type Plan struct {
	Tunnel tunnel.Config
	Host   tun.HostState
	Rules  tun.Rules
	Health []mesh.Finding // about members whose wishes were not granted
}

// Options are what the plan takes from this host.
type Options struct {
	Link string // name of the TUN device
	MTU  int    // of the TUN device, in bytes
	// NoIPv6 leaves out what the kernel cannot do. Such a host carries IPv4 and
	// has no control address.
	NoIPv6 bool
	// NoMasquerade leaves containers their addresses also outside of the mesh.
	NoMasquerade bool
	// Others are interfaces that lead to containers that are not on the mesh.
	Others []string
	// Containers are those of this host, by the names of their networks.
	Containers map[string]Containers
	// Paths says how long packets may be, in bytes, to peers to which the path carries
	// less than the TUN device sends.
	Paths map[mesh.NodeID]int
}

// Containers are what a network has on this host besides the host itself.
type Containers struct {
	Bridge string // which they share; empty: none does
	Ports  []tun.Port
	Former []netip.Prefix // subnets of which some still have addresses
	// Delegated: others give out the addresses of this node's subnet.
	Delegated bool
}

// links are the interfaces by which their packets come in a network of that name.
func (c Containers) links(network string) []string {
	var all []string
	if c.Bridge != "" {
		all = append(all, c.Bridge)
	}
	for _, p := range c.Ports {
		if name := hostLink(network, p); p.Kind != tun.PortBridge && !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

// Build makes the plan for the node whose view is given.
//
//	control range   ── dev mesh0, from our control address
//	mesh range      ── dev mesh0, from our address in our lease; only while it is held
//	both            ── unreachable behind that, for when the device is gone
//	our own lease   ── unreachable: what has no owner on this host stops here
//	  with a bridge ── the bridge, also while the lease is quarantined
//
// The firewall keeps the networks apart, also where this node holds no lease.
// A node that has left wants nothing.
func Build(view *mesh.View, opt Options) Plan {
	self, member := view.Node(view.Self)
	if self.Left || view.State == mesh.Left {
		return Plan{}
	}
	p := Plan{Host: tun.HostState{Link: opt.Link, MTU: opt.MTU, Forwarding: true}}
	p.Tunnel.Inside = view.Ranges()
	for _, r := range p.Tunnel.Inside {
		p.Host.Routes = append(p.Host.Routes, tun.Route{Dst: r, Unreachable: true})
	}
	if member { // else not admitted yet: nothing may pass, and nothing may leak
		p.addControl(view, self)
		for _, l := range self.Leases {
			if l.State == mesh.Held {
				p.addLease(view, l)
			}
		}
		p.Tunnel.Renewal = view.Contested
		if !view.Withheld {
			p.addPeers(view, self)
			p.narrow(opt)
		}
	}
	p.Host.Bridges, p.Host.LANs = bridges(view, self, opt), lans(view, self, opt)
	p.Rules = rules(view, self, opt)
	if p.Host = p.Host.Normal(); opt.NoIPv6 {
		p.Host = p.Host.WithoutIPv6()
	}
	return p
}

// addControl makes this node reachable by its control address.
func (p *Plan) addControl(view *mesh.View, self mesh.Node) {
	addr := netip.PrefixFrom(self.Control, self.Control.BitLen())
	p.Tunnel.Own = append(p.Tunnel.Own, addr)
	p.Host.Addresses = append(p.Host.Addresses, addr)
	p.Host.Routes = append(p.Host.Routes, tun.Route{Dst: view.Control, Src: self.Control})
}

// addLease opens a network by way of our lease in it.
func (p *Plan) addLease(view *mesh.View, l mesh.Lease) {
	for _, prefix := range l.Prefixes {
		host := mesh.FirstHost(prefix)
		p.Tunnel.Own = append(p.Tunnel.Own, prefix)
		p.Host.Addresses = append(p.Host.Addresses, netip.PrefixFrom(host, host.BitLen()))
		p.Host.Routes = append(p.Host.Routes, tun.Route{Dst: prefix, Unreachable: true})
		for _, n := range view.Networks {
			for _, r := range n.Ranges() {
				if n.Name == l.Network && r.Contains(host) {
					p.Host.Routes = append(p.Host.Routes, tun.Route{Dst: r, Src: host})
				}
			}
		}
	}
}

// addPeers gives every other member a tunnel. Two members with one tunnel key or
// one control address cannot both have it: the one does that has proved to have the
// key's private half, or the senior one if neither has, since the other has copied
// what is public.
func (p *Plan) addPeers(view *mesh.View, self mesh.Node) {
	members := slices.Clone(view.Nodes)
	slices.SortFunc(members, func(a, b mesh.Node) int {
		unproven := func(n mesh.Node) int { return map[bool]int{false: 1}[n.Proven] }
		return cmp.Or(unproven(a)-unproven(b), a.Admitted.Compare(b.Admitted), a.ID.Compare(b.ID))
	})
	keys := map[mesh.Key]mesh.NodeID{self.Key: self.ID}
	controls := map[netip.Addr]mesh.NodeID{self.Control: self.ID}
	for _, n := range members {
		if n.ID == self.ID || n.Left || n.Key.IsZero() {
			continue
		}
		holder, taken := keys[n.Key]
		if !taken {
			holder, taken = controls[n.Control]
		}
		if taken {
			p.Health = append(p.Health, mesh.Finding{
				Level: "warning", Code: "key_in_use",
				Message: fmt.Sprintf("node %s (%s) shows the tunnel key or control address of node %s and gets no tunnel", n.Name, n.ID.Short(), holder.Short()),
			})
			continue
		}
		keys[n.Key], controls[n.Control] = n.ID, n.ID
		p.Tunnel.Peers = append(p.Tunnel.Peers, peer(n, suite(self, n)))
	}
	slices.SortFunc(p.Tunnel.Peers, func(a, b tunnel.Peer) int { return a.ID.Compare(b.ID) })
}

// narrow has senders heed the paths on which what is too large gets lost without a
// word. Routes tell the kernel, and it tells containers; what those do of TCP over
// IPv6, where nobody is told of less than 1280, is for the engine.
//
//	peer's prefix ── dev mesh0, mtu of the path
func (p *Plan) narrow(opt Options) {
	wide := p.Host.Routes
	for i := range p.Tunnel.Peers {
		to := &p.Tunnel.Peers[i]
		mtu := opt.Paths[to.ID]
		if mtu == 0 || mtu >= opt.MTU {
			continue
		}
		to.MTU = mtu
		for _, prefix := range to.AllowedIPs {
			for _, r := range wide {
				if !r.Unreachable && r.Dst.Contains(prefix.Addr()) {
					p.Host.Routes = append(p.Host.Routes, tun.Route{Dst: prefix, Src: r.Src, MTU: mtu})
				}
			}
		}
	}
}

// suite is what two nodes talk in: AES if both offer it, by their signed records,
// so that nobody on the way can talk them down. All others speak WireGuard.
func suite(a, b mesh.Node) string {
	if slices.Contains(a.Suites, tunnel.AES256GCM) && slices.Contains(b.Suites, tunnel.AES256GCM) {
		return tunnel.AES256GCM
	}
	return tunnel.ChaCha20Poly1305
}

// peer gives a member its own addresses and nothing else.
func peer(n mesh.Node, suite string) tunnel.Peer {
	out := tunnel.Peer{
		ID: n.ID, PublicKey: n.Key, Endpoints: n.Endpoints, Suite: suite,
		AllowedIPs: []netip.Prefix{netip.PrefixFrom(n.Control, n.Control.BitLen())},
	}
	for _, l := range n.Leases {
		if l.State == mesh.Held {
			out.AllowedIPs = append(out.AllowedIPs, l.Prefixes...)
		}
	}
	return out
}
