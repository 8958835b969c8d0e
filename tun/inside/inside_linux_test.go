//go:build linux

package inside_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
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
			if err != nil || !slices.Contains(links, inside.Interface{Name: "eth1", Peer: "mc-one"}) || !slices.Contains(links, inside.Interface{Name: "lo"}) {
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
