//go:build linux

package inside

import (
	"errors"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun/rtnl"
)

// Every list call is in this file, and goes through rtnl.List: one that was interrupted
// may miss entries.

func (k kernel) links() ([]netlink.Link, error) { return rtnl.List("links", k.LinkList) }

func (k kernel) addrs(l netlink.Link) ([]netlink.Addr, error) {
	return rtnl.List("addresses", func() ([]netlink.Addr, error) { return k.AddrList(l, netlink.FAMILY_ALL) })
}

// routes lists those of both families in the main table.
func (k kernel) routes() ([]netlink.Route, error) {
	return rtnl.List("routes", func() (all []netlink.Route, err error) {
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
