package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"meshd/mesh"
	"meshd/tun"
)

// Overlap is a range of the mesh that means something to a host already: what is
// for the one would go to the other, perhaps in clear text.
type Overlap struct {
	Range netip.Prefix
	Use   tun.Use // the first
	More  int     // others in the same range
}

// String names both and says what to do.
func (o Overlap) String() string {
	more := ""
	if o.More > 0 {
		more = fmt.Sprintf(" and %d more", o.More)
	}
	return fmt.Sprintf("range %s of the mesh overlaps %s%s: take that out of the range, or found the mesh with another one", o.Range, o.Use.What, more)
}

// Overlaps decides which ranges collide with what a host uses, at most one
// overlap for each. Not in the way are
//
//   - default routes, and the parts of one by which VPNs override it: all that is
//     wider than 10.0.0.0/8, or as wide as fd00::/8, of which nobody has more than
//     a few random parts;
//   - routes that discard what is in a wider prefix, as routers have for private
//     addresses: the mesh takes nothing from anybody there;
//   - what lies within own, such as a bridge of containers in our own lease.
func Overlaps(ranges, own []netip.Prefix, uses []tun.Use) []Overlap {
	var out []Overlap
	for _, r := range ranges {
		var o Overlap
		for _, u := range uses {
			switch {
			case !r.Overlaps(u.Prefix), isDefault(u.Prefix), u.Discards && u.Prefix.Bits() < r.Bits(), within(u.Prefix, own):
			case o.Range.IsValid():
				o.More++
			default:
				o = Overlap{Range: r, Use: u}
			}
		}
		if o.Range.IsValid() {
			out = append(out, o)
		}
	}
	return out
}

func isDefault(p netip.Prefix) bool {
	if p.Addr().Is4() {
		return p.Bits() < 8
	}
	return p.Bits() <= 8
}

func within(p netip.Prefix, all []netip.Prefix) bool {
	return slices.ContainsFunc(all, func(a netip.Prefix) bool { return a.Bits() <= p.Bits() && a.Contains(p.Addr()) })
}

// Needed lists the ranges without which a node cannot be a member. Networks besides
// the default one can be left out on a host.
func Needed(control netip.Prefix, networks []mesh.Network) []netip.Prefix {
	ranges := []netip.Prefix{control}
	for _, n := range networks {
		if n.Name == mesh.DefaultNetwork {
			ranges = append(ranges, n.Ranges()...)
		}
	}
	return ranges
}

// Named makes uses of addresses from a configuration file or token, such as
// those of seeds, each with an optional port. Host names are left out: they are
// looked up anew at each try.
func Named(what string, addresses ...string) []tun.Use {
	var out []tun.Use
	for _, text := range addresses {
		a, err := netip.ParseAddr(text)
		if at, portErr := netip.ParseAddrPort(text); portErr == nil {
			a, err = at.Addr(), nil
		}
		if err == nil {
			a = a.Unmap().WithZone("")
			out = append(out, tun.Use{Prefix: netip.PrefixFrom(a, a.BitLen()), What: what + " " + text})
		}
	}
	return out
}

// Own lists the addresses of the mesh that are a node's, by its control address,
// if it has one yet, and its leases.
func Own(control netip.Addr, leases []mesh.Lease) []netip.Prefix {
	var own []netip.Prefix
	if control.IsValid() {
		own = append(own, netip.PrefixFrom(control, control.BitLen()))
	}
	for _, l := range leases {
		own = append(own, l.Prefixes...)
	}
	return own
}

// Stranded lists the peers that say they are to be reached only inside the mesh,
// where nobody reaches them. That is theirs to mend and keeps nobody else from
// starting.
func Stranded(view *mesh.View) []mesh.Finding {
	var out []mesh.Finding
	for _, n := range view.Nodes {
		if n.ID == view.Self || n.Left || len(n.Endpoints) == 0 {
			continue
		}
		var at []string
		for _, e := range n.Endpoints {
			if within(netip.PrefixFrom(e.Addr().Unmap(), e.Addr().Unmap().BitLen()), view.Ranges()) {
				at = append(at, e.String())
			}
		}
		if len(at) == len(n.Endpoints) {
			out = append(out, mesh.Finding{Level: "info", Code: "overlap", Message: fmt.Sprintf(
				"node %s offers only endpoints inside the mesh itself (%s), where no tunnel can go: let it advertise an address outside of the mesh", n.Name, strings.Join(at, ", "))})
		}
	}
	return out
}
