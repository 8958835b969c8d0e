//go:build linux

package inside

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun/rtnl"
)

// put does the work of Put.
func put(ctx context.Context, host, there kernel, want Link) error {
	links, err := there.links()
	if err != nil {
		return err
	}
	l := find(links, want.Peer)
	spare, err := host.find(want.Peer)
	switch {
	case err != nil:
		return err
	case l == nil && spare == nil:
		return fmt.Errorf("%w: %s", ErrNoLink, want.Peer)
	}
	// What can be told to fail does so before anything is changed.
	for _, other := range links {
		if a := other.Attrs(); a.Name == want.Name && (l == nil || a.Index != l.Attrs().Index) {
			return fmt.Errorf("%w: %s", ErrTaken, want.Name)
		}
	}
	routes, err := routesOf(there, l, links, want)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	if l != nil {
		if spare != nil {
			// Made in vain, as of what hangs on a physical link nobody can tell from
			// outside whether it is there.
			if err := host.LinkDel(spare); err != nil {
				return fmt.Errorf("remove the second %s: %w", want.Peer, err)
			}
		}
		return there.make(ctx, l, want, routes)
	}
	if l, err = move(host, there, spare); err != nil {
		return err
	}
	if err := there.make(ctx, l, want, routes); err != nil {
		return errors.Join(err, moveBack(host, there, l, want.Peer))
	}
	return nil
}

// find gives the link that was put there.
func find(links []netlink.Link, peer string) netlink.Link {
	i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Alias == peer })
	if i < 0 {
		return nil
	}
	return links[i]
}

// find gives the link of that name, nil if there is none.
func (k kernel) find(name string) (netlink.Link, error) {
	l, err := k.LinkByName(name)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return nil, nil
	}
	return l, err
}

// move takes a link to the other namespace, where it has the same name still.
func move(host, there kernel, l netlink.Link) (netlink.Link, error) {
	name := l.Attrs().Name
	if err := host.LinkSetAlias(l, name); err != nil {
		return nil, fmt.Errorf("mark %s: %w", name, err)
	}
	if err := host.LinkSetNsFd(l, there.fd); err != nil {
		return nil, fmt.Errorf("move %s: %w", name, err)
	}
	return there.LinkByName(name)
}

// moveBack undoes move, or removes the link: nothing half-made stays.
func moveBack(host, there kernel, l netlink.Link, name string) error {
	err := there.LinkSetDown(l)
	if err == nil {
		err = there.LinkSetName(l, name)
	}
	if err == nil {
		err = there.LinkSetNsFd(l, host.fd)
	}
	if err == nil {
		return nil
	}
	if err := there.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove what was half-made: %w", err)
	}
	return nil
}

// make makes a link that is in the namespace as wanted.
func (k kernel) make(ctx context.Context, l netlink.Link, want Link, routes []netip.Prefix) error {
	have, err := k.read(l)
	if err != nil {
		return err
	}
	for _, o := range diff(have, want, routes) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := o.do(k, l); err != nil {
			return fmt.Errorf("%s: %w", o.what, err)
		}
	}
	return nil
}

// check does the work of Check.
func check(ctx context.Context, k kernel, want Link) error {
	links, err := k.links()
	if err != nil {
		return err
	}
	l := find(links, want.Peer)
	if l == nil {
		return ErrNoLink
	}
	routes, err := routesOf(k, l, links, want)
	if err != nil {
		return err
	}
	have, err := k.read(l)
	if err != nil {
		return err
	}
	if !have.up {
		return errors.New("it is down") // which is why some of the rest is missing
	}
	for _, o := range diff(have, want, routes) {
		if o.lacks != "" {
			return errors.New(o.lacks)
		}
	}
	return ctx.Err()
}

// halves are what goes before a default route.
var halves = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/1"), netip.MustParsePrefix("128.0.0.0/1"),
	netip.MustParsePrefix("::/1"), netip.MustParsePrefix("8000::/1"),
}

// routesOf lists the routes that the link should have, or says whose one of them
// is. l is nil before the link is there.
func routesOf(k kernel, l netlink.Link, links []netlink.Link, want Link) ([]netip.Prefix, error) {
	there, err := k.routes()
	if err != nil {
		return nil, err
	}
	others := map[netip.Prefix]string{} // by destination
	for _, r := range there {
		if l != nil && r.LinkIndex == l.Attrs().Index {
			continue
		}
		others[rtnl.Destination(r)] = "another way"
		for _, o := range links {
			if o.Attrs().Index == r.LinkIndex {
				others[rtnl.Destination(r)] = o.Attrs().Name
			}
		}
	}
	routes := slices.Clone(want.Routes)
	for _, g := range want.Gateways {
		all := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if g.Is4() {
			all = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		switch {
		case !want.Default:
		case others[all] == "":
			routes = append(routes, all)
		default:
			for _, half := range halves {
				if half.Addr().Is4() == g.Is4() {
					routes = append(routes, half)
				}
			}
		}
	}
	for _, r := range routes {
		if by := others[r]; by != "" {
			return nil, fmt.Errorf("the container is on the network %s already, by %s", r, by)
		}
	}
	return routes, nil
}
