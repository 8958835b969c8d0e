//go:build linux

package main

import (
	"unsafe" //nolint:depguard // sendmmsg and recvmmsg take pointers, and x/sys has no wrapper

	"golang.org/x/sys/unix"
)

// messages are the buffers of one sendmmsg or recvmmsg.
type messages struct {
	bufs    [][]byte
	iovs    []unix.Iovec
	headers []unix.Mmsghdr
}

func newMessages(n, size int) *messages {
	m := &messages{bufs: make([][]byte, n), iovs: make([]unix.Iovec, n), headers: make([]unix.Mmsghdr, n)}
	for i := range n {
		m.bufs[i] = make([]byte, size)
		m.iovs[i].Base = &m.bufs[i][0]
		m.iovs[i].SetLen(size)
		m.headers[i].Hdr.Iov = &m.iovs[i]
		m.headers[i].Hdr.SetIovlen(1)
	}
	return m
}

// buffer is what message i sends.
func (m *messages) buffer(i int) []byte { return m.bufs[i] }

// payload is what message i received.
func (m *messages) payload(i int) []byte { return m.bufs[i][:m.headers[i].Len] }

// send sends the first n messages, or some of them, and says how many.
func (m *messages) send(fd, n int) (int, error) {
	return m.call(unix.SYS_SENDMMSG, fd, n, 0)
}

// receive takes what there is and does not wait.
func (m *messages) receive(fd int) (int, error) {
	return m.call(unix.SYS_RECVMMSG, fd, len(m.headers), unix.MSG_DONTWAIT)
}

func (m *messages) call(number uintptr, fd, n, flags int) (int, error) {
	got, _, errno := unix.Syscall6(number, uintptr(fd), uintptr(unsafe.Pointer(&m.headers[0])), uintptr(n), uintptr(flags), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(got), nil
}
