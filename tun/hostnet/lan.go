//go:build linux

package hostnet

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"meshd/tun"
)

// lan is a link of the host on a physical one, beside those of containers.
// Whatever of its type is named like ours is ours.
type lan struct {
	link
	addrs  []netip.Prefix // but for link-local ones
	beside []netip.Addr   // for which the host answers there
}

// parent is a physical link.
type parent struct {
	link
	mac net.HardwareAddr
}

func (k kernel) lans() ([]lan, error) {
	links, err := k.linksNamed(tun.LANPrefix)
	if err != nil {
		return nil, err
	}
	var all []lan
	for _, l := range links {
		a := l.Attrs()
		if !tun.PortKind(l.Type()).IsLAN() {
			continue
		}
		n := lan{link: link{name: a.Name, index: a.Index, mtu: a.MTU, up: a.Flags&net.FlagUp != 0}}
		if n.addrs, err = k.fixedAddrs(l); err != nil {
			return nil, err
		}
		if n.beside, err = k.proxies(l); err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, nil
}

// parents gives the links that are there of those that LANs are on, by name.
func (k kernel) parents(want []tun.LAN) (map[string]parent, error) {
	all := map[string]parent{}
	for _, w := range want {
		l, err := k.find(w.Parent)
		if err != nil {
			return nil, fmt.Errorf("find link %s: %w", w.Parent, err)
		}
		if l != nil {
			all[w.Parent] = parent{link{name: w.Parent, index: l.Attrs().Index, mtu: l.Attrs().MTU}, l.Attrs().HardwareAddr}
		}
	}
	return all, nil
}

// lanDiff lists what makes the host's links on physical ones as wanted. What
// removes others comes after the routes that lead there.
func lanDiff(have state, want tun.HostState) (ops, deletions, last []op) {
	wanted := map[string]bool{}
	for _, w := range want.LANs {
		wanted[w.Name] = true
		on, there := have.parents[w.Parent], have.lan(w.Name)
		mtu := min(w.MTU, on.mtu) // it takes no more
		if there.name == "" {
			ops = append(ops, addLAN{w.Kind, w.Name, on})
		}
		l := link{name: w.Name, index: there.index}
		if mtu != 0 && there.mtu != mtu {
			ops = append(ops, setLink{l, "mtu", mtu})
		}
		if !there.up {
			ops = append(ops, setLink{l, "up", 1})
		}
		for _, a := range w.Addresses {
			if p := netip.PrefixFrom(a, a.BitLen()); !slices.Contains(there.addrs, p) {
				ops = append(ops, addAddr{l, p})
			}
		}
		for _, p := range there.addrs {
			if !p.IsSingleIP() || !slices.Contains(w.Addresses, p.Addr()) {
				deletions = append(deletions, delAddr{l, p})
			}
		}
		add, del := besideDiff(l, there.beside, w.Beside)
		ops, deletions = append(ops, add...), append(deletions, del...)
	}
	for _, l := range have.lans {
		if !wanted[l.name] {
			last = append(last, delLink{l.netlink()})
		}
	}
	return ops, deletions, last
}

// lan gives the one of that name; zero: it is not there.
func (s state) lan(name string) lan {
	for _, l := range s.lans {
		if l.name == name {
			return l
		}
	}
	return lan{}
}

type addLAN struct {
	kind tun.PortKind
	name string
	on   parent
}

func (o addLAN) String() string {
	return fmt.Sprintf("ip link add %s link %s type %s", o.name, o.on.name, o.kind)
}

func (o addLAN) do(k kernel) error {
	attrs := attributes(o.name)
	attrs.ParentIndex = o.on.index
	var l netlink.Link = &netlink.IPVlan{LinkAttrs: attrs, Mode: netlink.IPVLAN_MODE_L2}
	if o.kind == tun.PortMACVLAN {
		// The same each time, for containers have learned it; and no other host's,
		// which may have a link of that name on the same wire.
		attrs.HardwareAddr = macOf(o.name + " " + o.on.mac.String())
		l = &netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}
	}
	if err := k.LinkAdd(l); err != nil {
		return err
	}
	// As a bridge it needs a link-local address at once; the wire may have routers,
	// which the host knows by the link below.
	if err := k.configure6(o.name, "accept_dad=0", "accept_ra=0", "autoconf=0", "disable_ipv6=0"); err != nil {
		return err
	}
	return k.configure4(o.name, arpIgnore, 1)
}

// arpIgnore is IPV4_DEVCONF_ARP_IGNORE: with 1, a link is found by its own
// addresses alone. Else neighbours on the wire would find all of the host's there,
// and what they send to it would come by the wrong link.
const arpIgnore = 19

// configure4 sets what is a sysctl of the link's IPv4 too. This way goes also where
// those are read-only, as in a service's sandbox.
func (k kernel) configure4(name string, key int, value uint32) error {
	l, err := k.LinkByName(name)
	if err != nil {
		return err
	}
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(l.Attrs().Index)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(iflaInetConf, nil).AddRtAttr(key, nl.Uint32Attr(value))
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	req.AddData(msg)
	req.AddData(spec)
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

const iflaInetConf = 1 // IFLA_INET_CONF
