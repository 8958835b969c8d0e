package native

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"meshd/mesh"
	"meshd/overlay/tunnel"
)

// drawAddr draws addresses that are near each other, so that prefixes nest.
func drawAddr(t *rapid.T, v6 bool) netip.Addr {
	draw := func(b []byte) {
		for i := range b {
			b[i] = rapid.SampledFrom([]byte{0, 1, 0x7f, 0x80, 0xff}).Draw(t, "byte")
		}
	}
	if v6 {
		a := [16]byte{0: 0xfd}
		draw(a[6:10])
		draw(a[15:])
		return netip.AddrFrom16(a)
	}
	a := [4]byte{10}
	draw(a[1:])
	return netip.AddrFrom4(a)
}

// naiveLookup is the longest of all prefixes that hold the address.
func naiveLookup(peers []*peer, a netip.Addr) (best *peer) {
	bits := -1
	for _, p := range peers {
		for _, r := range p.config.AllowedIPs {
			if r.Contains(a) && r.Bits() > bits {
				best, bits = p, r.Bits()
			}
		}
	}
	return best
}

func TestRoutesAgainstNaiveTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		taken := map[netip.Prefix]bool{}
		var peers []*peer
		for range rapid.IntRange(0, 6).Draw(t, "peers") {
			p := &peer{}
			for range rapid.IntRange(0, 4).Draw(t, "prefixes") {
				a := drawAddr(t, rapid.Bool().Draw(t, "v6"))
				r := netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits"))
				if !taken[r.Masked()] { // one prefix is never that of two
					taken[r.Masked()] = true
					p.config.AllowedIPs = append(p.config.AllowedIPs, r) // with host bits
				}
			}
			peers = append(peers, p)
		}
		r := newRoutes(tunnel.Config{}, peers)
		for range 50 {
			a := drawAddr(t, rapid.Bool().Draw(t, "v6"))
			if got, want := r.lookup(a), naiveLookup(peers, a); got != want {
				t.Fatalf("%s is of peer %p, want %p", a, got, want)
			}
		}
	})
}

func TestRoutesOfWholeFamilies(t *testing.T) {
	p := &peer{config: tunnel.Peer{AllowedIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}}}
	r := newRoutes(tunnel.Config{}, []*peer{p})
	for _, a := range []string{"0.0.0.0", "255.255.255.255", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"} {
		if r.lookup(netip.MustParseAddr(a)) != p {
			t.Errorf("%s is nobody's", a)
		}
	}
}

// A prefix that is none must not become one that holds all.
func TestRoutesPassOverInvalidPrefix(t *testing.T) {
	r := newRoutes(tunnel.Config{}, []*peer{{config: tunnel.Peer{AllowedIPs: []netip.Prefix{{}}}}})
	for _, a := range []string{"::", "fd00::1", "0.0.0.0", "10.0.0.1"} {
		if r.lookup(netip.MustParseAddr(a)) != nil {
			t.Errorf("%s is a peer's", a)
		}
	}
}

func FuzzRoutes(f *testing.F) {
	f.Add([]byte{10, 1, 2, 3}, 24, []byte{10, 1, 2, 9})
	f.Add([]byte{15: 1}, 128, []byte{15: 1})
	f.Fuzz(func(t *testing.T, base []byte, bits int, ask []byte) {
		a, ok := netip.AddrFromSlice(base)
		b, ok2 := netip.AddrFromSlice(ask)
		if !ok || !ok2 {
			return
		}
		p := &peer{config: tunnel.Peer{ID: mesh.NodeID{1}, AllowedIPs: []netip.Prefix{netip.PrefixFrom(a, bits)}}}
		r := newRoutes(tunnel.Config{}, []*peer{p})
		if got, want := r.lookup(b), naiveLookup([]*peer{p}, b); got != want {
			t.Errorf("%s in %s: %p, want %p", b, p.config.AllowedIPs[0], got, want)
		}
	})
}
