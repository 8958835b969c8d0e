package native

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
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

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
	*end
	ns *netns.NS
}

const realMTU = 1420

// realPair starts two nodes that know each other.
func realPair(t *testing.T) (a, b *node) {
	t.Helper()
	one, two := netns.ForTest(t), netns.ForTest(t)
	other, err := os.Open(two.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	err = one.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "underlay"
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "underlay", PeerNamespace: netlink.NsFd(int(other.Fd()))})
	})
	if err != nil {
		t.Fatal(err)
	}
	a, b = startNode(t, one, 1), startNode(t, two, 2)
	a.know(t, b.peer())
	b.know(t, a.peer())
	return a, b
}

func startNode(t *testing.T, ns *netns.NS, number int) *node {
	t.Helper()
	n := &node{ns: ns, end: &end{number: number, id: mesh.NodeID{byte(number)}, suite: tunnel.ChaCha20Poly1305, ended: make(chan error, 1)}}
	n.own = prefixes(fmt.Sprintf("10.99.%d.0/24 fd99:0:0:%d::/64", number, number))
	var dev *device.Device
	n.do(t, func() (err error) {
		if err := setUp("underlay", 1500, fmt.Sprintf("192.0.2.%d/24", number)); err != nil {
			return err
		}
		if dev, err = device.Open(device.Options{Name: "mesh0", Offload: device.On, Queues: 2, USO: true}); err != nil {
			return err
		}
		if err := setUp("mesh0", realMTU, n.addr(4).String()+"/24", n.addr(6).String()+"/64"); err != nil {
			return err
		}
		return route("mesh0", "10.99.0.0/16", "fd99::/48")
	})
	var err error
	if n.key, err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	n.Engine = New(Options{TUN: dev, PrivateKey: [32]byte(n.key.Bytes())})
	// Run keeps its thread in the namespace, so it needs one of its own.
	thread, err := netns.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.ended <- thread.Do(func() error { return n.Run(ctx) })
	}()
	n.stop = func() { cancel(); <-done; thread.Close() }
	t.Cleanup(n.stop)
	select {
	case <-n.Ready():
	case err := <-n.ended:
		t.Fatal(err)
	}
	return n
}

func (n *node) peer() tunnel.Peer {
	p := n.end.peer()
	p.Endpoints = endpoints(fmt.Sprintf("192.0.2.%d:%d", n.number, n.Port()))
	return p
}

func (n *node) do(t testing.TB, fn func() error) {
	t.Helper()
	if err := n.ns.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// onLink changes a link.
func (n *node) onLink(t testing.TB, name string, change func(netlink.Link) error) {
	t.Helper()
	n.do(t, func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return change(link)
	})
}

func setUp(name string, mtu int, addrs ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if err := addAddr(link, a); err != nil {
			return err
		}
	}
	return errors.Join(netlink.LinkSetMTU(link, mtu), netlink.LinkSetUp(link))
}

func addAddr(link netlink.Link, a string) error {
	addr, err := netlink.ParseAddr(a)
	if err != nil {
		return err
	}
	addr.Flags = unix.IFA_F_NODAD // or IPv6 waits
	return netlink.AddrAdd(link, addr)
}

func route(name string, dsts ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, d := range dsts {
		dst, err := netlink.ParseIPNet(d)
		if err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst}); err != nil {
			return fmt.Errorf("add route %s: %w", d, err)
		}
	}
	return nil
}

// echo answers datagrams on a node until the test ends.
func (n *node) echo(t *testing.T, family int) netip.AddrPort {
	t.Helper()
	var server *net.UDPConn
	n.do(t, func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(n.addr(family), 0)))
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<16)
		for {
			size, from, err := server.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = server.WriteToUDPAddrPort(buf[:size], from) // lost, if so
			}
		}
	}()
	t.Cleanup(func() { _ = server.Close(); <-done })
	return server.LocalAddr().(*net.UDPAddr).AddrPort()
}

