//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/tun/hostnet"
)

// exchange sends data from a host to an address of another by TCP or UDP, and
// wants it back.
func exchange(ctx context.Context, from, to *lab.Host, network string, addr netip.Addr, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	target, stop, err := serveEcho(ctx, to, network, addr)
	if err != nil {
		return err
	}
	defer stop()
	c, err := from.Dial(ctx, network, target)
	if err != nil {
		return fmt.Errorf("from %s: %w", from.Name, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	written := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		written <- err
	}()
	got := make([]byte, len(data))
	_, err = io.ReadFull(c, got)
	if err := errors.Join(err, <-written); err != nil {
		return fmt.Errorf("exchange by %s, %s to %s: %w", network, from.Name, target, err)
	}
	if !bytes.Equal(got, data) {
		return fmt.Errorf("exchange by %s, %s to %s: other data came back", network, from.Name, target)
	}
	return nil
}

// serveEcho serves what comes back, on any port of the address.
func serveEcho(ctx context.Context, h *lab.Host, network string, addr netip.Addr) (target string, stop func(), err error) {
	at := netip.AddrPortFrom(addr, 0).String()
	if network == "udp" {
		c, err := h.ListenPacket(ctx, network, at)
		if err != nil {
			return "", nil, err
		}
		go func() {
			buf := make([]byte, 1<<16)
			for {
				n, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = c.WriteTo(buf[:n], from)
			}
		}()
		return c.LocalAddr().String(), func() { c.Close() }, nil
	}
	l, err := h.Listen(ctx, network, at)
	if err != nil {
		return "", nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	return l.Addr().String(), func() { l.Close() }, nil
}

// sendData sends data to an address and waits for no answer.
func sendData(ctx context.Context, from *lab.Host, network string, to netip.AddrPort, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c, err := from.Dial(ctx, network, to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write(data)
	return err
}

// sendICMP sends an echo request with data in it.
func sendICMP(ctx context.Context, from *lab.Host, to netip.Addr, data []byte) error {
	network, kind := "ip4:icmp", byte(8)
	if to.Is6() {
		network, kind = "ip6:ipv6-icmp", 128
	}
	c, err := from.ListenPacket(ctx, network, "")
	if err != nil {
		return err
	}
	defer c.Close()
	// The checksum stays zero: nobody needs to answer.
	_, err = c.WriteTo(append([]byte{kind, 0, 0, 0, 0, 1, 0, 1}, data...), ipAddr(to))
	return err
}

// ipAddr is an address to which a raw socket can send.
func ipAddr(a netip.Addr) net.Addr { return &net.IPAddr{IP: a.AsSlice()} }

func unreachable(err error) bool {
	return errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH)
}

// capture records what passes the ports of some nodes' hosts while do runs.
func capture(t *testing.T, nodes []*cluster.Node, do func()) (frames [][]byte) {
	t.Helper()
	var all []*lab.Capture
	for _, n := range nodes {
		one, err := n.Host.Capture()
		must(t, err)
		all = append(all, one)
	}
	do()
	for _, one := range all {
		if err := one.Stop(); err != nil {
			t.Error(err)
		}
		frames = append(frames, one.Frames()...)
	}
	return frames
}

func framesContain(frames [][]byte, marker []byte) bool {
	for _, f := range frames {
		if bytes.Contains(f, marker) {
			return true
		}
	}
	return false
}

const meshLink = "mesh0"

// loopback is the index of lo, in every namespace.
const loopback = 1

// ourNetwork lists our part of a host's network.
func ourNetwork(t *testing.T, h *lab.Host) (all []string) {
	t.Helper()
	must(t, h.Do(func() error {
		routes, err := ourRoutes()
		if err != nil {
			return err
		}
		for _, r := range routes {
			all = append(all, fmt.Sprintf("route %s type %d src %s", r.Dst, r.Type, r.Src))
		}
		l, err := netlink.LinkByName(meshLink)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		if err != nil {
			return err
		}
		all = append(all, fmt.Sprintf("link mtu %d up %t", l.Attrs().MTU, l.Attrs().RawFlags&unix.IFF_UP != 0))
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		for _, a := range addrs {
			if !a.IP.IsLinkLocalUnicast() {
				all = append(all, "address "+a.IPNet.String())
			}
		}
		return err
	}))
	slices.Sort(all)
	return all
}

func ourRoutes() ([]netlink.Route, error) {
	return netlink.RouteListFiltered(netlink.FAMILY_ALL,
		&netlink.Route{Protocol: hostnet.RouteProtocol, Table: unix.RT_TABLE_UNSPEC},
		netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
}

func flushRoutes() error {
	routes, err := ourRoutes()
	for _, r := range routes {
		err = errors.Join(err, netlink.RouteDel(&r))
	}
	if len(routes) == 0 {
		err = errors.Join(err, errors.New("there are no routes to flush"))
	}
	return err
}

func flushAddresses(l netlink.Link) error {
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	for _, a := range addrs {
		err = errors.Join(err, netlink.AddrDel(l, &a))
	}
	return err
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
