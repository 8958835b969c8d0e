//go:build linux

package e2e

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"

	"meshd/overlay/attach"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
)

// otherContainer makes a container that is not on the mesh, as Docker does: on the
// bridge docker0, and masqueraded wherever it goes.
func otherContainer(t *testing.T, n *cluster.Node) *lab.Host {
	t.Helper()
	c, err := n.Host.Namespace("other")
	must(t, err)
	gateway, own := netip.MustParsePrefix("172.17.0.1/16"), netip.MustParsePrefix("172.17.0.2/16")
	ns, err := os.Open(c.Path())
	must(t, err)
	defer ns.Close()
	must(t, n.Host.Do(func() error {
		b := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}}
		v := netlink.NewVeth(netlink.LinkAttrs{Name: "vethother"})
		v.PeerName, v.PeerNamespace = "eth-other", netlink.NsFd(ns.Fd())
		if err := errors.Join(netlink.LinkAdd(b), netlink.LinkAdd(v)); err != nil {
			return err
		}
		return errors.Join(
			netlink.LinkSetMaster(v, b), netlink.LinkSetUp(v), netlink.LinkSetUp(b),
			netlink.AddrAdd(b, &netlink.Addr{IPNet: ipNet(gateway)}), masqueradeAll(own.Masked()))
	}))
	must(t, c.Do(func() error {
		eth, err := netlink.LinkByName("eth-other")
		if err != nil {
			return err
		}
		return errors.Join(
			netlink.AddrAdd(eth, &netlink.Addr{IPNet: ipNet(own)}), netlink.LinkSetUp(eth),
			netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: gateway.Addr().AsSlice()}))
	}))
	c.IPv4 = own.Addr()
	t.Cleanup(func() { // it is not the daemon's to leave
		must(t, n.Host.Do(func() error {
			k := new(nftables.Conn)
			k.DelTable(&nftables.Table{Name: "other", Family: nftables.TableFamilyIPv4})
			return errors.Join(netlink.LinkDel(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}}), k.Flush())
		}))
	})
	_, err = c.Await(bounded(t), gateway.Addr())
	must(t, err)
	return c
}

func masqueradeAll(from netip.Prefix) error {
	k := new(nftables.Conn)
	table := k.AddTable(&nftables.Table{Name: "other", Family: nftables.TableFamilyIPv4})
	chain := k.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	network, mask := ipNet(from).IP.To4(), net.IP(ipNet(from).Mask).To4()
	k.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: network},
		&expr.Masq{},
	}})
	return k.Flush()
}

// Containers of this host that are on no network of the mesh see nothing of it, and
// those on the mesh see nothing of them, though the host forwards for both.
func TestOtherContainers(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 2)
	alpha, beta := c.Nodes[0], c.Nodes[1]
	other := otherContainer(t, alpha)
	apart := func(t *testing.T, from *lab.Host, to netip.Addr) {
		t.Helper()
		if _, err := from.Ping(t.Context(), to); err == nil {
			t.Errorf("%s reaches %s", from.Name, to)
		}
	}
	together := func(t *testing.T, from *lab.Host, to netip.Addr) {
		t.Helper()
		_, err := from.Await(bounded(t), to)
		must(t, err)
	}
	on := addresses(t, beta)[0]
	together(t, other, beta.Host.IPv4) // outside of the mesh it is free
	// The daemon has heard of the bridge a moment after it was made: Docker takes
	// longer to start what hangs on it.
	for ctx := bounded(t); ctx.Err() == nil; pause(ctx, 50*time.Millisecond) {
		if _, err := other.Ping(ctx, on); err != nil {
			break
		}
	}
	t.Run("alone on the host", func(t *testing.T) {
		apart(t, other, on)
		apart(t, beta.Host, other.IPv4)
	})
	t.Run("beside a container of the mesh", func(t *testing.T) {
		member, far := contain(t, alpha, "member", ""), contain(t, beta, "far", "")
		together(t, member.Host, far.IPv4)
		apart(t, other, on)
		apart(t, other, far.IPv4)
		apart(t, other, member.IPv4)
		apart(t, member.Host, other.IPv4)
		together(t, member.Host, beta.Host.IPv4)
		together(t, other, beta.Host.IPv4)
	})
}

// A container that is internal reaches its network, on every host, and nothing else,
// whatever routes it makes for itself.
func TestInternalContainer(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 2)
	alpha, beta := c.Nodes[0], c.Nodes[1]
	for _, mode := range []attach.Mode{attach.Bridge, attach.PTP} {
		t.Run(string(mode), func(t *testing.T) {
			in, err := alpha.Contain(bounded(t), "in-"+string(mode), attach.Ask{Mode: mode, Internal: true}) // with a default route
			must(t, err)
			out, err := alpha.Contain(bounded(t), "out-"+string(mode), attach.Ask{Mode: mode})
			must(t, err)
			far := contain(t, beta, "far-"+string(mode), "")
			for _, to := range []netip.Addr{far.IPv4, far.IPv6, out.IPv4, out.IPv6, in.Gateways[0]} {
				_, err := in.Await(bounded(t), to)
				must(t, err)
			}
			_, err = far.Await(bounded(t), in.IPv6)
			must(t, err)
			for _, to := range []netip.Addr{beta.Host.IPv4, beta.Host.IPv6, alpha.Host.IPv4} {
				if _, err := in.Ping(t.Context(), to); err == nil {
					t.Errorf("it reaches %s", to)
				}
				_, err := out.Await(bounded(t), to)
				must(t, err)
			}
		})
	}
}