func (n *node) dial(t *testing.T, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	var client *net.UDPConn
	n.do(t, func() (err error) {
		client, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	})
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// datagrams sends datagrams and waits for each to come back.
func datagrams(t *testing.T, from, to *node, family int, sizes ...int) {
	t.Helper()
	client := from.dial(t, to.echo(t, family))
	buf := make([]byte, 1<<16)
	var before, sent []byte
	for _, size := range sizes {
		before, sent = sent, make([]byte, size)
		_, _ = rand.Read(sent) // never fails
		var n int
		for begin := time.Now(); ; { // the first may be lost: duplicate addresses, neighbours, handshakes
			_, _ = client.Write(sent)
			_ = client.SetReadDeadline(time.Now().Add(time.Second)) // never fails
			var err error
			for n, err = client.Read(buf); err == nil && before != nil && bytes.Equal(buf[:n], before); {
				n, err = client.Read(buf) // it was late, sent again, and has come back twice
			}
			if err == nil {
				break
			}
			if time.Since(begin) > arrival {
				t.Fatalf("IPv%d datagram of %d bytes from node %d: %v; dropped %s and %s", family, size, from.number, err, from.counts(), to.counts())
			}
		}
		if !bytes.Equal(buf[:n], sent) {
			t.Fatalf("IPv%d datagram of %d bytes came back as %d bytes", family, size, n)
		}
	}
}

// works fails unless a datagram gets through and back.
func works(t *testing.T, a, b *node) {
	t.Helper()
	datagrams(t, a, b, 4, 100)
}

// patient is a connection that may be slow, as on a busy machine, but must not stall.
type patient struct{ *net.TCPConn }

func (p patient) Read(b []byte) (int, error) {
	_ = p.SetReadDeadline(time.Now().Add(arrival))
	return p.TCPConn.Read(b)
}

func (p patient) Write(b []byte) (n int, err error) {
	for part := range slices.Chunk(b, 64<<10) {
		_ = p.SetWriteDeadline(time.Now().Add(arrival))
		m, err := p.TCPConn.Write(part)
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

// transfer sends a stream and compares it.
func transfer(from, to *node, family, size int) error {
	sent := make([]byte, size)
	_, _ = rand.Read(sent) // never fails
	var listener *net.TCPListener
	var client *net.TCPConn
	err := to.ns.Do(func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(to.addr(family), 0)))
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }()
	_ = listener.SetDeadline(time.Now().Add(arrival))
	var got []byte
	var receivingErr error
	var receiving sync.WaitGroup
	receiving.Go(func() {
		conn, err := listener.AcceptTCP()
		if err != nil {
			receivingErr = err
			return
		}
		defer func() { _ = conn.Close() }()
		got, receivingErr = io.ReadAll(patient{conn})
	})
	err = from.ns.Do(func() (err error) {
		dialer := net.Dialer{Timeout: arrival}
		conn, err := dialer.Dial("tcp", listener.Addr().String())
		if err == nil {
			client = conn.(*net.TCPConn)
		}
		return err
	})
	if err != nil {
		return err
	}
	written, err := patient{client}.Write(sent)
	err = errors.Join(err, client.Close())
	receiving.Wait()
	if err = errors.Join(err, receivingErr); err != nil || !bytes.Equal(got, sent) {
		err = errors.Join(err, fmt.Errorf("%d bytes arrived, or others; written were %d of %d", len(got), written, len(sent)))
	}
	if err != nil {
		return fmt.Errorf("IPv%d stream from node %d, dropped %s and %s: %w", family, from.number, from.counts(), to.counts(), err)
	}
	return nil
}

func TestRealTUN(t *testing.T) {
	t.Parallel()
	a, b := realPair(t)
	t.Run("datagrams of all sizes", func(t *testing.T) {
		var sizes []int
		for size := 0; size <= realMTU-28; size += 7 {
			sizes = append(sizes, size)
		}
		sizes = append(sizes, 1, 2, 3, realMTU-49, realMTU-48, realMTU-47, realMTU-29, realMTU-28, realMTU-27, 4000, 20000, 65507)
		for _, family := range []int{4, 6} {
			datagrams(t, a, b, family, sizes...)
			datagrams(t, b, a, family, 1, realMTU-48, 4000)
		}
	})
	t.Run("streams", func(t *testing.T) {
		const size = 16 << 20
		for _, family := range []int{4, 6} {
			for _, ends := range [][2]*node{{a, b}, {b, a}} {
				if err := transfer(ends[0], ends[1], family, size); err != nil {
					t.Error(err)
				}
			}
		}
	})
	t.Run("many flows at once", func(t *testing.T) {
		var flows sync.WaitGroup
		for i := range 8 {
			from, to := a, b
			if i%2 == 1 {
				from, to = b, a
			}
			flows.Go(func() {
				if err := transfer(from, to, 4+i/2%2*2, 2<<20); err != nil {
					t.Error(err)
				}
			})
		}
		flows.Wait()
	})
	for _, n := range []*node{a, b} {
		counts := n.Stats().Drops
		for _, reason := range []string{tunnel.DropForged, tunnel.DropReplayed, tunnel.DropMalformed, tunnel.DropSpoofed, tunnel.DropDestination, tunnel.DropTooBig} {
			if counts[reason] != 0 {
				t.Errorf("node %d dropped %s", n.number, n.counts())
			}
		}
	}
}

func TestRunEndsWhenTUNIsDeleted(t *testing.T) {
	t.Parallel()
	a, _ := realPair(t)
	a.onLink(t, "mesh0", netlink.LinkDel)
	select {
	case err := <-a.ended:
		if !errors.Is(err, errTUNGone) {
			t.Errorf("run: %v, want %v", err, errTUNGone)
		}
	case <-time.After(arrival):
		t.Error("run goes on without its TUN")
	}
}

func TestRunEndsWhenTUNIsRenamed(t *testing.T) {
	t.Parallel()
	a, _ := realPair(t)
	a.onLink(t, "mesh0", func(l netlink.Link) error {
		return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, "foo0"))
	})
	select {
	case err := <-a.ended:
		if !errors.Is(err, errTUNGone) {
			t.Errorf("run: %v, want %v", err, errTUNGone)
		}
	case <-time.After(arrival):
		t.Fatal("run goes on under another name")
	}
}

