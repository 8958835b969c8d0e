package plan_test

import (
	"net/netip"
	"path/filepath"
	"testing"

	"meshd/mesh"
	"meshd/overlay/plan"
	"meshd/tun"
)

func TestContainers(t *testing.T) {
	web := mesh.Network{Name: "web", IPv4: netip.MustParsePrefix("10.87.0.0/16"), IPv4Len: 26}
	of := func(n mesh.Node, slot int, state mesh.LeaseState) mesh.Node {
		n.Leases = append(n.Leases, mesh.Lease{Network: "web", Prefixes: web.Slot(slot), State: state})
		return n
	}
	beta := of(node(2, "beta", 80, mesh.Held), 7, mesh.Held)
	both := map[string]plan.Containers{"default": {Bridge: "mbr-default"}, "web": {Bridge: "mbr-web", Ports: []tun.Port{
		{Kind: tun.PortPTP, Name: "mv-b", MAC: "02:00:00:00:00:0b", Addresses: []netip.Addr{netip.MustParseAddr("10.87.0.200")}},
		{Kind: tun.PortBridge, Name: "mv-a", MAC: "02:00:00:00:00:0a", Addresses: []netip.Addr{netip.MustParseAddr("10.87.0.201")}},
		{Kind: tun.PortMACVLAN, Peer: "mc-c", Parent: "eth0", MAC: "02:00:00:00:00:0c", Addresses: []netip.Addr{netip.MustParseAddr("10.87.0.202")}},
		{Kind: tun.PortMACVLAN, Peer: "mc-d", Parent: "eth0", MAC: "02:00:00:00:00:0d", Addresses: []netip.Addr{netip.MustParseAddr("10.87.0.203"), netip.MustParseAddr("10.87.9.9")}},
		{Kind: tun.PortMACVLAN, Peer: "mc-e", Parent: "eth1", MAC: "02:00:00:00:00:0e", Addresses: []netip.Addr{netip.MustParseAddr("10.87.0.204")}},
	}}}
	for name, c := range map[string]struct {
		self   mesh.Node
		opt    plan.Options
		member bool
	}{
		"none": {of(node(1, "alpha", 17, mesh.Held), 3, mesh.Held), plan.Options{}, true},
		"former": {of(node(1, "alpha", 17, mesh.Held), 3, mesh.Held), plan.Options{Containers: map[string]plan.Containers{
			"web": {Bridge: "mbr-web", Former: []netip.Prefix{netip.MustParsePrefix("10.87.2.0/26")}},
		}}, true},
		"both":        {of(node(1, "alpha", 17, mesh.Held), 3, mesh.Held), plan.Options{Containers: both}, true},
		"both_ipv4":   {of(node(1, "alpha", 17, mesh.Held), 3, mesh.Held), plan.Options{Containers: both, NoIPv6: true}, true},
		"ports_alone": {of(node(1, "alpha", 17, mesh.Held), 3, mesh.Held), plan.Options{Containers: map[string]plan.Containers{"web": {Ports: []tun.Port{{Kind: tun.PortPTP, Name: "mv-a"}}}}}, true},
		"no_lease":    {node(1, "alpha", 17, mesh.Held), plan.Options{Containers: both}, true},
		"pending":     {of(node(1, "alpha", 17, mesh.Held), 3, mesh.Pending), plan.Options{Containers: both}, true},
		"deleted": {node(1, "alpha", 17, mesh.Held), plan.Options{Containers: map[string]plan.Containers{
			"default": {Bridge: "mbr-default"}, "shop": both["web"],
		}}, true},
		"quarantined": {of(node(1, "alpha", 17, mesh.Held), 7, mesh.Quarantined), plan.Options{Containers: both}, true},
		"stranger":    {node(9, "stranger", -1, 0), plan.Options{Containers: both}, false},
	} {
		t.Run(name, func(t *testing.T) {
			v := view(mesh.Ready, beta)
			if c.member {
				v = view(mesh.Ready, c.self, beta)
			}
			v.Networks = append(v.Networks, web)
			c.opt.Link, c.opt.MTU = "mesh0", 1420
			p := plan.Build(v, c.opt)
			golden(t, filepath.Join("testdata", "containers_"+name+".txt"), p.Host.String()+p.Rules.String())
		})
	}
}

// Whoever has left keeps nothing, containers or not.
func TestLeftWithContainers(t *testing.T) {
	v := view(mesh.Left, node(1, "alpha", 17, mesh.Released), node(2, "beta", 80, mesh.Held))
	p := plan.Build(v, plan.Options{Link: "mesh0", Containers: map[string]plan.Containers{"default": {Bridge: "mbr-default"}}})
	if !p.Rules.IsZero() || p.Host.String() != "" {
		t.Errorf("wants %s%s, want nothing", p.Host, p.Rules)
	}
}
