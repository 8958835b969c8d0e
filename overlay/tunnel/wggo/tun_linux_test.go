package wggo

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"meshd/mesh"
	"meshd/overlay/tunnel"
	"meshd/tun/device"
	"meshd/tun/netns"
)

// node is one host: a namespace with an underlay link, a real TUN device and an
// engine.
//
//	ns 1  192.0.2.1 -- underlay -- 192.0.2.2  ns 2
//	      10.99.1.1    mesh0        10.99.2.1
//	      fd99:0:0:1::1             fd99:0:0:2::1
type node struct {
	ns     *netns.NS
	number int
	engine *Engine
	peer   tunnel.Peer
	stop   context.CancelFunc
	ended  chan error
}

const realMTU = 1420

// realPair starts two nodes that know each other.
func realPair(t *testing.T, modes ...device.Mode) (a, b *node) {
	t.Helper()
	a, b = &node{number: 1, ns: netns.ForTest(t)}, &node{number: 2, ns: netns.ForTest(t)}
	other, err := os.Open(b.ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	a.do(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "underlay"
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "underlay", PeerNamespace: netlink.NsFd(int(other.Fd()))})
	})
	for i, n := range []*node{a, b} {
		n.do(t, func() error { return setUp("underlay", 1500, fmt.Sprintf("192.0.2.%d/24", n.number)) })
		n.start(t, modes[i])
	}
	a.know(t, b)
	b.know(t, a)
	return a, b
}

func (n *node) do(t *testing.T, fn func() error) {
	t.Helper()
	if err := n.ns.Do(fn); err != nil {
		t.Fatal(err)
	}
}

func (n *node) addr(family int) netip.Addr {
	if family == 4 {
		return netip.MustParseAddr(fmt.Sprintf("10.99.%d.1", n.number))
	}
	return netip.MustParseAddr(fmt.Sprintf("fd99:0:0:%d::1", n.number))
}

// start opens the TUN and runs an engine on it.
func (n *node) start(t *testing.T, mode device.Mode) {
	t.Helper()
	var dev *device.Device
	n.do(t, func() (err error) {
		if dev, err = device.Open(device.Options{Name: "mesh0", Offload: mode}); err != nil {
			return err
		}
		if err := setUp("mesh0", realMTU, n.addr(4).String()+"/24", n.addr(6).String()+"/64"); err != nil {
			return err
		}
		return route("mesh0", "10.99.0.0/16", "fd99::/48")
	})
	if want := mode != device.Off; (dev.File() != nil) != want {
		t.Fatalf("device with offload %s: File() is %v", mode, dev.File())
	}
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	n.engine = New(Options{TUN: dev, PrivateKey: [32]byte(key.Bytes())})
	n.engine.patience = 200 * time.Millisecond
	n.peer = tunnel.Peer{
		ID:        mesh.NodeID{byte(n.number)},
		PublicKey: mesh.Key(key.PublicKey().Bytes()),
		AllowedIPs: []netip.Prefix{
			netip.PrefixFrom(n.addr(4), 24).Masked(), netip.PrefixFrom(n.addr(6), 64).Masked(),
		},
	}

	// Run keeps its thread in the namespace, so it needs one of its own.
	thread, err := netns.Open(n.ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n.stop, n.ended = cancel, make(chan error, 1)
	go func() {
		n.ended <- thread.Do(func() error { return n.engine.Run(ctx) })
		close(n.ended)
	}()
	t.Cleanup(func() {
		cancel()
		for range n.ended { // until closed
		}
		thread.Close()
	})
	select {
	case <-n.engine.Ready():
	case err := <-n.ended:
		t.Fatal(err)
	}
	n.peer.Endpoints = []netip.AddrPort{netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:%d", n.number, n.engine.Port()))}
}

func (n *node) know(t *testing.T, other *node) {
	t.Helper()
	if err := n.engine.Apply(t.Context(), tunnel.Config{Own: n.peer.AllowedIPs, Peers: []tunnel.Peer{other.peer}}); err != nil {
		t.Fatal(err)
	}
}

func setUp(name string, mtu int, addrs ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if err := changeAddr(netlink.AddrAdd, link, a); err != nil {
			return err
		}
	}
	return errors.Join(netlink.LinkSetMTU(link, mtu), netlink.LinkSetUp(link))
}

func changeAddr(change func(netlink.Link, *netlink.Addr) error, link netlink.Link, a string) error {
	addr, err := netlink.ParseAddr(a)
	if err != nil {
		return err
	}
	return change(link, addr)
}

func route(name string, dsts ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, d := range dsts {
		_, dst, err := net.ParseCIDR(d)
		if err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst}); err != nil {
			return fmt.Errorf("add route %s: %w", d, err)
		}
	}
	return nil
}

