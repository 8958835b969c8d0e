package udp

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun/netns"
)

// host is a namespace with an end of the wire.
//
//	host 1  192.0.2.1, .11       -- wire --       192.0.2.2, .12  host 2
//	        2001:db8::1, ::11                 2001:db8::2, ::12
//	        fe80::1                                     fe80::2
type host struct {
	*netns.NS
	number int
	group  *Group
}

const wire = "wire"

// wired makes two hosts, each with a Group.
func wired(t testing.TB) (a, b *host) {
	t.Helper()
	a, b = &host{NS: netns.ForTest(t), number: 1}, &host{NS: netns.ForTest(t), number: 2}
	other, err := os.Open(b.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	a.do(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = wire
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: wire, PeerNamespace: netlink.NsFd(int(other.Fd()))})
	})
	for _, h := range []*host{a, b} {
		h.up(t)
		h.group = listenIn(t, h.NS, 0, 1)
	}
	return a, b
}

func (h *host) do(t testing.TB, fn func() error) {
	t.Helper()
	if err := h.Do(fn); err != nil {
		t.Fatal(err)
	}
}

func (h *host) onWire(t testing.TB, fn func(netlink.Link) error) {
	t.Helper()
	h.do(t, func() error {
		l, err := netlink.LinkByName(wire)
		if err != nil {
			return err
		}
		return fn(l)
	})
}

// up sets the link up with the host's addresses.
func (h *host) up(t testing.TB) {
	t.Helper()
	h.onWire(t, func(l netlink.Link) error {
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		for _, text := range []string{"192.0.2.%d/24", "192.0.2.1%d/24", "2001:db8::%d/64", "2001:db8::1%d/64", "fe80::%d/64"} {
			a, err := netlink.ParseAddr(fmt.Sprintf(text, h.number))
			if err != nil {
				return err
			}
			if a.IP.To4() == nil {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrReplace(l, a); err != nil {
				return err
			}
		}
		return nil
	})
}

func (h *host) index(t testing.TB) (index uint32) {
	t.Helper()
	h.onWire(t, func(l netlink.Link) error { index = uint32(l.Attrs().Index); return nil })
	return index
}

// addr is the host's first or second address.
func (h *host) addr(v6, second bool) netip.Addr {
	one := ""
	if second {
		one = "1"
	}
	if v6 {
		return netip.MustParseAddr(fmt.Sprintf("2001:db8::%s%d", one, h.number))
	}
	return netip.MustParseAddr(fmt.Sprintf("192.0.2.%s%d", one, h.number))
}

func (h *host) at(v6, second bool) netip.AddrPort {
	return netip.AddrPortFrom(h.addr(v6, second), h.group.Port())
}

func (h *host) send(t testing.TB, v6 bool, train Train, want error) {
	t.Helper()
	if n, err := socket(h.group, v6).Send(&train); err != want || n != len(train.Data) {
		t.Fatalf("sent %d of %d, %v; want error %v", n, len(train.Data), err, want)
	}
}

// settled sends until it works: addresses and neighbours need their time.
func (h *host) settled(t testing.TB, v6 bool, to *host) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		_, _ = socket(h.group, v6).Send(&Train{Data: []byte("?"), Remote: to.at(v6, false)})
		var train Train
		if socket(to.group, v6).Receive(make([]byte, MaxTrain), &train) == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing gets through")
		}
	}
	// Those that were late.
	var train Train
	for socket(to.group, v6).Receive(make([]byte, MaxTrain), &train) == nil {
	}
}

func TestStickySource(t *testing.T) {
	families(t, func(t *testing.T, v6 bool) {
		a, b := wired(t)
		a.settled(t, v6, b)
		for _, second := range []bool{false, true} {
			a.send(t, v6, Train{Data: []byte("question"), Remote: b.at(v6, second), Local: Source{Addr: a.addr(v6, !second)}}, nil)
			question, _ := next(t, socket(b.group, v6))
			if question.Remote != a.at(v6, !second) {
				t.Errorf("came from %v, want %v", question.Remote, a.at(v6, !second))
			}
			if want := (Source{Addr: b.addr(v6, second)}); question.Local != want {
				t.Errorf("came to %v, want %v", question.Local, want)
			}
			b.send(t, v6, Train{Data: bytes.Repeat([]byte("answer"), 5), Size: 6, Remote: question.Remote, Local: question.Local}, nil)
			answer, _ := next(t, socket(a.group, v6))
			if answer.Remote != b.at(v6, second) {
				t.Errorf("the answer came from %v, want %v, where the question went", answer.Remote, b.at(v6, second))
			}
		}
	})
}

func TestStaleSource(t *testing.T) {
	families(t, func(t *testing.T, v6 bool) {
		a, b := wired(t)
		a.settled(t, v6, b)
		stale := Source{Addr: netip.MustParseAddr("192.0.2.99"), Interface: 99}
		if v6 {
			stale.Addr = netip.MustParseAddr("2001:db8::99")
		}
		for _, size := range []int{3000, 1000} { // one datagram and a train
			train := Train{Data: numbered(3000), Size: size, Remote: b.at(v6, false), Local: stale}
			a.send(t, v6, train, ErrSource)
			got, _ := collect(t, socket(b.group, v6), len(train.Data))
			if !bytes.Equal(slices.Concat(got...), train.Data) {
				t.Error("other bytes arrived than were sent")
			}
		}
		// A source of the other family is another path's.
		a.send(t, v6, Train{Data: []byte("x"), Remote: b.at(v6, false), Local: Source{Addr: a.addr(!v6, true)}}, nil)
		next(t, socket(b.group, v6))
	})
}

