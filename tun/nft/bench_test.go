//go:build linux

package nft

import (
	"fmt"
	"net/netip"
	"testing"

	"meshd/tun"
)

// crowd is what a host with n containers in its two networks wants, some of them
// without a bridge.
func crowd(n int) tun.Rules {
	r := wants()["two_networks"]
	for i := range n {
		p := tun.Port{
			Name: fmt.Sprintf("mv-%010d", i), MAC: fmt.Sprintf("02:00:00:00:%02x:%02x", i>>8, i&0xff),
			Addresses: []netip.Addr{
				netip.AddrFrom4([4]byte{10, 86, byte(17 + i>>8), byte(i)}),
				netip.MustParseAddr(fmt.Sprintf("fd86:0:0:11::%x", i+2)),
			},
		}
		r.Ports = append(r.Ports, p)
	}
	return r
}

// One container comes and one goes, beside many.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{0, 50, 200, 500} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			k := newKernel(b)
			without, with := crowd(n), crowd(n+1)
			k.changes(without)
			for odd := true; b.Loop(); odd = !odd {
				want := without
				if odd {
					want = with
				}
				if done := k.changes(want); len(done) == 0 {
					b.Fatal("nothing was done")
				}
			}
		})
	}
}

// Nothing has changed, as the kernel shows.
func BenchmarkApplyAgain(b *testing.B) {
	for _, n := range []int{0, 50, 200, 500} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			k := newKernel(b)
			want := crowd(n)
			k.changes(want)
			for b.Loop() {
				k.changes(want)
			}
		})
	}
}
