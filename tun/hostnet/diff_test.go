//go:build linux

package hostnet

import (
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"meshd/tun"
	"meshd/tun/netns"
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// settled are the sysctls of a host that forwards.
var settled = sysctls{
	forward4: "1", forward6: "1",
	"net/ipv4/conf/mesh0/forwarding": "1", "net/ipv6/conf/mesh0/forwarding": "1",
	"net/ipv6/conf/mesh0/disable_ipv6": "0", "net/ipv6/conf/mesh0/addr_gen_mode": "1",
}

// with gives the settled sysctls, changed; an empty value removes.
func with(changes ...string) sysctls {
	s := maps.Clone(settled)
	for _, c := range changes {
		key, value, _ := strings.Cut(c, "=")
		s[key] = value
		if value == "" {
			delete(s, key)
		}
	}
	return s
}

func TestDiff(t *testing.T) {
	mesh0 := link{name: "mesh0", index: 7, mtu: 1420, txq: txQueueLen, segs: 45, up: true}
	want := tun.HostState{
		Link: "mesh0", MTU: 1420, Forwarding: true,
		Addresses: []netip.Prefix{pfx("10.86.17.1/32"), pfx("fdcc::17/128")},
		Routes: []tun.Route{
			{Dst: pfx("10.86.0.0/16"), Unreachable: true},
			{Dst: pfx("10.86.0.0/16"), Src: netip.MustParseAddr("10.86.17.1")},
			{Dst: pfx("fdcc::/48")},
		},
	}
	var there []route
	for _, r := range want.Routes {
		there = append(there, wantRoute(r, mesh0))
	}
	newSrc := wantRoute(tun.Route{Dst: pfx("10.86.0.0/16"), Src: netip.MustParseAddr("10.86.80.1")}, mesh0)
	small := tun.Route{Dst: pfx("10.86.80.0/24"), Src: netip.MustParseAddr("10.86.17.1"), MTU: 1200}
	narrow := want
	narrow.Routes = append(slices.Clone(want.Routes), small)
	wider := wantRoute(small, mesh0)
	wider.mtu = 1280
	foreignTable := wantRoute(tun.Route{Dst: pfx("10.86.0.0/16")}, mesh0)
	foreignTable.table = 77
	blackhole := route{key: key{pfx("10.99.0.0/16"), unix.RT_TABLE_MAIN, 5}, kind: unix.RTN_BLACKHOLE}

	for _, c := range []struct {
		name string
		have state
		want tun.HostState
		ops  string
		err  error
	}{
		{
			name: "all is well",
			have: state{mesh0, want.Addresses, there, settled, nil, nil, nil, nil},
			want: want,
		},
		{
			name: "new device",
			have: state{link: link{name: "mesh0", index: 7, mtu: 1500, txq: 500, segs: 65535}, sysctl: with(
				forward4+"=0", "net/ipv6/conf/mesh0/addr_gen_mode=0", "net/ipv6/conf/mesh0/disable_ipv6=1")},
			want: want,
			ops: `sysctl -w net/ipv6/conf/mesh0/disable_ipv6=0
				sysctl -w net/ipv4/ip_forward=1
				ip link set mesh0 mtu 1420
				ip link set mesh0 txqueuelen 1000
				ip link set mesh0 gso_max_segs 45
				ip link set mesh0 addrgenmode none
				ip link set mesh0 up
				ip addr add 10.86.17.1/32 dev mesh0
				ip addr add fdcc::17/128 dev mesh0
				ip route add 10.86.0.0/16 dev mesh0 proto 109 metric 50 src 10.86.17.1
				ip route add unreachable 10.86.0.0/16 proto 109 metric 2147483647
				ip route add fdcc::/48 dev mesh0 proto 109 metric 50`,
		},
		{
			name: "no device",
			have: state{sysctl: with("net/ipv6/conf/mesh0/disable_ipv6=", "net/ipv6/conf/mesh0/addr_gen_mode=")},
			want: want,
			ops:  `ip route add unreachable 10.86.0.0/16 proto 109 metric 2147483647`,
			err:  ErrNoLink,
		},
		{
			name: "no IPv6",
			have: state{link: mesh0, sysctl: sysctls{forward4: "1", "net/ipv4/conf/mesh0/forwarding": "1"}},
			want: want,
			ops: `ip addr add 10.86.17.1/32 dev mesh0
				ip route add 10.86.0.0/16 dev mesh0 proto 109 metric 50 src 10.86.17.1
				ip route add unreachable 10.86.0.0/16 proto 109 metric 2147483647`,
			err: ErrNoIPv6,
		},
		{
			name: "no IPv6 wanted, none there",
			have: state{link: mesh0, sysctl: sysctls{}},
			want: tun.HostState{Link: "mesh0"},
		},
		{
			name: "source address changed: additions before deletions",
			have: state{mesh0, []netip.Prefix{pfx("10.86.80.1/32"), pfx("fdcc::17/128")}, []route{there[0], newSrc, there[2]}, settled, nil, nil, nil, nil},
			want: want,
			ops: `ip addr add 10.86.17.1/32 dev mesh0
				ip route replace 10.86.0.0/16 dev mesh0 proto 109 metric 50 src 10.86.17.1
				ip addr del 10.86.80.1/32 dev mesh0`,
		},
		{
			name: "a path gets narrow",
			have: state{mesh0, want.Addresses, there, settled, nil, nil, nil, nil},
			want: narrow,
			ops:  `ip route add 10.86.80.0/24 dev mesh0 proto 109 metric 50 src 10.86.17.1 mtu 1200`,
		},
		{
			name: "and narrower",
			have: state{mesh0, want.Addresses, append(slices.Clone(there), wider), settled, nil, nil, nil, nil},
			want: narrow,
			ops:  `ip route replace 10.86.80.0/24 dev mesh0 proto 109 metric 50 src 10.86.17.1 mtu 1200`,
		},
		{
			name: "and wide again",
			have: state{mesh0, want.Addresses, append(slices.Clone(there), wider), settled, nil, nil, nil, nil},
			want: want,
			ops:  `ip route del 10.86.80.0/24 dev mesh0 proto 109 metric 50 src 10.86.17.1 mtu 1280`,
		},
		{
			name: "a link on a physical one comes, and another goes after its routes",
			have: state{
				link: mesh0, sysctl: settled, parents: map[string]parent{"eth0": {link: link{name: "eth0", index: 3, mtu: 1400}}},
				lans:   []lan{{link: link{name: "mv-lan-old", index: 8}}},
				routes: []route{{key{pfx("10.86.17.9/32"), 254, metricLink}, unix.RTN_UNICAST, "mv-lan-old", 8, netip.Addr{}, 0}},
			},
			want: tun.HostState{Link: "mesh0", LANs: []tun.LAN{
				{Kind: tun.PortMACVLAN, Name: "mv-lan-gone", Parent: "eth9", Containers: []netip.Addr{netip.MustParseAddr("10.86.17.7")}},
				{
					Kind: tun.PortMACVLAN, Name: "mv-lan-new", Parent: "eth0", MTU: 1420,
					Addresses: []netip.Addr{netip.MustParseAddr("10.86.17.1")}, Containers: []netip.Addr{netip.MustParseAddr("10.86.17.5")},
				},
			}},
			ops: `ip link add mv-lan-new link eth0 type macvlan
				ip link set mv-lan-new mtu 1400
				ip link set mv-lan-new up
				ip addr add 10.86.17.1/32 dev mv-lan-new
				ip route add 10.86.17.5/32 dev mv-lan-new proto 109 metric 50
				ip route del 10.86.17.9/32 dev mv-lan-old proto 109 metric 50
				ip link del mv-lan-old`,
		},
		{
			name: "nothing wanted",
			have: state{link{}, nil, append([]route{foreignTable, blackhole}, there...), with(forward4 + "=0"), nil, nil, nil, nil},
			ops: `ip route del 10.86.0.0/16 dev mesh0 table 77 proto 109 metric 50
				ip route del blackhole 10.99.0.0/16 proto 109 metric 5
				ip route del unreachable 10.86.0.0/16 proto 109 metric 2147483647
				ip route del 10.86.0.0/16 dev mesh0 proto 109 metric 50 src 10.86.17.1
				ip route del fdcc::/48 dev mesh0 proto 109 metric 50`,
		},
		{
			name: "router advertisements before forwarding",
			have: state{mesh0, nil, nil, with(forward6+"=0",
				"net/ipv6/conf/all/accept_ra=1", "net/ipv6/conf/all/forwarding=0",
				"net/ipv6/conf/lo/accept_ra=1", "net/ipv6/conf/lo/forwarding=0",
				"net/ipv6/conf/mesh0/accept_ra=1", "net/ipv6/conf/mesh0/forwarding=0",
				"net/ipv6/conf/eth0.100/accept_ra=1", "net/ipv6/conf/eth0.100/forwarding=0",
				"net/ipv6/conf/eth1/accept_ra=0", "net/ipv6/conf/eth1/forwarding=0",
				"net/ipv6/conf/eth2/accept_ra=1", "net/ipv6/conf/eth2/forwarding=1",
			), nil, nil, nil, nil},
			want: tun.HostState{Link: "mesh0", Forwarding: true},
			ops: `sysctl -w net/ipv6/conf/eth0.100/accept_ra=2
				sysctl -w net/ipv6/conf/all/forwarding=1`,
		},
		{
			name: "forwarding off on our link alone",
			have: state{mesh0, nil, nil, with("net/ipv4/conf/mesh0/forwarding=0", "net/ipv6/conf/mesh0/forwarding=0"), nil, nil, nil, nil},
			want: tun.HostState{Link: "mesh0", Forwarding: true},
			ops: `sysctl -w net/ipv4/conf/mesh0/forwarding=1
				sysctl -w net/ipv6/conf/mesh0/forwarding=1`,
		},
		{
			name: "sysctls that are not ours to change",
			have: state{mesh0, want.Addresses, there, with(forward4+"=0", "net/ipv6/conf/mesh0/forwarding=0"), map[string]bool{forward4: true}, nil, nil, nil},
			want: want,
			ops:  `sysctl -w net/ipv6/conf/mesh0/forwarding=1`,
		},
		{
			name: "IPv6 off on the link, and not ours to change",
			have: state{mesh0, nil, nil, with("net/ipv6/conf/mesh0/disable_ipv6=1"), map[string]bool{"net/ipv6/conf/mesh0/disable_ipv6": true}, nil, nil, nil},
			want: tun.HostState{Link: "mesh0", Addresses: want.Addresses},
			ops:  `ip addr add 10.86.17.1/32 dev mesh0`,
			err:  ErrNoIPv6,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			ops, err := diff(c.have, c.want)
			var lines []string
			for _, op := range ops {
				lines = append(lines, op.String())
			}
			wantOps := strings.ReplaceAll(c.ops, "\t", "")
			if got := strings.Join(lines, "\n"); got != wantOps {
				t.Errorf("diff gives\n%s\nwant\n%s", got, wantOps)
			}
			if !errors.Is(err, c.err) {
				t.Errorf("error = %v, want %v", err, c.err)
			}
		})
	}
}

