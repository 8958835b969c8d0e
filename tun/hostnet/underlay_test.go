//go:build linux

package hostnet

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun/rtnl"
)

func TestUnderlayChoice(t *testing.T) {
	names := map[string]int{"lo": 1, "eth0": 2, "eth1": 3, "docker0": 4, "mesh0": 5, "off0": 6, "br-lan": 7, "mbr-web": 8}
	type address struct {
		cidr, dev string
		flags     int
	}
	type via struct {
		dst, dev, src, gw string
		metric            int
	}
	for _, c := range []struct {
		name    string
		addrs   []address
		routes  []via
		exclude string
		want    string
	}{
		{name: "nothing", want: "[] 1500"},
		{
			name: "what others cannot reach",
			addrs: []address{
				{"127.0.0.1/8", "lo", 0}, {"::1/128", "lo", 0}, {"169.254.1.1/16", "eth0", 0}, {"fe80::1/64", "eth0", 0},
				{"192.0.2.1/24", "off0", 0}, {"2001:db8::1/64", "eth0", unix.IFA_F_TEMPORARY},
				{"2001:db8::2/64", "eth0", unix.IFA_F_DEPRECATED}, {"2001:db8::3/64", "eth0", unix.IFA_F_TENTATIVE},
				{"2001:db8::4/64", "eth0", unix.IFA_F_DADFAILED}, {"2001:db8::5/64", "eth0", unix.IFA_F_PERMANENT},
			},
			want: "[2001:db8::5] 1400",
		},
		{
			name:  "IPv4 secondaries are no temporaries",
			addrs: []address{{"192.0.2.1/24", "eth0", unix.IFA_F_SECONDARY | unix.IFA_F_PERMANENT}},
			want:  "[192.0.2.1] 1400",
		},
		{
			name:   "the better default route, both families",
			addrs:  []address{{"192.0.2.1/24", "eth0", 0}, {"198.51.100.1/24", "eth1", 0}, {"2001:db8:1::1/64", "eth1", 0}, {"fd00::1/64", "eth0", 0}},
			routes: []via{{"", "eth0", "", "192.0.2.254", 200}, {"", "eth1", "", "198.51.100.254", 100}, {"::/0", "eth1", "", "fe80::1", 1024}},
			want:   "[198.51.100.1 2001:db8:1::1 192.0.2.1 fd00::1] 1400",
		},
		{
			name:   "the address in the gateway's subnet",
			addrs:  []address{{"10.0.0.1/24", "eth0", 0}, {"192.0.2.1/24", "eth0", 0}},
			routes: []via{{"", "eth0", "", "192.0.2.254", 0}},
			want:   "[192.0.2.1 10.0.0.1] 1400",
		},
		{
			name:   "the preferred source",
			addrs:  []address{{"192.0.2.1/24", "eth0", 0}, {"192.0.2.7/24", "eth0", 0}, {"203.0.113.1/32", "lo", 0}},
			routes: []via{{"", "eth0", "203.0.113.1", "192.0.2.254", 0}},
			want:   "[203.0.113.1 192.0.2.1 192.0.2.7] 1400",
		},
		{
			name:   "an address on lo, carried by a card",
			addrs:  []address{{"203.0.113.1/32", "lo", 0}},
			routes: []via{{"", "eth0", "203.0.113.1", "192.0.2.254", 0}},
			want:   "[203.0.113.1] 1400",
		},
		{
			name:  "container bridges only for want of better",
			addrs: []address{{"172.17.0.1/16", "docker0", 0}, {"192.0.2.1/24", "eth1", 0}},
			want:  "[192.0.2.1] 1500",
		},
		{
			name:  "container bridges for want of better",
			addrs: []address{{"172.17.0.1/16", "docker0", 0}},
			want:  "[172.17.0.1] 1500",
		},
		{
			name:   "a bridge with the default route is no container bridge",
			addrs:  []address{{"192.168.1.1/24", "br-lan", 0}, {"192.0.2.1/24", "eth1", 0}},
			routes: []via{{"", "br-lan", "", "192.168.1.254", 0}},
			want:   "[192.168.1.1 192.0.2.1] 1500",
		},
		{
			name:    "the mesh's own",
			addrs:   []address{{"10.86.17.1/32", "eth1", 0}, {"192.0.2.1/24", "eth1", 0}, {"203.0.113.5/24", "mesh0", 0}},
			routes:  []via{{"10.86.0.0/16", "mesh0", "", "", metricLink}},
			exclude: "10.86.0.0/16",
			want:    "[192.0.2.1] 1500",
		},
		{
			name:  "the mesh's own bridge, at a start when the ranges are not known yet",
			addrs: []address{{"10.87.17.1/24", "mbr-web", 0}, {"192.0.2.1/24", "eth1", 0}},
			want:  "[192.0.2.1] 1500",
		},
		{
			name:  "at most four",
			addrs: []address{{"192.0.2.1/24", "eth1", 0}, {"192.0.2.2/24", "eth1", 0}, {"192.0.2.3/24", "eth1", 0}, {"192.0.2.4/24", "eth1", 0}, {"192.0.2.5/24", "eth1", 0}},
			want:  "[192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.4] 1500",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var links []netlink.Link
			for name, index := range names {
				a := netlink.LinkAttrs{Name: name, Index: index, MTU: 1500, Flags: net.FlagUp}
				switch name {
				case "eth0":
					a.MTU = 1400
				case "lo":
					a.MTU = 65536
				case "off0":
					a.Flags = 0
				}
				links = append(links, &netlink.Device{LinkAttrs: a})
			}
			var addrs []netlink.Addr
			for _, a := range c.addrs {
				addrs = append(addrs, netlink.Addr{IPNet: rtnl.IPNet(netip.MustParsePrefix(a.cidr)), LinkIndex: names[a.dev], Flags: a.flags})
			}
			var routes []netlink.Route
			for _, v := range c.routes {
				r := netlink.Route{
					LinkIndex: names[v.dev], Src: net.ParseIP(v.src), Gw: net.ParseIP(v.gw), Priority: v.metric,
					Family: netlink.FAMILY_V4, Type: unix.RTN_UNICAST,
				}
				if v.dst != "" {
					p := netip.MustParsePrefix(v.dst)
					r.Dst = rtnl.IPNet(p)
					if p.Addr().Is6() {
						r.Family = netlink.FAMILY_V6
					}
				}
				if v.metric == metricLink {
					r.Protocol = RouteProtocol
				}
				routes = append(routes, r)
			}
			var exclude []netip.Prefix
			if c.exclude != "" {
				exclude = append(exclude, netip.MustParsePrefix(c.exclude))
			}
			u := underlay(links, addrs, routes, exclude)
			if got := fmt.Sprint(u.Addresses, u.MTU); got != c.want {
				t.Errorf("underlay = %s, want %s", got, c.want)
			}
		})
	}
}

