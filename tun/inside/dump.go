//go:build linux

package inside

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Every list call is in this file. The kernel sends a long list in parts; when
// something changes in between, the list may miss entries, and is fetched again.

const dumpTries = 5 // a container is no router: its links and routes rest

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

func (k kernel) links() ([]netlink.Link, error) { return dump("links", k.LinkList) }

func (k kernel) addrs(l netlink.Link) ([]netlink.Addr, error) {
	return dump("addresses", func() ([]netlink.Addr, error) { return k.AddrList(l, netlink.FAMILY_ALL) })
}

// routes lists those of both families in the main table.
func (k kernel) routes() ([]netlink.Route, error) {
	return dump("routes", func() (all []netlink.Route, err error) {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			some, err := k.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
			if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
				return nil, err
			}
			all = append(all, some...)
		}
		return all, nil
	})
}
