package rawio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Ready says which files of a [Waiter] can be read: bit i is the i-th of them.
type Ready uint64

// All of a Waiter's files.
const All Ready = 1<<64 - 1

// Has tells whether the i-th file can be read.
func (r Ready) Has(i int) bool { return r>>i&1 != 0 }

// maxFiles of a Waiter: one for each bit.
const maxFiles = 64

// Waiter waits until one of its files can be read. Only one goroutine at a time
// may call Wait; Wake and Close may be called from any.
type Waiter struct {
	files []*File // fixed at construction
	event *File   // eventfd, for Wake
	// closed is set before the last Wake, so that whoever takes that one for
	// another does not wait again.
	closed atomic.Bool

	polled  []unix.PollFd // owned by Wait: the files, and event at the end
	timeout unix.Timespec // owned by Wait
}

// NewWaiter makes a Waiter for at most 64 files. Its owner closes it.
func NewWaiter(files ...*File) (*Waiter, error) {
	if len(files) > maxFiles {
		return nil, fmt.Errorf("make waiter: %d files, %d at most", len(files), maxFiles)
	}
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make waiter: %w", os.NewSyscallError("eventfd", err))
	}
	w := &Waiter{files: files, event: &File{fd: fd}, polled: make([]unix.PollFd, len(files)+1)}
	for _, f := range files {
		f.watch(w)
	}
	return w, nil
}

// Wait waits until a file can be read, timeout is over (negative: never) or
// Wake is called. It may return early with nothing ready. A file on which an
// error is pending is ready, and so is one that is closed: reading says what it
// is. Wait fails with [os.ErrClosed] after Close.
func (w *Waiter) Wait(timeout time.Duration) (Ready, error) {
	var ready, held Ready
	for i, f := range w.files {
		if !f.acquire() {
			w.polled[i] = unix.PollFd{Fd: -1} // not looked at
			ready |= 1 << i
			timeout = 0
			continue
		}
		held |= 1 << i
		w.polled[i] = unix.PollFd{Fd: int32(f.fd), Events: unix.POLLIN}
	}
	defer w.release(held)
	if w.closed.Load() || !w.event.acquire() {
		return 0, os.ErrClosed
	}
	defer w.event.release()
	last := len(w.files)
	w.polled[last] = unix.PollFd{Fd: int32(w.event.fd), Events: unix.POLLIN}

	var limit *unix.Timespec
	if timeout >= 0 {
		w.timeout = unix.NsecToTimespec(timeout.Nanoseconds())
		limit = &w.timeout
	}
	if _, err := unix.Ppoll(w.polled, limit, nil); err != nil && !errors.Is(err, unix.EINTR) {
		return 0, fmt.Errorf("wait for packets: %w", os.NewSyscallError("ppoll", err))
	} else if err != nil {
		return ready, nil // what is in polled is not the kernel's
	}
	for i := range w.files {
		if w.polled[i].Revents != 0 {
			ready |= 1 << i
		}
	}
	if w.polled[last].Revents != 0 {
		var count [8]byte
		_, _ = w.event.Read(count[:]) // a second Wake meanwhile is the same one
	}
	return ready, nil
}

func (w *Waiter) release(held Ready) {
	for i, f := range w.files {
		if held.Has(i) {
			f.release()
		}
	}
}

// Wake ends the current Wait, or the next one if there is none.
func (w *Waiter) Wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	v := [1]unix.Iovec{{Base: &one[0]}}
	v[0].SetLen(len(one))
	_, _ = w.event.Writev(v[:]) // EAGAIN: so many wakings are pending already
}

// Close ends a Wait and gives back what the Waiter holds, but not its files.
func (w *Waiter) Close() error {
	for _, f := range w.files {
		f.forget(w)
	}
	w.closed.Store(true)
	w.Wake()
	return w.event.Close()
}
