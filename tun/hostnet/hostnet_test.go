//go:build linux

package hostnet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun"
	"meshd/tun/device"
	"meshd/tun/hostnet"
	"meshd/tun/netns"
)

// host is a namespace with a TUN device mesh0, made by hand.
type host struct {
	testing.TB
	ns  *netns.NS
	net *hostnet.Net
}

func newHost(t testing.TB) host {
	ns := netns.ForTest(t)
	return host{t, ns, hostnet.New(hostnet.Options{Namespace: ns.Do})}
}

func (h host) in(fn func() error) {
	h.Helper()
	if err := h.ns.Do(fn); err != nil {
		h.Fatal(err)
	}
}

func (h host) addTUN(name string) {
	h.Helper()
	h.in(func() error {
		return netlink.LinkAdd(&netlink.Tuntap{
			LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TUN,
		})
	})
}

func (h host) apply(want tun.HostState) {
	h.Helper()
	if err := h.net.Apply(h.Context(), want); err != nil {
		h.Fatal(err)
	}
}

// cleanup removes what is ours, and gives the commands.
func (h host) cleanup() []string {
	h.Helper()
	removed, err := h.net.Cleanup(h.Context())
	if err != nil {
		h.Fatal(err)
	}
	return removed
}

// want checks the whole of the namespace's routes, addresses and links, but
// for lo and the kernel's own tables.
func (h host) want(text string) {
	h.Helper()
	if got, want := h.show(), unindent(text); got != want {
		h.Errorf("the kernel has\n%s\nwant\n%s", got, want)
	}
}

func unindent(s string) string {
	var b strings.Builder
	for line := range strings.Lines(strings.TrimSpace(s)) {
		b.WriteString(strings.TrimSpace(line) + "\n")
	}
	return b.String()
}

func (h host) show() string {
	h.Helper()
	var b strings.Builder
	h.in(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		names := map[int]string{}
		for _, l := range links {
			a := l.Attrs()
			names[a.Index] = a.Name
			if a.Name == "lo" {
				continue
			}
			fmt.Fprintf(&b, "link %s mtu %d qlen %d up %t\n", a.Name, a.MTU, a.TxQLen, a.Flags&net.FlagUp != 0)
			addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
			if err != nil {
				return err
			}
			slices.SortFunc(addrs, func(a, b netlink.Addr) int { return bytes.Compare(a.IP, b.IP) })
			for _, a := range addrs {
				fmt.Fprintf(&b, "addr %s\n", a.IPNet)
			}
		}
		routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, r := range routes {
			fmt.Fprintf(&b, "route %s", r.Dst)
			if r.Type == unix.RTN_UNREACHABLE {
				b.WriteString(" unreachable")
			} else {
				fmt.Fprintf(&b, " dev %s", names[r.LinkIndex])
			}
			fmt.Fprintf(&b, " proto %d metric %d", r.Protocol, r.Priority)
			if r.Src != nil {
				fmt.Fprintf(&b, " src %s", r.Src)
			}
			if r.MTU != 0 {
				fmt.Fprintf(&b, " mtu %d", r.MTU)
			}
			b.WriteString("\n")
		}
		return nil
	})
	return b.String()
}

func (h host) sysctl(key string) string {
	h.Helper()
	var value string
	h.in(func() error {
		raw, err := os.ReadFile(filepath.Join("/proc/sys", key))
		value = strings.TrimSpace(string(raw))
		return err
	})
	return value
}

func (h host) setSysctl(key, value string) {
	h.Helper()
	h.in(func() error { return os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0) })
}

