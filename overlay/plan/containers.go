package plan

import (
	"crypto/sha256"
	"encoding/base32"
	"net/netip"
	"slices"
	"strings"

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
		own := subnets(self, n.Name)
		b := tun.Bridge{Name: name, MTU: opt.MTU}
		for _, p := range own {
			b.Addresses = append(b.Addresses, netip.PrefixFrom(mesh.FirstHost(p), p.Bits()))
		}
		for _, p := range opt.Containers[n.Name].Ports {
			if p.Kind != tun.PortBridge {
				b.Beside = append(b.Beside, ofSubnets(own, p.Addresses)...)
			}
		}
		all = append(all, b)
	}
	return all
}

// lans are the host's links beside those of containers on physical ones: one for
// each network, that it can be told apart.
func lans(view *mesh.View, self mesh.Node, opt Options) []tun.LAN {
	var all []tun.LAN
	for _, n := range view.Networks {
		own := subnets(self, n.Name)
		first := len(all)
		for _, p := range opt.Containers[n.Name].Ports {
			name := hostLink(n.Name, p)
			if !p.Kind.IsLAN() || len(own) == 0 || slices.ContainsFunc(all[first:], func(l tun.LAN) bool { return l.Name == name }) {
				continue
			}
			l := tun.LAN{Kind: p.Kind, Name: name, Parent: p.Parent, MTU: opt.MTU}
			for _, s := range own {
				l.Addresses = append(l.Addresses, mesh.FirstHost(s))
			}
			all = append(all, l)
		}
		for i := range all[first:] {
			l := &all[first+i]
			for _, p := range opt.Containers[n.Name].Ports {
				to := &l.Beside
				if hostLink(n.Name, p) == l.Name {
					to = &l.Containers
				}
				*to = append(*to, ofSubnets(own, p.Addresses)...)
			}
		}
	}
	return all
}

// ofSubnets gives those of the addresses that are in the subnets.
func ofSubnets(subnets []netip.Prefix, addrs []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool {
		return !slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Contains(a) })
	})
}

// hostLink names the link by which a port's packets come to this host.
func hostLink(network string, p tun.Port) string {
	if !p.Kind.IsLAN() {
		return p.Name
	}
	sum := sha256.Sum256([]byte(network + " " + string(p.Kind) + " " + p.Parent))
	const short = 8 // with the prefix, what the kernel takes
	return tun.LANPrefix + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:short])
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
	r := tun.Rules{Link: opt.Link, Masquerade: !opt.NoMasquerade, Others: opt.Others, Segments: []tun.Segment{control}}
	for _, n := range view.Networks {
		r.Segments = append(r.Segments, tun.Segment{
			Name: n.Name, Ranges: n.Ranges(), Own: subnets(self, n.Name), Links: opt.Containers[n.Name].links(n.Name),
			Former: opt.Containers[n.Name].Former, Delegated: opt.Containers[n.Name].Delegated,
		})
		for _, p := range opt.Containers[n.Name].Ports {
			p.Name = hostLink(n.Name, p)
			r.Ports = append(r.Ports, p)
		}
	}
	for name, c := range opt.Containers {
		if slices.ContainsFunc(view.Networks, func(n mesh.Network) bool { return n.Name == name }) {
			continue
		}
		for _, p := range c.Ports { // of a network that is deleted: they send nothing
			if !p.Kind.IsLAN() {
				r.Ports = append(r.Ports, tun.Port{Name: p.Name})
			}
		}
	}
	return r.Normal()
}
