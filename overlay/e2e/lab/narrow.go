//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Narrow builds a lab of two hosts with two routers between them, of which the
// link has a smaller MTU than all others. silent: nobody is told when a packet is
// too large for it, since the routers send no ICMP at all, nor ICMPv6 but to find
// their neighbours. There is no switch, so whatever needs one (LinkDown,
// ReplaceNIC, captures) gives an error.
//
//	alpha eth0 ── near router far ── MTU ── far router near ── eth0 beta
//	198.18.0.1/24        198.18.2.1/24       198.18.2.2/24     198.18.1.2/24
//	fd00:198:18::1/64                                      fd00:198:18:1::2/64
func Narrow(ctx context.Context, a, b string, mtu int, silent bool) (*Lab, error) {
	l := &Lab{}
	err := l.narrow(ctx, []string{a, b}, mtu, silent)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("build lab: %w", err), l.Close())
	}
	return l, nil
}

// The routers' cards.
const (
	near = "near" // to the host
	far  = "far"  // to the other router
)

func (l *Lab) narrow(ctx context.Context, names []string, mtu int, silent bool) error {
	const between = 2 // the number of the net between the routers
	var routers []*Host
	for i, name := range names {
		h, err := l.add(name)
		if err != nil {
			return err
		}
		h.IPv4, h.IPv6 = inNet(i, byte(i+1))
		r, err := h.Namespace("router of " + name)
		if err != nil {
			return err
		}
		routers = append(routers, r)
		if err := join(h, nic, r, near, 1500); err != nil {
			return err
		}
	}
	if err := join(routers[0], far, routers[1], far, mtu); err != nil {
		return err
	}
	for i, h := range l.hosts {
		r := routers[i]
		gateway4, gateway6 := inNet(i, 254)
		own4, own6 := inNet(between, byte(i+1))
		other4, other6 := inNet(between, byte(len(routers)-i))
		err := errors.Join(
			waitUp(ctx, h.onNIC),
			h.AddAddress(netip.PrefixFrom(h.IPv4, 24)), h.AddAddress(netip.PrefixFrom(h.IPv6, 64)),
			h.Do(func() error { return routesBy(nic, gateway4, gateway6) }),
			r.Do(func() error {
				return errors.Join(
					setSysctl("net/ipv4/ip_forward", "1"), setSysctl("net/ipv6/conf/all/forwarding", "1"),
					addTo(near, gateway4, gateway6), addTo(far, own4, own6))
			}))
		if err != nil {
			return fmt.Errorf("connect host %s: %w", h.Name, err)
		}
		if err := r.Do(func() error { return routesBy(far, other4, other6) }); err != nil {
			return fmt.Errorf("connect %s: %w", r.Name, err)
		}
		if silent {
			if err := r.Do(silence); err != nil {
				return fmt.Errorf("silence %s: %w", r.Name, err)
			}
		}
	}
	return nil
}

// inNet gives a host's addresses in one of the nets.
func inNet(number int, host byte) (v4, v6 netip.Addr) {
	return netip.AddrFrom4([4]byte{198, 18, byte(number), host}),
		netip.AddrFrom16([16]byte{0xfd, 0, 0x01, 0x98, 0, 0x18, 7: byte(number), 15: host})
}

// join lays a cable between two cards that it makes.
func join(a *Host, aName string, b *Host, bName string, mtu int) error {
	f, err := os.Open(b.ns.Path())
	if err != nil {
		return err
	}
	defer f.Close()
	err = a.Do(func() error {
		v := netlink.NewVeth(netlink.LinkAttrs{Name: aName, MTU: mtu})
		v.PeerName, v.PeerNamespace, v.PeerMTU = bName, netlink.NsFd(f.Fd()), uint32(mtu)
		return netlink.LinkAdd(v)
	})
	for _, end := range []struct {
		h    *Host
		name string
	}{{a, aName}, {b, bName}} {
		if err == nil {
			err = end.h.Do(func() error {
				for _, name := range []string{"lo", end.name} {
					link, err := netlink.LinkByName(name)
					if err != nil {
						return err
					}
					if err := netlink.LinkSetUp(link); err != nil {
						return err
					}
				}
				return setSysctl("net/ipv4/tcp_congestion_control", "reno") // as on a switch
			})
		}
	}
	if err != nil {
		return fmt.Errorf("join %s and %s: %w", a.Name, b.Name, err)
	}
	return nil
}

// addTo gives a card addresses, usable at once.
func addTo(card string, v4, v6 netip.Addr) error {
	link, err := netlink.LinkByName(card)
	if err != nil {
		return err
	}
	six := address(netip.PrefixFrom(v6, 64))
	six.Flags = unix.IFA_F_NODAD
	return errors.Join(netlink.AddrAdd(link, address(netip.PrefixFrom(v4, 24))), netlink.AddrAdd(link, six))
}

// routesBy sends all that is for elsewhere by gateways.
func routesBy(card string, gateways ...netip.Addr) error {
	link, err := netlink.LinkByName(card)
	if err != nil {
		return err
	}
	for _, g := range gateways {
		all := &net.IPNet{IP: make(net.IP, g.BitLen()/8), Mask: net.CIDRMask(0, g.BitLen())}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: all, Gw: g.AsSlice()}); err != nil {
			return fmt.Errorf("route by %s: %w", g, err)
		}
	}
	return nil
}

// silence drops ICMP, and errors of ICMPv6, whoever sends it.
func silence() error {
	c := new(nftables.Conn)
	table := c.AddTable(&nftables.Table{Name: "lab-silence", Family: nftables.TableFamilyINet})
	for name, hook := range map[string]*nftables.ChainHook{"output": nftables.ChainHookOutput, "forward": nftables.ChainHookForward} {
		chain := c.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMP}},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMPV6}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
			&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: []byte{128}}, // types of errors (RFC 4443, 2.1)
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	}
	return c.Flush()
}
