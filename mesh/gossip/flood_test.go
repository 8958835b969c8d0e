package gossip

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// junk is what a flood sends. It is encrypted, by its first byte, so memberlist
// must read it wholly before it can tell that the key is wrong.
var junk = sync.OnceValue(func() []byte {
	b := make([]byte, 64<<10)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
})

// flood fills a stream short of its announced end and holds it. It opens anew
// what is closed on it, until ctx is done, and counts that.
func flood(ctx context.Context, from string, to netip.AddrPort, closed *atomic.Int64) {
	const announced = maxSealedSize
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	one := func() {
		conn, err := dialer.DialContext(ctx, "tcp", to.String())
		if err != nil {
			return
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
		_, err = conn.Write(binary.BigEndian.AppendUint32([]byte{10}, announced))
		for sent := len(junk()); err == nil && sent < announced; sent += len(junk()) {
			_, err = conn.Write(junk())
		}
		if err == nil {
			_, _ = conn.Read(make([]byte, 1)) // until it is closed on us
		}
	}
	for ctx.Err() == nil {
		one()
		closed.Add(1)
	}
}

// resident is the memory that the Go runtime holds, in bytes.
func resident() int64 {
	s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64() - s[1].Value.Uint64())
}

// grows waits until there are so many, or ctx is done. It takes what time it takes,
// as long as they become more: a flood of megabytes is slow on a busy machine.
func grows(ctx context.Context, t *testing.T, what string, want int64, n *atomic.Int64) {
	t.Helper()
	for have := int64(-1); n.Load() < want && ctx.Err() == nil; {
		soon(t, fmt.Sprintf("%s: %d, and no more than %d", what, want, have), func() bool { return n.Load() > have || ctx.Err() != nil })
		have = n.Load()
	}
}

// Hosts without our key can fill little memory, and keep nobody out.
func TestFloodOfStreams(t *testing.T) {
	const most = 64 << 20
	var log logbook
	g1, c1, at := onLoopback(t, 1, &log)
	ctx, cancel := context.WithCancel(t.Context())
	var floods, watch sync.WaitGroup
	defer floods.Wait()
	defer cancel()

	runtime.GC()
	before := resident()
	var peak atomic.Int64
	watch.Go(func() {
		for tick := time.NewTicker(time.Millisecond); ctx.Err() == nil; <-tick.C {
			if peak.Store(max(peak.Load(), resident()-before)); peak.Load() >= most {
				cancel() // before it fills this machine
			}
		}
	})
	begin := func(streams int, from ...string) *atomic.Int64 {
		var closed atomic.Int64
		for i := range streams {
			floods.Go(func() { flood(ctx, from[i%len(from)], at, &closed) })
		}
		return &closed
	}

	closed := begin(64, "127.0.1.1", "127.0.1.2", "127.0.1.3", "127.0.1.4")
	grows(ctx, t, "the room for strangers is full: streams closed", 200, closed)
	_, c2, _ := onLoopback(t, 2, &log, at.String())
	soon(t, "a stranger to it joins", func() bool { return len(g1.Stats().Live) == 1 })
	g3, _, _ := onLoopback(t, 3, &log, at.String())
	soon(t, "from a member's address another one joins", func() bool { return len(g1.Stats().Live) == 2 })
	said := "198.51.100.3:51880"
	g3.SetEndpoints([]netip.AddrPort{netip.MustParseAddrPort(said)})
	soon(t, "all talk", func() bool { return c1.has(said) && c2.has(said) })
	closed = begin(16, "127.0.0.1")
	grows(ctx, t, "the room for members is full as well: streams closed", 100, closed)
	cancel()
	watch.Wait()
	if t.Logf("memory grew by up to %d MiB", peak.Load()>>20); peak.Load() >= most {
		t.Errorf("that is %d MiB or more", most>>20)
	}
}

// Whose address is a member's, by what we know now or knew before, uses the room
// that strangers cannot take.
func TestMembersAreNoStrangers(t *testing.T) {
	s, err := listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	known := netip.MustParseAddrPort("127.0.1.1:51881")
	live := netip.MustParseAddrPort("127.0.1.2:51881")
	l := &loop{
		sockets: s, book: newBook([]netip.AddrPort{known}, time.Now()),
		inst: &instance{live: map[string]netip.AddrPort{"name": live}},
	}
	l.look()
	tr, err := s.transport(netip.MustParseAddrPort("127.0.0.1:1"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tr.Shutdown() }()
	for from, member := range map[string]bool{"127.0.1.1": true, "127.0.1.2": true, "127.0.1.3": false} {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		conn, err := dialer.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.port()).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if in := (<-tr.StreamCh()).(*stream); (in.pool == &tr.streams.members) != member {
			t.Errorf("a stream from %s: want member %t", from, member)
		}
	}
}

// pipe gives an end for a stream to hold, and the other one.
func pipe(t *testing.T) (near, far net.Conn) {
	t.Helper()
	near, far = net.Pipe()
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	return near, far
}

// peer is a stream in the hands of a test.
type peer struct {
	*stream
	far net.Conn
}

// bring moves n bytes in, and tells whether they were let in.
func (p peer) bring(n int) bool {
	go func() { _, _ = p.far.Write(make([]byte, n)) }()
	_, err := io.ReadFull(p, make([]byte, n))
	return err == nil
}

func (p peer) isOpen() bool {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	return p.of.open[p.stream]
}

