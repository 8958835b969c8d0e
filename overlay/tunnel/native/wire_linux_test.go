package native

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"meshd/mesh"
	"meshd/overlay/tunnel"
	"meshd/tun/device"
	"meshd/tun/packet"
	"meshd/tun/rawio"
)

// Engines on this host's loopback, whose TUN devices are pairs of sockets: tests
// write and read what the kernel would, offload headers and all.

const arrival = 20 * time.Second // of what should come; a handshake may be lost

// socketTUN is a TUN device whose other end is a test's.
type socketTUN struct {
	queues []*device.Queue
	ours   []*rawio.File
	theirs []*os.File // one for each queue
	mtu    atomic.Int32
	uso    bool
}

func newSocketTUN(t testing.TB, queues, mtu int) *socketTUN {
	t.Helper()
	d := &socketTUN{uso: true}
	d.mtu.Store(int32(mtu))
	for range queues {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		file, err := rawio.NewFile(fds[0])
		if err != nil {
			t.Fatal(err)
		}
		theirs := os.NewFile(uintptr(fds[1]), "test's end")
		d.ours, d.theirs = append(d.ours, file), append(d.theirs, theirs)
		d.queues = append(d.queues, device.NewQueue(file))
		t.Cleanup(func() { _, _ = file.Close(), theirs.Close() }) // as a rule they are closed
	}
	return d
}

func (d *socketTUN) Queues() []*device.Queue { return d.queues }
func (d *socketTUN) USO() bool               { return d.uso }
func (d *socketTUN) Name() string            { return "sockets" }

func (d *socketTUN) MTU() (int, error) {
	if mtu := d.mtu.Load(); mtu > 0 {
		return int(mtu), nil
	}
	return 0, fmt.Errorf("get MTU: %w", syscall.ENODEV)
}

func (d *socketTUN) Close() error {
	var errs []error
	for _, f := range d.ours {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// end is one engine with what is around it.
type end struct {
	*Engine
	tun    *socketTUN
	number int
	key    *ecdh.PrivateKey
	id     mesh.NodeID
	own    []netip.Prefix
	suite  string
	stop   func() // ends Run and waits
	ended  chan error
}

// setup is what differs between ends; its zero value is usual.
type setup struct {
	queues, mtu int // 0: 1, 1420
	key         *ecdh.PrivateKey
	stamp       time.Time
	saveStamp   func(time.Time) error
	asleep      func() time.Duration // nil: the kernel's
}

func newEnd(t testing.TB, number int, s setup) *end {
	t.Helper()
	e := &end{number: number, key: s.key, id: mesh.NodeID{byte(number)}, suite: tunnel.ChaCha20Poly1305, ended: make(chan error, 1)}
	e.own = prefixes(fmt.Sprintf("10.99.%d.0/24 fd99:0:0:%d::/64", number, number))
	if e.key == nil {
		var err error
		if e.key, err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	e.tun = newSocketTUN(t, max(1, s.queues), max(s.mtu, (1-min(s.mtu, 1))*1420))
	e.Engine = New(Options{TUN: e.tun, PrivateKey: [32]byte(e.key.Bytes()), Stamp: s.stamp, SaveStamp: s.saveStamp})
	if s.asleep != nil {
		e.Engine.asleep = s.asleep
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.ended <- e.Run(ctx)
	}()
	e.stop = func() { cancel(); <-done }
	t.Cleanup(e.stop)
	select {
	case <-e.Ready():
	case err := <-e.ended:
		t.Fatal(err)
	}
	return e
}

// pair starts two ends that know each other.
func pair(t testing.TB, s setup) (a, b *end) {
	t.Helper()
	a, b = newEnd(t, 1, s), newEnd(t, 2, s)
	a.know(t, b.peer())
	b.know(t, a.peer())
	return a, b
}

func (e *end) peer() tunnel.Peer {
	return tunnel.Peer{
		ID: e.id, PublicKey: mesh.Key(e.key.PublicKey().Bytes()), AllowedIPs: e.own, Suite: e.suite,
		Endpoints: []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), e.Port())},
	}
}

func (e *end) know(t testing.TB, peers ...tunnel.Peer) {
	t.Helper()
	e.apply(t, tunnel.Config{Own: e.own, Peers: peers})
}

func (e *end) apply(t testing.TB, c tunnel.Config) {
	t.Helper()
	if err := e.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

func (e *end) addr(family int) netip.Addr { return e.own[(family-4)/2].Addr().Next() }

// send hands a packet to the engine as the kernel would.
func (e *end) send(t testing.TB, o packet.Offload, p []byte) {
	t.Helper()
	b := make([]byte, packet.OffloadLen, packet.OffloadLen+len(p))
	o.Put(b)
	if _, err := e.tun.theirs[0].Write(append(b, p...)); err != nil {
		t.Fatal(err)
	}
}

// receive gives the next packet that the engine delivers; ok is false if none
// comes in time.
func (e *end) receive(t testing.TB, within time.Duration) (o packet.Offload, p []byte, ok bool) {
	t.Helper()
	f := e.tun.theirs[0]
	if err := f.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, packet.OffloadLen+maxPacket)
	n, err := f.Read(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return o, nil, false
	}
	if err != nil {
		t.Fatal(err)
	}
	if o, err = packet.ParseOffload(buf[:n]); err != nil {
		t.Fatal(err)
	}
	return o, buf[packet.OffloadLen:n], true
}

// expect is receive for what must come.
func (e *end) expect(t testing.TB) (packet.Offload, []byte) {
	t.Helper()
	o, p, ok := e.receive(t, arrival)
	if !ok {
		t.Fatalf("nothing arrives at end %d; it dropped %s", e.number, e.counts())
	}
	return o, p
}

