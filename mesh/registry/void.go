package registry

import (
	"slices"

	"meshd/mesh"
	"meshd/mesh/trust"
)

// Tombstones lists those of a node that are kept, whatever it has said since, the
// newest first.
func (r *Registry) Tombstones(id mesh.NodeID) []*trust.Tombstone { return slices.Clone(r.tombs[id]) }
