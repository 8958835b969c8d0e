//go:build linux

package inside_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun"
	"meshd/tun/hostnet"
	"meshd/tun/inside"
	"meshd/tun/netns"
)

// lab is a host with a container.
type lab struct {
	host, container *netns.NS
	net             *hostnet.Net
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{host: netns.ForTest(t), container: netns.ForTest(t)}
	l.net = hostnet.New(hostnet.Options{Namespace: l.host.Do})
	return l
}

// bridge and ptp are what the daemon makes and a door wants then.
func bridge() (tun.Port, inside.Link) {
	p := tun.Port{
		Kind: tun.PortBridge, Name: "mv-one", Peer: "mc-one", Parent: "mbr-web", MAC: "02:00:00:00:00:17", MTU: 1400,
		Addresses: []netip.Addr{netip.MustParseAddr("10.86.23.7"), netip.MustParseAddr("fd00:86:0:23::7")},
	}
	return p, inside.Link{
		Peer: p.Peer, Name: "eth1", MAC: p.MAC, MTU: p.MTU,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.86.23.7/24"), netip.MustParsePrefix("fd00:86:0:23::7/64")},
		Gateways:  []netip.Addr{netip.MustParseAddr("10.86.23.1"), netip.MustParseAddr("fd00:86:0:23::1")},
		Routes:    []netip.Prefix{netip.MustParsePrefix("10.86.0.0/16"), netip.MustParsePrefix("fd00:86::/48")},
	}
}

func ptp() (tun.Port, inside.Link) {
	p, want := bridge()
	p.Kind, p.Parent = tun.PortPTP, ""
	for i, a := range want.Addresses {
		want.Addresses[i] = netip.PrefixFrom(a.Addr(), a.Addr().BitLen())
	}
	return p, want
}

