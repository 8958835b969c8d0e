//go:build linux

package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	captureLimit  = 256 << 20 // bytes of frames kept
	captureBuffer = 64 << 20  // bytes that the kernel keeps for us while we are slow
	maxFrame      = 128 << 10 // segmentation offload makes frames of 64 KiB and headers
)

// Capture records what passes a host's port on the switch, in both directions.
type Capture struct {
	file *os.File      // fixed at construction
	done chan struct{} // closed when the reader has ended

	mu     sync.Mutex
	frames [][]byte // guarded by mu
	size   int      // guarded by mu
	lost   int      // guarded by mu
	err    error    // guarded by mu
}

// Capture begins to record the host's traffic. Call Stop.
func (l *Lab) Capture(h *Host) (*Capture, error) {
	c := &Capture{done: make(chan struct{})}
	err := l.sw.Do(func() error {
		port, err := netlink.LinkByName(h.port)
		if err != nil {
			return err
		}
		// Protocol 0 receives nothing: it begins with the bind.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		c.file = os.NewFile(uintptr(fd), "capture")
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer),
			unix.Bind(fd, &unix.SockaddrLinklayer{
				Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: port.Attrs().Index,
			}))
	})
	if err != nil {
		if c.file != nil {
			c.file.Close()
		}
		return nil, fmt.Errorf("capture at %s: %w", h.Name, err)
	}
	go c.run()
	return c, nil
}

func networkOrder(v uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v))
}

func (c *Capture) run() {
	defer close(c.done)
	buf := make([]byte, maxFrame)
	for {
		n, err := c.file.Read(buf)
		if errors.Is(err, unix.ENETDOWN) {
			continue // said once; nothing passes until the port is up again
		}
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				c.mu.Lock()
				c.err = err
				c.mu.Unlock()
			}
			return
		}
		c.add(buf[:n])
	}
}

func (c *Capture) add(frame []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.size+len(frame) > captureLimit {
		c.lost++
		return
	}
	c.size += len(frame)
	c.frames = append(c.frames, bytes.Clone(frame))
}

// Stop ends the recording; what was sent before is in it. Its error says that
// the recording has gaps. Call it once.
func (c *Capture) Stop() error {
	defer c.file.Close()
	if err := c.file.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return fmt.Errorf("stop capture: %w", err)
	}
	<-c.done
	raw, err := c.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("stop capture: %w", err)
	}
	var stats *unix.TpacketStats
	var statsErr error
	err = raw.Control(func(fd uintptr) {
		buf := make([]byte, maxFrame)
		for {
			n, _, err := unix.Recvfrom(int(fd), buf, 0)
			if err != nil {
				break
			}
			c.add(buf[:n])
		}
		stats, statsErr = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := errors.Join(c.err, err, statsErr); err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	if lost := c.lost + int(stats.Drops); lost > 0 {
		return fmt.Errorf("capture: %d frames were lost", lost)
	}
	return nil
}

// Frames gives the recorded frames, Ethernet header first, in order.
func (c *Capture) Frames() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clip(c.frames)
}

// Contains tells whether a frame has the marker in it.
func (c *Capture) Contains(marker []byte) bool {
	for _, f := range c.Frames() {
		if bytes.Contains(f, marker) {
			return true
		}
	}
	return false
}
