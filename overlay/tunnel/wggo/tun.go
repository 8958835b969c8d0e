package wggo

import (
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"golang.zx2c4.com/wireguard/tun"
)

// TUN is the device that the engine serves.
type TUN interface {
	io.ReadWriteCloser // one IP packet per call, if File is nil; Close ends a blocked Read
	Name() string
	File() *os.File // with vnet header and non-blocking; nil: use Read and Write
	// MTU of the link now, also after Close; fails with ENODEV when no link has
	// its name any more, or another one has it.
	MTU() (int, error)
}

// takeOver makes t a device of wireguard-go. t is closed now or with the
// result, also on error.
//
// The unmonitored kind is deliberate. The monitored one (CreateTUNFromFile) sets
// the MTU, which is not ours to set; fails for good when its netlink socket
// overflows, as it does when many containers start; and on "link down" makes
// the device close its sockets and forget its sessions.
func takeOver(t TUN) (tun.Device, error) {
	file := t.File()
	if file == nil {
		return &packets{TUN: t}, nil
	}
	// The new device takes a descriptor, and t's own file must not close that
	// one behind its back.
	fd, err := duplicate(file)
	if closeErr := t.Close(); err == nil && closeErr != nil {
		err = closeErr
	}
	if err != nil {
		return nil, fmt.Errorf("take over TUN device %s: %w", t.Name(), err)
	}
	device, _, err := tun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		return nil, fmt.Errorf("take over TUN device %s: %w", t.Name(), err)
	}
	return device, nil
}

func duplicate(file *os.File) (int, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return -1, err
	}
	var fd uintptr
	var errno syscall.Errno
	err = raw.Control(func(old uintptr) {
		fd, _, errno = syscall.Syscall(syscall.SYS_FCNTL, old, syscall.F_DUPFD_CLOEXEC, 0)
	})
	if err != nil {
		return -1, err
	}
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// packets makes a device of a TUN that gives packet by packet.
type packets struct {
	TUN
	closeOnce sync.Once
}

func (p *packets) Name() (string, error) { return p.TUN.Name(), nil }

// Read reads one packet.
func (p *packets) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := p.TUN.Read(bufs[0][offset:])
	if err != nil {
		return 0, err
	}
	sizes[0] = n
	return 1, nil
}

// Write writes all packets, even if one is refused.
func (p *packets) Write(bufs [][]byte, offset int) (int, error) {
	var first error
	written := 0
	for _, buf := range bufs {
		if _, err := p.TUN.Write(buf[offset:]); err == nil {
			written++
		} else if first == nil {
			first = err
		}
	}
	return written, first
}

func (p *packets) Close() (err error) {
	p.closeOnce.Do(func() { err = p.TUN.Close() })
	return err
}

func (p *packets) BatchSize() int { return 1 }

// Events is answered by the filter.
func (p *packets) Events() <-chan tun.Event { return nil }
