//go:build linux

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

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
func (h *Host) Capture() (*Capture, error) {
	file, err := h.tap(captureBuffer)
	if err != nil {
		return nil, fmt.Errorf("capture at %s: %w", h.Name, err)
	}
	c := &Capture{file: file, done: make(chan struct{})}
	go c.run()
	return c, nil
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