func TestRealTUN(t *testing.T) {
	for _, c := range []struct {
		name string
		a, b device.Mode
	}{
		{"offload", device.On, device.On},
		{"plain", device.Off, device.Off},
		{"offload and plain", device.Auto, device.Off},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := realPair(t, c.a, c.b)
			for _, family := range []int{4, 6} {
				datagrams(t, a, b, family)
				datagrams(t, b, a, family)
				transfer(t, a, b, family)
				transfer(t, b, a, family)
			}
			for _, n := range []*node{a, b} {
				stats := n.engine.Stats()
				if stats.Drops[tunnel.DropDestination] != 0 || stats.Drops[tunnel.DropMalformed] != 0 {
					t.Errorf("node %d dropped %v", n.number, stats.Drops)
				}
			}
		})
	}
}

// datagrams sends datagrams of several sizes, one beyond the MTU, to an echo.
func datagrams(t *testing.T, from, to *node, family int) {
	t.Helper()
	var server *net.UDPConn
	var client *net.UDPConn
	to.do(t, func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.addr(family), 0)))
		return err
	})
	from.do(t, func() (err error) {
		client, err = net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr))
		return err
	})
	defer func() { _ = client.Close() }()
	echoed := make(chan struct{})
	go func() {
		defer close(echoed)
		buf := make([]byte, 1<<16)
		for {
			n, peer, err := server.ReadFromUDP(buf)
			if err != nil {
				return
			}
			if _, err := server.WriteToUDP(buf[:n], peer); err != nil {
				return
			}
		}
	}()
	defer func() { _ = server.Close(); <-echoed }()

	buf := make([]byte, 1<<16)
	for _, size := range []int{1, 56, realMTU - 48, 4000} {
		sent := bytes.Repeat([]byte{byte(size)}, size)
		if _, err := client.Write(sent); err != nil {
			t.Fatal(err)
		}
		if err := client.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := client.Read(buf)
		if err != nil {
			t.Fatalf("IPv%d datagram of %d bytes from node %d: %v", family, size, from.number, err)
		}
		if !bytes.Equal(buf[:n], sent) {
			t.Fatalf("IPv%d datagram of %d bytes came back as %d bytes", family, size, n)
		}
	}
}

// transfer sends a stream and compares it.
func transfer(t *testing.T, from, to *node, family int) {
	t.Helper()
	sent := make([]byte, 4<<20)
	_, _ = rand.Read(sent) // never fails
	var listener *net.TCPListener
	var client *net.TCPConn
	to.do(t, func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(to.addr(family), 0)))
		return err
	})
	defer func() { _ = listener.Close() }()
	got := make(chan []byte, 1)
	go func() {
		defer close(got)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		all, _ := io.ReadAll(conn) // an error shows as missing bytes
		got <- all
	}()
	begin := time.Now()
	from.do(t, func() (err error) {
		client, err = net.DialTCP("tcp", nil, listener.Addr().(*net.TCPAddr))
		return err
	})
	if err := client.SetDeadline(begin.Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err := client.Write(sent)
	if err := errors.Join(err, client.Close()); err != nil {
		t.Fatalf("IPv%d stream from node %d: %v", family, from.number, err)
	}
	if all := <-got; !bytes.Equal(all, sent) {
		t.Fatalf("IPv%d stream from node %d: %d bytes arrived, sent %d", family, from.number, len(all), len(sent))
	}
	t.Logf("IPv%d stream from node %d: %.0f Mbit/s", family, from.number, float64(len(sent))*8/1e6/time.Since(begin).Seconds())
}

