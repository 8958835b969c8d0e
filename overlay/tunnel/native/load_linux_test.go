package native

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"meshd/mesh"
	"meshd/overlay/tunnel"
	"meshd/overlay/tunnel/tunneltest"
	"meshd/overlay/tunnel/wg"
	"meshd/tun/packet"
)

// flow keeps packets on their way from one end to another: as many as fit into
// the sockets between, so that none is lost.
type flow struct {
	from, to  *end
	delivered atomic.Int64 // packets
	done      sync.WaitGroup
	stop      chan struct{}
}

const window = 64 // packets on their way

// startFlow begins with a flow, which ends with the test or with end.
func startFlow(t testing.TB, from, to *end) *flow {
	t.Helper()
	f := &flow{from: from, to: to, stop: make(chan struct{})}
	credit := make(chan struct{}, window)
	for range window {
		credit <- struct{}{}
	}
	sent := append(make([]byte, packet.OffloadLen), udpPacket(from.addr(4), to.addr(4), bytes.Repeat([]byte{7}, 1000))...)
	f.done.Go(func() {
		lost := time.NewTicker(200 * time.Millisecond)
		defer lost.Stop()
		for {
			select {
			case <-f.stop:
				return
			case <-credit:
			case <-lost.C: // nothing comes back for what was dropped
			}
			if _, err := from.tun.theirs[0].Write(sent); err != nil {
				return
			}
		}
	})
	for _, theirs := range to.tun.theirs {
		if err := theirs.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		f.done.Go(func() { f.read(theirs, len(sent), credit) })
	}
	t.Cleanup(f.end)
	return f
}

// read counts what arrives by a queue, and gives credit for it.
func (f *flow) read(theirs *os.File, size int, credit chan<- struct{}) {
	buf := make([]byte, packet.OffloadLen+maxPacket)
	for {
		n, err := theirs.Read(buf)
		if err != nil || n == 0 {
			return
		}
		if n < size {
			continue // an answer
		}
		count := 1 // as many as were joined
		if o, err := packet.ParseOffload(buf); err == nil && o.SegmentSize > 0 {
			count = (n - packet.OffloadLen - 28) / int(o.SegmentSize)
		}
		f.delivered.Add(int64(count))
		for range count {
			select {
			case credit <- struct{}{}:
			default:
			}
		}
	}
}

// end ends the flow, once.
func (f *flow) end() {
	select {
	case <-f.stop:
		return
	default:
	}
	close(f.stop)
	for _, theirs := range f.to.tun.theirs {
		_ = theirs.SetReadDeadline(time.Now()) // wakes it
	}
	f.done.Wait()
}

// passes waits until that many more packets were delivered.
func (f *flow) passes(t testing.TB, n int64) {
	t.Helper()
	want := f.delivered.Load() + n
	eventually(t, "traffic", func() (bool, string) {
		return f.delivered.Load() >= want, f.from.counts() + " " + f.to.counts()
	})
}

func TestNothingIsAllocatedForAPacket(t *testing.T) {
	a, b := pair(t, setup{})
	f := startFlow(t, a, b)
	f.passes(t, 2000) // all buffers are there
	const (
		packets = 100_000
		// perSecond is what timers and the look at the MTU need at most, and would
		// count on a machine that carries only a few packets in that time.
		perSecond = 100
	)
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	sent, begin := f.delivered.Load(), time.Now()
	for f.delivered.Load() < sent+packets && time.Since(begin) < arrival/2 {
		<-look.C
	}
	n, seconds := float64(f.delivered.Load()-sent), time.Since(begin).Seconds()
	runtime.ReadMemStats(&after)
	if got := float64(after.Mallocs - before.Mallocs); got > 0.01*n+perSecond*seconds {
		t.Errorf("%.0f allocations for %.0f packets in %.1f s", got, n, seconds)
	} else {
		t.Logf("%.0f allocations for %.0f packets in %.1f s", got, n, seconds)
	}
}

// With one slot of the scheduler the rest of the daemon still gets its turn.
func TestOneProcessor(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	a, b := pair(t, setup{})
	out, back := startFlow(t, a, b), startFlow(t, b, a)
	const every, ticks = 5 * time.Millisecond, 200
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	latest, last := time.Duration(0), time.Now()
	for range ticks {
		<-ticker.C
		now := time.Now()
		latest, last = max(latest, now.Sub(last)), now
	}
	t.Logf("%d and %d packets; a timer of %v came after %v at the latest", out.delivered.Load(), back.delivered.Load(), every, latest)
	if latest > time.Second {
		t.Errorf("a timer of %v came after %v", every, latest)
	}
	if err := a.Apply(t.Context(), tunnel.Config{Own: a.own, Peers: []tunnel.Peer{b.peer()}}); err != nil {
		t.Error(err)
	}
	out.passes(t, 100)
	back.passes(t, 100)
}