func prefixes(all ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range all {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// full is what a daemon with a lease wants.
func full() tun.HostState {
	return tun.HostState{
		Link:      "mesh0",
		MTU:       1420,
		Addresses: prefixes("10.86.17.1/32", "fd12:3456:789a:11::1/128", "fdcc::17/128"),
		Routes: []tun.Route{
			{Dst: prefix("10.86.0.0/16"), Src: addr("10.86.17.1")},
			{Dst: prefix("10.86.0.0/16"), Unreachable: true},
			{Dst: prefix("10.86.17.0/24"), Unreachable: true},
			{Dst: prefix("fd12:3456:789a::/48"), Src: addr("fd12:3456:789a:11::1")},
			{Dst: prefix("fd12:3456:789a::/48"), Unreachable: true},
			{Dst: prefix("fd12:3456:789a:11::/64"), Unreachable: true},
			{Dst: prefix("fdcc::/48"), Src: addr("fdcc::17")},
			{Dst: prefix("fdcc::/48"), Unreachable: true},
		},
		Forwarding: true,
	}
}

const fullText = `
	link mesh0 mtu 1420 qlen 1000 up true
	addr 10.86.17.1/32
	addr fd12:3456:789a:11::1/128
	addr fdcc::17/128
	route 10.86.0.0/16 dev mesh0 proto 109 metric 50 src 10.86.17.1
	route 10.86.0.0/16 unreachable proto 109 metric 2147483647
	route 10.86.17.0/24 unreachable proto 109 metric 2147483647
	route fd12:3456:789a:11::/64 unreachable proto 109 metric 2147483647
	route fd12:3456:789a::/48 dev mesh0 proto 109 metric 50 src fd12:3456:789a:11::1
	route fd12:3456:789a::/48 unreachable proto 109 metric 2147483647
	route fdcc::/48 dev mesh0 proto 109 metric 50 src fdcc::17
	route fdcc::/48 unreachable proto 109 metric 2147483647
`

// What the kernel says of a route's MTU is what it was told, so that nothing is set
// again and again.
func TestPathsNarrow(t *testing.T) {
	h := newHost(t)
	h.addTUN("mesh0")
	h.apply(full())
	for _, mtu := range []int{1280, 1200} {
		narrow := full()
		narrow.Routes = append(narrow.Routes,
			tun.Route{Dst: prefix("10.86.80.0/24"), Src: addr("10.86.17.1"), MTU: mtu},
			tun.Route{Dst: prefix("fd12:3456:789a:80::/64"), Src: addr("fd12:3456:789a:11::1"), MTU: mtu})
		for range 2 {
			h.apply(narrow)
			got := h.show()
			for _, line := range []string{
				"route 10.86.80.0/24 dev mesh0 proto 109 metric 50 src 10.86.17.1 mtu %d\n",
				"route fd12:3456:789a:80::/64 dev mesh0 proto 109 metric 50 src fd12:3456:789a:11::1 mtu %d\n",
			} {
				if line = fmt.Sprintf(line, mtu); !strings.Contains(got, line) {
					t.Errorf("the kernel has\n%s\nwant %s", got, line)
				}
			}
		}
	}
	h.apply(full())
	h.want(fullText)
}

func TestApply(t *testing.T) {
	t.Run("from nothing to everything and back", func(t *testing.T) {
		h := newHost(t)
		h.addTUN("mesh0")
		h.apply(full())
		h.want(fullText)
		for _, key := range []string{
			"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding",
			"net/ipv4/conf/mesh0/forwarding", "net/ipv6/conf/mesh0/forwarding",
		} {
			if got := h.sysctl(key); got != "1" {
				t.Errorf("%s = %s, want 1", key, got)
			}
		}
		h.apply(full())
		h.want(fullText)

		if removed := h.cleanup(); len(removed) != 9 || removed[8] != "ip link del mesh0" {
			t.Errorf("says that it removed %q", removed)
		}
		h.want("")
		if removed := h.cleanup(); len(removed) != 0 {
			t.Errorf("says that it removed %q, and there was nothing", removed)
		}
	})

	t.Run("a daemon runs", func(t *testing.T) {
		h := newHost(t)
		var daemon *device.Device
		h.in(func() (err error) {
			daemon, err = device.Open(device.Options{Name: "mesh0"})
			return err
		})
		h.apply(full())
		if removed, err := h.net.Cleanup(t.Context()); !errors.Is(err, hostnet.ErrRunning) || len(removed) != 0 {
			t.Errorf("removed %q: %v; want it to be refused", removed, err)
		}
		h.want(fullText)
		if err := daemon.Close(); err != nil {
			t.Fatal(err)
		}
		h.cleanup()
		h.want("")
	})

	t.Run("changes", func(t *testing.T) {
		h := newHost(t)
		h.addTUN("mesh0")
		h.apply(full())
		want := full()
		want.MTU = 1380
		want.Addresses = prefixes("10.86.80.1/32", "fdcc::17/128")
		want.Routes = []tun.Route{
			{Dst: prefix("10.86.0.0/16"), Src: addr("10.86.80.1")},
			{Dst: prefix("10.86.0.0/16"), Unreachable: true},
			{Dst: prefix("10.86.80.0/24"), Unreachable: true},
			{Dst: prefix("fdcc::/48")},
		}
		h.apply(want)
		h.want(`
			link mesh0 mtu 1380 qlen 1000 up true
			addr 10.86.80.1/32
			addr fdcc::17/128
			route 10.86.0.0/16 dev mesh0 proto 109 metric 50 src 10.86.80.1
			route 10.86.0.0/16 unreachable proto 109 metric 2147483647
			route 10.86.80.0/24 unreachable proto 109 metric 2147483647
			route fdcc::/48 dev mesh0 proto 109 metric 50
		`)
	})

	t.Run("addresses with a subnet", func(t *testing.T) {
		h := newHost(t)
		h.addTUN("mesh0")
		h.apply(tun.HostState{Link: "mesh0", Addresses: prefixes("10.1.0.1/24", "10.1.0.2/24", "10.1.0.3/24")})
		// The kernel would drop .2 and .3 together with .1.
		h.apply(tun.HostState{Link: "mesh0", Addresses: prefixes("10.1.0.2/24", "10.1.0.3/24")})
		h.want(`
			link mesh0 mtu 1500 qlen 1000 up true
			addr 10.1.0.2/24
			addr 10.1.0.3/24
		`)
	})

	t.Run("others' things stay", func(t *testing.T) {
		h := newHost(t)
		h.addTUN("mesh0")
		h.addTUN("other0")
		h.in(func() error {
			other, err := netlink.LinkByName("other0")
			if err != nil {
				return err
			}
			dst := func(s string) *net.IPNet { _, n, _ := net.ParseCIDR(s); return n }
			a, _ := netlink.ParseAddr("192.0.2.1/24")
			return errors.Join(
				netlink.LinkSetIP6AddrGenMode(other, 1), netlink.LinkSetUp(other), netlink.AddrAdd(other, a),
				netlink.RouteAdd(&netlink.Route{Dst: dst("203.0.113.0/24"), LinkIndex: other.Attrs().Index}),
				netlink.RouteAdd(&netlink.Route{Dst: dst("10.86.0.0/16"), LinkIndex: other.Attrs().Index, Protocol: 4, Priority: 7}),
				netlink.RouteAdd(&netlink.Route{Dst: dst("2001:db8::/32"), LinkIndex: other.Attrs().Index}),
			)
		})
		before := h.show()
		h.apply(full())
		h.cleanup()
		_, rest, _ := strings.Cut(before, "\n") // without mesh0
		h.want(rest)
		if !strings.Contains(rest, "route 203.0.113.0/24 dev other0") {
			t.Errorf("the test set up nothing: %s", before)
		}
	})

	t.Run("another's TUN of the same name stays", func(t *testing.T) {
		h := newHost(t)
		want := full()
		want.Link, want.Addresses = "", nil
		want.Routes = slices.DeleteFunc(want.Routes, func(r tun.Route) bool { return !r.Unreachable })
		h.apply(want) // what a daemon that died leaves behind
		h.addTUN("mesh0")
		h.cleanup()
		h.want("link mesh0 mtu 1500 qlen 500 up false")
	})

	t.Run("another's route in the way", func(t *testing.T) {
		h := newHost(t)
		h.addTUN("mesh0")
		h.in(func() error {
			_, dst, _ := net.ParseCIDR("10.86.0.0/16")
			lo, err := netlink.LinkByName("lo")
			return errors.Join(err, netlink.RouteAdd(&netlink.Route{Dst: dst, LinkIndex: lo.Attrs().Index, Priority: 50}))
		})
		err := h.net.Apply(t.Context(), full())
		if !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "ip route add 10.86.0.0/16 dev mesh0 proto 109") {
			t.Errorf("Apply = %v, want EEXIST that names the route", err)
		}
		if !strings.Contains(h.show(), "route 10.86.0.0/16 dev lo proto 3 metric 50\n") {
			t.Errorf("the other's route is gone: %s", h.show())
		}
		if !strings.Contains(h.show(), "route fdcc::/48 dev mesh0") {
			t.Error("the rest was not applied")
		}
	})

	t.Run("one family", func(t *testing.T) {
		h := newHost(t)
		h.addTUN("mesh0")
		want := full()
		want.Addresses = want.Addresses[:1]
		want.Routes = want.Routes[:3]
		h.apply(want)
		h.want(`
			link mesh0 mtu 1420 qlen 1000 up true
			addr 10.86.17.1/32
			route 10.86.0.0/16 dev mesh0 proto 109 metric 50 src 10.86.17.1
			route 10.86.0.0/16 unreachable proto 109 metric 2147483647
			route 10.86.17.0/24 unreachable proto 109 metric 2147483647
		`)
	})

	t.Run("canceled", func(t *testing.T) {
		h := newHost(t)
		h.addTUN("mesh0")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := h.net.Apply(ctx, full()); !errors.Is(err, ctx.Err()) {
			t.Errorf("Apply = %v, want %v", err, ctx.Err())
		}
	})
}

func TestRepair(t *testing.T) {
	mesh0 := func() netlink.Link { l, _ := netlink.LinkByName("mesh0"); return l }
	for name, damage := range map[string]func() error{
		"routes flushed": func() error {
			routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
			for _, r := range routes {
				err = errors.Join(err, netlink.RouteDel(&r))
			}
			return err
		},
		"addresses flushed": func() error {
			addrs, err := netlink.AddrList(mesh0(), netlink.FAMILY_ALL)
			for _, a := range addrs {
				err = errors.Join(err, netlink.AddrDel(mesh0(), &a))
			}
			return err
		},
		"link down":             func() error { return netlink.LinkSetDown(mesh0()) },
		"MTU changed":           func() error { return netlink.LinkSetMTU(mesh0(), 1300) },
		"MTU too small for v6":  func() error { return netlink.LinkSetMTU(mesh0(), 1000) },
		"IPv6 off on the link":  func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/mesh0/disable_ipv6", []byte("1"), 0) },
		"IPv6 off on all links": func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0) },
		"forwarding off": func() error {
			return errors.Join(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0),
				os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("0"), 0))
		},
		"foreign address on our link": func() error {
			a, _ := netlink.ParseAddr("192.0.2.7/24")
			return netlink.AddrAdd(mesh0(), a)
		},
		"a route of ours too many": func() error {
			_, dst, _ := net.ParseCIDR("198.51.100.0/24")
			return netlink.RouteAdd(&netlink.Route{Dst: dst, LinkIndex: mesh0().Attrs().Index, Protocol: hostnet.RouteProtocol, Table: 77})
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.addTUN("mesh0")
			h.apply(full())
			before := h.state()
			h.in(damage)
			if h.state() == before {
				t.Fatal("the test damaged nothing")
			}
			h.apply(full())
			if got := h.state(); got != before {
				t.Errorf("after repair\n%s\nwant\n%s", got, before)
			}
		})
	}
}