func TestRunEndsWhenTUNIsDeleted(t *testing.T) {
	for _, mode := range []device.Mode{device.On, device.Off} {
		t.Run(string(mode), func(t *testing.T) {
			a, _ := realPair(t, mode, mode)
			a.do(t, func() error {
				link, err := netlink.LinkByName("mesh0")
				if err != nil {
					return err
				}
				return netlink.LinkDel(link)
			})
			select {
			case err := <-a.ended:
				if !errors.Is(err, errTUNGone) {
					t.Errorf("run: %v, want %v", err, errTUNGone)
				}
			case <-time.After(10 * time.Second):
				t.Error("run goes on without its TUN")
			}
		})
	}
}

func TestRunEndsWhenTUNIsRenamed(t *testing.T) {
	for _, mode := range []device.Mode{device.On, device.Off} {
		t.Run(string(mode), func(t *testing.T) {
			a, _ := realPair(t, mode, mode)
			a.do(t, func() error {
				link, err := netlink.LinkByName("mesh0")
				if err != nil {
					return err
				}
				return errors.Join(netlink.LinkSetDown(link), netlink.LinkSetName(link, "foo0"))
			})
			select {
			case err := <-a.ended:
				if !errors.Is(err, errTUNGone) || !strings.Contains(err.Error(), "mesh0") {
					t.Errorf("run: %v, want %v with the name", err, errTUNGone)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("run goes on under another name")
			}
			a.do(t, func() error {
				if _, err := netlink.LinkByName("foo0"); err == nil {
					t.Error("the renamed link is still there")
				}
				return nil
			})
		})
	}
}

func TestLinkDownAndUpKeepsSessions(t *testing.T) {
	a, b := realPair(t, device.On, device.On)
	datagrams(t, a, b, 4)
	before := a.engine.Stats().Peers[b.peer.ID].LastHandshake
	a.do(t, func() error {
		link, err := netlink.LinkByName("mesh0")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetDown(link), netlink.LinkSetUp(link), route("mesh0", "10.99.0.0/16"))
	})
	datagrams(t, a, b, 4)
	if after := a.engine.Stats().Peers[b.peer.ID].LastHandshake; !after.Equal(before) {
		t.Errorf("the session was lost: handshake at %v, before at %v", after, before)
	}
}

func TestUnderlayAddressChanges(t *testing.T) {
	a, b := realPair(t, device.On, device.On)
	datagrams(t, a, b, 4)
	datagrams(t, b, a, 4)
	a.do(t, func() error {
		link, err := netlink.LinkByName("underlay")
		if err != nil {
			return err
		}
		return errors.Join(
			changeAddr(netlink.AddrDel, link, "192.0.2.1/24"),
			changeAddr(netlink.AddrAdd, link, "192.0.2.77/24"))
	})
	begin := time.Now()
	datagrams(t, a, b, 4)
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("took %v, so it needed another handshake", d)
	}
	want := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.77"), a.engine.Port())
	if got := b.engine.Stats().Peers[a.peer.ID].Endpoint; got != want {
		t.Errorf("the peer's endpoint is %v, want %v", got, want)
	}
}

func TestMTUIsFollowed(t *testing.T) {
	a, _ := realPair(t, device.On, device.Off)
	within := time.After(10 * time.Second)
	for _, want := range []int{realMTU, 1380} {
		a.do(t, func() error { return setUp("mesh0", want) })
		for {
			if got, err := a.engine.filter.MTU(); err == nil && got == want {
				break
			}
			select {
			case <-time.After(10 * time.Millisecond):
			case <-within:
				t.Fatalf("the device never heard of MTU %d", want)
			}
		}
	}
}
