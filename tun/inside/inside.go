//go:build linux

// Package inside does the container's side of an attachment: it moves a link into
// a network namespace and makes it there what it should be.
//
//	caller's namespace          container's
//
//	mc-7d2kq…   ──── Put ───►   eth1  alias mc-7d2kq…
//	                                  addresses, MTU, routes of its own
//
// Whatever was moved carries its former name as its alias, which is how it is
// found again, and told from links of others. Those, their addresses and their
// routes stay as they are. What fails half-way is undone: the link is back where
// it was or gone. Callers in several processes take their turns.
//
// It is for doors that run as root, such as a command; the daemon never enters a
// namespace. The caller's namespace is that of the calling thread. Needs
// CAP_SYS_ADMIN and CAP_NET_ADMIN.
package inside

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun"
)

// Errors that callers decide by.
var (
	ErrNoNamespace = errors.New("no such network namespace")
	ErrOwn         = errors.New("that is this host's own network namespace")
	ErrTaken       = errors.New("the name is taken in the namespace")
	ErrNoLink      = errors.New("no such link")
)

// RouteProtocol marks our routes, there as on the host (hostnet.RouteProtocol).
const RouteProtocol = tun.RouteProtocol

// Link is what a container's end of an attachment should be.
type Link struct {
	Peer      string // its name before it is moved; starts with tun.PeerPrefix
	Name      string // in the container, such as "eth0"
	MAC       string // empty: as it is
	MTU       int    // in bytes; 0: as it is. What hangs on a physical link may have less, as that has
	Addresses []netip.Prefix
	Gateways  []netip.Addr   // at most one of a family; on link, whatever the addresses say
	Routes    []netip.Prefix // by way of the gateways
	// Default: all else goes by the gateways too. Where another link has the
	// default route, it keeps it, and two routes to one half each go before it.
	Default bool
}

// Put moves want.Peer from the caller's namespace into the one at path ns and
// makes it as wanted, or completes what is there. It fails with [ErrTaken] if
// another link has the name.
func Put(ctx context.Context, ns string, want Link) error {
	err := want.check()
	if err == nil {
		err = in(ns, func(host, there kernel) error {
			if err := there.lock(ctx); err != nil {
				return err
			}
			return put(ctx, host, there, want)
		})
	}
	if err != nil {
		return fmt.Errorf("put %s into %s: %w", want.Peer, ns, err)
	}
	return nil
}

// Check tells the first thing that is not as wanted; more of it is fine. It fails
// with [ErrNoLink] if the link is not there at all.
func Check(ctx context.Context, ns string, want Link) error {
	err := want.check()
	if err == nil {
		err = in(ns, func(_, there kernel) error { return check(ctx, there, want) })
	}
	if err != nil {
		return fmt.Errorf("check %s in %s: %w", want.Name, ns, err)
	}
	return nil
}

// Remove removes a link that was put into the namespace, by either of its names.
// It fails with nothing if there is none, or no namespace: a link of others stays.
func Remove(ctx context.Context, ns, name string) error {
	err := in(ns, func(_, there kernel) error {
		if err := there.lock(ctx); err != nil {
			return err
		}
		links, err := there.links()
		if err != nil {
			return err
		}
		for _, l := range links {
			if a := l.Attrs(); !isOurs(l) || a.Name != name && a.Alias != name {
				continue
			}
			// ENODEV: with its other end, just now.
			if err := there.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
				return err
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, ErrNoNamespace) {
		return fmt.Errorf("remove %s from %s: %w", name, ns, err)
	}
	return nil
}

// Interface is a link in a container.
type Interface struct {
	Name string
	// Peer is of what was put there; empty: it is somebody else's. Whoever is root in
	// the container can make a link say so.
	Peer string
	// Host is the name of the link's other end, if the caller's namespace has that;
	// it is the one to say so.
	Host string
}

// List gives the links in the namespace.
func List(ctx context.Context, ns string) (all []Interface, err error) {
	err = in(ns, func(host, there kernel) error {
		ends, err := host.endsOf(there)
		if err != nil {
			return err
		}
		links, err := there.links()
		for _, l := range links {
			i := Interface{Name: l.Attrs().Name, Host: ends[l.Attrs().Index]}
			if isOurs(l) {
				i.Peer = l.Attrs().Alias
			}
			all = append(all, i)
		}
		return errors.Join(err, ctx.Err())
	})
	if err != nil {
		return nil, fmt.Errorf("list links in %s: %w", ns, err)
	}
	return all, nil
}

// endsOf names the links whose other end is in a namespace, by that end's index there.
func (k kernel) endsOf(there kernel) (map[int]string, error) {
	links, err := k.links() // first: it gives namespaces their numbers
	if err != nil {
		return nil, err
	}
	number, err := k.GetNetNsIdByFd(there.fd)
	if err != nil {
		return nil, fmt.Errorf("number of the namespace: %w", err)
	}
	ends := map[int]string{}
	for _, l := range links {
		if a := l.Attrs(); number >= 0 && a.NetNsID == number && l.Type() == "veth" {
			ends[a.ParentIndex] = a.Name
		}
	}
	return ends, nil
}

func isOurs(l netlink.Link) bool { return strings.HasPrefix(l.Attrs().Alias, tun.PeerPrefix) }

// check refuses what makes no sense.
func (w Link) check() error {
	if !strings.HasPrefix(w.Peer, tun.PeerPrefix) || !tun.IsLinkName(w.Peer) {
		return fmt.Errorf("%.40q is no name of a peer", w.Peer)
	}
	if !tun.IsLinkName(w.Name) {
		return fmt.Errorf("%.40q is no name of a network link", w.Name)
	}
	if w.MAC != "" {
		if mac, err := net.ParseMAC(w.MAC); err != nil || len(mac) != 6 {
			return fmt.Errorf("%.40q is no MAC address", w.MAC)
		}
	}
	for _, a := range w.Addresses {
		if !a.IsValid() || a.Addr().Is4In6() || a.Addr().Zone() != "" {
			return fmt.Errorf("address %s", a)
		}
	}
	for _, g := range w.Gateways {
		if !g.IsValid() || g.Is4In6() || g.Zone() != "" || w.gateway(g) != g {
			return fmt.Errorf("gateway %s", g)
		}
	}
	for _, r := range w.Routes {
		if !r.IsValid() || r != r.Masked() || !w.gateway(r.Addr()).IsValid() {
			return fmt.Errorf("route to %s", r)
		}
	}
	return nil
}

// gateway gives the one of an address's family; zero: there is none.
func (w Link) gateway(of netip.Addr) netip.Addr {
	for _, g := range w.Gateways {
		if g.Is4() == of.Is4() {
			return g
		}
	}
	return netip.Addr{}
}