// state is what show tells, with the forwarding and the routes of other tables.
func (h host) state() string {
	h.Helper()
	s := h.show() + h.sysctl("net/ipv4/ip_forward") + h.sysctl("net/ipv6/conf/all/forwarding") + "\n"
	h.in(func() error {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: 77}, netlink.RT_FILTER_TABLE)
		s += fmt.Sprint(routes)
		return err
	})
	return s
}

func TestFailsClosedWithoutDevice(t *testing.T) {
	h := newHost(t)
	h.addTUN("mesh0")
	h.addTUN("wan0") // with a default route, by which packets would leave in clear
	h.in(func() error {
		wan, err := netlink.LinkByName("wan0")
		if err != nil {
			return err
		}
		a4, _ := netlink.ParseAddr("192.0.2.1/24")
		a6, _ := netlink.ParseAddr("2001:db8::1/64")
		a6.Flags = unix.IFA_F_NODAD
		_, all4, _ := net.ParseCIDR("0.0.0.0/0")
		_, all6, _ := net.ParseCIDR("::/0")
		return errors.Join(netlink.LinkSetUp(wan), netlink.AddrAdd(wan, a4), netlink.AddrAdd(wan, a6),
			netlink.RouteAdd(&netlink.Route{Dst: all4, LinkIndex: wan.Attrs().Index}),
			netlink.RouteAdd(&netlink.Route{Dst: all6, LinkIndex: wan.Attrs().Index}))
	})
	h.apply(full())
	dial := func(to string) (err error) {
		return h.ns.Do(func() error {
			c, err := net.DialTimeout("udp", to, time.Second)
			if err == nil {
				c.Close()
			}
			return err
		})
	}
	targets := []string{"10.86.80.1:9", "10.86.17.5:9", "[fd12:3456:789a:80::1]:9", "[fd12:3456:789a:11::5]:9", "[fdcc::5]:9"}
	for _, to := range []string{"10.86.80.1:9", "[fdcc::5]:9", "198.51.100.1:9", "[2001:db8:ffff::1]:9"} {
		if err := dial(to); err != nil {
			t.Errorf("with the device, %s: %v", to, err)
		}
	}

	h.in(func() error {
		mesh0, err := netlink.LinkByName("mesh0")
		return errors.Join(err, netlink.LinkDel(mesh0))
	})
	for _, to := range targets {
		if err := dial(to); !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("without the device, %s: %v, want unreachable", to, err)
		}
	}

	// The same holds when it is only then that the routes are set.
	h.apply(tun.HostState{})
	err := h.net.Apply(t.Context(), full())
	if !errors.Is(err, hostnet.ErrNoLink) || !strings.Contains(err.Error(), "mesh0") {
		t.Errorf("Apply = %v, want ErrNoLink that names it", err)
	}
	for _, to := range targets {
		if err := dial(to); !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("applied without the device, %s: %v, want unreachable", to, err)
		}
	}
	h.addTUN("mesh0")
	h.apply(full())
	if err := dial("10.86.80.1:9"); err != nil {
		t.Errorf("with a new device: %v", err)
	}
}