func TestStreamsShareRoom(t *testing.T) {
	const kib, mib = 1 << 10, 1 << 20
	var o *streams
	connect := func(t *testing.T, host string, member bool) peer {
		t.Helper()
		near, far := pipe(t)
		s, ok := o.accepted(near, netip.MustParseAddr(host), member)
		if !ok {
			t.Fatalf("a stream from %s is not taken", host)
		}
		go func() { // as memberlist does
			_, _ = far.Read(make([]byte, 1))
			_ = s.Close()
		}()
		return peer{s, far}
	}
	for name, test := range map[string]func(t *testing.T){
		"a stranger may bring the largest table": func(t *testing.T) {
			if !connect(t, "192.0.2.1", false).bring(maxStreamBytes) {
				t.Error("it is refused")
			}
		},
		"and nobody more": func(t *testing.T) {
			if connect(t, "192.0.2.1", true).bring(maxStreamBytes + 1) {
				t.Error("it is let in")
			}
		},
		"the host that holds most loses its oldest stream": func(t *testing.T) {
			small := connect(t, "192.0.2.1", false)
			big1, big2 := connect(t, "192.0.2.2", false), connect(t, "192.0.2.2", false)
			if !small.bring(mib) || !big1.bring(mib) || !big2.bring(mib/2) {
				t.Fatal("there was room")
			}
			late := connect(t, "192.0.2.3", false)
			if !late.bring(mib) || !small.isOpen() || big1.isOpen() || !big2.isOpen() {
				t.Errorf("open are small %t, big %t and %t, late %t", small.isOpen(), big1.isOpen(), big2.isOpen(), late.isOpen())
			}
		},
		"room is free when memberlist has let go of it": func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := newStreams()
				near, far := net.Pipe()
				s, _ := o.accepted(near, netip.MustParseAddr("192.0.2.1"), false)
				first := peer{s, far}
				near, far = net.Pipe()
				s, _ = o.accepted(near, netip.MustParseAddr("192.0.2.2"), false)
				late := peer{s, far}
				if !first.bring(2 * mib) {
					t.Fatal("there was room")
				}
				var in atomic.Bool
				go func() { in.Store(late.bring(mib + kib)) }()
				synctest.Wait()
				if first.isOpen() || in.Load() {
					t.Errorf("the first is open: %t, the second is in: %t", first.isOpen(), in.Load())
				}
				_ = first.Close()
				synctest.Wait()
				if !in.Load() {
					t.Error("the second is not let in")
				}
				_ = late.Close()
			})
		},
		"strangers take no room from members": func(t *testing.T) {
			m := connect(t, "192.0.2.1", true)
			if !m.bring(2 * mib) {
				t.Fatal("there was room")
			}
			for i := range 2 * strangerStreams {
				connect(t, fmt.Sprintf("198.51.100.%d", i), false).bring(mib)
			}
			if !m.isOpen() || !m.bring(1) || o.strangers.bytes > strangerBytes || o.strangers.streams > strangerStreams {
				t.Errorf("member %t, strangers %d bytes, %d streams", m.isOpen(), o.strangers.bytes, o.strangers.streams)
			}
		},
		"a host with many streams makes room for one with few": func(t *testing.T) {
			few := connect(t, "192.0.2.1", false)
			first := connect(t, "192.0.2.2", false)
			for range 2 * strangerStreams {
				connect(t, "192.0.2.2", false)
			}
			if !few.isOpen() || first.isOpen() || o.strangers.streams != strangerStreams {
				t.Errorf("the only one of a host %t, the first of many %t; %d streams", few.isOpen(), first.isOpen(), o.strangers.streams)
			}
		},
		"a network of IPv6 addresses is one host": func(t *testing.T) {
			few := connect(t, "2001:db8:1::1", false)
			for i := range 2 * strangerStreams {
				connect(t, fmt.Sprintf("2001:db8:2::%x", i), false)
			}
			if !few.isOpen() {
				t.Error("many addresses of one network push another one out")
			}
		},
		"what closes gives its room back": func(t *testing.T) {
			for range 3 {
				p := connect(t, "192.0.2.1", false)
				if !p.bring(2 * mib) {
					t.Fatal("there was room")
				}
				_, _ = p.Close(), p.Close()
			}
			if o.strangers.bytes != 0 || o.strangers.streams != 0 {
				t.Errorf("%d bytes in %d streams are left", o.strangers.bytes, o.strangers.streams)
			}
		},
		"a stranger's time is short": func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := newStreams()
				for member, want := range map[bool]time.Duration{true: 10 * time.Second, false: strangerWait} {
					near, far := net.Pipe()
					s, _ := o.accepted(near, netip.MustParseAddr("192.0.2.1"), member)
					begin := time.Now()
					if err := s.SetDeadline(begin.Add(10 * time.Second)); err != nil {
						t.Fatal(err)
					}
					_, err := s.Read(make([]byte, 1))
					if took := time.Since(begin); !errors.Is(err, os.ErrDeadlineExceeded) || took != want {
						t.Errorf("member %t: %v after %s, want %s", member, err, took, want)
					}
					_, _ = s.Close(), far.Close()
				}
			})
		},
		"after the end nobody comes in": func(t *testing.T) {
			p := connect(t, "192.0.2.1", false)
			o.close()
			near, _ := pipe(t)
			if _, ok := o.dialed(near, netip.MustParseAddr("192.0.2.1")); ok || p.isOpen() {
				t.Errorf("a new stream is taken: %t, the old one is open: %t", ok, p.isOpen())
			}
		},
	} {
		o = newStreams()
		t.Run(name, test)
	}
}
