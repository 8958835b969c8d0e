package device

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun/netns"
	"meshd/tun/rawio"
)

const (
	vnetHeader = 10
	patience   = 10 * time.Second
)

// openQueues opens mesh0 with queues, sets it up and gives it 10.9.0.1/24.
func openQueues(t *testing.T, ns *netns.NS, queues int, uso bool) *Device {
	t.Helper()
	d, err := openIn(t, ns, Options{Name: "mesh0", Offload: On, Queues: queues, USO: uso})
	if err != nil {
		t.Fatal(err)
	}
	err = ns.Do(func() error {
		link, err := netlink.LinkByName("mesh0")
		if err != nil {
			return err
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 9, 0, 1), Mask: net.CIDRMask(24, 32)}}
		return errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link))
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// nextUDP waits for a UDP packet over IPv4 on any queue. Others, which the
// kernel sends by itself, are passed over.
func nextUDP(t *testing.T, d *Device) (packet []byte, queue int) {
	t.Helper()
	var files []*rawio.File
	for _, q := range d.Queues() {
		files = append(files, q.File())
	}
	w, err := rawio.NewWaiter(files...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	for deadline := time.Now().Add(patience); ; {
		for i, q := range d.Queues() {
			b := make([]byte, vnetHeader+65536)
			n, err := q.ReadPacket(b)
			switch {
			case err == nil && n > vnetHeader+20 && b[vnetHeader]>>4 == 4 && b[vnetHeader+9] == unix.IPPROTO_UDP:
				return b[:n], i
			case err != nil && err != unix.EAGAIN:
				t.Fatal(err)
			}
		}
		left := time.Until(deadline)
		if left <= 0 {
			t.Fatalf("no packet came within %v", patience)
		}
		if _, err := w.Wait(left); err != nil {
			t.Fatal(err)
		}
	}
}

// dialUDP opens a socket in the namespace, from a port to 10.9.0.2.
func dialUDP(t *testing.T, ns *netns.NS, port uint16) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	err := ns.Do(func() (err error) {
		c, err = net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("10.9.0.1"), port)),
			net.UDPAddrFromAddrPort(netip.MustParseAddrPort("10.9.0.2:99")))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestQueues(t *testing.T) {
	for _, queues := range []int{1, 4} {
		t.Run(fmt.Sprint(queues), func(t *testing.T) {
			ns := netns.ForTest(t)
			d := openQueues(t, ns, queues, false)
			if len(d.Queues()) != queues || d.File() != nil || d.USO() {
				t.Fatalf("%d queues, file %v, USO %v; want %d, none, false", len(d.Queues()), d.File(), d.USO(), queues)
			}
			before := descriptors(t)
			seen := map[int]bool{}
			for flow := range uint16(64) {
				c := dialUDP(t, ns, 2000+flow)
				if _, err := c.Write([]byte("question")); err != nil {
					t.Fatal(err)
				}
				packet, queue := nextUDP(t, d)
				seen[queue] = true
				if got := packet[vnetHeader+28:]; string(got) != "question" {
					t.Fatalf("read %q", got)
				}
				if flow > 0 {
					continue
				}
				if _, err := d.Queues()[queue].WritePacket(answer(packet, "an", "", "swer")); err != nil {
					t.Fatal(err)
				}
				b := make([]byte, 100)
				if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
					t.Fatal(err)
				}
				if n, err := c.Read(b); err != nil || string(b[:n]) != "answer" {
					t.Errorf("answered %q, %v", b[:n], err)
				}
			}
			if len(seen) != queues {
				t.Errorf("64 flows came by %d queues of %d", len(seen), queues)
			}
			q := NewQueue(d.Queues()[queues-1].File())
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			if exists(t, ns) {
				t.Error("the link outlives the device")
			}
			if after := descriptors(t); after > before+64-queues {
				t.Errorf("%d descriptors after Close, %d before the sockets", after, before)
			}
			if _, err := q.ReadPacket(make([]byte, 100)); !errors.Is(err, os.ErrClosed) {
				t.Errorf("read after Close: %v, want %v", err, os.ErrClosed)
			}
			if _, err := q.WritePacket([][]byte{{1}}); !errors.Is(err, os.ErrClosed) {
				t.Errorf("write after Close: %v, want %v", err, os.ErrClosed)
			}
		})
	}
}

// answer turns a UDP packet round; it has no UDP checksum, which IPv4 permits.
func answer(packet []byte, payload ...string) [][]byte {
	header := bytes.Clone(packet[:vnetHeader+28])
	clear(header[:vnetHeader])
	ip, udp := header[vnetHeader:][:20], header[vnetHeader+20:]
	size := 8
	parts := [][]byte{header[:vnetHeader], ip, udp}
	for _, p := range payload {
		size += len(p)
		parts = append(parts, []byte(p))
	}
	binary.BigEndian.PutUint16(ip[2:], uint16(20+size))
	copy(ip[12:], slices.Concat(ip[16:20], ip[12:16]))
	copy(udp, slices.Concat(udp[2:4], udp[:2]))
	binary.BigEndian.PutUint16(udp[4:], uint16(size))
	clear(udp[6:8])
	clear(ip[10:12])
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	return parts
}

