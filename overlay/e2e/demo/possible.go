//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"meshd/tun/netns"
)

// possible says what the demo lacks on this machine, and how to get it.
func possible() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("it makes network namespaces, which takes root: run it with sudo (as `make demo` does)")
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return errors.New("there is no /dev/net/tun: load it with `modprobe tun`; give it to a container with `--device /dev/net/tun`")
	case err != nil:
		return fmt.Errorf("%w: give it to a container with `--device /dev/net/tun --cap-add NET_ADMIN`", err)
	}
	tun.Close()
	ns, err := netns.New()
	if err != nil {
		return fmt.Errorf("%w: in a container, add `--privileged`", err)
	}
	defer ns.Close()
	return ns.Do(func() error {
		off, err := os.ReadFile("/proc/sys/net/ipv6/conf/default/disable_ipv6")
		switch {
		case err != nil:
			return errors.New("the kernel has no IPv6: boot it without ipv6.disable=1")
		case bytes.Equal(bytes.TrimSpace(off), []byte("1")):
			return errors.New("IPv6 is off: `sysctl net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0` turns it on")
		}
		return nil
	})
}
