package native

import (
	"net/netip"
	"slices"

	"meshd/overlay/tunnel"
	"meshd/tun/packet"
)

// routes says which inner addresses are whose. It is never changed: workers read
// the one that counts without a lock, and Apply puts another in its place.
//
// Prefixes of peers never overlap and there are only a few lengths of them, so a
// look-up asks a map once for each length, usually once in all.
type routes struct {
	own      []netip.Prefix // this host's; a few
	inside   []netip.Prefix // ranges of the mesh; a few
	peers    map[netip.Prefix]*peer
	lengths4 []int // of peers' prefixes of each family, the longest first
	lengths6 []int
}

// lastRoute remembers whose the packets with a pair of addresses are.
type lastRoute struct {
	routes *routes
	pair   packet.Pair
	peer   *peer
}

// newRoutes makes the routes of a configuration; peers has those of its peers
// that can be served.
func newRoutes(c tunnel.Config, peers []*peer) *routes {
	r := &routes{own: slices.Clone(c.Own), inside: slices.Clone(c.Inside), peers: map[netip.Prefix]*peer{}}
	for _, p := range peers {
		for _, a := range p.config.AllowedIPs {
			if a = a.Masked(); !a.IsValid() {
				continue
			}
			r.peers[a] = p
			lengths := &r.lengths6
			if a.Addr().Is4() {
				lengths = &r.lengths4
			}
			if !slices.Contains(*lengths, a.Bits()) {
				*lengths = append(*lengths, a.Bits())
			}
		}
	}
	for _, lengths := range [][]int{r.lengths4, r.lengths6} {
		slices.Sort(lengths)
		slices.Reverse(lengths)
	}
	return r
}

// lookup gives the peer whose address it is; nil: nobody's.
func (r *routes) lookup(a netip.Addr) *peer {
	lengths := r.lengths6
	if a.Is4() {
		lengths = r.lengths4
	}
	for _, bits := range lengths {
		prefix, _ := a.Prefix(bits) // fails for too many bits only
		if p := r.peers[prefix]; p != nil {
			return p
		}
	}
	return nil
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
