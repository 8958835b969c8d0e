//go:build linux

package hostnet_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"meshd/tun"
	"meshd/tun/inside"
	"meshd/tun/netns"
)

// machine is a namespace that sends and receives.
type machine struct {
	name string
	in   func(func() error) error
}

// into moves the other end of a port into a new container and sets it up as the
// doors do.
func (h host) into(p tun.Port, gateways ...netip.Addr) machine {
	h.Helper()
	c := netns.ForTest(h.TB)
	want := inside.Link{Peer: p.Peer, Name: "eth0", MAC: p.MAC, MTU: p.MTU, Gateways: gateways, Default: true}
	for _, a := range p.Addresses {
		want.Addresses = append(want.Addresses, netip.PrefixFrom(a, a.BitLen()))
	}
	h.in(func() error { return inside.Put(h.Context(), c.Path(), want) })
	return machine{p.Peer, c.Do}
}

func (h host) itself() machine { return machine{"the host", h.ns.Do} }

// wantEcho fails unless a packet gets from one machine to the other and an answer
// comes back, soon: neighbours are found at once.
func (h host) wantEcho(src machine, from netip.Addr, dst machine, to netip.Addr) {
	h.Helper()
	if err := echo(src, from, dst, to); err != nil {
		h.Errorf("from %s (%s) to %s (%s): %v", src.name, from, dst.name, to, err)
	}
}

// soon is less than the second after which the kernel asks for a neighbour again,
// and leaves a busy machine some time.
const soon = 900 * time.Millisecond

func echo(src machine, from netip.Addr, dst machine, to netip.Addr) error {
	listen := func(m machine, a netip.Addr) (c net.PacketConn, err error) {
		err = m.in(func() error { c, err = net.ListenPacket("udp", netip.AddrPortFrom(a, 0).String()); return err })
		return c, err
	}
	server, err := listen(dst, to)
	if err != nil {
		return err
	}
	defer server.Close()
	client, err := listen(src, from)
	if err != nil {
		return err
	}
	defer client.Close()
	deadline := time.Now().Add(soon)
	err = errors.Join(server.SetDeadline(deadline), client.SetDeadline(deadline))
	if _, sendErr := client.WriteTo([]byte("ping"), server.LocalAddr()); err == nil {
		err = sendErr
	}
	if err != nil {
		return err
	}
	buffer := make([]byte, 8)
	_, seen, err := server.ReadFrom(buffer)
	if err != nil {
		return errors.Join(errors.New("the packet does not arrive"), err)
	}
	if seen.String() != client.LocalAddr().String() {
		return errors.New("the packet comes as " + seen.String())
	}
	if _, err := server.WriteTo([]byte("pong"), seen); err != nil {
		return err
	}
	if _, _, err = client.ReadFrom(buffer); errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("the answer does not arrive")
	}
	return err
}

// gateways are the host's addresses in the subnet of full.
func gateways() []netip.Addr { return []netip.Addr{addr("10.86.17.1"), addr("fd12:3456:789a:11::1")} }

// A container without a bridge finds its host, and through it others, though it
// shares no subnet with it, whatever the host's defaults are.
func TestReachPTP(t *testing.T) {
	for name, set := range map[string]map[string]string{
		"defaults": {},
		"hardened": {
			"net/ipv4/conf/all/arp_ignore": "1", "net/ipv4/conf/all/rp_filter": "1",
			"net/ipv6/conf/default/disable_ipv6": "1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			for key, value := range set {
				h.setSysctl(key, value)
			}
			h.addTUN("mesh0")
			h.apply(full())
			a, b := port("a", tun.PortPTP, ""), port("b", tun.PortPTP, "")
			a.Gateways, b.Gateways = gateways(), gateways()
			b.MAC, b.Addresses = "02:00:0a:56:11:06", []netip.Addr{addr("10.86.17.6"), addr("fd12:3456:789a:11::6")}
			h.addPort(a)
			h.addPort(b)
			h.addPort(b)
			inA, inB := h.into(a, gateways()...), h.into(b, gateways()...)
			for i, gateway := range gateways() {
				h.wantEcho(inA, a.Addresses[i], h.itself(), gateway)
				h.wantEcho(h.itself(), gateway, inB, b.Addresses[i])
				h.wantEcho(inA, a.Addresses[i], inB, b.Addresses[i])
			}
			h.delPort(a)
			for i, gateway := range gateways() {
				h.wantEcho(inB, b.Addresses[i], h.itself(), gateway) // that has lost it on one link
			}
			h.apply(full())
			h.in(func() error {
				_, err := netlink.LinkByName("mv-a")
				if err == nil {
					t.Error("the removed port is there")
				}
				return nil
			})
		})
	}
}