// add has the host make a port, and speak for the gateways.
func (l *lab) add(t *testing.T, p tun.Port, gateways []netip.Addr) {
	t.Helper()
	if err := l.net.AddPort(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	on := p.Parent
	if on == "" {
		on = p.Name
	}
	do(t, l.host, func() error {
		link, err := netlink.LinkByName(on)
		if err != nil {
			return err
		}
		for _, g := range gateways {
			bits := g.BitLen()
			if p.Parent != "" {
				bits = map[bool]int{true: 24, false: 64}[g.Is4()]
			}
			addr := &netlink.Addr{IPNet: &net.IPNet{IP: g.AsSlice(), Mask: net.CIDRMask(bits, g.BitLen())}, Flags: unix.IFA_F_NODAD}
			if err := netlink.AddrReplace(link, addr); err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *lab) put(ctx context.Context, want inside.Link) error {
	return l.host.Do(func() error { return inside.Put(ctx, l.container.Path(), want) })
}

func (l *lab) check(ctx context.Context, want inside.Link) error {
	return l.host.Do(func() error { return inside.Check(ctx, l.container.Path(), want) })
}

func do(t *testing.T, ns *netns.NS, fn func() error) {
	t.Helper()
	if err := ns.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// show prints what a namespace has but for its loopback and link-local addresses.
func show(t *testing.T, ns *netns.NS) string {
	t.Helper()
	var lines []string
	do(t, ns, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			a := l.Attrs()
			if a.Name == "lo" {
				continue
			}
			up := "down"
			if a.Flags&net.FlagUp != 0 {
				up = "up"
			}
			lines = append(lines, fmt.Sprintf("link %s %s mtu %d %s %s", a.Name, a.HardwareAddr, a.MTU, up, a.Alias))
			addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
			if err != nil {
				return err
			}
			for _, addr := range addrs {
				if addr.IP.IsLinkLocalUnicast() {
					continue
				}
				line := "addr " + addr.IPNet.String()
				if addr.Flags&unix.IFA_F_TENTATIVE != 0 {
					line += " tentative"
				}
				lines = append(lines, line)
			}
			for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
				routes, err := netlink.RouteList(l, family)
				if err != nil {
					return err
				}
				for _, r := range routes {
					if r.Dst.IP.IsLinkLocalUnicast() || r.Dst.IP.IsMulticast() {
						continue
					}
					line := "route " + r.Dst.String()
					if r.Gw != nil {
						line += " via " + r.Gw.String()
					}
					lines = append(lines, line)
				}
			}
		}
		return nil
	})
	return strings.Join(lines, "\n")
}

// reaches dials a listener in another namespace by TCP.
func reaches(t *testing.T, from, to *netns.NS, a netip.Addr) {
	t.Helper()
	var listener net.Listener
	do(t, to, func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(a, 0).String())
		return err
	})
	defer listener.Close()
	do(t, from, func() error {
		conn, err := net.DialTimeout("tcp", listener.Addr().String(), 5*time.Second)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

func TestPut(t *testing.T) {
	for name, tt := range map[string]struct {
		make   func() (tun.Port, inside.Link)
		addrs  string
		subnet string
	}{
		"bridge": {bridge, "addr 10.86.23.7/24\naddr fd00:86:0:23::7/64", "route 10.86.23.0/24\n"},
		"ptp":    {ptp, "addr 10.86.23.7/32\naddr fd00:86:0:23::7/128", ""},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			p, want := tt.make()
			l.add(t, p, want.Gateways)
			var last string
			for range 3 { // the same again changes nothing
				if err := l.put(t.Context(), want); err != nil {
					t.Fatal(err)
				}
				got := show(t, l.container)
				if !strings.HasPrefix(got, "link eth1 02:00:00:00:00:17 mtu 1400 up mc-one\n"+tt.addrs) || strings.Contains(got, "tentative") ||
					!strings.Contains(got, tt.subnet+"route 10.86.0.0/16 via 10.86.23.1") && !strings.Contains(got, "route 10.86.0.0/16 via 10.86.23.1\n"+tt.subnet) ||
					!strings.Contains(got, "route fd00:86::/48 via fd00:86:0:23::1") || last != "" && got != last {
					t.Fatalf("the container has\n%s\nbefore:\n%s", got, last)
				}
				last = got
				if err := l.check(t.Context(), want); err != nil {
					t.Error(err)
				}
				l.add(t, p, want.Gateways) // as the daemon does when it is asked again
			}
			for _, g := range want.Gateways {
				reaches(t, l.container, l.host, g)
			}
			for _, a := range want.Addresses {
				reaches(t, l.host, l.container, a.Addr())
			}
			if got := show(t, l.host); strings.Contains(got, "mc-one ") {
				t.Errorf("the host has it still:\n%s", got)
			}
			links, err := listIn(t, l)
			if err != nil || !slices.Contains(links, inside.Interface{Name: "eth1", Peer: "mc-one", Host: "mv-one"}) || !slices.Contains(links, inside.Interface{Name: "lo"}) {
				t.Errorf("links %v, %v", links, err)
			}
		})
	}
}

func listIn(t *testing.T, l *lab) (all []inside.Interface, err error) {
	t.Helper()
	err = l.host.Do(func() (err error) {
		all, err = inside.List(t.Context(), l.container.Path())
		return err
	})
	return all, err
}

// counted is a context that ends at its n-th question, and does something then.
type counted struct {
	context.Context
	left int
	then func()
}

func (c *counted) Err() error {
	if c.left--; c.left > 0 {
		return nil
	}
	if c.then != nil {
		c.then()
		c.then = nil
	}
	return context.Canceled
}

// Wherever it fails, the link is back on the host, or gone, and the container has
// nothing of it.
func TestPutUndoesWhatItBegan(t *testing.T) {
	for name, make := range map[string]func() (tun.Port, inside.Link){"bridge": bridge, "ptp": ptp} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			p, want := make()
			l.add(t, p, want.Gateways)
			steps := 0
			for {
				steps++
				err := l.put(&counted{t.Context(), steps, nil}, want)
				if err == nil {
					break
				}
				if got := show(t, l.container); got != "" {
					t.Fatalf("after %d steps and %v the container has\n%s", steps, err, got)
				}
				if got := show(t, l.host); !strings.Contains(got, "link mc-one 02:00:00:00:00:17 mtu 1400 down") {
					t.Fatalf("after %d steps and %v the host has\n%s", steps, err, got)
				}
			}
			if err := l.check(t.Context(), want); err != nil || steps < 8 {
				t.Errorf("after %d steps: %v", steps, err)
			}
			// The same on one that is there: it stays.
			for i := range steps {
				_ = l.put(&counted{t.Context(), i, nil}, want)
				if err := l.check(t.Context(), want); err != nil {
					t.Fatalf("repeated, ended after %d steps: %v", i, err)
				}
			}
		})
	}
	t.Run("the name is taken on the host meanwhile", func(t *testing.T) {
		l := newLab(t)
		p, want := bridge()
		l.add(t, p, want.Gateways)
		var host *netlink.Handle
		do(t, l.host, func() (err error) {
			host, err = netlink.NewHandle(unix.NETLINK_ROUTE)
			return err
		})
		defer host.Close()
		other := veth("mc-one", "other")
		err := l.put(&counted{t.Context(), 5, func() {
			if err := host.LinkAdd(other); err != nil {
				t.Error(err)
			}
		}}, want)
		if got := show(t, l.container); err == nil || got != "" {
			t.Errorf("%v, and the container has\n%s", err, got)
		}
		if got := show(t, l.host); strings.Contains(got, "mv-one") || !strings.Contains(got, "link other ") {
			t.Errorf("the host has\n%s", got)
		}
	})
	t.Run("the kernel refuses", func(t *testing.T) {
		l := newLab(t)
		p, want := bridge()
		l.add(t, p, want.Gateways)
		want.Gateways[1] = want.Addresses[1].Addr() // nobody is his own gateway
		err := l.put(t.Context(), want)
		if got := show(t, l.container); err == nil || !strings.Contains(err.Error(), "add route to fd00:86::/48: ") || got != "" {
			t.Errorf("%v, and the container has\n%s", err, got)
		}
		if got := show(t, l.host); !strings.Contains(got, "link mc-one ") {
			t.Errorf("the host has\n%s", got)
		}
	})
}

