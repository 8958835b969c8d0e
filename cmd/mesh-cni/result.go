package main

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"meshd/overlay/attach"
	"meshd/tun/inside"
)

// link is what a container should have.
func (c *conf) link(args *skel.CmdArgs, a attach.Attachment) inside.Link {
	return inside.Link{
		Peer: a.Peer, Name: args.IfName, MAC: a.MAC, MTU: a.MTU,
		Addresses: a.Addresses, Gateways: a.Gateways, Routes: a.Routes, Default: c.DefaultRoute == nil || *c.DefaultRoute,
	}
}

// result tells the runtime, and the plugins after this one, what the container has
// got. Those find the host's end by its name.
func (c *conf) result(args *skel.CmdArgs, a attach.Attachment) *types100.Result {
	r := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, DNS: c.DNS}
	if a.HostLink != "" {
		r.Interfaces = append(r.Interfaces, &types100.Interface{Name: a.HostLink, Mtu: a.MTU})
	}
	want := c.link(args, a)
	r.Interfaces = append(r.Interfaces, &types100.Interface{Name: args.IfName, Mac: want.MAC, Mtu: a.MTU, Sandbox: args.Netns})
	for i, p := range want.Addresses {
		r.IPs = append(r.IPs, &types100.IPConfig{
			Interface: new(len(r.Interfaces) - 1), Address: ipNet(p), Gateway: want.Gateways[i].AsSlice(),
		})
	}
	for _, route := range routes(want) {
		r.Routes = append(r.Routes, &types.Route{Dst: ipNet(route.to), GW: route.by.AsSlice()})
	}
	return r
}

type route struct {
	to netip.Prefix
	by netip.Addr
}

// routes are those that a link brings.
func routes(l inside.Link) []route {
	var all []route
	for _, gateway := range l.Gateways {
		if l.Default {
			all = append(all, route{everywhere(gateway), gateway})
		}
		for _, to := range l.Routes {
			if to.Addr().Is4() == gateway.Is4() {
				all = append(all, route{to, gateway})
			}
		}
	}
	return all
}

// everywhere is where a default route leads.
func everywhere(gateway netip.Addr) netip.Prefix {
	if gateway.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// own finds the container's interface in a result, by its place; -1: it is not
// there.
func own(r *types100.Result, args *skel.CmdArgs) int {
	return slices.IndexFunc(r.Interfaces, func(i *types100.Interface) bool {
		return i != nil && i.Name == args.IfName && i.Sandbox != ""
	})
}

// compare says what of an attachment a result lacks. It narrows want to the routes
// of the result: a plugin after this one may have taken others away.
func compare(r *types100.Result, args *skel.CmdArgs, want *inside.Link) error {
	at := own(r, args)
	if at < 0 {
		return fmt.Errorf("it has no interface %s in the container", args.IfName)
	}
	if mac := r.Interfaces[at].Mac; mac != "" && want.MAC != "" && mac != want.MAC {
		return fmt.Errorf("%s has the MAC address %s there, meshd says %s", args.IfName, mac, want.MAC)
	}
	for _, p := range want.Addresses {
		if !slices.ContainsFunc(r.IPs, func(ip *types100.IPConfig) bool {
			return ip != nil && (ip.Interface == nil || *ip.Interface == at) && ip.Address.String() == p.String()
		}) {
			return fmt.Errorf("%s has not got %s there", args.IfName, p)
		}
	}
	has := func(to netip.Prefix) bool {
		n := ipNet(to)
		return slices.ContainsFunc(r.Routes, func(r *types.Route) bool { return r != nil && r.Dst.String() == n.String() })
	}
	want.Routes = slices.DeleteFunc(slices.Clone(want.Routes), func(to netip.Prefix) bool { return !has(to) })
	want.Default = want.Default && !slices.ContainsFunc(want.Gateways, func(g netip.Addr) bool { return !has(everywhere(g)) })
	return nil
}
