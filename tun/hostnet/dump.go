//go:build linux

package hostnet

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Every list call is in this file. The kernel sends a long list in parts; when
// something changes in between, the list may miss entries, and is fetched again.

// A list takes microseconds: five interruptions in a row mean a host where
// routes never rest, such as a router that just got a full table.
const dumpTries = 5

func dump[T any](what string, list func() (T, error)) (result T, err error) {
	for range dumpTries {
		if result, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return result, fmt.Errorf("list %s: %w", what, err)
	}
	return result, nil
}

func (k kernel) links() ([]netlink.Link, error) {
	return dump("links", k.LinkList)
}

// addrs lists the addresses on a link, or on all for nil.
func (k kernel) addrs(link netlink.Link) ([]netlink.Addr, error) {
	return dump("addresses", func() ([]netlink.Addr, error) {
		return k.AddrList(link, netlink.FAMILY_ALL)
	})
}

// routes lists the routes of every table, of both families, that match.
func (k kernel) routes(match *netlink.Route, mask uint64) ([]netlink.Route, error) {
	return dump("routes", func() ([]netlink.Route, error) {
		return k.RouteListFiltered(netlink.FAMILY_ALL, match, mask)
	})
}

// ourRoutes lists the routes that carry our protocol, whichever table they are in.
func (k kernel) ourRoutes() ([]netlink.Route, error) {
	return k.routes(&netlink.Route{Protocol: RouteProtocol, Table: unix.RT_TABLE_UNSPEC},
		netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
}

// mainRoutes lists everybody's routes in the main table.
func (k kernel) mainRoutes() ([]netlink.Route, error) {
	return k.routes(&netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
}

// linkByName finds a link, nil if there is none.
func (k kernel) linkByName(name string) (netlink.Link, error) {
	l, err := dump("link "+name, func() (netlink.Link, error) { return k.LinkByName(name) })
	if _, ok := errors.AsType[netlink.LinkNotFoundError](err); ok {
		return nil, nil
	}
	return l, err
}