func veth(a, b string) *netlink.Veth {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = a
	return &netlink.Veth{LinkAttrs: attrs, PeerName: b}
}

// foreign gives the container a network of somebody else's.
func (l *lab) foreign(t *testing.T, routes ...string) {
	t.Helper()
	do(t, l.container, func() error {
		pair := veth("eth0", "far")
		if err := netlink.LinkAdd(pair); err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("172.17.0.2/16")
		if err == nil {
			err = netlink.AddrAdd(pair, addr)
		}
		if err == nil {
			err = netlink.LinkSetUp(pair)
		}
		if err != nil {
			return err
		}
		far, err := netlink.LinkByName("far")
		if err == nil {
			err = netlink.LinkSetUp(far)
		}
		for _, r := range routes {
			dst, _ := netlink.ParseIPNet(r)
			if err == nil {
				err = netlink.RouteAdd(&netlink.Route{LinkIndex: pair.Index, Dst: dst, Gw: net.IPv4(172, 17, 0, 1)})
			}
		}
		return err
	})
}

func TestPutLeavesOthersAlone(t *testing.T) {
	l := newLab(t)
	l.foreign(t, "0.0.0.0/0")
	before := show(t, l.container)
	p, want := bridge()
	l.add(t, p, want.Gateways)

	taken := want
	taken.Name = "eth0"
	if err := l.put(t.Context(), taken); !errors.Is(err, inside.ErrTaken) {
		t.Errorf("a name that is taken: %v", err)
	}
	if got := show(t, l.container); got != before {
		t.Errorf("the container has\n%s\nwant\n%s", got, before)
	}
	want.Default = true // twice, so that the second finds what the first has made
	for range 2 {
		if err := l.put(t.Context(), want); err != nil {
			t.Fatal(err)
		}
	}
	got := show(t, l.container)
	if !strings.HasPrefix(got, before) {
		t.Errorf("the container has\n%s\nwant first\n%s", got, before)
	}
	// The other's default route stays; IPv6 has none but ours.
	for _, route := range []string{
		"route 0.0.0.0/1 via 10.86.23.1", "route 128.0.0.0/1 via 10.86.23.1", "route ::/0 via fd00:86:0:23::1",
	} {
		if !strings.Contains(got, route) {
			t.Errorf("%s is missing:\n%s", route, got)
		}
	}
	if err := l.check(t.Context(), want); err != nil {
		t.Error(err)
	}
	// A name that is taken by then does not cost a container what it has.
	if err := l.put(t.Context(), taken); !errors.Is(err, inside.ErrTaken) {
		t.Errorf("renamed to one that is taken: %v", err)
	}
	if err := l.check(t.Context(), want); err != nil {
		t.Error(err)
	}
	want.Default = false
	if err := l.put(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if got := show(t, l.container); strings.Contains(got, "0.0.0.0/1") || strings.Contains(got, "::/0") {
		t.Errorf("a default route that is wanted no more:\n%s", got)
	}
	// Another name for one that is there.
	want.Name = "mesh"
	if err := l.put(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if err := l.check(t.Context(), want); err != nil {
		t.Error(err)
	}
	if err := l.remove(t.Context(), "mesh"); err != nil {
		t.Fatal(err)
	}
	if got := show(t, l.container); got != before {
		t.Errorf("in the end the container has\n%s\nwant\n%s", got, before)
	}
}

func TestPutRefusesRoutesOfOthers(t *testing.T) {
	l := newLab(t)
	l.foreign(t, "10.86.0.0/16")
	before := show(t, l.container)
	p, want := bridge()
	l.add(t, p, want.Gateways)
	err := l.put(t.Context(), want)
	if err == nil || !strings.Contains(err.Error(), "the container is on the network 10.86.0.0/16 already, by eth0") {
		t.Errorf("error %v", err)
	}
	if got := show(t, l.container); got != before {
		t.Errorf("the container has\n%s\nwant\n%s", got, before)
	}
	if got := show(t, l.host); !strings.Contains(got, "link mc-one ") {
		t.Errorf("the host has\n%s", got)
	}
}

// Runtimes disable IPv6 in containers to which they give no such address.
func TestPutWhereIPv6IsDisabled(t *testing.T) {
	l := newLab(t)
	do(t, l.container, func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	})
	p, want := bridge()
	l.add(t, p, want.Gateways)
	if err := l.put(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	reaches(t, l.container, l.host, want.Gateways[1])
}

// What is undone by others is told by Check, and mended by Put.
func TestCheck(t *testing.T) {
	l := newLab(t)
	p, want := bridge()
	if err := l.check(t.Context(), want); !errors.Is(err, inside.ErrNoLink) {
		t.Errorf("before all: %v", err)
	}
	l.add(t, p, want.Gateways)
	if err := l.put(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, says string
		do         func(netlink.Link) error
	}{
		{"down", "it is down", netlink.LinkSetDown},
		{"MTU", "the MTU is 1300", func(l netlink.Link) error { return netlink.LinkSetMTU(l, 1300) }},
		{"MAC", "the MAC address is 02:00:00:00:00:99", func(l netlink.Link) error {
			return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0, 0x99})
		}},
		{"address", "the address 10.86.23.7/24 is missing", func(l netlink.Link) error {
			addr, _ := netlink.ParseAddr("10.86.23.7/24")
			return netlink.AddrDel(l, addr)
		}},
		{"route", "the route to fd00:86::/48 is missing", func(l netlink.Link) error {
			_, dst, _ := net.ParseCIDR("fd00:86::/48")
			return netlink.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst})
		}},
		{"name", "it is named eth9", func(l netlink.Link) error {
			return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, "eth9"), netlink.LinkSetUp(l))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			do(t, l.container, func() error {
				link, err := netlink.LinkByName("eth1")
				if err != nil {
					return err
				}
				return tt.do(link)
			})
			if err := l.check(t.Context(), want); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want %q", err, tt.says)
			}
			if err := l.put(t.Context(), want); err != nil {
				t.Fatal(err)
			}
			if err := l.check(t.Context(), want); err != nil {
				t.Errorf("mended: %v", err)
			}
		})
	}
}