// floodGap is longer than what the protocol wants between two handshakes of a
// peer; sooner ones are repeated after 5 s.
const floodGap = 40 * time.Millisecond

// Configurations change as fast as they can while packets flow: peers come and
// go, among them the one that is talked to, and its suite.
func TestApplyWhileTrafficFlows(t *testing.T) {
	t.Parallel()
	a, b := pair(t, setup{queues: 2})
	out := startFlow(t, a, b)
	others := make([]tunnel.Peer, 20)
	for i := range others {
		key, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		others[i] = tunnel.Peer{ID: mesh.NodeID{100, byte(i)}, PublicKey: mesh.Key(key.PublicKey().Bytes()), AllowedIPs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, byte(100 + i), 0}), 24)}}
	}
	configured := func(e *end, peers ...tunnel.Peer) {
		if err := e.Apply(t.Context(), tunnel.Config{Own: e.own, Peers: peers}); err != nil {
			t.Error(err)
		}
	}
	for i := range 12 {
		out.passes(t, 50)
		<-time.After(floodGap)
		shaken := b.Stats().Peers[a.id].LastHandshake
		for n := range 20 {
			configured(a, append(others[:n:n], b.peer())...)
			a.Stats()
		}
		switch i % 3 {
		case 0: // another session
			configured(a, others...)
			configured(a, b.peer())
		case 1:
			b.suite = tunnel.AES256GCM
			if i%2 == 0 {
				b.suite = tunnel.ChaCha20Poly1305
			}
			a.suite = b.suite
			configured(b, a.peer())
			configured(a, b.peer())
		case 2:
			continue
		}
		out.passes(t, 50)
		// Packets of the old session may have been on the way.
		eventually(t, fmt.Sprintf("another session in round %d", i), func() (bool, string) {
			at := b.Stats().Peers[a.id].LastHandshake
			return at.After(shaken), at.String()
		})
	}
}

// heap is the live memory of this process in bytes.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// tolerated is by how much an attack may make the heap grow: 512 handshake
// messages that wait, the limiter's 8192 addresses, and what the tests keep.
const tolerated = 4 << 20

func TestReplayedAndForged(t *testing.T) {
	t.Parallel()
	a, b, r := throughRelay(t, setup{})
	var mu sync.Mutex
	var wire [][]byte
	r.through(func(from int, _ byte, d []byte) bool {
		mu.Lock()
		defer mu.Unlock()
		if from == 0 {
			wire = append(wire, bytes.Clone(d))
		}
		return true
	})
	const packets = 50
	for i := range packets {
		p := tunneltest.Packet(a.addr(4), b.addr(4), []byte{byte(i)})
		a.send(t, packet.Offload{}, p)
		if _, got := b.expect(t); !bytes.Equal(got, p) {
			t.Fatalf("got %x, want %x", got, p)
		}
	}
	r.through(nil)
	dropped(t, b, map[string]uint64{})

	want := map[string]uint64{}
	inject := func(reason string, d []byte) {
		r.inject(1, d)
		want[reason]++
		if want[reason]%32 == 0 {
			dropped(t, b, want) // do not fill the socket
		}
	}
	for _, d := range wire {
		if wg.IsHandshake(d) {
			inject(tunnel.DropHandshake, d)
			inject(tunnel.DropReceive, d[:len(d)-1])
			continue
		}
		inject(tunnel.DropReplayed, d)
		if len(d) == wg.Overhead { // a keepalive is as short as can be
			continue
		}
		for at, reason := range map[int]string{
			0:          tunnel.DropReceive, // type
			3:          tunnel.DropReceive, // a byte that is zero
			5:          tunnel.DropSession, // index
			9:          tunnel.DropForged,  // counter
			16:         tunnel.DropForged,
			len(d) - 1: tunnel.DropForged,
		} {
			bad := bytes.Clone(d)
			bad[at] ^= 0x40
			inject(reason, bad)
		}
		inject(tunnel.DropForged, d[:len(d)-1])
		inject(tunnel.DropForged, d[:wg.Overhead])
		inject(tunnel.DropReceive, d[:wg.Overhead-1])
		inject(tunnel.DropReceive, d[:1])
	}
	dropped(t, b, want)
	p := tunneltest.Packet(a.addr(4), b.addr(4), []byte("last"))
	a.send(t, packet.Offload{}, p)
	if _, got := b.expect(t); !bytes.Equal(got, p) {
		t.Errorf("after the attack came %x, want %x", got, p)
	}
}