// counts are the drops that are not zero.
func (e *end) counts() string {
	counts := e.Stats().Drops
	for name, n := range counts {
		if n == 0 {
			delete(counts, name)
		}
	}
	return fmt.Sprint(counts)
}

// dropped waits until an end has dropped that many packets for a reason, and
// fails if it drops others.
func dropped(t testing.TB, e *end, want map[string]uint64) {
	t.Helper()
	eventually(t, fmt.Sprintf("drops %v at end %d", want, e.number), func() (bool, string) {
		return e.counts() == fmt.Sprint(want), e.counts()
	})
}

func eventually(t testing.TB, what string, check func() (ok bool, got string)) {
	t.Helper()
	for deadline := time.Now().Add(arrival); ; {
		ok, got := check()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %s; at last %s", what, got)
		}
		select {
		case <-t.Context().Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// udpPacket is a datagram with right checksums.
func udpPacket(src, dst netip.Addr, payload []byte) []byte {
	p := make([]byte, 8, 8+len(payload))
	be.PutUint16(p[0:], 4000)
	be.PutUint16(p[2:], 5000)
	be.PutUint16(p[4:], uint16(8+len(payload)))
	return ipPacket(src, dst, unix.IPPROTO_UDP, append(p, payload...), 6)
}

// synPacket opens a connection and announces a segment size.
func synPacket(src, dst netip.Addr, mss int) []byte {
	p := make([]byte, 24)
	p[12], p[13] = 6<<4, 0x02
	copy(p[20:], []byte{2, 4})
	be.PutUint16(p[22:], uint16(mss))
	return ipPacket(src, dst, unix.IPPROTO_TCP, p, 16)
}

// dataPacket is a segment of a stream.
func dataPacket(src, dst netip.Addr, seq uint32, payload []byte) []byte {
	p := make([]byte, 20, 20+len(payload))
	be.PutUint32(p[4:], seq)
	p[12], p[13] = 5<<4, 0x10
	return ipPacket(src, dst, unix.IPPROTO_TCP, append(p, payload...), 16)
}

// ipPacket puts a header before a transport's, whose checksum is at field.
func ipPacket(src, dst netip.Addr, protocol uint8, l4 []byte, field int) []byte {
	var h, pseudo []byte
	if src.Is4() {
		h = make([]byte, 20)
		h[0] = 0x45
		be.PutUint16(h[2:], uint16(20+len(l4)))
		h[6], h[8], h[9] = 0x40, 64, protocol
		copy(h[12:], src.AsSlice())
		copy(h[16:], dst.AsSlice())
		be.PutUint16(h[10:], packet.Checksum(h, 0))
		pseudo = append(pseudo, h[12:20]...)
	} else {
		h = make([]byte, 40)
		h[0] = 0x60
		be.PutUint16(h[4:], uint16(len(l4)))
		h[6], h[7] = protocol, 64
		copy(h[8:], src.AsSlice())
		copy(h[24:], dst.AsSlice())
		pseudo = append(pseudo, h[8:40]...)
	}
	pseudo = append(pseudo, 0, protocol, byte(len(l4)>>8), byte(len(l4)))
	be.PutUint16(l4[field:], packet.Checksum(l4, packet.Sum(pseudo, 0)))
	return append(h, l4...)
}

// relay stands between two ends, for each of which it is the other.
type relay struct {
	conn *net.UDPConn
	ends [2]netip.AddrPort
	done chan struct{}

	mu     sync.Mutex
	meddle func(from int, ecn byte, d []byte) bool // guarded by mu; false: what came goes no further
}

// throughRelay starts two ends that know each other by a relay.
func throughRelay(t *testing.T, s setup) (a, b *end, r *relay) {
	t.Helper()
	a, b = newEnd(t, 1, s), newEnd(t, 2, s)
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	r = &relay{conn: conn, ends: [2]netip.AddrPort{a.peer().Endpoints[0], b.peer().Endpoints[0]}, done: make(chan struct{})}
	r.option(t, unix.IP_RECVTOS, 1)
	go r.run()
	t.Cleanup(func() { _ = conn.Close(); <-r.done })
	for _, x := range [][2]*end{{a, b}, {b, a}} {
		p := x[1].peer()
		p.Endpoints = []netip.AddrPort{r.addr()}
		x[0].know(t, p)
	}
	return a, b, r
}

func (r *relay) addr() netip.AddrPort { return r.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

func (r *relay) option(t testing.TB, name, value int) {
	t.Helper()
	raw, err := r.conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, name, value) }); errors.Join(e, err) != nil {
		t.Fatal(e, err)
	}
}

// through has what comes looked at from now on.
func (r *relay) through(meddle func(from int, ecn byte, d []byte) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.meddle = meddle
}

// inject sends a datagram to an end.
func (r *relay) inject(to int, d []byte) {
	_, _ = r.conn.WriteToUDPAddrPort(d, r.ends[to]) // lost, if so
}

func (r *relay) run() {
	defer close(r.done)
	buf, oob := make([]byte, 1<<16), make([]byte, 128)
	for {
		n, oobn, _, remote, err := r.conn.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			return
		}
		ecn := byte(0)
		if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(messages) == 1 {
			ecn = messages[0].Data[0] & 3
		}
		from := 0
		if remote.Port() == r.ends[1].Port() {
			from = 1
		}
		r.mu.Lock()
		pass := r.meddle == nil || r.meddle(from, ecn, buf[:n])
		r.mu.Unlock()
		if pass {
			r.inject(1-from, buf[:n])
		}
	}
}