// What hangs on a physical link has no end on the host by which to tell that it
// is there, so the daemon makes it again in vain.
func TestPutMACVLAN(t *testing.T) {
	l := newLab(t)
	do(t, l.host, func() error {
		pair := veth("lan0", "lan1")
		pair.MTU = 1300
		if err := netlink.LinkAdd(pair); err != nil {
			return err
		}
		return netlink.LinkSetUp(pair)
	})
	p, want := bridge()
	p.Kind, p.Name, p.Parent = tun.PortMACVLAN, "", "lan0"
	for range 3 {
		if err := l.net.AddPort(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		if err := l.put(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		if err := l.check(t.Context(), want); err != nil {
			t.Error(err)
		}
		if got := show(t, l.container); strings.Count(got, "link ") != 1 || !strings.HasPrefix(got, "link eth1 02:00:00:00:00:17 mtu 1300 up mc-one") {
			t.Errorf("the container has\n%s", got)
		}
		if got := show(t, l.host); strings.Contains(got, "mc-one") {
			t.Errorf("the host has\n%s", got)
		}
	}
	if err := l.remove(t.Context(), "mc-one"); err != nil {
		t.Fatal(err)
	}
	if got := show(t, l.container); got != "" {
		t.Errorf("in the end the container has\n%s", got)
	}
}

func (l *lab) remove(ctx context.Context, name string) error {
	return l.host.Do(func() error { return inside.Remove(ctx, l.container.Path(), name) })
}

func TestRemove(t *testing.T) {
	for _, name := range []string{"eth1", "mc-one"} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.foreign(t)
			before := show(t, l.container)
			p, want := bridge()
			l.add(t, p, want.Gateways)
			if err := l.put(t.Context(), want); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := l.remove(t.Context(), name); err != nil {
					t.Error(err)
				}
			}
			if got := show(t, l.container); got != before {
				t.Errorf("the container has\n%s\nwant\n%s", got, before)
			}
			if got := show(t, l.host); strings.Contains(got, "mv-one") {
				t.Errorf("the host has\n%s", got)
			}
			// Whoever has the name then is not ours.
			if err := l.remove(t.Context(), "eth0"); err != nil || show(t, l.container) != before {
				t.Errorf("remove somebody else's: %v", err)
			}
		})
	}
}

