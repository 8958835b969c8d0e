package wggo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"

	"golang.zx2c4.com/wireguard/tun"

	"meshd/overlay/tunnel"
	"meshd/overlay/tunnel/tunneltest"
)

// batch is a device below the filter: each Read gives the next of its answers,
// Write keeps what it gets.
type batch struct {
	reads   []answer
	offload bool
	written [][]byte
}

type answer struct {
	packets [][]byte
	err     error
}

func (b *batch) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if len(b.reads) == 0 {
		return 0, os.ErrClosed
	}
	next := b.reads[0]
	b.reads = b.reads[1:]
	for i, p := range next.packets {
		sizes[i] = copy(bufs[i][offset:], p)
	}
	return len(next.packets), next.err
}

func (b *batch) Write(bufs [][]byte, offset int) (int, error) {
	for _, buf := range bufs {
		b.written = append(b.written, bytes.Clone(buf[offset:]))
	}
	return len(bufs), nil
}

func (b *batch) File() *os.File {
	if b.offload {
		return os.Stdin // only compared with nil
	}
	return nil
}

func (b *batch) Name() (string, error)    { return "batch", nil }
func (b *batch) MTU() (int, error)        { return 0, nil }
func (b *batch) Events() <-chan tun.Event { return nil }
func (b *batch) Close() error             { return nil }
func (b *batch) BatchSize() int           { return 128 }

var (
	ours   = netip.MustParseAddr("10.99.1.1")
	ours6  = netip.MustParseAddr("fd99:0:0:1::1")
	theirs = netip.MustParseAddr("10.99.2.1")
	own    = []netip.Prefix{netip.MustParsePrefix("10.99.1.0/24"), netip.MustParsePrefix("fd99:0:0:1::/64")}
)

const offset = 16 // as wireguard-go uses

func buffers(n int) ([][]byte, []int) {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	return bufs, make([]int, n)
}

func TestFilterRead(t *testing.T) {
	good, foreign := tunneltest.Packet(ours, theirs, []byte("good")), tunneltest.Packet(theirs, ours, []byte("foreign"))
	under := &batch{reads: []answer{{packets: [][]byte{foreign, good, {0x45}, good, foreign}, err: tun.ErrTooManySegments}}}
	f := newFilter(under, 1420)
	f.setOwn(own)
	bufs, sizes := buffers(8)
	first := slices.Clone(bufs)
	n, err := f.Read(bufs, sizes, offset)
	if n != 5 || !errors.Is(err, tun.ErrTooManySegments) {
		t.Fatalf("read %d, %v; want 5 and the error from below", n, err)
	}
	if want := []int{0, len(good), 0, len(good), 0}; !slices.Equal(sizes[:n], want) {
		t.Errorf("sizes %v, want %v", sizes[:n], want)
	}
	for i := range bufs {
		if &bufs[i][0] != &first[i][0] {
			t.Errorf("buffer %d was moved; the device ties it to its place", i)
		}
	}
	if s, m := f.dropSource.Load(), f.dropMalformed.Load(); s != 2 || m != 1 {
		t.Errorf("counted %d foreign and %d malformed packets, want 2 and 1", s, m)
	}
}

func TestFilterWrite(t *testing.T) {
	under := &batch{}
	f := newFilter(under, 1420)
	f.setOwn(own)
	pad := make([]byte, offset)
	packet := func(dst netip.Addr, payload string) []byte {
		return append(slices.Clone(pad), tunneltest.Packet(theirs, dst, []byte(payload))...)
	}
	bufs := [][]byte{packet(theirs, "1"), packet(ours, "2"), append(slices.Clone(pad), 0x60), packet(ours, "3"), slices.Clone(pad)}
	want := [][]byte{bufs[1][offset:], bufs[3][offset:]}
	n, err := f.Write(bufs, offset)
	if n != 2 || err != nil {
		t.Errorf("wrote %d, %v; want 2", n, err)
	}
	if !slices.EqualFunc(under.written, want, bytes.Equal) {
		t.Errorf("wrote %q, want %q", under.written, want)
	}
	if d, m := f.dropDestination.Load(), f.dropMalformed.Load(); d != 1 || m != 2 {
		t.Errorf("counted %d foreign and %d malformed packets, want 1 and 2", d, m)
	}
}

