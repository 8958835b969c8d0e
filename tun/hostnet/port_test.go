//go:build linux

package hostnet_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun"
	"meshd/tun/netns"
)

func port(name string, kind tun.PortKind, parent string) tun.Port {
	p := tun.Port{
		Kind: kind, Name: "mv-" + name, Peer: "mc-" + name, Parent: parent, MAC: "02:00:0a:56:11:05", MTU: 1380,
		Addresses: []netip.Addr{addr("10.86.17.5"), addr("fd12:3456:789a:11::5")},
	}
	if kind == tun.PortMACVLAN || kind == tun.PortIPVLAN {
		p.Name = ""
	}
	return p
}

func (h host) addPort(p tun.Port) {
	h.Helper()
	if err := h.net.AddPort(h.Context(), p); err != nil {
		h.Fatal(err)
	}
}

func (h host) delPort(p tun.Port) {
	h.Helper()
	if err := h.net.DelPort(h.Context(), p); err != nil {
		h.Fatal(err)
	}
}

// find gives a link, nil if there is none of that name.
func (h host) find(name string) (l netlink.Link) {
	h.Helper()
	h.in(func() (err error) {
		l, err = netlink.LinkByName(name)
		if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
			l, err = nil, nil
		}
		return err
	})
	return l
}

func (h host) wantPorts(when string, want ...string) {
	h.Helper()
	ports, err := h.net.Ports(h.Context())
	if err != nil {
		h.Fatal(err)
	}
	var got []string
	for _, p := range ports {
		got = append(got, strings.TrimSpace(p.Name+" "+p.Peer))
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		h.Errorf("%s the ports are %q, want %q", when, got, want)
	}
}

// withBridge is full with a bridge in the lease.
func withBridge() tun.HostState {
	s := full()
	s.Bridges = []tun.Bridge{{Name: "mbr-default", MTU: 1420, Addresses: prefixes("10.86.17.1/24", "fd12:3456:789a:11::1/64")}}
	return s
}

func TestBridges(t *testing.T) {
	h := newHost(t)
	h.addTUN("mesh0")
	h.apply(withBridge())
	mac := h.find("mbr-default").Attrs().HardwareAddr.String()
	h.addPort(port("a", tun.PortBridge, "mbr-default"))
	if now := h.find("mbr-default").Attrs().HardwareAddr.String(); now != mac {
		t.Errorf("the bridge's address is %s with a port, was %s", now, mac)
	}
	before := h.show()
	for _, line := range []string{
		"link mbr-default mtu 1420 qlen 1000 up true", "addr 10.86.17.1/24", "addr fd12:3456:789a:11::1/64", "addr 10.86.17.1/32",
		"route 10.86.17.0/24 dev mbr-default proto 2 metric 0", "route 10.86.17.0/24 unreachable",
	} {
		if !strings.Contains(before, line) {
			t.Errorf("no %q in\n%s", line, before)
		}
	}
	h.apply(withBridge())
	if again := h.show(); again != before {
		t.Errorf("applied again it is\n%swas\n%s", again, before)
	}

	h.in(func() error {
		b, err := netlink.LinkByName("mbr-default")
		if err != nil {
			return err
		}
		more, err := netlink.ParseAddr("10.86.99.1/24")
		return errors.Join(err, netlink.LinkSetMTU(b, 1300), netlink.AddrAdd(b, more), netlink.LinkSetDown(b))
	})
	h.apply(withBridge())
	if repaired := h.show(); repaired != before {
		t.Errorf("repaired it is\n%swas\n%s", repaired, before)
	}

	h.apply(full())
	if h.find("mbr-default") == nil {
		t.Error("a bridge went that has a port")
	}
	if left := h.show(); strings.Contains(left, "10.86.17.1/24") || strings.Contains(left, "11::1/64") || strings.Contains(left, "10.86.17.0/24 dev") {
		t.Errorf("the host is still on a bridge that nobody wants:\n%s", left)
	}
	h.apply(withBridge())
	if again := h.show(); again != before {
		t.Errorf("wanted again it is\n%swas\n%s", again, before)
	}
	h.apply(full())
	h.delPort(port("a", tun.PortBridge, "mbr-default"))
	h.apply(full())
	if h.find("mbr-default") != nil {
		t.Error("a bridge stays that nobody wants")
	}
	h.want(fullText)

	h.apply(withBridge())
	h.addPort(port("a", tun.PortBridge, "mbr-default"))
	h.apply(tun.HostState{})
	if h.find("mbr-default") != nil {
		t.Error("a bridge stays when nothing is wanted at all")
	}
}

