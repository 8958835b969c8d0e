//go:build linux

package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"meshd/tun/rtnl"
)

// Every list call is in this file, and goes through rtnl.List: one that was interrupted
// may miss entries.

func (k kernel) links() ([]netlink.Link, error) {
	return rtnl.List("links", k.LinkList)
}

// linksNamed lists the links whose names begin so. Where there are many containers
// a list of all links is long, and the kernel lets nobody change one meanwhile; the
// names alone are in the directories of their sysctls.
func (k kernel) linksNamed(prefix string) ([]netlink.Link, error) {
	dir, err := os.Open(filepath.Join(string(k.sysctl), ipv4Conf))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var all []netlink.Link
	for _, name := range names {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		l, err := k.find(name)
		if err != nil {
			return nil, fmt.Errorf("find link %s: %w", name, err)
		}
		if l != nil { // else it has gone just now
			all = append(all, l)
		}
	}
	return all, nil
}

// portsOf lists the links on a bridge. The kernel leaves out the others; one older
// than 4.4 does not.
func (k kernel) portsOf(bridge netlink.Link) ([]netlink.Link, error) {
	index := bridge.Attrs().Index
	return rtnl.List("links", func() (all []netlink.Link, err error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(index))))
		messages, dumpErr := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
		if dumpErr != nil && !errors.Is(dumpErr, netlink.ErrDumpInterrupted) {
			return nil, dumpErr
		}
		for _, m := range messages {
			l, err := netlink.LinkDeserialize(nil, m)
			if err != nil {
				return nil, err
			}
			if l.Attrs().MasterIndex == index {
				all = append(all, l)
			}
		}
		return all, dumpErr
	})
}

// addrs lists the addresses on a link, or on all for nil.
func (k kernel) addrs(link netlink.Link) ([]netlink.Addr, error) {
	return rtnl.List("addresses", func() ([]netlink.Addr, error) {
		return k.AddrList(link, netlink.FAMILY_ALL)
	})
}

// proxies lists the addresses of others for which the host answers on a link.
func (k kernel) proxies(link netlink.Link) ([]netip.Addr, error) {
	return rtnl.List("proxies of neighbours", func() (all []netip.Addr, err error) {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			some, err := k.NeighProxyList(link.Attrs().Index, family)
			if err != nil {
				return nil, err
			}
			for _, n := range some {
				a, _ := netip.AddrFromSlice(n.IP)
				all = append(all, a.Unmap())
			}
		}
		return all, nil
	})
}

// routes lists the routes of both families that match. The kernel leaves out
// the others itself, as far as it can: a router has a million of them.
func (k kernel) routes(match netlink.Route, mask uint64) ([]netlink.Route, error) {
	// For this list alone: the library asks for others in ways that a strict
	// kernel refuses. One older than 4.20 knows no strictness, and lists all.
	_ = k.SetStrictCheck(true)
	defer func() { _ = k.SetStrictCheck(false) }()
	return rtnl.List("routes", func() (all []netlink.Route, err error) {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			some, err := k.RouteListFiltered(family, &match, mask)
			if err != nil && !errors.Is(err, unix.ENOENT) { // no such table
				return nil, err
			}
			all = append(all, some...)
		}
		return all, nil
	})
}

// ourRoutes lists the routes that carry our protocol, whichever table they are in.
func (k kernel) ourRoutes() ([]netlink.Route, error) {
	return k.routes(netlink.Route{Protocol: RouteProtocol, Table: unix.RT_TABLE_UNSPEC},
		netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
}

// tableRoutes lists everybody's routes in a table.
func (k kernel) tableRoutes(table int) ([]netlink.Route, error) {
	return k.routes(netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
}

// mainRoutes lists everybody's routes in the main table.
func (k kernel) mainRoutes() ([]netlink.Route, error) { return k.tableRoutes(unix.RT_TABLE_MAIN) }

// rules lists the rules that say which tables the kernel looks into.
func (k kernel) rules() ([]netlink.Rule, error) {
	return rtnl.List("rules", func() ([]netlink.Rule, error) { return k.RuleList(netlink.FAMILY_ALL) })
}

// connections lists the established TCP connections of both families.
func (k kernel) connections() ([]*netlink.Socket, error) {
	return rtnl.List("TCP connections", func() (all []*netlink.Socket, err error) {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			some, err := k.SocketDiagTCP(family)
			if err != nil {
				return nil, err
			}
			all = append(all, some...)
		}
		return slices.DeleteFunc(all, func(s *netlink.Socket) bool { return s.State != netlink.TCP_ESTABLISHED }), nil
	})
}
