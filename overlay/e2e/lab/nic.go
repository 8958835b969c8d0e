//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// NICDown sets the network card down, as `ip link set eth0 down`: the host
// loses its routes and its IPv6 addresses.
func (h *Host) NICDown() error { return h.onNIC(netlink.LinkSetDown) }

// NICUp undoes [Host.NICDown] and waits until packets pass. The IPv6 addresses
// stay lost.
func (h *Host) NICUp(ctx context.Context) error {
	return errors.Join(h.onNIC(netlink.LinkSetUp), waitUp(ctx, h.onNIC))
}

// RemoveNIC takes the network card out.
func (h *Host) RemoveNIC() error { return h.onNIC(netlink.LinkDel) }

// ReplaceNIC puts another card in after [Host.RemoveNIC], with the addresses that
// the host was built with.
func (h *Host) ReplaceNIC(ctx context.Context) error {
	err := h.connect()
	if err == nil {
		err = errors.Join(waitUp(ctx, h.onPort), waitUp(ctx, h.onNIC), h.Readdress())
	}
	if err != nil {
		return fmt.Errorf("replace network card of %s: %w", h.Name, err)
	}
	return nil
}

// Readdress gives the host those addresses again that it was built with and has
// lost.
func (h *Host) Readdress() error {
	have, err := h.addresses()
	if err != nil {
		return err
	}
	for _, p := range []netip.Prefix{netip.PrefixFrom(h.IPv4, 24), netip.PrefixFrom(h.IPv6, 64)} {
		if !slices.Contains(have, p) {
			err = errors.Join(err, h.AddAddress(p))
		}
	}
	return err
}

// EnableIPv6 undoes [Host.DisableIPv6]; the addresses stay lost.
func (h *Host) EnableIPv6() error {
	return h.Do(func() error {
		return errors.Join(
			setSysctl("net/ipv6/conf/"+nic+"/disable_ipv6", "0"),
			setSysctl("net/ipv6/conf/default/disable_ipv6", "0"))
	})
}
