//go:build linux

package rtnl_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun/rtnl"
)

func TestList(t *testing.T) {
	for _, c := range []struct {
		interrupted int
		err         error
	}{{0, nil}, {4, nil}, {5, netlink.ErrDumpInterrupted}} {
		calls := 0
		got, err := rtnl.List("things", func() (int, error) {
			if calls++; calls <= c.interrupted {
				return 0, netlink.ErrDumpInterrupted
			}
			return 42, nil
		})
		if !errors.Is(err, c.err) || c.err == nil && got != 42 {
			t.Errorf("interrupted %d times: %d, %v", c.interrupted, got, err)
		}
		if calls > 5 {
			t.Errorf("tried %d times", calls)
		}
	}
	calls := 0
	if _, err := rtnl.List("things", func() (int, error) { calls++; return 0, unix.EPERM }); !errors.Is(err, unix.EPERM) || calls != 1 {
		t.Errorf("another error: %v after %d calls, want it at once", err, calls)
	}
}

func TestPrefixes(t *testing.T) {
	for _, text := range []string{"10.86.17.3/24", "0.0.0.0/0", "fd86::1/64", "::ffff:10.0.0.0/104", "fd86::1/128"} {
		p := netip.MustParsePrefix(text)
		if got := rtnl.Prefix(rtnl.IPNet(p)); got != p {
			t.Errorf("%s comes back as %s", p, got)
		}
		if got := rtnl.Destination(netlink.Route{Dst: rtnl.IPNet(p)}); got != p {
			t.Errorf("the destination %s is %s", p, got)
		}
	}
	for family, want := range map[int]string{netlink.FAMILY_V4: "0.0.0.0/0", netlink.FAMILY_V6: "::/0"} {
		if got := rtnl.Destination(netlink.Route{Family: family}); got.String() != want {
			t.Errorf("a default route of family %d goes to %s", family, got)
		}
	}
}
