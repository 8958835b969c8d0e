//go:build linux

package e2e

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"meshd/mesh/statedir"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/tunnel"
	"meshd/overlay/tunnel/wggo"
	"meshd/tun/device"
	"meshd/tun/netns"
)

const rogueLink = "rogue0"

// startRogue runs a tunnel engine without a daemon on a host: one that sends
// what no honest node would. own is its inner address; all that is said to be
// behind its peers is routed to it. It ends with the test.
func startRogue(t *testing.T, h *lab.Host, key [32]byte, own netip.Prefix, peers ...tunnel.Peer) {
	t.Helper()
	var dev *device.Device
	must(t, h.Do(func() (err error) {
		dev, err = device.Open(device.Options{Name: rogueLink})
		return err
	}))
	engine := wggo.New(wggo.Options{TUN: dev, PrivateKey: key, Port: tunnelPort})
	ended := make(chan error, 1)
	go func() { ended <- netns.Run(h.Path(), func() error { return engine.Run(t.Context()) }) }()
	t.Cleanup(func() {
		if err := <-ended; err != nil {
			t.Errorf("rogue engine: %v", err)
		}
	})
	// It takes itself for the owner of everything.
	all := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	must(t, engine.Apply(bounded(t), tunnel.Config{Own: all, Peers: peers}))
	must(t, h.Do(func() error {
		link, err := netlink.LinkByName(rogueLink)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(own)}); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		for _, p := range peers {
			for _, a := range p.AllowedIPs {
				r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(a), Scope: netlink.SCOPE_LINK}
				if a.Addr().Is6() {
					r.Scope = netlink.SCOPE_UNIVERSE
				}
				if err := netlink.RouteReplace(r); err != nil {
					return err
				}
			}
		}
		return nil
	}))
}

// asPeer is a node as another one's engine sees it, with what it has leased.
func asPeer(t *testing.T, n *cluster.Node) tunnel.Peer {
	t.Helper()
	dir, err := statedir.Open(n.StateDir())
	must(t, err)
	keys := dir.Keys()
	p := tunnel.Peer{
		ID: keys.ID(), PublicKey: keys.Tunnel.Public(), Suite: tunnel.ChaCha20Poly1305,
		Endpoints: []netip.AddrPort{netip.AddrPortFrom(n.Host.IPv4, tunnelPort)},
	}
	for _, a := range addresses(t, n) {
		p.AllowedIPs = append(p.AllowedIPs, netip.PrefixFrom(a, a.BitLen()))
	}
	return p
}