func TestForwardingKeepsRouterAdvertisements(t *testing.T) {
	h := newHost(t)
	for _, l := range []string{"wan0", "off0", "fwd0", "mesh0"} {
		h.addTUN(l)
	}
	h.setSysctl("net/ipv6/conf/wan0/accept_ra", "1")
	h.setSysctl("net/ipv6/conf/off0/accept_ra", "0")
	h.setSysctl("net/ipv6/conf/fwd0/accept_ra", "1")
	h.setSysctl("net/ipv6/conf/fwd0/forwarding", "1")
	h.apply(tun.HostState{Link: "mesh0"})
	if got := h.sysctl("net/ipv6/conf/wan0/accept_ra"); got != "1" {
		t.Errorf("without forwarding, accept_ra = %s, want it untouched", got)
	}
	h.apply(tun.HostState{Link: "mesh0", Forwarding: true})
	for link, want := range map[string]string{"wan0": "2", "off0": "0", "fwd0": "1", "default": "2"} {
		if got := h.sysctl("net/ipv6/conf/" + link + "/accept_ra"); got != want {
			t.Errorf("accept_ra of %s = %s, want %s", link, got, want)
		}
	}
}

func TestReadOnlySysctls(t *testing.T) {
	readOnly := func() error { // for this thread, which ends with the namespace
		return errors.Join(unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""),
			unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	}
	t.Run("right already", func(t *testing.T) {
		h := newHost(t)
		h.setSysctl("net/ipv4/ip_forward", "1")
		h.setSysctl("net/ipv6/conf/all/forwarding", "1")
		h.addTUN("mesh0")
		h.in(readOnly)
		h.apply(full())
		h.want(fullText)
	})
	t.Run("wrong", func(t *testing.T) {
		h := newHost(t)
		h.setSysctl("net/ipv4/ip_forward", "0")
		h.addTUN("mesh0")
		h.in(readOnly)
		h.apply(full())
		h.want(fullText)
		u, err := h.net.Underlay(t.Context())
		if err != nil || !u.NoForwarding || u.NoIPv6 {
			t.Errorf("Underlay = %+v, %v, want NoForwarding alone", u, err)
		}
		if changes, err := h.net.EnableForwarding(); !errors.Is(err, unix.EROFS) {
			t.Errorf("EnableForwarding = %q, %v, want EROFS", changes, err)
		}
	})
	t.Run("IPv6 off for new links", func(t *testing.T) {
		h := newHost(t)
		h.setSysctl("net/ipv6/conf/default/disable_ipv6", "1")
		h.addTUN("mesh0")
		if u, err := h.net.Underlay(t.Context()); err != nil || u.NoIPv6 || u.NoForwarding {
			t.Errorf("Underlay = %+v, %v, want neither NoIPv6 nor NoForwarding: it can be changed", u, err)
		}
		h.in(readOnly)
		if u, err := h.net.Underlay(t.Context()); err != nil || !u.NoIPv6 {
			t.Errorf("Underlay = %+v, %v, want NoIPv6", u, err)
		}
		if err := h.net.Apply(t.Context(), full()); !errors.Is(err, hostnet.ErrNoIPv6) {
			t.Errorf("Apply = %v, want ErrNoIPv6", err)
		}
	})
}

