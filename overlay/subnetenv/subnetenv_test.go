package subnetenv_test

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"meshd/overlay/attach"
	"meshd/overlay/subnetenv"
)

var both = attach.Subnet{
	Network:  "default",
	Prefixes: []netip.Prefix{netip.MustParsePrefix("10.86.23.0/24"), netip.MustParsePrefix("fd00:86:0:17::/64")},
	Gateways: []netip.Addr{netip.MustParseAddr("10.86.23.1"), netip.MustParseAddr("fd00:86:0:17::1")},
	Routes:   []netip.Prefix{netip.MustParsePrefix("10.86.0.0/16"), netip.MustParsePrefix("fd00:86::/48")},
	MTU:      1420, State: attach.Live,
}

func TestFile(t *testing.T) {
	f := subnetenv.File{Path: filepath.Join(t.TempDir(), "flannel", "subnet.env"), Masquerade: true}
	inode := func() uint64 {
		t.Helper()
		info, err := os.Stat(f.Path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != 0o644 {
			t.Errorf("mode %v, want 0644", info.Mode())
		}
		return info.Sys().(*syscall.Stat_t).Ino
	}
	apply := func(s attach.Subnet, want string) {
		t.Helper()
		if err := f.Apply(s); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(f.Path)
		if want == "" && errors.Is(err, fs.ErrNotExist) {
			return
		}
		if err != nil || string(got) != want {
			t.Errorf("got %q, %v; want\n%s", got, err, want)
		}
	}
	const full = "FLANNEL_NETWORK=10.86.0.0/16\nFLANNEL_SUBNET=10.86.23.1/24\nFLANNEL_IPV6_NETWORK=fd00:86::/48\nFLANNEL_IPV6_SUBNET=fd00:86:0:17::1/64\nFLANNEL_MTU=1420\nFLANNEL_IPMASQ=true\n"

	apply(attach.Subnet{}, "") // nothing was there
	apply(both, full)
	first := inode()
	apply(both, full)
	if inode() != first {
		t.Error("nothing has changed, and the file was replaced")
	}

	one := both
	one.Prefixes, one.Gateways, one.MTU = one.Prefixes[:1], one.Gateways[:1], 1280
	f.Masquerade = false
	apply(one, "FLANNEL_NETWORK=10.86.0.0/16\nFLANNEL_SUBNET=10.86.23.1/24\nFLANNEL_MTU=1280\nFLANNEL_IPMASQ=false\n")
	if inode() == first {
		t.Error("the file was changed in its place: somebody may read half of it")
	}

	// What the node does not hold, or nobody can use elsewhere, is not told.
	lost := both
	lost.State = attach.Local
	apply(lost, "")
	apply(both, "FLANNEL_NETWORK=10.86.0.0/16\nFLANNEL_SUBNET=10.86.23.1/24\nFLANNEL_IPV6_NETWORK=fd00:86::/48\nFLANNEL_IPV6_SUBNET=fd00:86:0:17::1/64\nFLANNEL_MTU=1420\nFLANNEL_IPMASQ=false\n")
	apply(attach.Subnet{}, "")

	left, err := os.ReadDir(filepath.Dir(f.Path))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestUnwritable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(file, "subnet.env"), filepath.Dir(file)} {
		if err := (subnetenv.File{Path: path}).Apply(both); err == nil {
			t.Errorf("%s: no error", path)
		}
	}
}
