package udp

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"meshd/tun/rawio"
)

// Group is the sockets of one port.
type Group struct {
	port       uint16    // fixed at construction
	ipv4, ipv6 []*Socket // fixed at construction; ipv6 is empty where there is no IPv6
}

const (
	// bufferSize of a socket, which the kernel doubles: some trains of every peer
	// that sends at once. With less, a TCP stream is cut back by losses whenever we
	// are kept from running; with more, packets only wait in it.
	bufferSize = 2 << 20
	// portTries to find a port that is free in both families.
	portTries = 16
)

// Listen opens the sockets of a port in the network namespace of the calling
// thread: one of each family for each queue, on all addresses. Port 0 is one of
// the kernel's choice. It fails with EADDRINUSE when anybody has the port, other
// Groups included.
func Listen(port uint16, queues int) (*Group, error) {
	if queues < 1 {
		return nil, fmt.Errorf("listen on UDP port %d: %d queues, want one or more", port, queues)
	}
	for try := 1; ; try++ {
		g, err := listen(port, queues, open)
		if err == nil {
			return g, nil
		}
		if port != 0 || !errors.Is(err, unix.EADDRINUSE) || try == portTries {
			return nil, fmt.Errorf("listen on UDP port %d: %w", port, err)
		}
	}
}

func listen(port uint16, queues int, open func(port uint16, v6, first bool) (*Socket, error)) (*Group, error) {
	g := &Group{port: port}
	for i := range queues {
		s, err := open(g.port, false, i == 0)
		if err != nil {
			return nil, errors.Join(err, g.Close())
		}
		g.ipv4 = append(g.ipv4, s)
		if g.port, err = s.port(); err != nil {
			return nil, errors.Join(err, g.Close())
		}
	}
	for i := range queues {
		s, err := open(g.port, true, i == 0)
		if i == 0 && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
			break // the host has no IPv6
		}
		if err != nil {
			return nil, errors.Join(err, g.Close())
		}
		g.ipv6 = append(g.ipv6, s)
	}
	return g, nil
}

// Port is the port that all sockets have.
func (g *Group) Port() uint16 { return g.port }

// IPv4 gives the IPv4 socket of a queue, always the same handle.
func (g *Group) IPv4(queue int) *Socket { return g.ipv4[queue] }

// IPv6 gives the IPv6 socket of a queue, always the same handle; nil on a host
// without IPv6.
func (g *Group) IPv6(queue int) *Socket {
	if len(g.ipv6) == 0 {
		return nil
	}
	return g.ipv6[queue]
}

// Close closes all sockets and ends every Wait on them.
func (g *Group) Close() error {
	var errs []error
	for _, sockets := range [][]*Socket{g.ipv4, g.ipv6} {
		for _, s := range sockets {
			errs = append(errs, s.file.Close())
		}
	}
	return errors.Join(errs...)
}

// open opens a socket of a port; first says that no other of ours has it yet.
func open(port uint16, v6, first bool) (*Socket, error) {
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s, err := prepare(fd, port, v6, first)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return s, nil
}

func prepare(fd int, port uint16, v6, first bool) (*Socket, error) {
	options := optionsIPv4
	var any unix.Sockaddr = &unix.SockaddrInet4{Port: int(port)}
	if v6 {
		options = optionsIPv6
		any = &unix.SockaddrInet6{Port: int(port)}
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return nil, fmt.Errorf("set %s: %w", o.text, err)
		}
	}
	for _, forced := range [][2]int{{unix.SO_RCVBUF, unix.SO_RCVBUFFORCE}, {unix.SO_SNDBUF, unix.SO_SNDBUFFORCE}} {
		// Without CAP_NET_ADMIN as much as net.core.[rw]mem_max allow.
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, forced[1], bufferSize) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, forced[0], bufferSize) // smaller buffers do, too
		}
	}
	// Older kernels hand the datagrams of a train out one by one.
	_ = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1)

	// The first one binds alone, so that nobody else has the port; only then it
	// lets others in, of the same user.
	reuse := func() error {
		return os.NewSyscallError("setsockopt SO_REUSEPORT", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	}
	if !first {
		if err := reuse(); err != nil {
			return nil, err
		}
	}
	if err := unix.Bind(fd, any); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	if first {
		if err := reuse(); err != nil {
			return nil, err
		}
	}
	file, err := rawio.NewFile(fd)
	if err != nil {
		return nil, err
	}
	// A kernel that does not know the option would send the train as one datagram.
	_, err = unix.GetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT)
	return newSocket(&shared{file: file, kernel: file, v6: v6, segments: err == nil}), nil
}

type option struct {
	level, name, value int
	text               string
}

var (
	optionsIPv4 = []option{
		{unix.IPPROTO_IP, unix.IP_PKTINFO, 1, "IP_PKTINFO"},
		{unix.IPPROTO_IP, unix.IP_RECVTOS, 1, "IP_RECVTOS"},
		{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT, "IP_MTU_DISCOVER"},
	}
	optionsIPv6 = []option{
		{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1, "IPV6_V6ONLY"},
		{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1, "IPV6_RECVPKTINFO"},
		{unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1, "IPV6_RECVTCLASS"},
		{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT, "IPV6_MTU_DISCOVER"},
	}
)

// port asks the kernel for the socket's port.
func (s *Socket) port() (port uint16, err error) {
	err = s.file.Control(func(fd int) error {
		name, err := unix.Getsockname(fd)
		if err != nil {
			return os.NewSyscallError("getsockname", err)
		}
		switch a := name.(type) {
		case *unix.SockaddrInet4:
			port = uint16(a.Port)
		case *unix.SockaddrInet6:
			port = uint16(a.Port)
		}
		return nil
	})
	return port, err
}