// One train with good datagrams among bad ones, whose last one is cut short.
func TestMixedTrain(t *testing.T) {
	t.Parallel()
	a, b, r := throughRelay(t, setup{})
	send := func(i byte) []byte {
		p := tunneltest.Packet(a.addr(4), b.addr(4), bytes.Repeat([]byte{i}, 108))
		a.send(t, packet.Offload{}, p)
		return p
	}
	send(0)
	b.expect(t)
	held := make(chan []byte, 100)
	r.through(func(from int, _ byte, d []byte) bool {
		if from == 0 && len(d) > 128 {
			held <- bytes.Clone(d)
		}
		return false
	})
	var want, sealed [][]byte
	for i := range byte(4) {
		want = append(want, send(1+i))
		select {
		case d := <-held:
			sealed = append(sealed, d)
		case <-time.After(arrival):
			t.Fatal("nothing is sent")
		}
	}
	forged := bytes.Clone(sealed[1])
	forged[40] ^= 1
	strange := bytes.Clone(sealed[1])
	strange[5] ^= 1
	train := slices.Concat(sealed[0], forged, sealed[0], sealed[1], strange, make([]byte, len(forged)), sealed[2], sealed[3][:len(forged)-1])
	segment := make([]byte, unix.CmsgSpace(2)) // of a machine with 64 bits
	binary.NativeEndian.PutUint64(segment, uint64(unix.CmsgLen(2)))
	binary.NativeEndian.PutUint32(segment[8:], unix.SOL_UDP)
	binary.NativeEndian.PutUint32(segment[12:], unix.UDP_SEGMENT)
	binary.NativeEndian.PutUint16(segment[16:], uint16(len(forged)))
	if _, _, err := r.conn.WriteMsgUDPAddrPort(train, segment, r.ends[1]); err != nil {
		t.Fatal(err)
	}
	for _, p := range want[:3] {
		if _, got := b.expect(t); !bytes.Equal(got, p) {
			t.Errorf("got %x, want %x", got, p)
		}
	}
	dropped(t, b, map[string]uint64{tunnel.DropForged: 2, tunnel.DropReplayed: 1, tunnel.DropSession: 1, tunnel.DropReceive: 1})
}

