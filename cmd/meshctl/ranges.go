package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"meshd/cmd/internal/exit"
	"meshd/overlay/plan"
	"meshd/tun"
	"meshd/tun/hostnet"
)

// uses lists what the given ranges mean to this host already: to the SSH session
// from which this command is run first of all.
func uses(ctx context.Context, ranges ...netip.Prefix) ([]tun.Use, error) {
	host := hostnet.New(hostnet.Options{})
	all, err := host.Uses(ctx, ranges...)
	if err != nil {
		return nil, fmt.Errorf("read this host's network: %w", err)
	}
	// More sessions than our own, and those that we do not know to be ours. A
	// kernel that does not tell is no reason to give up.
	connections, _ := host.Connections(ctx, ranges...)
	return slices.Concat(sshUses(sshConnection()), all, connections), nil
}

// sshConnection finds the variable that sshd sets. sudo keeps it to itself, but
// not the environment of the shell that it was called from.
func sshConnection() string {
	if c, ok := os.LookupEnv("SSH_CONNECTION"); ok {
		return c
	}
	for pid := os.Getppid(); pid > 1; pid = parent(pid) {
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil {
			return "" // somebody else's, and so are those above it
		}
		for entry := range strings.SplitSeq(string(environ), "\x00") {
			if c, ok := strings.CutPrefix(entry, "SSH_CONNECTION="); ok {
				return c
			}
		}
	}
	return ""
}

// parent gives a process's parent, 0 if it is gone.
func parent(pid int) int {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // the name may have spaces
	if len(fields) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(fields[1])
	return ppid
}

// sshUses reads the variable: client address and port, server address and port.
func sshUses(connection string) []tun.Use {
	var all []tun.Use
	for i, word := range strings.Fields(connection) {
		if addr, err := netip.ParseAddr(word); err == nil && i%2 == 0 {
			addr = addr.Unmap().WithZone("")
			all = append(all, tun.Use{Prefix: netip.PrefixFrom(addr, addr.BitLen()), What: fmt.Sprintf("%s, an end of your SSH session", addr)})
		}
	}
	return all
}

// firstOverlap finds what a range collides with.
func firstOverlap(p netip.Prefix, all []tun.Use) (plan.Overlap, bool) {
	if o := plan.Overlaps([]netip.Prefix{p}, nil, all); len(o) > 0 {
		return o[0], true
	}
	return plan.Overlap{}, false
}

// uniqueLocal is where the ranges are that a mesh makes for itself.
var uniqueLocal = netip.MustParsePrefix("fd00::/8")

// candidates lists the ranges that a new network may come to have.
func candidates(f rangeFlags) []netip.Prefix {
	all := append(slices.Clone(autoIPv4), uniqueLocal)
	for _, text := range []string{f.ipv4, f.ipv6} {
		if p, err := netip.ParsePrefix(text); err == nil {
			all = append(all, p.Masked())
		}
	}
	return all
}

// autoIPv4 are the ranges that --ipv4 auto tries. They stay clear of 10.42 and
// 10.43 (k3s), 10.244 (flannel), 172.17 (Docker) and most home routers.
var autoIPv4 = []netip.Prefix{
	netip.MustParsePrefix("10.86.0.0/16"),
	netip.MustParsePrefix("10.113.0.0/16"),
	netip.MustParsePrefix("10.171.0.0/16"),
}

// chooseIPv4 gives the range that --ipv4 asks for: auto, none or a prefix.
func chooseIPv4(flag string, all []tun.Use) (netip.Prefix, error) {
	switch flag {
	case "none":
		return netip.Prefix{}, nil
	case "auto":
		for _, p := range autoIPv4 {
			if _, taken := firstOverlap(p, all); !taken {
				return p, nil
			}
		}
		o, _ := firstOverlap(autoIPv4[0], all)
		return netip.Prefix{}, exit.With(exit.Config, fmt.Errorf("choose IPv4 range: 10.86.0.0/16, 10.113.0.0/16 and 10.171.0.0/16 are all in use, the first one by %s: name a free one with --ipv4 PREFIX, or none", o.Use.What))
	}
	return parsePrefix("--ipv4", flag, 4, all)
}

// chooseIPv6 is the same for --ipv6; auto gives the one of the mesh.
func chooseIPv6(flag string, auto netip.Prefix, all []tun.Use) (netip.Prefix, error) {
	switch flag {
	case "none":
		return netip.Prefix{}, nil
	case "auto":
		return auto, nil
	}
	p, err := parsePrefix("--ipv6", flag, 6, all)
	if err == nil && p.Bits() >= ipv6SubnetLen {
		err = usage("--ipv6 %s: each node gets a /%d of it, so it must be shorter than that, such as a /48", flag, ipv6SubnetLen)
	}
	return p, err
}

// parseSubnet reads the prefix of a subnet.
func parseSubnet(name, value string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(value)
	switch {
	case err != nil:
		return p, usage("%s %s: expected a prefix such as 10.86.17.0/24", name, value)
	case p != p.Masked():
		return p, usage("%s %s has host bits: did you mean %s?", name, value, p.Masked())
	}
	return p, nil
}

// parsePrefix reads a prefix of IP version 4 or 6 that must overlap nothing.
func parsePrefix(name, value string, ip int, all []tun.Use) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(value)
	if err != nil {
		return p, usage("%s %s: expected a prefix such as 10.86.0.0/16 or fd12:3456:789a::/48, auto or none", name, value)
	}
	if p.Addr().Is4() != (ip == 4) {
		return p, usage("%s %s: not an IPv%d prefix", name, value, ip)
	}
	if p != p.Masked() {
		return p, usage("%s %s has host bits: did you mean %s?", name, value, p.Masked())
	}
	if o, taken := firstOverlap(p, all); taken {
		return p, exit.With(exit.Config, fmt.Errorf("%s %s overlaps %s: choose another range", name, value, o.Use.What))
	}
	return p, nil
}