func TestEnableForwarding(t *testing.T) {
	h := newHost(t)
	h.addTUN("wan0")
	h.setSysctl("net/ipv4/ip_forward", "0")
	h.setSysctl("net/ipv6/conf/wan0/accept_ra", "1")
	for _, want := range []string{
		"sysctl -w net/ipv6/conf/default/accept_ra=2, sysctl -w net/ipv6/conf/wan0/accept_ra=2, " +
			"sysctl -w net/ipv4/ip_forward=1, sysctl -w net/ipv6/conf/all/forwarding=1",
		"", // all is done
	} {
		changes, err := h.net.EnableForwarding()
		if got := strings.Join(changes, ", "); err != nil || got != want {
			t.Errorf("EnableForwarding = %q, %v, want %q", got, err, want)
		}
	}
}

func TestWatch(t *testing.T) {
	h := newHost(t)
	h.addTUN("mesh0")
	h.apply(full())
	ctx, cancel := context.WithCancel(t.Context())
	changed := make(chan struct{}, 1)
	done := make(chan error, 1)
	go func() { done <- h.net.Watch(ctx, changed) }()

	wait := func(what string) {
		t.Helper()
		select {
		case <-changed:
		case err := <-done:
			t.Fatalf("Watch ended: %v", err)
		case <-time.After(5 * time.Second):
			t.Fatalf("no signal after %s", what)
		}
	}
	// settle waits until the signals of one change have all come.
	settle := func() {
		for {
			select {
			case <-changed:
			case <-time.After(50 * time.Millisecond):
				return
			}
		}
	}
	wait("the start")
	mesh0 := func() netlink.Link { l, _ := netlink.LinkByName("mesh0"); return l }
	for _, change := range []struct {
		what string
		make func() error
	}{
		{"a route", func() error {
			_, dst, _ := net.ParseCIDR("10.86.0.0/16")
			return netlink.RouteDel(&netlink.Route{Dst: dst, LinkIndex: mesh0().Attrs().Index, Scope: netlink.SCOPE_LINK})
		}},
		{"an IPv6 route", func() error {
			_, dst, _ := net.ParseCIDR("fdcc::/48")
			return netlink.RouteDel(&netlink.Route{Dst: dst, LinkIndex: mesh0().Attrs().Index})
		}},
		{"an address", func() error {
			a, _ := netlink.ParseAddr("192.0.2.7/24")
			return netlink.AddrAdd(mesh0(), a)
		}},
		{"the link", func() error { return netlink.LinkSetMTU(mesh0(), 1300) }},
		{"the link's end", func() error { return netlink.LinkDel(mesh0()) }},
	} {
		settle()
		h.in(change.make)
		wait(change.what)
	}
	settle()
	if err := h.net.Apply(ctx, tun.HostState{Link: "mesh0"}); !errors.Is(err, hostnet.ErrNoLink) {
		t.Fatal(err)
	}
	settle()
	_ = h.net.Apply(ctx, tun.HostState{Link: "mesh0"}) // changes nothing
	select {
	case <-changed:
		t.Error("an Apply that changes nothing wakes the watcher: it would never rest")
	case <-time.After(100 * time.Millisecond):
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Watch = %v, want nil", err)
	}
}

