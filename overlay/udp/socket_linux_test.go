package udp

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe" //nolint:depguard // to look at what the kernel is told

	"golang.org/x/sys/unix"

	"meshd/tun/netns"
	"meshd/tun/rawio"
)

const patience = 10 * time.Second

// listenIn opens a Group in the namespace and closes it with the test.
func listenIn(t testing.TB, ns *netns.NS, port uint16, queues int) *Group {
	t.Helper()
	var g *Group
	if err := ns.Do(func() (err error) { g, err = Listen(port, queues); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() }) // may be closed by the test
	return g
}

// next waits for a train on any of the sockets and says on which.
func next(t testing.TB, sockets ...*Socket) (Train, int) {
	t.Helper()
	var files []*rawio.File
	for _, s := range sockets {
		files = append(files, s.File())
	}
	w, err := rawio.NewWaiter(files...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	for deadline := time.Now().Add(patience); ; {
		for i, s := range sockets {
			var train Train
			err := s.Receive(make([]byte, MaxTrain), &train)
			if err == nil {
				return train, i
			}
			if err != unix.EAGAIN {
				t.Fatal(err)
			}
		}
		left := time.Until(deadline)
		if left <= 0 {
			t.Fatalf("no train came within %v", patience)
		}
		if _, err := w.Wait(left); err != nil {
			t.Fatal(err)
		}
	}
}

// collect receives datagrams until there are as many bytes as wanted.
func collect(t testing.TB, s *Socket, bytes int) (datagrams [][]byte, trains int) {
	t.Helper()
	for got := 0; got < bytes; trains++ {
		train, _ := next(t, s)
		for d := range train.Datagrams() {
			datagrams = append(datagrams, d)
			got += len(d)
		}
	}
	return datagrams, trains
}

func loopback(g *Group, v6 bool) netip.AddrPort {
	if v6 {
		return netip.AddrPortFrom(netip.IPv6Loopback(), g.Port())
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), g.Port())
}

func socket(g *Group, v6 bool) *Socket {
	if v6 {
		return g.IPv6(0)
	}
	return g.IPv4(0)
}

// families runs a test for each family.
func families(t *testing.T, test func(t *testing.T, v6 bool)) {
	t.Run("IPv4", func(t *testing.T) { test(t, false) })
	t.Run("IPv6", func(t *testing.T) { test(t, true) })
}

// numbered gives n bytes that tell their place.
func numbered(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8)
	}
	return b
}

func TestTrain(t *testing.T) {
	families(t, func(t *testing.T, v6 bool) {
		ns := netns.ForTest(t)
		a, b := listenIn(t, ns, 0, 1), listenIn(t, ns, 0, 1)
		for _, c := range []struct{ length, size, trains int }{
			{1, 0, 1},
			{1000, 0, 1},
			{1000, 1000, 1},
			{1000, 5000, 1},
			{2000, 1000, 1},
			{2001, 1000, 1},
			{44 * 1452, 1452, 1},
			{46 * 1452, 1452, 2}, // beyond what IP can carry
			{64 * 100, 100, 1},
			{64*100 + 1, 100, 2}, // beyond what the kernel cuts at once
			{3 * MaxTrain, 1400, 4},
		} {
			t.Run(fmt.Sprintf("%d by %d", c.length, c.size), func(t *testing.T) {
				sent := Train{Data: numbered(c.length), Size: c.size, Remote: loopback(b, v6), ECN: 2}
				if n, err := socket(a, v6).Send(&sent); n != c.length || err != nil {
					t.Fatalf("sent %d, %v; want %d", n, err, c.length)
				}
				datagrams, trains := collect(t, socket(b, v6), c.length)
				if !bytes.Equal(slices.Concat(datagrams...), sent.Data) {
					t.Error("other bytes arrived than were sent")
				}
				size := c.size
				if size == 0 {
					size = c.length
				}
				for i, d := range datagrams {
					if want := min(size, c.length-i*size); len(d) != want {
						t.Errorf("datagram %d has %d bytes, want %d", i, len(d), want)
					}
				}
				if trains != c.trains {
					t.Errorf("came in %d trains, want %d", trains, c.trains)
				}
			})
		}
	})
}