func TestUSO(t *testing.T) {
	ns := netns.ForTest(t)
	d := openQueues(t, ns, 2, true)
	c := dialUDP(t, ns, 2000)
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 1000); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(make([]byte, 5000)); err != nil {
		t.Fatal(err)
	}
	packet, _ := nextUDP(t, d)
	const udpL4 = 5 // VIRTIO_NET_HDR_GSO_UDP_L4
	if whole := len(packet) == vnetHeader+28+5000 && packet[1] == udpL4; whole != d.USO() {
		t.Errorf("read %d bytes of GSO type %d with USO %v", len(packet), packet[1], d.USO())
	}
	if !d.USO() {
		t.Log("this kernel has no USO")
	}
}

// A multi-queue link would let another process of the same user attach.
func TestQueuesBusy(t *testing.T) {
	for _, first := range []int{0, 1, 3} {
		ns := netns.ForTest(t)
		if _, err := openIn(t, ns, Options{Name: "mesh0", Queues: first}); err != nil {
			t.Fatal(err)
		}
		before := descriptors(t)
		for _, second := range []int{0, 1, 3} {
			if _, err := openIn(t, ns, Options{Name: "mesh0", Queues: second}); !errors.Is(err, ErrBusy) {
				t.Errorf("%d queues, opened again with %d: %v, want %v", first, second, err, ErrBusy)
			}
		}
		if after := descriptors(t); after != before {
			t.Errorf("%d open descriptors after failures, %d before", after, before)
		}
	}
}

func TestPersistentLinkIsBusy(t *testing.T) {
	for _, flags := range []netlink.TuntapFlag{0, netlink.TUNTAP_VNET_HDR, netlink.TUNTAP_VNET_HDR | netlink.TUNTAP_MULTI_QUEUE} {
		ns := netns.ForTest(t)
		err := ns.Do(func() error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "mesh0"
			link := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TUN, Flags: flags | netlink.TUNTAP_NO_PI, Queues: 1}
			err := netlink.LinkAdd(link)
			for _, f := range link.Fds {
				_ = f.Close()
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range []Options{{Queues: 0}, {Queues: 1}, {Queues: 2}, {Offload: Off}} {
			o.Name = "mesh0"
			if _, err := openIn(t, ns, o); !errors.Is(err, ErrBusy) {
				t.Errorf("flags %#x, %+v: %v, want %v", flags, o, err, ErrBusy)
			}
		}
	}
}

func TestBadQueues(t *testing.T) {
	for _, n := range []int{-1, maxQueues + 1} {
		if d, err := Open(Options{Name: "mesh0", Queues: n}); err == nil {
			_ = d.Close()
			t.Errorf("%d queues were accepted", n)
		}
	}
}

func TestCloseEndsWait(t *testing.T) {
	ns := netns.ForTest(t)
	d := openQueues(t, ns, 2, false)
	w, err := rawio.NewWaiter(d.Queues()[1].File())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	ended := make(chan error, 1)
	go func() {
		b := make([]byte, vnetHeader+65536)
		for {
			_, err := d.Queues()[1].ReadPacket(b)
			if err == unix.EAGAIN {
				_, err = w.Wait(-1)
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("read: %v, want %v", err, os.ErrClosed)
		}
	case <-time.After(patience):
		t.Fatal("the wait did not end")
	}
	if exists(t, ns) {
		t.Error("the link outlives the device")
	}
}

func TestLinkDeleted(t *testing.T) {
	ns := netns.ForTest(t)
	d := openQueues(t, ns, 2, false)
	err := ns.Do(func() error {
		link, err := netlink.LinkByName("mesh0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, q := range d.Queues() {
		w, err := rawio.NewWaiter(q.File())
		if err != nil {
			t.Fatal(err)
		}
		if ready, err := w.Wait(patience); ready != 1 || err != nil {
			t.Errorf("queue %d: ready %b, %v; want it to say that the link is gone", i, ready, err)
		}
		_ = w.Close()
		if _, err := q.ReadPacket(make([]byte, 100)); err != unix.EBADFD {
			t.Errorf("queue %d: read: %v, want %v", i, err, unix.EBADFD)
		}
		if _, err := q.WritePacket([][]byte{make([]byte, 100)}); err != unix.EBADFD {
			t.Errorf("queue %d: write: %v, want %v", i, err, unix.EBADFD)
		}
	}
}

func TestQueueErrors(t *testing.T) {
	ns := netns.ForTest(t)
	d, err := openIn(t, ns, Options{Name: "mesh0", Queues: 1})
	if err != nil {
		t.Fatal(err)
	}
	q := d.Queues()[0]
	for _, c := range []struct {
		name  string
		parts [][]byte
		want  error
	}{
		{"link not up", [][]byte{make([]byte, vnetHeader), {0x45, 19: 0}}, unix.EIO},
		{"too many parts", slices.Repeat([][]byte{{0}}, 1025), unix.EINVAL},
	} {
		if _, err := q.WritePacket(c.parts); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if _, err := q.ReadPacket(make([]byte, 100)); err != unix.EAGAIN {
		t.Errorf("read: %v, want %v", err, unix.EAGAIN)
	}
}

func TestQueueDoesNotAllocate(t *testing.T) {
	ns := netns.ForTest(t)
	d := openQueues(t, ns, 1, false)
	q := d.Queues()[0]
	c := dialUDP(t, ns, 2000)
	if _, err := c.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	packet, _ := nextUDP(t, d)
	parts, buf := answer(packet, slices.Repeat([]string{"x"}, 64)...), make([]byte, vnetHeader+65536)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := q.WritePacket(parts); err != nil {
			t.Fatal(err)
		}
		_, _ = q.ReadPacket(buf)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