// Bridges of others' containers are known by their names or by what hangs on them; an
// ordinary bridge is none, whatever it is called.
func TestContainerBridges(t *testing.T) {
	var links []netlink.Link
	indices := map[string]int{}
	add := func(l netlink.Link, name, master string) {
		indices[name] = len(links) + 1
		*l.Attrs() = netlink.LinkAttrs{Name: name, Index: indices[name], MasterIndex: indices[master], Flags: net.FlagUp}
		links = append(links, l)
	}
	for _, name := range []string{"docker0", "br-0123456789ab", "br-lan", "br-out", "custom", "empty", "mbr-web"} {
		add(&netlink.Bridge{}, name, "")
	}
	add(&netlink.Device{}, "eth0", "br-lan")
	add(&netlink.Veth{}, "veth1", "br-lan")
	add(&netlink.Veth{}, "veth2", "br-out")
	add(&netlink.Veth{}, "veth3", "custom")
	add(&netlink.Tuntap{}, "tap0", "custom")
	add(&netlink.Veth{}, "mv-a", "mbr-web")
	routes := []netlink.Route{{LinkIndex: indices["br-out"], Gw: net.ParseIP("192.0.2.1"), Family: netlink.FAMILY_V4, Type: unix.RTN_UNICAST}}
	want := []string{"br-0123456789ab", "custom", "docker0"}
	if got := containerBridges(links, routes); !slices.Equal(got, want) {
		t.Errorf("bridges %v, want %v", got, want)
	}
}
