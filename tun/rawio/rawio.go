// Package rawio does input and output on descriptors that Go's poller does not
// know, for threads that move packets: a packet that arrives wakes no thread
// but the one that asked for it.
//
// A [File] is a non-blocking descriptor. Its calls return at once, do not tell
// the Go scheduler, allocate nothing, and fail with EAGAIN where they would have
// to wait. A [Waiter] waits for several Files. Go's scheduler takes the slot of
// one that waits away, but may need 10 ms for that: an owner of several raises
// GOMAXPROCS by their number, or other goroutines are late.
//
// Files and Waiters may be used from any goroutines and closed at any time. A
// descriptor is given back to the kernel when the last call on it has returned,
// so no call ever reaches another file that got the same number.
package rawio

import (
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe" //nolint:depguard // package unix has no raw calls but by pointers

	"golang.org/x/sys/unix"
)

// File is a non-blocking descriptor. After Close its methods fail with
// [os.ErrClosed]; all other errors are the kernel's, of type unix.Errno.
type File struct {
	fd    int          // fixed at construction
	state atomic.Int64 // number of calls, and the two bits below

	mu      sync.Mutex
	waiters []*Waiter // guarded by mu: those that Close wakes
}

const (
	closing = 1 << 62 // no call may start
	closed  = 1 << 61 // the descriptor is given back
)

// NewFile takes over a descriptor and makes it non-blocking. When it fails the
// descriptor is the caller's.
func NewFile(fd int) (*File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return &File{fd: fd}, nil
}

// Close ends the use of the file and every Wait on it.
func (f *File) Close() error {
	if !f.acquire() {
		return os.ErrClosed
	}
	before := f.state.Or(closing)
	f.mu.Lock()
	for _, w := range f.waiters {
		w.Wake()
	}
	f.waiters = nil
	f.mu.Unlock()
	f.release()
	if before&closing != 0 {
		return os.ErrClosed
	}
	return nil
}

// Control runs fn with the descriptor, which is valid until fn returns.
func (f *File) Control(fn func(fd int) error) error {
	if !f.acquire() {
		return os.ErrClosed
	}
	defer f.release()
	return fn(f.fd)
}

// Read is read(2).
func (f *File) Read(b []byte) (int, error) {
	if !f.acquire() {
		return 0, os.ErrClosed
	}
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(f.fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	f.release()
	return result(n, errno)
}

// Writev is writev(2). What the vectors point to is the caller's again when it
// returns.
func (f *File) Writev(v []unix.Iovec) (int, error) {
	if !f.acquire() {
		return 0, os.ErrClosed
	}
	n, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(f.fd), uintptr(unsafe.Pointer(unsafe.SliceData(v))), uintptr(len(v)))
	f.release()
	return result(n, errno)
}

// Recvmsg is recvmsg(2).
func (f *File) Recvmsg(m *unix.Msghdr) (int, error) {
	if !f.acquire() {
		return 0, os.ErrClosed
	}
	n, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(f.fd), uintptr(unsafe.Pointer(m)), unix.MSG_DONTWAIT)
	f.release()
	return result(n, errno)
}

// Sendmsg is sendmsg(2).
func (f *File) Sendmsg(m *unix.Msghdr) (int, error) {
	if !f.acquire() {
		return 0, os.ErrClosed
	}
	n, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(f.fd), uintptr(unsafe.Pointer(m)), unix.MSG_DONTWAIT)
	f.release()
	return result(n, errno)
}

func result(n uintptr, errno unix.Errno) (int, error) {
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// acquire announces a call; it is false when the file is closed.
func (f *File) acquire() bool {
	if f.state.Add(1)&closing != 0 {
		f.release()
		return false
	}
	return true
}

// release ends a call. The last one of a closed file gives the descriptor back.
func (f *File) release() {
	if f.state.Add(-1) == closing && f.state.CompareAndSwap(closing, closing|closed) {
		_ = unix.Close(f.fd) // nothing is left to be written
	}
}

// watch has Close wake w. When the file is closed already, Wait finds that out.
func (f *File) watch(w *Waiter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiters = append(f.waiters, w)
}

func (f *File) forget(w *Waiter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiters = slices.DeleteFunc(f.waiters, func(x *Waiter) bool { return x == w })
}