func TestNoNamespace(t *testing.T) {
	l := newLab(t)
	p, want := bridge()
	l.add(t, p, want.Gateways)
	dir := t.TempDir()
	file, fifo, gone := filepath.Join(dir, "file"), filepath.Join(dir, "fifo"), filepath.Join(dir, "gone")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), unix.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	other, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	ended := other.Path()
	other.Close()
	for range 1000 { // its thread has gone for Go, and a moment later for the kernel
		if _, err := os.Stat(ended); err != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	for _, path := range []string{"", file, fifo, gone, file + "/x", dir, ended, "/proc/self/ns/mnt", "/dev/null", "/proc/0/ns/net"} {
		do(t, l.host, func() error {
			if err := inside.Put(t.Context(), path, want); !errors.Is(err, inside.ErrNoNamespace) {
				t.Errorf("put into %q: %v", path, err)
			}
			if err := inside.Check(t.Context(), path, want); !errors.Is(err, inside.ErrNoNamespace) {
				t.Errorf("check in %q: %v", path, err)
			}
			if err := inside.Remove(t.Context(), path, "eth1"); err != nil {
				t.Errorf("remove from %q: %v", path, err)
			}
			return nil
		})
	}
	do(t, l.host, func() error {
		if err := inside.Put(t.Context(), l.host.Path(), want); !errors.Is(err, inside.ErrOwn) {
			t.Errorf("put into the host's own: %v", err)
		}
		return nil
	})
	if got := show(t, l.host); !strings.Contains(got, "link mc-one ") {
		t.Errorf("the host has\n%s", got)
	}
	want.Peer = "mc-two"
	if err := l.put(t.Context(), want); !errors.Is(err, inside.ErrNoLink) {
		t.Errorf("a link that is not there: %v", err)
	}
}

