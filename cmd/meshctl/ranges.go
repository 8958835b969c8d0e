package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"meshd/tun/hostnet"
)

// obstacle is something on this host that a range of the mesh must not cover.
type obstacle struct {
	prefix netip.Prefix
	what   string
}

// obstacles lists the host's own routes and the ends of the SSH session.
func obstacles(ctx context.Context) ([]obstacle, error) {
	routes, err := hostnet.New(hostnet.Options{}).Routes(ctx)
	if err != nil {
		return nil, fmt.Errorf("read this host's routes: %w", err)
	}
	var all []obstacle
	for _, r := range routes {
		all = append(all, obstacle{r, "a route of this host"})
	}
	return append(all, sshObstacles(os.Getenv("SSH_CONNECTION"))...), nil
}

// sshObstacles reads the variable that sshd sets: client address and port,
// server address and port.
func sshObstacles(connection string) []obstacle {
	var all []obstacle
	for i, word := range strings.Fields(connection) {
		if addr, err := netip.ParseAddr(word); err == nil && i%2 == 0 {
			addr = addr.Unmap().WithZone("")
			all = append(all, obstacle{netip.PrefixFrom(addr, addr.BitLen()), "an end of your SSH session"})
		}
	}
	return all
}

// firstOverlap finds what a range collides with.
func firstOverlap(p netip.Prefix, all []obstacle) (obstacle, bool) {
	for _, o := range all {
		if p.Overlaps(o.prefix) {
			return o, true
		}
	}
	return obstacle{}, false
}

// autoIPv4 are the ranges that --ipv4 auto tries. They stay clear of 10.42 and
// 10.43 (k3s), 10.244 (flannel), 172.17 (Docker) and most home routers.
var autoIPv4 = []netip.Prefix{
	netip.MustParsePrefix("10.86.0.0/16"),
	netip.MustParsePrefix("10.113.0.0/16"),
	netip.MustParsePrefix("10.171.0.0/16"),
}

// chooseIPv4 gives the range that --ipv4 asks for: auto, none or a prefix.
func chooseIPv4(flag string, all []obstacle) (netip.Prefix, error) {
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
		return netip.Prefix{}, fmt.Errorf("choose IPv4 range: 10.86.0.0/16, 10.113.0.0/16 and 10.171.0.0/16 all overlap routes of this host (%s): name a free one with --ipv4 PREFIX, or none", o.prefix)
	}
	return parsePrefix("--ipv4", flag, 4, all)
}

// chooseIPv6 is the same for --ipv6; auto gives the one of the mesh.
func chooseIPv6(flag string, auto netip.Prefix, all []obstacle) (netip.Prefix, error) {
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

// parsePrefix reads a prefix of IP version 4 or 6 that must overlap nothing.
func parsePrefix(name, value string, ip int, all []obstacle) (netip.Prefix, error) {
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
		return p, usage("%s %s overlaps %s, which is %s: choose another range", name, value, o.prefix, o.what)
	}
	return p, nil
}
