package device

import (
	"golang.org/x/sys/unix"

	"meshd/tun/rawio"
)

// Queue is one queue of the offload driver. The kernel keeps to one queue for
// each flow, as a rule: the one to which packets of it were last written.
//
// A Queue is for one goroutine that reads and one that writes. After the device
// was closed, both fail with [os.ErrClosed].
type Queue struct {
	file *rawio.File
	vecs []unix.Iovec // owned by WritePacket
}

// usualParts of a packet that is written: two headers and some 60 payloads.
const usualParts = 66

// NewQueue makes a Queue of any descriptor that keeps packets apart as the TUN
// does, such as a datagram socket in a test; or another one of the same queue, for
// other goroutines.
func NewQueue(file *rawio.File) *Queue {
	return &Queue{file: file, vecs: make([]unix.Iovec, 0, usualParts)}
}

// File is what a [rawio.Waiter] waits for.
func (q *Queue) File() *rawio.File { return q.file }

// ReadPacket reads one packet behind its 10-byte vnet header: up to 64 KiB in
// all, and what does not fit into b is lost. It fails with EAGAIN when there is
// none, and with EBADFD once somebody deleted the link.
func (q *Queue) ReadPacket(b []byte) (int, error) {
	return q.file.Read(b)
}

// WritePacket writes one packet, whose vnet header, headers and payloads may lie
// in different places. It gives the packet's length. The kernel takes a packet
// as a whole or not at all, and 1024 parts at most; EIO means that the link is
// not up, EINVAL that the packet or its vnet header is not sound.
func (q *Queue) WritePacket(parts [][]byte) (int, error) {
	vecs := q.vecs[:0]
	for _, p := range parts {
		if len(p) == 0 {
			continue
		}
		v := unix.Iovec{Base: &p[0]}
		v.SetLen(len(p))
		vecs = append(vecs, v)
	}
	q.vecs = vecs
	return q.file.Writev(vecs)
}