func TestPutRefusesNonsense(t *testing.T) {
	for name, spoil := range map[string]func(*inside.Link){
		"peer":                   func(l *inside.Link) { l.Peer = "eth0" },
		"peer with a slash":      func(l *inside.Link) { l.Peer = "mc-../x" },
		"no name":                func(l *inside.Link) { l.Name = "" },
		"name with a slash":      func(l *inside.Link) { l.Name = "../eth0" },
		"a long name":            func(l *inside.Link) { l.Name = "sixteen-bytes-xx" },
		"MAC":                    func(l *inside.Link) { l.MAC = "02:00" },
		"no address":             func(l *inside.Link) { l.Addresses = []netip.Prefix{{}} },
		"no gateway":             func(l *inside.Link) { l.Gateways = []netip.Addr{{}} },
		"two gateways":           func(l *inside.Link) { l.Gateways = append(l.Gateways, netip.MustParseAddr("10.86.23.2")) },
		"route without gateway":  func(l *inside.Link) { l.Gateways = l.Gateways[1:] },
		"route with host's bits": func(l *inside.Link) { l.Routes = append(l.Routes, netip.MustParsePrefix("10.0.0.1/8")) },
	} {
		t.Run(name, func(t *testing.T) {
			_, want := bridge()
			spoil(&want)
			if err := inside.Put(t.Context(), "/nowhere", want); err == nil || errors.Is(err, inside.ErrNoNamespace) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// Several who put the same link in, or take it out, do not get in each other's way.
func TestCallersTakeTurns(t *testing.T) {
	l := newLab(t)
	p, want := bridge()
	l.add(t, p, want.Gateways)
	each := func(do func() error) {
		t.Helper()
		var callers sync.WaitGroup
		for range 8 {
			callers.Go(func() {
				if err := netns.Run(l.host.Path(), do); err != nil {
					t.Error(err)
				}
			})
		}
		callers.Wait()
	}
	each(func() error { return inside.Put(t.Context(), l.container.Path(), want) })
	if err := l.check(t.Context(), want); err != nil {
		t.Error(err)
	}
	each(func() error { return inside.Remove(t.Context(), l.container.Path(), "eth1") })
	if got := show(t, l.container); got != "" {
		t.Errorf("the container has\n%s", got)
	}

	// Who waits for a turn that does not come gives up with its context.
	fd, err := unix.Open(l.container.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Flock(fd, unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := l.put(ctx, want); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("put while another one does not end: %v", err)
	}
}

// No thread that was in a container ever runs anything else.
func TestNoThreadStays(t *testing.T) {
	l := newLab(t)
	of := func(path string) string {
		name, _ := os.Readlink(path)
		return name
	}
	container := of(l.container.Path())
	var jobs sync.WaitGroup
	for range 50 {
		jobs.Go(func() {
			if _, err := inside.List(t.Context(), l.container.Path()); err != nil {
				t.Error(err)
			}
		})
	}
	jobs.Wait()
	deadline := time.Now().Add(5 * time.Second)
	for {
		tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		in := 0
		for _, path := range tasks {
			if of(path) == container {
				in++
			}
		}
		if in == 1 && of("/proc/self/ns/net") != container { // the test's own
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d threads of %d are in the container", in, len(tasks))
		}
		time.Sleep(time.Millisecond) // the kernel ends threads after their goroutines
	}
}

// BenchmarkPut puts a new link into a container.
func BenchmarkPut(b *testing.B) {
	host, container := netns.ForTest(b), netns.ForTest(b)
	l := &lab{host: host, container: container, net: hostnet.New(hostnet.Options{Namespace: host.Do})}
	p, want := bridge()
	for b.Loop() {
		b.StopTimer()
		if err := errors.Join(l.net.DelPort(b.Context(), p), l.net.AddPort(b.Context(), p)); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := l.put(b.Context(), want); err != nil {
			b.Fatal(err)
		}
	}
}
