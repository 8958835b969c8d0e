package exchange

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Kernel is TCP over IPv6, as the kernel of this host has it. Its zero value is
// ready.
type Kernel struct{}

// Listen implements [Network]. The address may come later, and go and come. While
// the listener is open, [AskPort] is held too.
func (Kernel) Listen(ctx context.Context, at netip.Addr) (net.Listener, error) {
	hold, err := holdPort(netip.AddrPortFrom(at, AskPort))
	if err != nil {
		return nil, fmt.Errorf("hold port %d: %w", AskPort, err)
	}
	config := net.ListenConfig{Control: onSocket(freeBind)}
	config.SetMultipathTCP(false)
	l, err := config.Listen(ctx, "tcp6", netip.AddrPortFrom(at, Port).String())
	if err != nil {
		return nil, errors.Join(err, hold.Close())
	}
	return &listener{l, hold}, nil
}

// Dial implements [Network]. What is dialed must have been read to its end before it
// is closed: it is reset then, so that the port can be used again at once.
func (Kernel) Dial(ctx context.Context, from, to netip.Addr) (net.Conn, error) {
	dialer := net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, AskPort)),
		Control:   onSocket(sharePort), KeepAlive: -1,
	}
	conn, err := dialer.DialContext(ctx, "tcp6", netip.AddrPortFrom(to, Port).String())
	if err != nil {
		return nil, err
	}
	if err := conn.(*net.TCPConn).SetLinger(0); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// listener is one that holds a port besides its own.
type listener struct {
	net.Listener
	hold *os.File
}

func (l *listener) Close() error { return errors.Join(l.Listener.Close(), l.hold.Close()) }

// holdPort binds a port, so that only sockets of our user that share it can do the
// same: one user's programs trust each other anyway.
func holdPort(at netip.AddrPort) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	hold := os.NewFile(uintptr(fd), "held port")
	err = errors.Join(freeBind(fd), sharePort(fd),
		os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()})))
	if err != nil {
		return nil, errors.Join(err, hold.Close())
	}
	return hold, nil
}

// freeBind lets a socket have an address that is not on the host yet.
func freeBind(fd int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1))
}

// sharePort lets sockets of one user have one port.
func sharePort(fd int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
}

func onSocket(set func(fd int) error) func(string, string, syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		var err error
		return errors.Join(raw.Control(func(fd uintptr) { err = set(int(fd)) }), err)
	}
}
