package rawio

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// parker waits for files in Go's poller, where a goroutine that waits holds no
// thread. The poller would wake a thread of its own for each packet as long as it
// knows a file, also while somebody reads it. So it knows only an epoll set of
// ours, in which files are armed for one event at a time.
//
//	Go's poller ──► epoll set ──► file, armed for one event
//	                         └──► eventfd of the Waiter
type parker struct {
	// fixed at construction
	file *os.File // the set
	raw  syscall.RawConn
	// Made once, or they would be allocated each time.
	look  func(set uintptr) bool
	rearm func(set uintptr)

	// owned by arm
	fd    int
	event unix.EpollEvent
	// owned by wait
	events [maxFiles + 1]unix.EpollEvent
	count  int
	err    error
}

func newParker(files []*File, event *File) (*parker, error) {
	set, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		err = unix.SetNonblock(set, true) // or the poller does not take it
	}
	if err != nil {
		return nil, os.NewSyscallError("epoll_create", err)
	}
	p := &parker{file: os.NewFile(uintptr(set), "epoll")}
	p.rearm = func(set uintptr) { p.err = unix.EpollCtl(int(set), unix.EPOLL_CTL_MOD, p.fd, &p.event) }
	p.look = func(set uintptr) bool {
		for {
			p.count, p.err = unix.EpollWait(int(set), p.events[:], 0)
			if !errors.Is(p.err, unix.EINTR) {
				return p.count > 0 || p.err != nil
			}
		}
	}
	add := func(f *File, index int, events uint32) error {
		return f.Control(func(fd int) error {
			return unix.EpollCtl(set, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(index)})
		})
	}
	p.raw, err = p.file.SyscallConn()
	for i, f := range files {
		if e := add(f, i, unix.EPOLLONESHOT); !errors.Is(e, os.ErrClosed) { // Wait sees that
			err = errors.Join(err, e)
		}
	}
	if err = errors.Join(err, add(event, len(files), unix.EPOLLIN)); err != nil {
		return nil, errors.Join(fmt.Errorf("make epoll set: %w", err), p.file.Close())
	}
	return p, nil
}

// arm makes the next wait end when the file with that index can be read.
func (p *parker) arm(index, fd int) error {
	p.fd, p.event = fd, unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(index)}
	if err := p.raw.Control(p.rearm); err != nil {
		return err
	}
	return os.NewSyscallError("epoll_ctl", p.err)
}

// wait gives the files that can be read, and whether the eventfd can.
func (p *parker) wait(timeout time.Duration, files int) (ready Ready, woken bool, err error) {
	if timeout >= 0 {
		if err := p.file.SetReadDeadline(time.Now().Add(timeout)); err != nil {
			return 0, false, err
		}
		defer func() { _ = p.file.SetReadDeadline(time.Time{}) }() // fails only when it is closed
	}
	p.count, p.err = 0, nil
	if err := p.raw.Read(p.look); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, false, err
	}
	if p.err != nil {
		return 0, false, os.NewSyscallError("epoll_wait", p.err)
	}
	for _, e := range p.events[:p.count] {
		if int(e.Fd) == files {
			woken = true
		} else {
			ready |= 1 << e.Fd
		}
	}
	return ready, woken, nil
}