func TestTroubleThatPasses(t *testing.T) {
	for name, c := range map[string]struct {
		trouble, mend func(t *testing.T, a *node)
		lost          string // why packets are dropped meanwhile; empty: none need be
	}{
		"mesh link down": {
			func(t *testing.T, a *node) { a.onLink(t, "mesh0", netlink.LinkSetDown) },
			func(t *testing.T, a *node) {
				a.onLink(t, "mesh0", netlink.LinkSetUp)
				a.do(t, func() error { return route("mesh0", "10.99.0.0/16") })
			}, "",
		},
		"underlay down": {
			func(t *testing.T, a *node) { a.onLink(t, "underlay", netlink.LinkSetDown) },
			func(t *testing.T, a *node) { a.onLink(t, "underlay", netlink.LinkSetUp) }, tunnel.DropSend,
		},
		"underlay address changes": {
			func(t *testing.T, a *node) {
				a.onLink(t, "underlay", func(l netlink.Link) error {
					old, err := netlink.ParseAddr("192.0.2.1/24")
					return errors.Join(err, netlink.AddrDel(l, old), addAddr(l, "192.0.2.77/24"))
				})
			},
			func(*testing.T, *node) {}, "",
		},
		"route removed": {
			func(t *testing.T, a *node) {
				a.onLink(t, "underlay", func(l netlink.Link) error { return changeRoute(l, netlink.RouteDel) })
			},
			func(t *testing.T, a *node) {
				a.onLink(t, "underlay", func(l netlink.Link) error { return changeRoute(l, netlink.RouteAdd) })
			}, tunnel.DropSend,
		},
		"sending forbidden": {forbid, permit, tunnel.DropSend},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := realPair(t)
			works(t, a, b)
			shaken := a.Stats().Peers[b.id].LastHandshake
			sendTo := b.echo(t, 4)
			client := a.dial(t, sendTo)
			c.trouble(t, a)
			for range 300 {
				_, _ = client.Write([]byte("lost, most probably"))
			}
			if c.lost != "" {
				eventually(t, c.lost, func() (bool, string) { return a.Stats().Drops[c.lost] > 0, a.counts() })
			}
			c.mend(t, a)
			begin := time.Now()
			works(t, a, b)
			works(t, b, a)
			if d := time.Since(begin); d > 4*time.Second {
				t.Errorf("took %v to be mended", d)
			}
			if got := a.Stats().Peers[b.id].LastHandshake; got != shaken {
				t.Errorf("the session was lost: handshake at %v, before at %v", got, shaken)
			}
			select {
			case err := <-a.ended:
				t.Errorf("run ended: %v", err)
			default:
			}
			t.Logf("dropped %s", a.counts())
		})
	}
}

