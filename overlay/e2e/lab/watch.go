//go:build linux

package lab

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Watch shows what passes a host's port on the switch, in both directions, to
// somebody who looks at it. It keeps nothing, so it may go on for hours.
type Watch struct {
	file *os.File // fixed at construction
	done sync.WaitGroup
}

// Watch begins to show the host's frames, Ethernet header first; a frame is gone
// when look returns. Call Stop.
func (h *Host) Watch(look func(frame []byte)) (*Watch, error) {
	file, err := h.tap(captureBuffer / 8)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", h.Name, err)
	}
	w := &Watch{file: file}
	w.done.Go(func() {
		buf := make([]byte, maxFrame)
		for {
			n, err := file.Read(buf)
			switch {
			case err == nil:
				look(buf[:n])
			case !errors.Is(err, unix.ENETDOWN): // nothing passes until the port is up again
				return
			}
		}
	})
	return w, nil
}

// Stop ends it: look is not called any more.
func (w *Watch) Stop() {
	_ = w.file.SetReadDeadline(time.Unix(1, 0))
	w.done.Wait()
	w.file.Close()
}
