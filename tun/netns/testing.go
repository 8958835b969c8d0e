//go:build linux

package netns

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// RequireRoot skips the test where network namespaces cannot be made, and says
// why. With MESHD_REQUIRE_ROOT=1 in the environment it fails instead.
func RequireRoot(t testing.TB) {
	t.Helper()
	reason := ""
	if os.Geteuid() != 0 {
		reason = "needs root"
	} else if ns, err := New(); err != nil {
		reason = "needs network namespaces: " + err.Error()
	} else {
		ns.Close()
	}
	switch {
	case reason == "":
	case os.Getenv("MESHD_REQUIRE_ROOT") == "1":
		t.Fatal(reason + ", and MESHD_REQUIRE_ROOT=1 forbids to skip")
	default:
		t.Skip(reason)
	}
}

// ForTest makes a namespace whose loopback interface is up and that ends with
// the test. It skips or fails like [RequireRoot].
func ForTest(t testing.TB) *NS {
	t.Helper()
	RequireRoot(t)
	ns, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Close)
	if err := ns.Do(loopbackUp); err != nil {
		t.Fatal(err)
	}
	return ns
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}