// TCP with a peer that has a narrow path is held to it, both ways; all else stays as
// it is.
func TestFilterClamps(t *testing.T) {
	us, them, others := netip.MustParseAddr("fd00:86:0:11::1"), netip.MustParseAddr("fd00:86:0:50::1"), netip.MustParseAddr("fd00:86:0:51::1")
	syn := func(src, dst netip.Addr, mss uint16) []byte {
		p := make([]byte, 64)
		p[0], p[5], p[6], p[7] = 0x60, 24, 6, 64 // TCP
		copy(p[8:], src.AsSlice())
		copy(p[24:], dst.AsSlice())
		p[52], p[53] = 6<<4, 0x02 // length, SYN
		p[60], p[61] = 2, 4       // the option MSS
		binary.BigEndian.PutUint16(p[62:], mss)
		return p
	}
	mss := func(p []byte) uint16 { return binary.BigEndian.Uint16(p[62:]) }
	under := &batch{reads: []answer{{packets: [][]byte{syn(us, them, 1360), syn(us, others, 1360)}}}}
	f := newFilter(under, 1420)
	f.setOwn([]netip.Prefix{netip.PrefixFrom(us, 64).Masked()})
	f.setNarrow([]tunnel.Peer{
		{AllowedIPs: []netip.Prefix{netip.PrefixFrom(them, 64).Masked()}, MTU: 1200},
		{AllowedIPs: []netip.Prefix{netip.PrefixFrom(others, 64).Masked()}},
	})
	bufs, sizes := buffers(2)
	if n, err := f.Read(bufs, sizes, offset); n != 2 || err != nil {
		t.Fatalf("read %d, %v", n, err)
	}
	if a, b := mss(bufs[0][offset:]), mss(bufs[1][offset:]); a != 1140 || b != 1360 {
		t.Errorf("SYNs leave with %d by the narrow path and %d by another, want 1140 and 1360", a, b)
	}
	pad := make([]byte, offset)
	if n, err := f.Write([][]byte{append(slices.Clone(pad), syn(them, us, 1360)...), append(pad, syn(others, us, 1360)...)}, offset); n != 2 || err != nil {
		t.Fatalf("wrote %d, %v", n, err)
	}
	if a, b := mss(under.written[0]), mss(under.written[1]); a != 1140 || b != 1360 {
		t.Errorf("SYNs arrive with %d by the narrow path and %d by another, want 1140 and 1360", a, b)
	}
}

func TestFilterReadErrors(t *testing.T) {
	good := tunneltest.Packet(ours, theirs, nil)
	system := func(err error) error { return &fs.PathError{Op: "read", Path: "/dev/tun", Err: err} }
	for _, c := range []struct {
		name      string
		err       error
		offload   bool
		survives  bool
		malformed uint64
	}{
		{name: "no buffers", err: system(syscall.ENOBUFS), survives: true},
		{name: "no buffers, offload", err: system(syscall.ENOBUFS), offload: true, survives: true},
		{name: "bad vnet header", err: errors.New("unsupported virtio GSO type"), offload: true, survives: true, malformed: 1},
		{name: "device deleted", err: system(syscall.EBADFD)},
		{name: "device deleted, offload", err: system(syscall.EBADFD), offload: true},
		{name: "unknown error", err: errors.New("what"), survives: false},
		{name: "end", err: io.EOF, offload: true},
		{name: "closed", err: os.ErrClosed, offload: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFilter(&batch{offload: c.offload, reads: []answer{{err: c.err}, {packets: [][]byte{good}}}}, 1420)
			f.setOwn(own)
			bufs, sizes := buffers(1)
			n, err := f.Read(bufs, sizes, offset)
			if survived := n == 1 && err == nil; survived != c.survives {
				t.Errorf("read %d, %v; want to survive: %v", n, err, c.survives)
			}
			if !c.survives && (!errors.Is(err, os.ErrClosed) || f.failed.Load() == nil) {
				t.Errorf("read: %v, cause %v; want %v and the cause kept", err, f.failed.Load(), os.ErrClosed)
			}
			if got := f.dropMalformed.Load(); got != c.malformed {
				t.Errorf("counted %d malformed packets, want %d", got, c.malformed)
			}
		})
	}
}