func TestLinkLocal(t *testing.T) {
	a, b := wired(t)
	a.settled(t, true, b)
	to := netip.MustParseAddr("fe80::2").WithZone(fmt.Sprint(a.index(t)))
	a.send(t, true, Train{Data: []byte("question"), Remote: netip.AddrPortFrom(to, b.group.Port())}, nil)
	question, _ := next(t, b.group.IPv6(0))
	if !question.Remote.Addr().IsLinkLocalUnicast() || question.Remote.Addr().Zone() != fmt.Sprint(b.index(t)) {
		t.Errorf("came from %v, want a link-local address on %d", question.Remote, b.index(t))
	}
	if want := (Source{Addr: netip.MustParseAddr("fe80::2"), Interface: b.index(t)}); question.Local != want {
		t.Errorf("came to %v, want %v", question.Local, want)
	}
	b.send(t, true, Train{Data: []byte("answer"), Remote: question.Remote, Local: question.Local}, nil)
	answer, _ := next(t, a.group.IPv6(0))
	if answer.Remote.Addr() != to {
		t.Errorf("the answer came from %v, want %v", answer.Remote, to)
	}
}

func TestTrainOnTheWire(t *testing.T) {
	families(t, func(t *testing.T, v6 bool) {
		a, b := wired(t)
		a.settled(t, v6, b)
		train := Train{Data: numbered(40*1400 + 1), Size: 1400, Remote: b.at(v6, false), ECN: 1}
		a.send(t, v6, train, nil)
		got, _ := next(t, socket(b.group, v6))
		if !bytes.Equal(got.Data, train.Data) || got.Size != 1400 || got.ECN != 1 {
			t.Errorf("got %d bytes by %d, ECN %d; want the whole train", len(got.Data), got.Size, got.ECN)
		}
	})
}

// Datagrams that the link cannot carry go in fragments, and cost the trains.
func TestLargerThanTheMTU(t *testing.T) {
	families(t, func(t *testing.T, v6 bool) {
		a, b := wired(t)
		a.settled(t, v6, b)
		for range 2 {
			train := Train{Data: numbered(5 * 2000), Size: 2000, Remote: b.at(v6, false), Local: Source{Addr: a.addr(v6, true)}}
			a.send(t, v6, train, nil)
			got, _ := collect(t, socket(b.group, v6), len(train.Data))
			if len(got) != 5 || !bytes.Equal(slices.Concat(got...), train.Data) {
				t.Errorf("%d datagrams arrived, want 5", len(got))
			}
		}
	})
}

func TestBufferFull(t *testing.T) {
	a, b := wired(t)
	s := a.group.IPv4(0)
	err := s.File().Control(func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1) })
	if err != nil {
		t.Fatal(err)
	}
	// Nobody answers for this address, so the packets wait in the kernel.
	absent := Train{Data: numbered(1000), Remote: netip.MustParseAddrPort("192.0.2.77:9")}
	full := false
	for range 100 {
		if _, err := s.Send(&absent); err != nil {
			if err != unix.EAGAIN || !Transient(err) {
				t.Fatalf("send: %v, want %v", err, unix.EAGAIN)
			}
			full = true
			break
		}
	}
	if !full {
		t.Fatal("the buffer never was full")
	}
	// Now it has a place to go to.
	a.onWire(t, func(l netlink.Link) error {
		return netlink.NeighSet(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT,
			IP: absent.Remote.Addr().AsSlice(), HardwareAddr: []byte{2, 0, 0, 0, 0, 7},
		})
	})
	a.settled(t, false, b)
}

func TestLinkDownAndUp(t *testing.T) {
	families(t, func(t *testing.T, v6 bool) {
		a, b := wired(t)
		a.settled(t, v6, b)
		for range 2 {
			a.onWire(t, netlink.LinkSetDown)
			_, err := socket(a.group, v6).Send(&Train{Data: []byte("x"), Remote: b.at(v6, false), Local: Source{Addr: a.addr(v6, false)}})
			if err == nil || !Transient(err) {
				t.Errorf("link down: %v, want a transient error", err)
			}
			a.up(t)
			a.settled(t, v6, b)
			b.settled(t, v6, a)
		}
	})
}

func TestNoRoute(t *testing.T) {
	ns := netns.ForTest(t)
	g := listenIn(t, ns, 0, 1)
	for _, c := range []struct {
		s      *Socket
		remote string
	}{{g.IPv4(0), "192.0.2.1:9"}, {g.IPv6(0), "[2001:db8::1]:9"}} {
		for _, local := range []string{"127.0.0.1", "::1"} {
			train := Train{Data: numbered(100), Size: 10, Remote: netip.MustParseAddrPort(c.remote), Local: Source{Addr: netip.MustParseAddr(local)}}
			if n, err := c.s.Send(&train); n != 0 || err != unix.ENETUNREACH || !Transient(err) {
				t.Errorf("to %s from %s: sent %d, %v; want %v", c.remote, local, n, err, unix.ENETUNREACH)
			}
		}
	}
}