func TestReceiveTellsWhereFrom(t *testing.T) {
	families(t, func(t *testing.T, v6 bool) {
		ns := netns.ForTest(t)
		a, b := listenIn(t, ns, 0, 1), listenIn(t, ns, 0, 1)
		for ecn := range byte(4) {
			sent := Train{Data: []byte("question"), Remote: loopback(b, v6), ECN: ecn}
			if _, err := socket(a, v6).Send(&sent); err != nil {
				t.Fatal(err)
			}
			got, _ := next(t, socket(b, v6))
			want := Train{
				Data: sent.Data, Size: len(sent.Data), ECN: ecn,
				Remote: loopback(a, v6), Local: Source{Addr: loopback(b, v6).Addr()},
			}
			if string(got.Data) != "question" || got.Size != want.Size || got.ECN != ecn || got.Remote != want.Remote || got.Local != want.Local {
				t.Errorf("got %+v\nwant %+v", got, want)
			}
		}
	})
}

func TestTruncated(t *testing.T) {
	ns := netns.ForTest(t)
	a, b := listenIn(t, ns, 0, 1), listenIn(t, ns, 0, 1)
	send := func(text string) {
		t.Helper()
		if _, err := a.IPv4(0).Send(&Train{Data: []byte(text), Remote: loopback(b, false)}); err != nil {
			t.Fatal(err)
		}
	}
	var train Train
	send("too long")
	if err := b.IPv4(0).Receive(make([]byte, 3), &train); !errors.Is(err, ErrTruncated) || !Transient(err) {
		t.Errorf("receive: %v, want %v", err, ErrTruncated)
	}
	send("1")
	send("too long")
	send("3")
	for _, want := range []struct {
		text string
		err  error
	}{{"1", nil}, {"too", ErrTruncated}, {"3", nil}} {
		if err := b.IPv4(0).Receive(make([]byte, 3), &train); !errors.Is(err, want.err) || string(train.Data) != want.text {
			t.Errorf("received %q, %v; want %q, %v", train.Data, err, want.text, want.err)
		}
	}
	if err := b.IPv4(0).Receive(nil, &train); err != unix.EINVAL {
		t.Errorf("receive into nothing: %v, want %v", err, unix.EINVAL)
	}
}

// refusing is a kernel that takes no trains.
type refusing struct {
	kernel
	err     error
	refused int
}

func carries(m *unix.Msghdr, level, kind int32) bool {
	if m.Control == nil {
		return false
	}
	messages, err := unix.ParseSocketControlMessage(unsafe.Slice(m.Control, m.Controllen))
	if err != nil {
		panic(err)
	}
	return slices.ContainsFunc(messages, func(m unix.SocketControlMessage) bool {
		return m.Header.Level == level && m.Header.Type == kind
	})
}

func (r *refusing) Sendmsg(m *unix.Msghdr) (int, error) {
	if carries(m, unix.SOL_UDP, unix.UDP_SEGMENT) {
		r.refused++
		return 0, r.err
	}
	return r.kernel.Sendmsg(m)
}

// A train that is refused goes as single datagrams; the next is tried as a train
// again, since what refuses it is a route or a device.
func TestTrainRefused(t *testing.T) {
	for _, refusal := range []error{unix.EIO, unix.EOPNOTSUPP, unix.EINVAL, unix.EMSGSIZE} {
		t.Run(refusal.Error(), func(t *testing.T) {
			ns := netns.ForTest(t)
			a, b := listenIn(t, ns, 0, 1), listenIn(t, ns, 0, 1)
			s := a.IPv4(0)
			if !s.segments {
				t.Fatal("this kernel has no UDP_SEGMENT")
			}
			r := &refusing{kernel: s.kernel, err: refusal}
			s.kernel = r
			train := Train{Data: numbered(1050), Size: 100, Remote: loopback(b, false), Local: Source{Addr: loopback(b, false).Addr()}}
			for range 2 {
				r.refused = 0
				if n, err := s.Send(&train); n != len(train.Data) || err != nil {
					t.Fatalf("sent %d, %v", n, err)
				}
				got, n := collect(t, b.IPv4(0), len(train.Data))
				if !bytes.Equal(slices.Concat(got...), train.Data) || n != 11 {
					t.Errorf("got %d datagrams, %x", n, got)
				}
				if r.refused == 0 {
					t.Error("it was not tried as a train")
				}
			}
			s.kernel = r.kernel
			if n, err := s.Send(&train); n != len(train.Data) || err != nil {
				t.Fatalf("sent %d, %v", n, err)
			}
			if got, n := collect(t, b.IPv4(0), len(train.Data)); n != 1 {
				t.Errorf("when nobody refuses it came in %d parts, %x", n, got)
			}
		})
	}
}

