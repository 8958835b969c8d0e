package packet

// Two kernels that talk to each other through a Splitter and a Joiner.

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun/netns"
)

const clampTo = 1400 // below the devices' MTU of 1500

// pump carries packets from one TUN device to another as an engine would, cut
// on one side and joined on the other.
type pump struct {
	from, to *os.File

	super   atomic.Int64 // super-packets written
	longest atomic.Int64 // TCP segment
	err     atomic.Pointer[error]
}

func (p *pump) run() {
	buf := make([]byte, OffloadLen+maxPacket+TailRoom)
	var s Splitter
	j := Joiner{UDP: true}
	drain := func() error {
		for {
			parts, ok := j.Next()
			if !ok {
				return nil
			}
			if len(parts) > 2 {
				p.super.Add(1)
			}
			if _, err := p.to.Write(slices.Concat(parts...)); err != nil {
				return fmt.Errorf("write %x: %w", parts[0], err)
			}
		}
	}
	one := func(n int) error {
		o, err := ParseOffload(buf[:n])
		if err != nil {
			return err
		}
		if err := s.Reset(buf[OffloadLen:n], o); err != nil {
			return fmt.Errorf("%+v, %x: %w", o, buf[OffloadLen:min(n, 100)], err)
		}
		for seg, ok := s.Next(); ok; seg, ok = s.Next() {
			ClampMSS(seg, clampTo)
			if h, err := walk(seg); err == nil && h.protocol == protoTCP {
				p.longest.Store(max(p.longest.Load(), int64(len(seg))))
			}
			for sealed := bytes.Clone(seg); !j.Add(sealed); { // as if it had crossed a network
				if err := drain(); err != nil {
					return err
				}
			}
		}
		return drain()
	}
	for {
		n, err := p.from.Read(buf)
		if err != nil {
			return // closed
		}
		if err := one(n); err != nil {
			p.err.CompareAndSwap(nil, &err)
		}
	}
}

// end is a namespace whose TUN device has every offload.
func end(t *testing.T, host byte) (*netns.NS, *os.File) {
	t.Helper()
	ns := netns.ForTest(t)
	var tun *os.File
	err := ns.Do(func() (err error) {
		const all = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN | unix.TUN_F_USO4 | unix.TUN_F_USO6
		if tun, err = kernelTUN("mesh0", all); err != nil {
			return err
		}
		if err := sysctl("ipv4/tcp_ecn", "1"); err != nil {
			return err
		}
		link, err := netlink.LinkByName("mesh0")
		if err != nil {
			return err
		}
		for _, a := range []string{fmt.Sprintf("10.9.0.%d/24", host), fmt.Sprintf("fd09::%d/64", host)} {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			addr.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(link, addr); err != nil {
				return fmt.Errorf("add address %s: %w", a, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return ns, tun
}

func TestTraffic(t *testing.T) {
	nsA, tunA := end(t, 1)
	nsB, tunB := end(t, 2)
	there, back := &pump{from: tunA, to: tunB}, &pump{from: tunB, to: tunA}
	var wg sync.WaitGroup
	wg.Go(there.run)
	wg.Go(back.run)
	defer func() {
		tunA.Close()
		tunB.Close()
		wg.Wait()
		for _, p := range []*pump{there, back} {
			if err := p.err.Load(); err != nil {
				t.Errorf("a packet of the kernel was refused: %v", *err)
			}
		}
	}()

	for _, host := range []string{"10.9.0.2", "fd09::2"} {
		t.Run("tcp "+host, func(t *testing.T) {
			before := there.super.Load()
			data := text(8 << 20)
			got := transfer(t, nsA, nsB, netip.AddrPortFrom(netip.MustParseAddr(host), 5000), data)
			if !bytes.Equal(got, data) {
				t.Errorf("%d bytes arrived, not the %d that were sent", len(got), len(data))
			}
			if there.super.Load() == before {
				t.Error("nothing was joined")
			}
			if n := there.longest.Load(); n > clampTo {
				t.Errorf("a segment of %d bytes, the announced size was clamped to packets of %d", n, clampTo)
			}
		})
		t.Run("udp "+host, func(t *testing.T) {
			before := there.super.Load()
			datagrams(t, nsA, nsB, netip.AddrPortFrom(netip.MustParseAddr(host), 5000))
			if there.super.Load() == before {
				t.Error("nothing was joined")
			}
		})
	}
}

// transfer sends data over TCP from one namespace to the other.
func transfer(t *testing.T, from, to *netns.NS, at netip.AddrPort, data []byte) []byte {
	t.Helper()
	var l net.Listener
	var c net.Conn
	if err := to.Do(func() (err error) { l, err = net.Listen("tcp", at.String()); return err }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialer := net.Dialer{Timeout: 5 * time.Second}
	if err := from.Do(func() (err error) { c, err = dialer.DialContext(t.Context(), "tcp", at.String()); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	deadline := time.Now().Add(20 * time.Second)
	_ = c.SetDeadline(deadline)
	_ = s.SetDeadline(deadline)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := c.Write(data); err != nil {
			t.Errorf("send: %v", err)
		}
		c.Close()
	})
	got, err := io.ReadAll(s)
	wg.Wait()
	if err != nil {
		t.Errorf("receive: %v", err)
	}
	return got
}

// datagrams sends bursts of UDP that the kernel leaves to be cut.
func datagrams(t *testing.T, from, to *netns.NS, at netip.AddrPort) {
	t.Helper()
	const size, burst = 1200, 20 // a burst fits into the smallest receive buffer
	var s, c net.Conn
	if err := to.Do(func() (err error) { s, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); return err }); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := from.Do(func() (err error) { c, err = net.Dial("udp", at.String()); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	_ = s.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 2*size)
	for round := range 10 {
		data := textAt(round, size*burst-100-round)
		if _, err := c.Write(data); err != nil {
			t.Fatal(err)
		}
		for want := range slices.Chunk(data, size) {
			n, err := s.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(buf[:n], want) {
				t.Fatalf("round %d: a datagram of %d bytes, not the one of %d that was sent", round, n, len(want))
			}
		}
	}
}
