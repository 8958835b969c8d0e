package plan

import (
	"net/netip"

	"meshd/mesh"
	"meshd/tun"
)

// subnets lists this node's subnets in a network from which containers may have
// addresses: those that it holds, and one that it keeps for local traffic.
func subnets(self mesh.Node, network string) []netip.Prefix {
	var all []netip.Prefix
	for _, l := range self.Leases {
		if l.Network == network && (l.State == mesh.Held || l.State == mesh.Quarantined) {
			all = append(all, l.Prefixes...)
		}
	}
	return all
}

// bridges are those of the networks whose containers share one. The host is on
// each, with the address that it has in the network anyway.
func bridges(view *mesh.View, self mesh.Node, opt Options) []tun.Bridge {
	var all []tun.Bridge
	for _, n := range view.Networks {
		name := opt.Containers[n.Name].Bridge
		if name == "" {
			continue
		}
		b := tun.Bridge{Name: name, MTU: opt.MTU}
		for _, p := range subnets(self, n.Name) {
			b.Addresses = append(b.Addresses, netip.PrefixFrom(mesh.FirstHost(p), p.Bits()))
		}
		all = append(all, b)
	}
	return all
}

// controlSegment is the name of the segment of the control addresses, which no
// network can have.
const controlSegment = "control addresses"

// rules keep apart what does not belong together.
func rules(view *mesh.View, self mesh.Node, opt Options) tun.Rules {
	control := tun.Segment{Name: controlSegment, Ranges: []netip.Prefix{view.Control}}
	if self.Control.IsValid() {
		control.Own = []netip.Prefix{netip.PrefixFrom(self.Control, self.Control.BitLen())}
	}
	r := tun.Rules{Link: opt.Link, Masquerade: !opt.NoMasquerade, Segments: []tun.Segment{control}}
	for _, n := range view.Networks {
		r.Segments = append(r.Segments, tun.Segment{
			Name: n.Name, Ranges: n.Ranges(), Own: subnets(self, n.Name), Links: opt.Containers[n.Name].links(),
			Delegated: opt.Containers[n.Name].Delegated,
		})
		for _, p := range opt.Containers[n.Name].Ports {
			if p.Name != "" { // else its packets do not come by this host's links
				r.Ports = append(r.Ports, p)
			}
		}
	}
	return r.Normal()
}