func TestJunkAtHighRate(t *testing.T) {
	a, b := pair(t, setup{})
	f := startFlow(t, a, b)
	f.passes(t, 100)
	before, place := heap(), b.Stats().Peers[a.id].Endpoint
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(b.peer().Endpoints[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	junk := make([]byte, 1472)
	_, _ = rand.Read(junk) // never fails
	sizes := []int{0, 1, 3, 4, 31, 32, 64, 92, 148, 149, 1472}
	for i := range 60_000 {
		junk[0], junk[1], junk[2], junk[3] = byte(i/len(sizes)%6), 0, 0, 0
		_, _ = conn.Write(junk[:sizes[i%len(sizes)]]) // lost, if so
	}
	f.passes(t, 1000)
	if grown := heap() - before; grown > tolerated {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
	counts := b.Stats().Drops
	for _, reason := range []string{tunnel.DropReceive, tunnel.DropSession, tunnel.DropHandshake} {
		if counts[reason] < 1000 {
			t.Errorf("%d dropped as %s; in all %s", counts[reason], reason, b.counts())
		}
	}
	if got := b.Stats().Peers[a.id].Endpoint; got != place {
		t.Errorf("the peer was taken to be at %s, is at %s", got, place)
	}
}

// initiationTo is a first message for an end, as a stranger sends it.
func initiationTo(t *testing.T, e *end) []byte {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	m, err := wg.New(wg.Config{PrivateKey: [32]byte(key.Bytes())})
	if err != nil {
		t.Fatal(err)
	}
	p := e.peer()
	if _, err := m.SetPeers(time.Now(), []wg.Peer{{Key: p.PublicKey, Suite: wg.ChaCha20Poly1305}}); err != nil {
		t.Fatal(err)
	}
	for _, a := range m.Want(time.Now(), p.PublicKey) {
		if s, ok := a.(wg.Send); ok {
			return s.Packet
		}
	}
	t.Fatal("no initiation")
	return nil
}

// Who floods with handshakes from one address is asked for cookies; the traffic
// goes on, and so does control.
func TestHandshakeFlood(t *testing.T) {
	a, b := pair(t, setup{})
	f := startFlow(t, a, b)
	f.passes(t, 100)
	before := heap()
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(b.peer().Endpoints[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	msg := initiationTo(t, b)
	stop, flooded := make(chan struct{}), make(chan struct{})
	var cookies atomic.Int64
	var reading sync.WaitGroup
	reading.Go(func() {
		buf := make([]byte, 2000)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			if n == 64 && buf[0] == 3 {
				cookies.Add(1)
			} else {
				t.Errorf("answered by %x", buf[:n])
			}
		}
	})
	go func() {
		defer close(flooded)
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = conn.Write(msg) // lost, if so
			}
		}
	}()
	eventually(t, "cookies", func() (bool, string) { return cookies.Load() > 100, b.counts() })
	slowest := time.Duration(0)
	for range 20 {
		begin := time.Now()
		b.know(t, a.peer())
		slowest = max(slowest, time.Since(begin))
	}
	f.passes(t, 500)
	close(stop)
	<-flooded
	_ = conn.Close()
	reading.Wait()
	t.Logf("%d cookies; the slowest Apply took %v; %s", cookies.Load(), slowest, b.counts())
	if slowest > 2*time.Second {
		t.Errorf("Apply took %v", slowest)
	}
	if b.Stats().Drops[tunnel.DropHandshake] < 100 {
		t.Errorf("drops: %s", b.counts())
	}
	f.passes(t, 500)
	if grown := heap() - before; grown > tolerated {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
}

// Peers refuse who goes back, so no stamp is used before it is saved.
func TestStampIsSavedFirst(t *testing.T) {
	t.Parallel()
	sink, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sink.Close() }()
	saving, release := make(chan time.Time), make(chan struct{})
	var saves atomic.Int64
	a := newEnd(t, 1, setup{saveStamp: func(at time.Time) error {
		if saves.Add(1) == 1 {
			saving <- at
			<-release
		}
		return nil
	}})
	peers := make([]tunnel.Peer, 3)
	for i := range peers {
		key, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		peers[i] = tunnel.Peer{
			ID: mesh.NodeID{byte(10 + i)}, PublicKey: mesh.Key(key.PublicKey().Bytes()),
			Endpoints:  []netip.AddrPort{sink.LocalAddr().(*net.UDPAddr).AddrPort()},
			AllowedIPs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, byte(10 + i), 0}), 24)},
		}
	}
	a.know(t, peers...)
	for _, p := range peers {
		a.send(t, packet.Offload{}, tunneltest.Packet(a.addr(4), p.AllowedIPs[0].Addr().Next(), nil))
	}
	begin := time.Now()
	if at := <-saving; at.Before(begin.Add(-time.Second)) {
		t.Errorf("saved %v at %v: later stamps will be greater", at, begin)
	}
	buf := make([]byte, 200)
	_ = sink.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // never fails
	if n, err := sink.Read(buf); err == nil {
		t.Errorf("%d bytes were sent before the time was saved", n)
	}
	close(release)
	_ = sink.SetReadDeadline(time.Now().Add(arrival))
	for range peers {
		if n, err := sink.Read(buf); err != nil || !wg.IsInitiation(buf[:n]) {
			t.Errorf("sent %x, %v; want an initiation", buf[:n], err)
		}
	}
	if n := saves.Load(); n != 1 {
		t.Errorf("saved %d times in the first second, want once", n)
	}
	a.stop()
	if n := saves.Load(); n != 2 {
		t.Errorf("saved %d times with the end, want twice", n)
	}
}

// The peer has seen stamps of a clock that was ahead.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	b := newEnd(t, 2, setup{})
	ahead := time.Now().Add(time.Hour)
	var saved time.Time
	run := func(stamp time.Time, key *ecdh.PrivateKey) *end {
		return newEnd(t, 1, setup{key: key, stamp: stamp, saveStamp: func(at time.Time) error { saved = at; return nil }})
	}
	p := func(a *end) []byte { return tunneltest.Packet(a.addr(4), b.addr(4), nil) }

	a := run(ahead, nil)
	b.know(t, a.peer())
	a.know(t, b.peer())
	a.send(t, packet.Offload{}, p(a))
	b.expect(t)
	a.stop()
	if !saved.After(ahead) || saved.After(ahead.Add(time.Second)) {
		t.Errorf("saved %v, want what was used, shortly after %v", saved, ahead)
	}

	// What happens to who has forgotten.
	a = run(time.Time{}, a.key)
	a.know(t, b.peer())
	a.send(t, packet.Offload{}, p(a))
	dropped(t, b, map[string]uint64{tunnel.DropHandshake: 1})
	a.stop()

	<-time.After(floodGap)
	a = run(ahead.Add(time.Second), a.key)
	a.know(t, b.peer())
	begin := time.Now()
	a.send(t, packet.Offload{}, p(a))
	b.expect(t)
	if d := time.Since(begin); d > wg.RekeyTry-time.Second {
		t.Errorf("answered after %v, want at once; dropped %s and %s", d, a.counts(), b.counts())
	}
}

func TestRunFailsWhenTheLinkLosesItsName(t *testing.T) {
	t.Parallel()
	a, _ := pair(t, setup{})
	a.tun.mtu.Store(0)
	select {
	case err := <-a.ended:
		if err == nil {
			t.Error("run ended without an error")
		}
	case <-time.After(arrival):
		t.Error("run goes on")
	}
}