// A bridge is told who is behind a port, each time that it gets it.
func TestPortIsPinned(t *testing.T) {
	h := newHost(t)
	p := port("a", tun.PortBridge, "mbr-web")
	want := func(when string) {
		t.Helper()
		h.in(func() error {
			end, err := netlink.LinkByName(p.Name)
			if err != nil {
				return err
			}
			on, err := netlink.LinkGetProtinfo(end)
			if err != nil || on.Learning || end.Attrs().Flags&net.FlagUp == 0 {
				t.Errorf("%s the port learns: %t, has flags %s; %v", when, on.Learning, end.Attrs().Flags, err)
			}
			all, err := netlink.NeighList(end.Attrs().Index, unix.AF_BRIDGE)
			if !slices.ContainsFunc(all, func(n netlink.Neigh) bool {
				return n.HardwareAddr.String() == p.MAC && n.State&netlink.NUD_NOARP != 0 && n.MasterIndex == end.Attrs().MasterIndex
			}) {
				t.Errorf("%s the bridge does not know that %s is behind the port: %v", when, p.MAC, all)
			}
			return err
		})
	}
	h.addPort(p)
	want("at first")
	h.in(func() error { return netlink.LinkDel(h.find("mbr-web")) })
	h.addPort(p)
	want("on a new bridge")
	h.in(func() error {
		return errors.Join(netlink.LinkSetLearning(h.find(p.Name), true), netlink.LinkSetDown(h.find(p.Name)))
	})
	h.addPort(p)
	want("after somebody had changed it")
}

func TestPort(t *testing.T) {
	for _, kind := range []tun.PortKind{tun.PortBridge, tun.PortPTP} {
		t.Run(string(kind), func(t *testing.T) {
			h := newHost(t)
			parent := ""
			if kind == tun.PortBridge {
				parent = "mbr-web"
			}
			p := port("a", kind, parent)
			h.addPort(p)
			end, peer := h.find(p.Name), h.find(p.Peer)
			if end == nil || peer == nil {
				t.Fatalf("ends are %v and %v", end, peer)
			}
			if a := peer.Attrs(); a.HardwareAddr.String() != p.MAC || a.MTU != p.MTU || end.Attrs().MTU != p.MTU {
				t.Errorf("peer has %s and MTU %d, its host end %d", a.HardwareAddr, a.MTU, end.Attrs().MTU)
			}
			if a := peer.Attrs(); a.GSOMaxSegs != 46 {
				t.Errorf("the container sends %d packets in one, more than the TUN device takes", a.GSOMaxSegs)
			}
			h.in(func() error { return netlink.LinkSetUp(peer) })
			if kind == tun.PortBridge {
				if b := h.find("mbr-web"); b == nil || end.Attrs().MasterIndex != b.Attrs().Index {
					t.Errorf("the host end is on %d, want the bridge %v", end.Attrs().MasterIndex, b)
				}
			} else if routes := h.show(); !strings.Contains(routes, "route 10.86.17.5/32 dev mv-a") || !strings.Contains(routes, "route fd12:3456:789a:11::5/128 dev mv-a") {
				t.Errorf("no routes to the container in\n%s", routes)
			}
			if v := h.sysctl("net/ipv6/conf/mv-a/accept_ra"); v != "0" {
				t.Errorf("accept_ra = %s", v)
			}
			h.wantPorts("after one was added", "mv-a mc-a")

			h.addPort(p)
			container := netns.ForTest(t)
			h.moveTo(container, p.Peer)
			h.wantPorts("after it was moved", "mv-a")
			h.addPort(p)
			if now := h.find(p.Name); now == nil || now.Attrs().Index != end.Attrs().Index {
				t.Error("a second AddPort made another port")
			}
			h.apply(tun.HostState{Forwarding: true, Routes: []tun.Route{{Dst: prefix("10.86.0.0/16"), Unreachable: true}}})
			if kind == tun.PortPTP && !strings.Contains(h.show(), "route 10.86.17.5/32 dev mv-a") {
				t.Error("Apply took the route to the container away")
			}

			h.delPort(p)
			h.wantPorts("after it was removed")
			h.delPort(p)
			h.addPort(p)
			container.Close()
			h.wantPorts("after it was added again", "mv-a mc-a")
			if removed := h.cleanup(); !slices.Contains(removed, "ip link del mv-a") {
				t.Errorf("cleanup removed %q", removed)
			}
			h.wantPorts("after cleanup")
			if left := h.show(); left != "" {
				t.Errorf("cleanup leaves\n%s", left)
			}
		})
	}
}

