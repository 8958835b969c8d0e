package native

import (
	"net/netip"
	"slices"

	"meshd/overlay/tunnel"
)

// routes says which inner addresses are whose. It is never changed: workers read
// the one that counts without a lock, and Apply puts another in its place.
type routes struct {
	own    []netip.Prefix // this host's; a few
	inside []netip.Prefix // ranges of the mesh; a few
	peers4 table[[4]byte]
	peers6 table[[16]byte]
}

// table finds the peer whose prefix holds an address. Prefixes of peers never
// overlap and there are only a few lengths of them, so it is one look-up in a
// map for each length, usually one in all.
type table[A comparable] struct {
	levels []level[A]
}

type level[A comparable] struct {
	mask  func(A) A
	peers map[A]*peer
}

func (t *table[A]) lookup(a A) *peer {
	for i := range t.levels {
		l := &t.levels[i]
		if p := l.peers[l.mask(a)]; p != nil {
			return p
		}
	}
	return nil
}

// newRoutes makes the routes of a configuration; peers has those of its peers
// that can be served.
func newRoutes(c tunnel.Config, peers []*peer) *routes {
	r := &routes{own: slices.Clone(c.Own), inside: slices.Clone(c.Inside)}
	four, six := map[int]map[[4]byte]*peer{}, map[int]map[[16]byte]*peer{}
	for _, p := range peers {
		for _, a := range p.want.AllowedIPs {
			a = a.Masked()
			switch {
			case !a.IsValid(): // would be all of IPv6
			case a.Addr().Is4():
				put(four, a.Bits(), a.Addr().As4(), p)
			default:
				put(six, a.Bits(), a.Addr().As16(), p)
			}
		}
	}
	r.peers4 = newTable(four, mask4)
	r.peers6 = newTable(six, mask6)
	return r
}

func put[A comparable](levels map[int]map[A]*peer, bits int, a A, p *peer) {
	if levels[bits] == nil {
		levels[bits] = map[A]*peer{}
	}
	levels[bits][a] = p
}

func newTable[A comparable](levels map[int]map[A]*peer, mask func(bits int) func(A) A) (t table[A]) {
	var lengths []int
	for bits := range levels {
		lengths = append(lengths, bits)
	}
	slices.Sort(lengths)
	slices.Reverse(lengths)
	for _, bits := range lengths {
		t.levels = append(t.levels, level[A]{mask(bits), levels[bits]})
	}
	return t
}

func mask4(bits int) func([4]byte) [4]byte {
	m := be.Uint32([]byte{0xff, 0xff, 0xff, 0xff}) << (32 - bits) // 0 for 0 bits
	return func(a [4]byte) [4]byte {
		be.PutUint32(a[:], be.Uint32(a[:])&m)
		return a
	}
}

func mask6(bits int) func([16]byte) [16]byte {
	high, low := ^uint64(0)<<max(0, 64-bits), ^uint64(0)<<(128-bits)
	if bits <= 64 {
		low = 0
	}
	return func(a [16]byte) [16]byte {
		be.PutUint64(a[:], be.Uint64(a[:])&high)
		be.PutUint64(a[8:], be.Uint64(a[8:])&low)
		return a
	}
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
