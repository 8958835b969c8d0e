//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// possible says what this machine lacks, and how to get it.
func possible() error {
	if os.Geteuid() != 0 {
		return errors.New("it makes network namespaces, which takes root: sudo make bench")
	}
	if _, err := exec.LookPath("iperf3"); err != nil {
		return errors.New("it needs iperf3 for TCP, and there is none: make test-deps installs it (Debian package iperf3)")
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%w: load it with `modprobe tun`; give it to a container with `--device /dev/net/tun --cap-add NET_ADMIN`", err)
	}
	return tun.Close()
}
