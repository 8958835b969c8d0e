package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"meshd/tun/netns"
)

// hold has somebody else bind a port, with SO_REUSEPORT or without.
func hold(t *testing.T, ns *netns.NS, network string, port uint16, reuse bool) {
	t.Helper()
	err := ns.Do(func() error {
		family, address := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(port)})
		if network == "udp6" {
			family, address = unix.AF_INET6, &unix.SockaddrInet6{Port: int(port)}
		}
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		if family == unix.AF_INET6 {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
		}
		if reuse {
			err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
		}
		return errors.Join(err, unix.Bind(fd, address))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestPortIsTaken(t *testing.T) {
	const port = 50001
	refused := func(t *testing.T, ns *netns.NS) {
		t.Helper()
		before := descriptors(t)
		for queues := range 3 {
			var g *Group
			err := ns.Do(func() (err error) { g, err = Listen(port, queues+1); return err })
			if err == nil {
				_ = g.Close()
			}
			if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "50001") {
				t.Errorf("%d queues: %v, want %v with the port", queues+1, err, unix.EADDRINUSE)
			}
		}
		if after := descriptors(t); after != before {
			t.Errorf("%d open descriptors after failures, %d before", after, before)
		}
	}
	for _, queues := range []int{1, 3} {
		t.Run(fmt.Sprintf("by a group of %d", queues), func(t *testing.T) {
			ns := netns.ForTest(t)
			g := listenIn(t, ns, port, queues)
			if g.Port() != port || len(g.ipv4) != queues {
				t.Errorf("port %d, %d queues", g.Port(), len(g.ipv4))
			}
			refused(t, ns)
		})
	}
	for _, network := range []string{"udp4", "udp6"} {
		for _, reuse := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, reuse %v", network, reuse), func(t *testing.T) {
				ns := netns.ForTest(t)
				hold(t, ns, network, port, reuse)
				refused(t, ns)
			})
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestPortOfTheKernelsChoice(t *testing.T) {
	ns := netns.ForTest(t)
	err := ns.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40001"), 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	// IPv4 gets one of the two, and IPv6 may refuse it.
	hold(t, ns, "udp6", 40000, false)
	if g := listenIn(t, ns, 0, 2); g.Port() != 40001 {
		t.Errorf("port %d, want the one that is free", g.Port())
	}
	var g *Group
	err = ns.Do(func() (err error) { g, err = Listen(0, 2); return err })
	if err == nil {
		_ = g.Close()
	}
	if !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("no port is free: %v, want %v", err, unix.EADDRINUSE)
	}
}

func TestNoIPv6(t *testing.T) {
	for _, refusal := range []error{unix.EAFNOSUPPORT, unix.EADDRNOTAVAIL} {
		netns.RequireRoot(t)
		g, err := listen(0, 2, func(port uint16, v6, first bool) (*Socket, error) {
			if v6 {
				return nil, os.NewSyscallError("socket", refusal)
			}
			return open(port, v6, first)
		})
		if err != nil {
			t.Fatal(err)
		}
		if g.IPv6(0) != nil || g.IPv6(1) != nil || g.IPv4(1) == nil {
			t.Error("want IPv4 only")
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}
	before := descriptors(t)
	_, err := listen(0, 2, func(port uint16, v6, first bool) (*Socket, error) {
		if v6 {
			return nil, unix.ENFILE
		}
		return open(port, v6, first)
	})
	if !errors.Is(err, unix.ENFILE) {
		t.Errorf("got %v, want %v", err, unix.ENFILE)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d open descriptors after failures, %d before", after, before)
	}
}

func TestBadQueues(t *testing.T) {
	if g, err := Listen(0, 0); err == nil {
		_ = g.Close()
		t.Error("a group without queues")
	}
}

func TestQueuesShareTheFlows(t *testing.T) {
	families(t, func(t *testing.T, v6 bool) {
		const queues = 4
		ns := netns.ForTest(t)
		g := listenIn(t, ns, 0, queues)
		var sockets []*Socket
		for i := range queues {
			s := g.IPv4(i)
			if v6 {
				s = g.IPv6(i)
			}
			sockets = append(sockets, s)
		}
		seen := map[int]bool{}
		for range 64 {
			var c net.Conn
			err := ns.Do(func() (err error) { c, err = net.Dial("udp", loopback(g, v6).String()); return err })
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			first := -1
			for range 3 {
				if _, err := c.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				train, queue := next(t, sockets...)
				if train.Remote.Port() != c.LocalAddr().(*net.UDPAddr).AddrPort().Port() {
					t.Errorf("came from %v, want %v", train.Remote, c.LocalAddr())
				}
				if first < 0 {
					first = queue
				}
				if queue != first {
					t.Errorf("a flow came to queues %d and %d", first, queue)
				}
			}
			seen[first] = true
		}
		if len(seen) != queues {
			t.Errorf("64 flows came to %d queues of %d", len(seen), queues)
		}
	})
}

func TestBuffers(t *testing.T) {
	ns := netns.ForTest(t)
	g := listenIn(t, ns, 0, 1)
	for _, s := range []*Socket{g.IPv4(0), g.IPv6(0)} {
		err := s.File().Control(func(fd int) error {
			for _, name := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
				if n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, name); n < bufferSize || err != nil {
					t.Errorf("option %d is %d, %v; want %d or more", name, n, err, bufferSize)
				}
			}
			flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			if err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("flags %#x, %v; want close-on-exec", flags, err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func TestAddressOfAnotherKind(t *testing.T) {
	ns := netns.ForTest(t)
	g := listenIn(t, ns, 0, 1)
	for _, c := range []struct {
		s      *Socket
		remote string
		want   error
	}{
		{g.IPv4(0), "[::1]:9", unix.EAFNOSUPPORT},
		{g.IPv6(0), "127.0.0.1:9", unix.EAFNOSUPPORT},
		{g.IPv6(0), "[::ffff:127.0.0.1]:9", unix.EAFNOSUPPORT},
		{g.IPv4(0), "[::ffff:127.0.0.1]:9", nil},
		{g.IPv6(0), "[fe80::1%eth0]:9", unix.ENODEV},
		{g.IPv4(0), "", unix.EAFNOSUPPORT},
	} {
		remote, _ := netip.ParseAddrPort(c.remote) // zero for the empty one
		if _, err := c.s.Send(&Train{Data: []byte("x"), Remote: remote}); !errors.Is(err, c.want) {
			t.Errorf("to %q: %v, want %v", c.remote, err, c.want)
		}
	}
}