// moveTo moves a link into a container, as the doors do.
func (h host) moveTo(ns *netns.NS, name string) {
	h.Helper()
	other, err := os.Open(ns.Path())
	if err != nil {
		h.Fatal(err)
	}
	defer other.Close()
	l := h.find(name)
	h.in(func() error { return netlink.LinkSetNsFd(l, int(other.Fd())) })
}

func TestMACVLAN(t *testing.T) {
	h := newHost(t)
	h.in(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1300}, PeerName: "wire"})
	})
	p := port("a", tun.PortMACVLAN, "eth0")
	h.addPort(p)
	h.addPort(p)
	h.wantPorts("after a macvlan was added", "mc-a")
	l := h.find(p.Peer)
	if l == nil || l.Type() != "macvlan" || l.Attrs().HardwareAddr.String() != p.MAC || l.Attrs().MTU != 1300 {
		t.Fatalf("the link is %+v", l)
	}
	h.delPort(p)
	h.delPort(p)
	if h.find(p.Peer) != nil || h.find("eth0") == nil {
		t.Error("not the macvlan alone was removed")
	}
	h.addPort(p)
	h.cleanup()
	if h.find(p.Peer) != nil || h.find("eth0") == nil {
		t.Error("not the macvlan alone was cleaned up")
	}
	p.Parent = "eth9"
	if err := h.net.AddPort(t.Context(), p); err == nil || !strings.Contains(err.Error(), "eth9") {
		t.Errorf("without its parent: %v", err)
	}
}

func TestPortInTheWay(t *testing.T) {
	h := newHost(t)
	h.in(func() error {
		return errors.Join(
			netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "mv-a"}}),
			netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "mbr-x"}, PeerName: "y"}))
	})
	for _, p := range []tun.Port{port("a", tun.PortBridge, "mbr-web"), port("b", tun.PortBridge, "mbr-x")} {
		if err := h.net.AddPort(t.Context(), p); !errors.Is(err, unix.EEXIST) {
			t.Errorf("AddPort(%s) = %v, want EEXIST", p.Name, err)
		}
	}
	bridges := port("d", tun.PortBridge, "mbr-web")
	h.addPort(bridges)
	bridges = port("e", tun.PortBridge, "mbr-web")
	h.in(func() error {
		l, err := netlink.LinkByName("mbr-web")
		if err == nil {
			bridges.MAC = l.Attrs().HardwareAddr.String()
		}
		return err
	})
	if err := h.net.AddPort(t.Context(), bridges); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a container with the bridge's own MAC address: %v", err)
	}
	bad := port("c", tun.PortBridge, "mbr-web")
	bad.MAC = "nonsense"
	if err := h.net.AddPort(t.Context(), bad); err == nil {
		t.Error("a MAC address of nonsense was accepted")
	}
	bad = port("c", "else", "")
	if err := h.net.AddPort(t.Context(), bad); err == nil {
		t.Error("an unknown kind was accepted")
	}
}

// Many doors at once share a bridge that is not there yet.
func TestManyPorts(t *testing.T) {
	h := newHost(t)
	const many = 50
	var all sync.WaitGroup
	for i := range many {
		all.Go(func() {
			p := port(fmt.Sprint(i), tun.PortBridge, "mbr-web")
			err := h.net.AddPort(t.Context(), p)
			if i%2 == 0 {
				err = errors.Join(err, h.net.DelPort(t.Context(), p))
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	names, err := h.net.Ports(t.Context())
	if err != nil || len(names) != many/2 {
		t.Errorf("%d ports, %v; want %d", len(names), err, many/2)
	}
}