// refusingBoth is a path that is gone for a source, and another that takes no
// trains without it.
type refusingBoth struct{ kernel }

func (r refusingBoth) Sendmsg(m *unix.Msghdr) (int, error) {
	switch {
	case carries(m, unix.IPPROTO_IP, unix.IP_PKTINFO):
		return 0, unix.ENETUNREACH
	case carries(m, unix.SOL_UDP, unix.UDP_SEGMENT):
		return 0, unix.EIO
	}
	return r.kernel.Sendmsg(m)
}

func TestTrainAndSourceRefused(t *testing.T) {
	ns := netns.ForTest(t)
	a, b := listenIn(t, ns, 0, 1), listenIn(t, ns, 0, 1)
	s := a.IPv4(0)
	s.kernel = refusingBoth{kernel: s.kernel}
	train := Train{Data: numbered(1050), Size: 100, Remote: loopback(b, false), Local: Source{Addr: loopback(b, false).Addr()}}
	if n, err := s.Send(&train); n != len(train.Data) || err != ErrSource { //nolint:errorlint // Send gives it as it is
		t.Fatalf("sent %d, %v; want all, and that the source was refused", n, err)
	}
	if got, n := collect(t, b.IPv4(0), len(train.Data)); !bytes.Equal(slices.Concat(got...), train.Data) || n != 11 {
		t.Errorf("got %d datagrams, %x", n, got)
	}
}

// Handles of one socket, each with a goroutine of its own, until it is closed.
func TestClones(t *testing.T) {
	ns := netns.ForTest(t)
	a, b := listenIn(t, ns, 0, 1), listenIn(t, ns, 0, 1)
	var wg sync.WaitGroup
	for i := range 4 {
		s, r := a.IPv4(0).Clone(), b.IPv4(0).Clone()
		data := bytes.Repeat([]byte{byte(i)}, 10*(i+1))
		wg.Go(func() {
			for {
				n, err := s.Send(&Train{Data: data, Size: 5, Remote: loopback(b, false), ECN: byte(i)})
				if errors.Is(err, os.ErrClosed) {
					return
				}
				if err != nil && (err != unix.EAGAIN || n != 0) {
					t.Error(n, err)
				}
			}
		})
		wg.Go(func() {
			buf := make([]byte, MaxTrain)
			for count := 0; ; {
				var train Train
				err := r.Receive(buf, &train)
				if err == unix.EAGAIN {
					runtime.Gosched()
					continue
				}
				if errors.Is(err, os.ErrClosed) {
					return
				}
				if err != nil || train.Size != 5 || int(train.Data[0]) != int(train.ECN) {
					t.Errorf("got %+v, %v", train, err)
				}
				if count++; count == 100 {
					_, _ = a.Close(), b.Close() // the second time round an error
				}
			}
		})
	}
	wg.Wait()
}

func TestNoAllocation(t *testing.T) {
	families(t, func(t *testing.T, v6 bool) {
		ns := netns.ForTest(t)
		a, b := listenIn(t, ns, 0, 1), listenIn(t, ns, 0, 1)
		from, to := socket(a, v6), socket(b, v6)
		sent := Train{Data: numbered(50000), Size: 1000, Remote: loopback(b, v6), Local: Source{Addr: loopback(a, v6).Addr()}, ECN: 1}
		buf, got := make([]byte, MaxTrain), Train{}
		if n := testing.AllocsPerRun(100, func() {
			_, err1 := from.Send(&sent)
			err2 := to.Receive(buf, &got)
			bytes := 0
			for d := range got.Datagrams() {
				bytes += len(d)
			}
			err3 := to.Receive(buf, &got)
			if err1 != nil || err2 != nil || err3 != unix.EAGAIN || bytes != 50000 {
				t.Fatal(err1, err2, err3, bytes)
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}

func TestClosed(t *testing.T) {
	ns := netns.ForTest(t)
	g := listenIn(t, ns, 0, 2)
	s := g.IPv4(1)
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	var train Train
	if err := s.Receive(make([]byte, 10), &train); !errors.Is(err, os.ErrClosed) || Transient(err) {
		t.Errorf("receive: %v, want %v", err, os.ErrClosed)
	}
	if _, err := s.Send(&Train{Data: []byte("x"), Remote: loopback(g, false)}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("send: %v, want %v", err, os.ErrClosed)
	}
	listenIn(t, ns, g.Port(), 2) // the port is free again
}