// A kernel without IPv6 cannot be had in a namespace; one that shows no IPv6
// sysctls is as good.
func TestNoIPv6(t *testing.T) {
	ns := netns.ForTest(t)
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "net/ipv4"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, forward4), []byte("0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	n := New(Options{Namespace: ns.Do})
	n.sysctl = sysctlDir(dir)
	want := tun.HostState{Forwarding: true, Routes: []tun.Route{
		{Dst: pfx("10.86.0.0/16"), Unreachable: true}, {Dst: pfx("fdcc::/48"), Unreachable: true},
	}}
	for range 2 {
		if err := n.Apply(t.Context(), want); !errors.Is(err, ErrNoIPv6) {
			t.Errorf("Apply = %v, want ErrNoIPv6", err)
		}
	}
	if got, _ := os.ReadFile(filepath.Join(dir, forward4)); string(got) != "1" {
		t.Errorf("%s = %q, want 1", forward4, got)
	}
	err := n.with(func(k kernel) error {
		routes, err := k.ourRoutes()
		if err == nil && (len(routes) != 1 || routes[0].Dst.String() != "10.86.0.0/16") {
			t.Errorf("routes = %v, want the IPv4 one", routes)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Apply(t.Context(), tun.HostState{}); err != nil {
		t.Errorf("Apply of nothing = %v", err)
	}
}
