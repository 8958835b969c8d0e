package plan

import (
	"fmt"
	"net/netip"
	"slices"

	"meshd/mesh"
)

// Overlap is a route of the host that collides with a range of the mesh: what is
// meant for one would go to the other, perhaps in clear text.
type Overlap struct {
	Range netip.Prefix // of the mesh
	Route netip.Prefix // of the host
}

// String says what to do.
func (o Overlap) String() string {
	return fmt.Sprintf("range %s of the mesh overlaps the route to %s: remove that route, or found the mesh with another range", o.Range, o.Route)
}

// Overlaps finds the routes that collide. Those inside our own lease are what it
// is for, such as a bridge of containers.
func Overlaps(view *mesh.View, routes []netip.Prefix) []Overlap {
	self, _ := view.Node(view.Self)
	own := func(route netip.Prefix) bool {
		return slices.ContainsFunc(self.Leases, func(l mesh.Lease) bool {
			return slices.ContainsFunc(l.Prefixes, func(p netip.Prefix) bool {
				return p.Bits() <= route.Bits() && p.Contains(route.Addr())
			})
		})
	}
	var out []Overlap
	for _, r := range view.Ranges() {
		for _, route := range routes {
			if r.Overlaps(route) && !own(route) {
				out = append(out, Overlap{r, route})
			}
		}
	}
	return out
}