func TestFilterDoesNotAllocate(t *testing.T) {
	f, packets, bufs, sizes := prepared()
	allocs := testing.AllocsPerRun(100, func() {
		if n, err := f.Read(bufs, sizes, offset); n != 128 || err != nil {
			t.Fatalf("read %d, %v", n, err)
		}
		if _, err := f.Write(packets, offset); err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations per batch, want none", allocs)
	}
}

// endless is a device that always has 128 packets and takes any number.
type endless struct {
	batch
	packet []byte
}

func (e *endless) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for i := range bufs {
		sizes[i] = copy(bufs[i][offset:], e.packet)
	}
	return len(bufs), nil
}

func (e *endless) Write(bufs [][]byte, _ int) (int, error) { return len(bufs), nil }

func prepared() (f *filter, packets, bufs [][]byte, sizes []int) {
	f = newFilter(&endless{packet: tunneltest.Packet(ours6, ours6, nil)}, 1420)
	f.setOwn(own)
	packets = make([][]byte, 128)
	for i := range packets {
		packets[i] = append(make([]byte, offset), tunneltest.Packet(theirs, ours6, nil)...)
		if i%2 == 0 {
			packets[i] = append(make([]byte, offset), tunneltest.Packet(theirs, ours, nil)...)
		}
	}
	bufs, sizes = buffers(128)
	return f, packets, bufs, sizes
}

// What is no SYN costs the same however many paths are narrow.
func BenchmarkClamp(b *testing.B) {
	for _, n := range []int{0, 200} {
		b.Run(fmt.Sprintf("%d narrow paths", n), func(b *testing.B) {
			f := newFilter(&batch{}, 1420)
			var peers []tunnel.Peer
			for i := range n {
				peers = append(peers, tunnel.Peer{MTU: 1280, AllowedIPs: []netip.Prefix{
					netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, byte(i), 0}), 24),
				}})
			}
			f.setNarrow(peers)
			other := netip.MustParseAddr("10.99.199.7")
			p := tunneltest.Packet(ours, other, make([]byte, 1300))
			for b.Loop() {
				f.clamp(p, other)
			}
		})
	}
}

func BenchmarkFilter(b *testing.B) {
	f, packets, bufs, sizes := prepared()
	b.Run("read batch of 128", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = f.Read(bufs, sizes, offset)
		}
	})
	b.Run("write batch of 128", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = f.Write(packets, offset)
		}
	})
}

// FuzzAddresses compares with the text of the standards, read one bit at a time.
func FuzzAddresses(f *testing.F) {
	f.Add(tunneltest.Packet(ours, theirs, []byte("x")))
	f.Add(tunneltest.Packet(ours6, ours6, nil))
	f.Add([]byte{0x4f})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, packet []byte) {
		src, dst, ok := addresses(packet)
		field := func(from, to int) netip.Addr {
			a, _ := netip.AddrFromSlice(packet[from:to])
			return a
		}
		var wantSrc, wantDst netip.Addr
		want := false
		if len(packet) > 0 {
			version, words := packet[0]/16, int(packet[0]%16)
			switch {
			case version == 4 && words >= 5 && len(packet) >= 4*words:
				want, wantSrc, wantDst = true, field(12, 16), field(16, 20)
			case version == 6 && len(packet) >= 40:
				want, wantSrc, wantDst = true, field(8, 24), field(24, 40)
			}
		}
		if ok != want || src != wantSrc || dst != wantDst {
			t.Errorf("%x: got %v %v %v, want %v %v %v", packet, src, dst, ok, wantSrc, wantDst, want)
		}
	})
}
