//go:build linux

package hostnet_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun"
)

// lan makes a link that is up, with addresses, and gives its index.
func (h host) lan(name string, addrs ...string) (index int) {
	h.Helper()
	h.in(func() error {
		v := netlink.NewVeth(netlink.LinkAttrs{Name: name})
		v.PeerName = name + "-far"
		if err := netlink.LinkAdd(v); err != nil {
			return err
		}
		far, err := netlink.LinkByName(v.PeerName)
		if err != nil {
			return err
		}
		index = v.Attrs().Index
		err = errors.Join(netlink.LinkSetUp(v), netlink.LinkSetUp(far))
		for _, text := range addrs {
			a, parseErr := netlink.ParseAddr(text)
			if parseErr != nil {
				return parseErr
			}
			if a.IP.To4() == nil {
				a.Flags = unix.IFA_F_NODAD
			}
			err = errors.Join(err, netlink.AddrAdd(v, a))
		}
		return err
	})
	return index
}

func (h host) uses(ranges ...string) []tun.Use {
	h.Helper()
	all, err := h.net.Uses(h.Context(), prefixes(ranges...)...)
	if err != nil {
		h.Fatal(err)
	}
	return all
}

// wantUses compares what is printed for people, and what discards.
func (h host) wantUses(ranges []string, want ...string) {
	h.Helper()
	var got []string
	for _, u := range h.uses(ranges...) {
		line := u.Prefix.String() + ": " + u.What
		if u.Discards {
			line += " (discards)"
		}
		got = append(got, line)
	}
	if !slices.Equal(got, want) {
		h.Errorf("uses of %s:\n%s\nwant\n%s", ranges, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func ipNet(s string) *net.IPNet {
	p := netip.MustParsePrefix(s)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func TestUses(t *testing.T) {
	h := newHost(t)
	mesh := []string{"10.86.0.0/16", "fd86::/48"}
	eth := h.lan("eth0", "192.168.1.5/24", "2001:db8::5/64")
	add := func(r netlink.Route) {
		t.Helper()
		if r.LinkIndex == 0 && r.Type == 0 {
			r.LinkIndex = eth
		}
		h.in(func() error { return netlink.RouteAdd(&r) })
	}
	rule := func(change func(*netlink.Rule)) {
		t.Helper()
		r := netlink.NewRule()
		r.Family = netlink.FAMILY_V4
		change(r)
		h.in(func() error { return netlink.RuleAdd(r) })
	}
	h.lan("mbr-default", "10.86.17.1/24", "fd86:17::1/64")
	h.wantUses(mesh)

	t.Run("default gateways", func(t *testing.T) {
		add(netlink.Route{Dst: ipNet("0.0.0.0/0"), Gw: net.ParseIP("10.86.0.1"), Flags: int(netlink.FLAG_ONLINK)})
		add(netlink.Route{Dst: ipNet("::/0"), Gw: net.ParseIP("fd86::1"), Flags: int(netlink.FLAG_ONLINK)})
		h.wantUses(mesh,
			"0.0.0.0/0: this host's route to 0.0.0.0/0 on eth0",
			"::/0: this host's route to ::/0 on eth0",
			"10.86.0.1/32: the default gateway 10.86.0.1 on eth0",
			"fd86::1/128: the default gateway fd86::1 on eth0")
	})
	narrow := []string{"10.86.64.0/18", "fd86:0:0:64::/64"} // without the gateways
	clear := func() {
		t.Helper()
		h.in(func() error {
			return errors.Join(
				netlink.RouteDel(&netlink.Route{Dst: ipNet("0.0.0.0/0"), LinkIndex: eth}),
				netlink.RouteDel(&netlink.Route{Dst: ipNet("::/0"), LinkIndex: eth}))
		})
	}
	clear()

	t.Run("routes", func(t *testing.T) {
		add(netlink.Route{Dst: ipNet("10.86.99.0/24"), Scope: netlink.SCOPE_LINK})
		add(netlink.Route{Dst: ipNet("10.0.0.0/8"), Type: unix.RTN_BLACKHOLE})
		add(netlink.Route{Dst: ipNet("10.5.0.0/16"), Gw: net.ParseIP("10.86.70.1"), Flags: int(netlink.FLAG_ONLINK)})
		add(netlink.Route{Dst: ipNet("fd86:0:0:64:1::/80"), Scope: netlink.SCOPE_LINK})
		h.wantUses(narrow,
			"10.0.0.0/8: this host's blackhole route to 10.0.0.0/8 (discards)",
			"10.86.99.0/24: this host's route to 10.86.99.0/24 on eth0",
			"fd86:0:0:64:1::/80: this host's route to fd86:0:0:64:1::/80 on eth0",
			"10.86.70.1/32: the gateway 10.86.70.1 of this host's route to 10.5.0.0/16 on eth0")
	})
	t.Run("addresses", func(t *testing.T) {
		h.lan("eth1", "100.80.7.7/32", "fd87::7/128")
		h.wantUses([]string{"100.80.0.0/16"}, "100.80.7.7/32: the address 100.80.7.7 on eth1 of this host")
		for len(h.uses("fd87::/48")) < 2 { // the kernel takes its time with IPv6; the test's own time is bounded
			time.Sleep(time.Millisecond)
		}
		h.wantUses([]string{"fd87::/48"},
			"fd87::7/128: this host's route to fd87::7 on eth1",
			"fd87::7/128: the address fd87::7 on eth1 of this host")
	})
	t.Run("tables", func(t *testing.T) {
		at := []string{"100.64.0.0/16"}
		for i, table := range []int{52, 1000, 1001, 1002, 1003} {
			add(netlink.Route{Dst: ipNet("100.64.0.0/24"), Table: table, Priority: i + 1, Scope: netlink.SCOPE_LINK})
		}
		h.wantUses(at) // nothing leads there
		rule(func(r *netlink.Rule) { r.Table, r.Priority, r.Src = 1000, 100, ipNet("192.168.1.5/32") })
		rule(func(r *netlink.Rule) { r.Table, r.Priority, r.Mark = 1001, 101, 7 })
		rule(func(r *netlink.Rule) { r.Table, r.Priority, r.IifName = 1002, 102, "eth1" })
		h.wantUses(at) // only packets of some go there
		rule(func(r *netlink.Rule) { r.Table, r.Priority, r.Mark, r.Invert = 1003, 103, 7, true })
		rule(func(r *netlink.Rule) { r.Table, r.Priority = 52, 5270 })
		h.wantUses(at,
			"100.64.0.0/24: this host's route to 100.64.0.0/24 on eth0 in table 1003",
			"100.64.0.0/24: this host's route to 100.64.0.0/24 on eth0 in table 52")
	})
	t.Run("a VRF", func(t *testing.T) {
		vrf := &netlink.Vrf{LinkAttrs: netlink.LinkAttrs{Name: "vrf0"}, Table: 2000}
		if err := h.ns.Do(func() error { return netlink.LinkAdd(vrf) }); errors.Is(err, unix.EOPNOTSUPP) {
			t.Skip("this kernel makes no VRF")
		} else if err != nil {
			t.Fatal(err)
		}
		h.in(func() error { return netlink.LinkSetUp(vrf) })
		add(netlink.Route{Dst: ipNet("100.88.0.0/24"), Table: 2000, Scope: netlink.SCOPE_LINK})
		h.wantUses([]string{"100.88.0.0/16"})
	})
	t.Run("ours", func(t *testing.T) {
		h.addTUN("mesh0")
		h.apply(tun.HostState{
			Link: "mesh0", MTU: 1420, Addresses: prefixes("172.29.1.1/32"),
			Routes: []tun.Route{{Dst: netip.MustParsePrefix("172.29.0.0/16")}, {Dst: netip.MustParsePrefix("172.29.0.0/16"), Unreachable: true}},
		})
		h.wantUses([]string{"172.29.0.0/16"})
	})
}

func TestConnections(t *testing.T) {
	h := newHost(t)
	h.in(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetUp(lo),
			netlink.AddrAdd(lo, &netlink.Addr{IPNet: ipNet("10.86.3.4/32")}),
			netlink.AddrAdd(lo, &netlink.Addr{IPNet: ipNet("10.86.5.6/32")}),
			netlink.AddrAdd(lo, &netlink.Addr{IPNet: ipNet("192.168.1.5/32")}))
	})
	connect := func(from, to string) {
		t.Helper()
		h.in(func() error {
			l, err := net.Listen("tcp", to)
			if err != nil {
				return err
			}
			t.Cleanup(func() { l.Close() })
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
			c, err := d.DialContext(context.Background(), "tcp", l.Addr().String()) //nolint:usetesting // the namespace's thread
			if err == nil {
				t.Cleanup(func() { c.Close() })
			}
			return err
		})
	}
	found := func() []tun.Use {
		t.Helper()
		all, err := h.net.Connections(t.Context(), netip.MustParsePrefix("10.86.0.0/16"))
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	connect("10.86.3.4", "10.86.5.6:0") // within the mesh
	connect("192.168.1.5", "127.0.0.1:0")
	if all := found(); len(all) != 0 {
		t.Errorf("connections %v, want none", all)
	}
	connect("10.86.3.4", "192.168.1.5:22")
	all := found()
	if len(all) != 1 || all[0].Prefix.String() != "10.86.3.4/32" || !strings.Contains(all[0].What, "192.168.1.5:22 with 10.86.3.4:") {
		t.Errorf("connections %v, want the one from 10.86.3.4 to port 22", all)
	}
}
