package mesh

import (
	"maps"
	"slices"
)

// Equal tells whether two views say the same.
func (v *View) Equal(o *View) bool {
	return v.Mesh == o.Mesh && v.MeshName == o.MeshName && v.Control == o.Control && v.TTL == o.TTL &&
		v.Revocations == o.Revocations && v.Self == o.Self && v.Epoch == o.Epoch && v.State == o.State &&
		v.Withheld == o.Withheld && v.Contested == o.Contested &&
		slices.Equal(v.Networks, o.Networks) && slices.Equal(v.Reserved, o.Reserved) && slices.Equal(v.Health, o.Health) &&
		slices.EqualFunc(v.Nodes, o.Nodes, Node.Equal)
}

// Equal tells whether two nodes are the same in everything.
func (n Node) Equal(o Node) bool {
	return n.ID == o.ID && n.Name == o.Name && n.Control == o.Control && n.Admitted.Equal(o.Admitted) && n.Ends.Equal(o.Ends) &&
		n.Version == o.Version && n.Key == o.Key && n.Proven == o.Proven && n.Left == o.Left && n.Keys == o.Keys &&
		n.Heard.Equal(o.Heard) && n.Expired == o.Expired &&
		slices.Equal(n.Pins, o.Pins) && slices.Equal(n.Endpoints, o.Endpoints) && slices.Equal(n.Suites, o.Suites) &&
		maps.Equal(n.Labels, o.Labels) && slices.EqualFunc(n.Leases, o.Leases, Lease.Equal)
}

// Equal tells whether two leases are the same in everything.
func (l Lease) Equal(o Lease) bool {
	return l.Network == o.Network && l.State == o.State && l.Since.Equal(o.Since) && l.ClaimEpoch == o.ClaimEpoch && slices.Equal(l.Prefixes, o.Prefixes)
}
