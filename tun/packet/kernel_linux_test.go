package packet

// What the kernel makes of super-packets, in a namespace of its own.

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/tun/netns"
)

// kernelTUN is a TUN device with offload headers, up, in the namespace of the
// calling thread. Without features the kernel segments before it hands out.
func kernelTUN(name string, features int) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open TUN: %w", err)
	}
	if err := attach(fd, name, features); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil // now that it is attached it can be waited for
}

func attach(fd int, name string, features int) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("attach TUN: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, features); err != nil {
		return fmt.Errorf("set offloads: %w", err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func sysctl(path, value string) error {
	return os.WriteFile("/proc/sys/net/"+path, []byte(value), 0)
}

// ours tells the packets of the test from what the kernel says by itself.
func ours(p []byte) bool {
	_, dst, ok := Addresses(p)
	return ok && (dst == mustAddr(spec{}) || dst == mustAddr(spec{v6: true}))
}

// readPackets reads n of our packets, and looks for one more.
func readPackets(t *testing.T, f *os.File, n int) [][]byte {
	t.Helper()
	var out [][]byte
	buf := make([]byte, OffloadLen+maxPacket)
	for {
		wait := 5 * time.Second
		if len(out) >= n {
			wait = 20 * time.Millisecond // one too many would be there already
		}
		if err := f.SetReadDeadline(time.Now().Add(wait)); err != nil {
			t.Fatal(err)
		}
		k, err := f.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if !ours(buf[OffloadLen:k]) {
			continue
		}
		if o, err := ParseOffload(buf); err != nil || o.Type != SegmentNone || o.Flags&NeedsChecksum != 0 {
			t.Fatalf("the kernel left work to do: %+v, %v", o, err)
		}
		out = append(out, bytes.Clone(buf[OffloadLen:k]))
	}
}

// A super-packet goes out of a device that takes none: the kernel cuts it, and
// makes the same segments, byte for byte.
func TestKernelSplitsTheSame(t *testing.T) {
	ns := netns.ForTest(t)
	var tun *os.File
	var sender int
	to := &unix.SockaddrLinklayer{}
	err := ns.Do(func() (err error) {
		if tun, err = kernelTUN("mesh0", 0); err != nil {
			return err
		}
		link, err := netlink.LinkByName("mesh0")
		if err != nil {
			return err
		}
		to.Ifindex = link.Attrs().Index
		if sender, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.SetsockoptInt(sender, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	defer unix.Close(sender)

	cases := superCases()
	for _, c := range superCases() {
		if !c.spec.udp { // and with no more than one segment to make of it
			cases = append(cases, superCase{c.name + ", one segment", c.spec, 65535})
		}
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if len(c.spec.payload) > 1400 && c.size == 65535 {
				c.spec.payload = c.spec.payload[:1400]
			}
			packet, o := c.spec.build(), c.spec.offload(c.size)
			if c.spec.flags&tcpCWR != 0 {
				o.Type |= SegmentECN
			}
			if c.size == 65535 {
				o.Type, o.SegmentSize = SegmentNone, 0
			}
			want, err := split(t, packet, o)
			if err != nil {
				t.Fatal(err)
			}
			to.Protocol = 0x0008 // ETH_P_IP in network byte order, ETH_P_IPV6 below
			if c.spec.v6 {
				to.Protocol = 0xdd86
			}
			header := make([]byte, OffloadLen)
			o.Put(header)
			if err := unix.Sendto(sender, slices.Concat(header, packet), 0, to); err != nil {
				t.Fatalf("send: %v", err)
			}
			diff(t, "kernel", want, readPackets(t, tun, len(want)))
		})
	}
}

// What a Joiner makes goes into one device, is forwarded, and comes out of
// another that takes no super-packets: as it was before it was joined, but for
// one hop.
func TestKernelTakesWhatIsJoined(t *testing.T) {
	ns := netns.ForTest(t)
	var in, out *os.File
	err := ns.Do(func() (err error) {
		for path, value := range map[string]string{
			"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1",
			"ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0",
		} {
			if err := sysctl(path, value); err != nil {
				return err
			}
		}
		if in, err = kernelTUN("mesh0", unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6); err != nil {
			return err
		}
		if out, err = kernelTUN("mesh1", 0); err != nil {
			return err
		}
		link, err := netlink.LinkByName("mesh1")
		if err != nil {
			return err
		}
		for _, s := range []spec{{}, {v6: true}} {
			dst := mustAddr(s)
			dest, err := netlink.ParseIPNet(fmt.Sprintf("%s/%d", dst, dst.BitLen()))
			if err != nil {
				return err
			}
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dest}); err != nil {
				return fmt.Errorf("add route to %s: %w", dest, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer out.Close()

	for _, c := range superCases() {
		if c.spec.extension != nil || c.spec.ipOptions != nil {
			continue // they go alone
		}
		t.Run(c.name, func(t *testing.T) {
			segments, err := split(t, c.spec.build(), c.spec.offload(c.size))
			if err != nil {
				t.Fatal(err)
			}
			if len(segments) > 2 { // one that must not be mended on the way
				segments[1][len(segments[1])-1] ^= 1
			}
			for _, s := range joinAll(t, &Joiner{UDP: true}, segments) {
				header := make([]byte, OffloadLen)
				s.offload.Put(header)
				if _, err := in.Write(slices.Concat(header, s.packet)); err != nil {
					t.Fatalf("write %+v, %d bytes: %v", s.offload, len(s.packet), err)
				}
			}
			got := readPackets(t, out, len(segments))
			for _, p := range segments {
				if p[0]>>4 == 4 {
					p[8]--
					copy(p[10:], word(0))
					copy(p[10:], word(int(^naiveSum(p[:20]))))
				} else {
					p[7]--
				}
			}
			diff(t, "forwarded", got, segments)
		})
	}
}
