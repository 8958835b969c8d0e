package wggo

import (
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"meshd/overlay/tunnel"
	"meshd/tun/packet"
)

// filter stands between the kernel and wireguard-go's device. It holds the half
// of cryptokey routing that the device does not know: which inner addresses are
// ours. It also keeps the device alive, which closes itself on any read error.
type filter struct {
	tun.Device // File, Name, BatchSize

	// fixed at construction
	events chan tun.Event // ours, since the device below has none
	gone   chan struct{}  // closed by Close

	mu     sync.Mutex // guards closed and, with it, sending on events
	closed bool

	own    atomic.Pointer[prefixes]
	narrow atomic.Pointer[[]narrow]
	mtu    atomic.Int32
	failed atomic.Pointer[error] // why Read gave up

	dropSource, dropDestination, dropMalformed atomic.Uint64
}

func newFilter(under tun.Device, mtu int) *filter {
	f := &filter{Device: under, events: make(chan tun.Event, 1), gone: make(chan struct{})}
	f.own.Store(&prefixes{})
	f.narrow.Store(&[]narrow{})
	f.mtu.Store(int32(mtu))
	return f
}

// Read gives packets that leave the host. A dropped one keeps its place with
// size 0, which the device skips: its buffers are tied to the order.
func (f *filter) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := f.readPackets(bufs, sizes, offset)
	own := *f.own.Load()
	for i := range n {
		one := bufs[i][offset : offset+sizes[i]]
		src, dst, ok := addresses(one)
		switch {
		case !ok:
			f.dropMalformed.Add(1)
		case !own.contains(src):
			f.dropSource.Add(1)
		default:
			f.clamp(one, dst)
			continue
		}
		sizes[i] = 0
	}
	return n, err
}

// readPackets reads until there are packets or the TUN is gone.
func (f *filter) readPackets(bufs [][]byte, sizes []int, offset int) (int, error) {
	pause := firstPause
	for {
		n, err := f.Device.Read(bufs, sizes, offset)
		if err == nil || errors.Is(err, tun.ErrTooManySegments) {
			return n, err
		}
		switch classify(err, f.File() != nil) {
		case badPacket:
			f.dropMalformed.Add(1)
		case transient:
			if !wait(f.gone, pause) {
				return 0, os.ErrClosed
			}
			pause = min(2*pause, maxPause)
		case fatal:
			cause := err // a variable of its own, so that err need not be on the heap
			f.failed.CompareAndSwap(nil, &cause)
			// The device logs any other error; whoever runs the engine gets
			// this one from Run.
			return 0, os.ErrClosed
		}
	}
}

// Write takes packets that arrived from peers. The device reuses bufs as a
// list only, so what remains is moved to its front.
func (f *filter) Write(bufs [][]byte, offset int) (int, error) {
	own := *f.own.Load()
	kept := bufs[:0]
	for _, buf := range bufs {
		src, dst, ok := addresses(buf[offset:])
		switch {
		case !ok:
			f.dropMalformed.Add(1)
		case !own.contains(dst):
			f.dropDestination.Add(1)
		default:
			f.clamp(buf[offset:], src)
			kept = append(kept, buf)
		}
	}
	if len(kept) == 0 {
		return 0, nil
	}
	return f.Device.Write(kept, offset)
}

// setOwn swaps the addresses that are ours.
func (f *filter) setOwn(own []netip.Prefix) {
	ps := prefixes(slices.Clone(own))
	f.own.Store(&ps)
}

// narrow is a prefix of a peer to which the path carries less than the device.
type narrow struct {
	prefix netip.Prefix
	mtu    int
}

// setNarrow swaps the paths that are narrow.
func (f *filter) setNarrow(peers []tunnel.Peer) {
	all := []narrow{}
	for _, p := range peers {
		for _, prefix := range p.AllowedIPs {
			if p.MTU != 0 {
				all = append(all, narrow{prefix, p.MTU})
			}
		}
	}
	f.narrow.Store(&all)
}

// clamp holds TCP with an address to what the path there carries. Routes do that
// for all but connections of containers by IPv6, who are told of nothing below 1280.
func (f *filter) clamp(p []byte, other netip.Addr) {
	if !packet.MayBeSYN(p) {
		return
	}
	for _, n := range *f.narrow.Load() {
		if n.prefix.Contains(other) {
			packet.ClampMSS(p, n.mtu)
			return
		}
	}
}

// setMTU tells the device that the link's MTU has changed: it pads packets up
// to a multiple of 16 bytes, but never beyond the MTU.
func (f *filter) setMTU(mtu int) {
	if int(f.mtu.Swap(int32(mtu))) == mtu {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	select {
	case f.events <- tun.EventMTUUpdate:
	default: // one is already waiting, and it will read the new value
	}
}

// MTU implements [tun.Device].
func (f *filter) MTU() (int, error) { return int(f.mtu.Load()), nil }

// Events implements [tun.Device]. It never tells of the link going up or down:
// a device that is told so forgets its sessions and closes its sockets.
func (f *filter) Events() <-chan tun.Event { return f.events }

// Close implements [tun.Device].
func (f *filter) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	close(f.gone)
	close(f.events)
	return f.Device.Close()
}

type kind int

const (
	fatal     kind = iota // the TUN is gone
	transient             // the next read may succeed
	badPacket             // the packet was taken from the kernel and is useless
)

// classify tells what an error of a read means. With offloads, an error that is
// not the system's ([fs.PathError]) is about the vnet header of one packet.
func classify(err error, offload bool) kind {
	var sys *fs.PathError
	switch {
	case errors.Is(err, os.ErrClosed), errors.Is(err, io.EOF), errors.Is(err, io.ErrClosedPipe):
		return fatal
	case errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.ENETDOWN),
		errors.Is(err, syscall.EIO), errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EINTR):
		return transient
	case !offload || errors.As(err, &sys):
		return fatal
	}
	return badPacket
}

// Pauses after a transient error: short enough not to be noticed, and so long
// in the end that a lasting error costs nothing.
const (
	firstPause = 5 * time.Millisecond
	maxPause   = 500 * time.Millisecond
)

// wait waits for d, or gives false when gone is closed.
func wait(gone <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-gone:
		return false
	case <-t.C:
		return true
	}
}