func TestUnderlay(t *testing.T) {
	h := newHost(t)
	u := func(exclude ...netip.Prefix) string {
		t.Helper()
		u, err := h.net.Underlay(t.Context(), exclude...)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(u.Addresses, u.MTU)
	}
	check := func(got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("Underlay = %s, want %s", got, want)
		}
	}
	check(u(), "[] 1500")

	link := func(name string, mtu int, addrs ...string) {
		t.Helper()
		h.addTUN(name)
		h.in(func() error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := errors.Join(netlink.LinkSetMTU(l, mtu), netlink.LinkSetUp(l)); err != nil {
				return err
			}
			for _, s := range addrs {
				a, err := netlink.ParseAddr(s)
				if err != nil {
					return err
				}
				if a.IP.To4() == nil {
					a.Flags = unix.IFA_F_NODAD
				}
				if err := netlink.AddrAdd(l, a); err != nil {
					return err
				}
			}
			return nil
		})
	}
	route := func(dst, dev, src string) {
		t.Helper()
		h.in(func() error {
			l, err := netlink.LinkByName(dev)
			if err != nil {
				return err
			}
			_, n, _ := net.ParseCIDR(dst)
			return netlink.RouteAdd(&netlink.Route{Dst: n, LinkIndex: l.Attrs().Index, Src: net.ParseIP(src)})
		})
	}
	link("docker0", 1500, "172.17.0.1/16")
	check(u(), "[172.17.0.1] 1500")

	link("lan0", 1400, "192.168.1.5/24", "fd99::5/64")
	check(u(), "[192.168.1.5 fd99::5] 1400")

	link("wan0", 1500, "203.0.113.9/24", "203.0.113.10/24", "2001:db8::9/64", "2001:db8::a/64")
	route("0.0.0.0/0", "wan0", "203.0.113.10")
	check(u(), "[203.0.113.10 192.168.1.5 fd99::5 203.0.113.9] 1400")
	route("::/0", "wan0", "")
	got := u(prefix("192.168.0.0/16"), prefix("fd99::/16"))
	if !strings.HasPrefix(got, "[203.0.113.10 2001:db8::") || !strings.HasSuffix(got, " 1500") || strings.Contains(got, "192.168") {
		t.Errorf("Underlay = %s, want both default routes' addresses first, 192.168.1.5 excluded", got)
	}

	h.addTUN("mesh0")
	h.apply(full())
	if got := u(); strings.Contains(got, "10.86") || strings.Contains(got, "fdcc") {
		t.Errorf("Underlay = %s, with addresses of our own link", got)
	}
}