func changeRoute(link netlink.Link, change func(*netlink.Route) error) error {
	dst, err := netlink.ParseIPNet("192.0.2.0/24")
	if err != nil {
		return err
	}
	return change(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK})
}

var forbidden = &nftables.Table{Name: "test", Family: nftables.TableFamilyINet}

// forbid has the kernel refuse datagrams on the underlay with EPERM.
func forbid(t *testing.T, n *node) {
	t.Helper()
	n.do(t, func() error {
		c := new(nftables.Conn)
		c.AddTable(forbidden)
		output := c.AddChain(&nftables.Chain{
			Name: "output", Table: forbidden, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
		})
		name := make([]byte, unix.IFNAMSIZ)
		copy(name, "underlay")
		c.AddRule(&nftables.Rule{Table: forbidden, Chain: output, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
		return c.Flush()
	})
}

func permit(t *testing.T, n *node) {
	t.Helper()
	n.do(t, func() error {
		c := new(nftables.Conn)
		c.DelTable(forbidden)
		return c.Flush()
	})
}

// Nobody owns the address: who sends there is told by the kernel.
func TestUnownedAddressIsUnreachable(t *testing.T) {
	t.Parallel()
	a, _ := realPair(t)
	for family, dst := range map[int]string{4: "10.99.200.1:9", 6: "[fd99:0:0:200::1]:9"} {
		client := a.dial(t, netip.MustParseAddrPort(dst))
		raw, err := client.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		level, option := unix.IPPROTO_IP, unix.IP_RECVERR
		if family == 6 {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVERR
		}
		if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }); errors.Join(e, err) != nil {
			t.Fatal(e, err)
		}
		for begin := time.Now(); ; { // the first may be lost: the kernel is not done with the link
			_, err := client.Write([]byte("who?"))
			if err == nil {
				_ = client.SetReadDeadline(time.Now().Add(time.Second)) // never fails
				_, err = client.Read(make([]byte, 1))
			}
			if errors.Is(err, unix.ENETUNREACH) {
				break
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begin) > arrival {
				t.Errorf("IPv%d: %v, want %v", family, err, unix.ENETUNREACH)
				break
			}
		}
	}
}

// What the engine says of a packet that is too long, the kernel believes: the
// sender's path is narrower from then on.
func TestTooBigIsHeard(t *testing.T) {
	const narrow = 1300
	for family, option := range map[int][2]int{4: {unix.IPPROTO_IP, unix.IP_MTU}, 6: {unix.IPPROTO_IPV6, unix.IPV6_MTU}} {
		t.Run(fmt.Sprint("IPv", family), func(t *testing.T) {
			a, b := realPair(t)
			works(t, a, b)
			conn := a.dial(t, b.echo(t, family))
			raw, err := conn.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "narrower path", func() (bool, string) {
				a.mtu.Store(narrow) // as if the link, of which the kernel knows, were wider; until control looks
				_, _ = conn.Write(make([]byte, narrow))
				var mtu int
				err := raw.Control(func(fd uintptr) { mtu, err = unix.GetsockoptInt(int(fd), option[0], option[1]) })
				return mtu == narrow, fmt.Sprint(mtu, err)
			})
		})
	}
}
