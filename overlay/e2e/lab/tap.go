//go:build linux

package lab

import (
	"encoding/binary"
	"errors"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tap opens a socket that gets whatever passes the host's port on the switch, in
// both directions. The kernel keeps that many bytes for a slow reader; 0 stands
// for its default.
func (h *Host) tap(buffer int) (file *os.File, err error) {
	err = h.onPort(func(port netlink.Link) error {
		// Protocol 0 receives nothing: it begins with the bind.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "tap")
		if buffer > 0 {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer)
		}
		return errors.Join(err, unix.Bind(fd, &unix.SockaddrLinklayer{
			Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: port.Attrs().Index,
		}))
	})
	if err != nil {
		if file != nil {
			file.Close()
		}
		return nil, err
	}
	return file, nil
}

func networkOrder(v uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v))
}
