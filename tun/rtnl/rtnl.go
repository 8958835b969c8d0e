//go:build linux

// Package rtnl is what all that speak rtnetlink have in common: lists that are fetched
// again when they may miss entries, and prefixes in the library's form and in ours.
package rtnl

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// A list takes microseconds: five interruptions in a row mean a host where
// routes never rest, such as a router that just got a full table.
const tries = 5

// List fetches a list. The kernel sends a long one in parts; when something changes in
// between, it may miss entries, and is fetched again.
func List[T any](what string, list func() (T, error)) (result T, err error) {
	for range tries {
		if result, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return result, fmt.Errorf("list %s: %w", what, err)
	}
	return result, nil
}

// Destination gives a route's destination, 0.0.0.0/0 or ::/0 for a default route.
func Destination(r netlink.Route) netip.Prefix {
	switch {
	case r.Dst != nil:
		return Prefix(r.Dst)
	case r.Family == netlink.FAMILY_V6:
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// Prefix gives the library's prefix as ours; host bits stay.
func Prefix(n *net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if size == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, bits)
}

// IPNet gives our prefix as the library's; host bits stay.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
