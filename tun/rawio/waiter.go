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

	parker *parker // fixed at construction

	// owned by Wait
	polled  []unix.PollFd // the files, and event at the end
	timeout unix.Timespec
	quiet   bool // the last wait was long
}

// busy is how long a wait lasts at most while packets come in quick succession.
//
// Who then waits in the kernel is woken the soonest, and no other thread is. But
// Go's monitor thread looks after each thread that enters the kernel, every 20 us
// at first, for 10 ms: of a process with a few packets a second that is most of
// its CPU time. So longer waits are left to Go's poller.
const busy = 2 * time.Millisecond

// NewWaiter makes a Waiter for at most 64 files. Its owner closes it.
func NewWaiter(files ...*File) (*Waiter, error) {
	if len(files) > maxFiles {
		return nil, fmt.Errorf("make waiter: %d files, %d at most", len(files), maxFiles)
	}
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make waiter: %w", os.NewSyscallError("eventfd", err))
	}
	w := &Waiter{files: files, event: &File{fd: fd}, polled: make([]unix.PollFd, len(files)+1), quiet: true}
	if w.parker, err = newParker(files, w.event); err != nil {
		return nil, fmt.Errorf("make waiter: %w", errors.Join(err, w.event.Close()))
	}
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
	more, err := w.wait(held, timeout)
	return ready | more, err
}

// wait is Wait for the files that are held.
func (w *Waiter) wait(held Ready, timeout time.Duration) (Ready, error) {
	if !w.quiet || timeout >= 0 && timeout < busy {
		short := busy
		if timeout >= 0 && timeout < busy {
			short = timeout
		}
		ready, woken, err := w.poll(short)
		if ready != 0 || woken || err != nil || short == timeout {
			return ready, err
		}
		if timeout >= 0 {
			timeout -= short
		}
	}
	for i := range w.files {
		if !held.Has(i) {
			continue
		}
		if err := w.parker.arm(i, int(w.polled[i].Fd)); err != nil {
			return 0, w.ended(err)
		}
	}
	begin := time.Now()
	ready, woken, err := w.parker.wait(timeout, len(w.files))
	if err != nil || w.closed.Load() {
		return 0, w.ended(err)
	}
	w.quiet = time.Since(begin) >= busy
	if woken {
		w.drain()
	}
	return ready, nil
}

// ended says why waiting is not possible.
func (w *Waiter) ended(err error) error {
	if w.closed.Load() {
		return os.ErrClosed
	}
	return fmt.Errorf("wait for packets: %w", err)
}

// poll waits in the kernel.
func (w *Waiter) poll(timeout time.Duration) (ready Ready, woken bool, err error) {
	last := len(w.files)
	w.polled[last] = unix.PollFd{Fd: int32(w.event.fd), Events: unix.POLLIN}
	w.timeout = unix.NsecToTimespec(timeout.Nanoseconds())
	n, err := unix.Ppoll(w.polled, &w.timeout, nil)
	if err != nil {
		if errors.Is(err, unix.EINTR) {
			return 0, true, nil // what is in polled is not the kernel's
		}
		return 0, false, fmt.Errorf("wait for packets: %w", os.NewSyscallError("ppoll", err))
	}
	if n == 0 {
		return 0, false, nil
	}
	for i := range w.files {
		if w.polled[i].Revents != 0 {
			ready |= 1 << i
		}
	}
	if w.polled[last].Revents != 0 {
		woken = true
		w.drain()
	}
	return ready, woken, nil
}

// drain forgets that Wake was called.
func (w *Waiter) drain() {
	var count [8]byte
	_, _ = w.event.Read(count[:]) // a second Wake meanwhile is the same one
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
	return errors.Join(w.event.Close(), w.parker.file.Close())
}
