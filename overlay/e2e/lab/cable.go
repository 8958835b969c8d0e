//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
)

// Cable builds a lab of two hosts whose network cards one cable joins: nothing
// between them takes time of its own. There is no switch, so whatever needs one
// (LinkDown, ReplaceNIC, captures) gives an error.
func Cable(ctx context.Context, a, b string) (*Lab, error) {
	l := &Lab{}
	err := l.cable(ctx, a, b)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("build lab: %w", err), l.Close())
	}
	return l, nil
}

func (l *Lab) cable(ctx context.Context, names ...string) error {
	for _, name := range names {
		if _, err := l.add(name); err != nil {
			return err
		}
	}
	far, err := os.Open(l.hosts[1].ns.Path())
	if err != nil {
		return err
	}
	defer far.Close()
	err = l.hosts[0].Do(func() error {
		v := netlink.NewVeth(netlink.LinkAttrs{Name: nic})
		v.PeerName, v.PeerNamespace = nic, netlink.NsFd(far.Fd())
		return netlink.LinkAdd(v)
	})
	if err != nil {
		return fmt.Errorf("lay cable: %w", err)
	}
	for _, h := range l.hosts {
		if err := h.linksUp(); err != nil {
			return fmt.Errorf("lay cable: %w", err)
		}
	}
	for _, h := range l.hosts {
		err := errors.Join(waitUp(ctx, h.onNIC),
			h.AddAddress(netip.PrefixFrom(h.IPv4, 24)), h.AddAddress(netip.PrefixFrom(h.IPv6, 64)))
		if err != nil {
			return fmt.Errorf("connect host %s: %w", h.Name, err)
		}
	}
	return nil
}
