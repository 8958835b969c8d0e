//go:build linux

package lab

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"meshd/tun/netns"
)

func layCable(t *testing.T) (a, b *Host) {
	t.Helper()
	netns.RequireRoot(t)
	l, err := Cable(t.Context(), "alpha", "beta")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l.Host("alpha"), l.Host("beta")
}

func TestCable(t *testing.T) {
	a, b := layCable(t)
	ctx := timeout(t, 10*time.Second)
	for _, addr := range []netip.Addr{b.IPv4, b.IPv6} {
		if _, err := a.Await(ctx, addr); err != nil {
			t.Error(err)
		}
	}
	if err := a.LinkDown(); err == nil || !strings.Contains(err.Error(), "not on a switch") {
		t.Errorf("LinkDown without a switch: %v", err)
	}
}

// What arrives is at most as large as the MTU where segmentation is forced, and
// larger elsewhere: else the two layouts would measure the same.
func TestLikeNIC(t *testing.T) {
	for name, likeNIC := range map[string]bool{"plain": false, "like a network card": true} {
		t.Run(name, func(t *testing.T) {
			a, b := layCable(t)
			if likeNIC {
				for _, h := range []*Host{a, b} {
					if err := h.LikeNIC(); err != nil {
						t.Fatal(err)
					}
				}
			}
			if _, err := a.Throughput(timeout(t, 20*time.Second), b, b.IPv4, 200*time.Millisecond); err != nil {
				t.Fatal(err)
			}
			var size uint64
			err := b.onNIC(func(eth netlink.Link) error {
				s := eth.Attrs().Statistics
				size = s.RxBytes / s.RxPackets
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if small := size <= 1514; small != likeNIC {
				t.Errorf("packets of %d bytes on average arrive", size)
			}
		})
	}
}
