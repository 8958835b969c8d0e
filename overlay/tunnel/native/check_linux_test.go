package native

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"meshd/overlay/tunnel"
	"meshd/overlay/tunnel/tunneltest"
	"meshd/overlay/tunnel/wg"
	"meshd/tun/packet"
)

// icmp tells what an answer says, from whom, and of which packet.
func icmp(p []byte) (from netip.Addr, kind, code uint8, value uint32, quote []byte) {
	at := 40
	if packet.Version(p) == 4 {
		at = 20
	}
	from, _, _ = packet.Addresses(p)
	return from, p[at], p[at+1], be.Uint32(p[at+4:]), p[at+8:]
}

func TestTooBigIsAnswered(t *testing.T) {
	t.Parallel()
	const mtu = 1400
	a, b := pair(t, setup{mtu: mtu})
	drops := uint64(0)
	for _, c := range []struct {
		family     int
		kind, code uint8
	}{{4, 3, 4}, {6, 2, 0}} {
		headers := 10*c.family - 20
		super := packet.Offload{
			Flags: packet.NeedsChecksum, Type: uint8(packet.SegmentTCP4 + (c.family-4)/2*3),
			SegmentSize: uint16(mtu - headers - 20 + 1), ChecksumStart: uint16(headers), ChecksumOffset: 16,
		}
		for what, x := range map[string]struct {
			o packet.Offload
			p []byte
		}{
			"packet":       {packet.Offload{}, udpPacket(a.addr(c.family), b.addr(c.family), make([]byte, mtu-headers-8+1))},
			"super-packet": {super, dataPacket(a.addr(c.family), b.addr(c.family), 1, make([]byte, 5000))},
		} {
			t.Run(fmt.Sprintf("IPv%d %s", c.family, what), func(t *testing.T) {
				a.send(t, x.o, x.p)
				_, got := a.expect(t)
				from, kind, code, value, quote := icmp(got)
				if from != b.addr(c.family) || kind != c.kind || code != c.code || value != mtu {
					t.Errorf("answer of type %d code %d value %d from %s, want %d %d %d from %s", kind, code, value, from, c.kind, c.code, mtu, b.addr(c.family))
				}
				if !bytes.HasPrefix(x.p, quote[:headers]) {
					t.Errorf("the answer is about %x", quote)
				}
				drops++
			})
		}
		whole := udpPacket(a.addr(c.family), b.addr(c.family), make([]byte, mtu-headers-8))
		a.send(t, packet.Offload{}, whole)
		if _, got := b.expect(t); !bytes.Equal(got, whole) {
			t.Errorf("the longest packet arrived as %d bytes, want %d", len(got), len(whole))
		}
	}
	dropped(t, a, map[string]uint64{tunnel.DropTooBig: drops})
	dropped(t, b, map[string]uint64{})
}

func TestUnreachableIsAnswered(t *testing.T) {
	t.Parallel()
	a := newEnd(t, 1, setup{})
	a.know(t)
	for family, dst := range map[int]string{4: "10.99.200.1", 6: "fd99:0:0:200::1"} {
		a.send(t, packet.Offload{}, udpPacket(a.addr(family), netip.MustParseAddr(dst), []byte("who?")))
		_, got := a.expect(t)
		from, kind, code, _, quote := icmp(got)
		want := map[int]uint8{4: 3, 6: 1}[family]
		if from.String() != dst || kind != want || code != 0 || !bytes.HasSuffix(quote, []byte("who?")) {
			t.Errorf("IPv%d: answer of type %d code %d from %s about %x", family, kind, code, from, quote)
		}
	}
	const many = 5 * answersPerSecond
	for range many {
		a.send(t, packet.Offload{}, udpPacket(a.addr(4), netip.MustParseAddr("10.99.200.1"), nil))
	}
	dropped(t, a, map[string]uint64{tunnel.DropNoRoute: many + 2})
	answers := 0
	for {
		if _, _, ok := a.receive(t, 20*time.Millisecond); !ok {
			break
		}
		answers++
	}
	if answers == 0 || answers > 2*answersPerSecond { // a second may have passed
		t.Errorf("%d packets were answered %d times, want %d", many, answers, answersPerSecond)
	}
}

func TestSegmentSizeIsClamped(t *testing.T) {
	t.Parallel()
	a, b := newEnd(t, 1, setup{mtu: 1500}), newEnd(t, 2, setup{mtu: 1300})
	a.know(t, b.peer())
	b.know(t, a.peer())
	for _, x := range []struct {
		from, to  *end
		family    int
		mss, want uint16
	}{
		{a, b, 4, 8960, 1260}, {a, b, 6, 8940, 1240}, // by who receives it
		{b, a, 4, 8960, 1260}, {b, a, 6, 8940, 1240}, // by who sends it
		{b, a, 4, 1000, 1000},
	} {
		x.from.send(t, packet.Offload{}, synPacket(x.from.addr(x.family), x.to.addr(x.family), int(x.mss)))
		_, got := x.to.expect(t)
		if want := synPacket(x.from.addr(x.family), x.to.addr(x.family), int(x.want)); !bytes.Equal(got, want) {
			t.Errorf("IPv%d SYN with %d from %d:\n got %x\nwant %x", x.family, x.mss, x.from.number, got, want)
		}
	}
}

// Where the path to a peer carries less than either device, who knows of it lowers
// what both announce, and nothing on the way to others.
func TestSegmentSizeOfPath(t *testing.T) {
	t.Parallel()
	a, b, c := newEnd(t, 1, setup{mtu: 1420}), newEnd(t, 2, setup{mtu: 1420}), newEnd(t, 3, setup{mtu: 1420})
	narrow := b.peer()
	narrow.MTU = 1200
	a.know(t, narrow, c.peer())
	b.know(t, a.peer())
	c.know(t, a.peer())
	syn := func(from, to *end, family, mss, want int) {
		t.Helper()
		from.send(t, packet.Offload{}, synPacket(from.addr(family), to.addr(family), mss))
		_, got := to.expect(t)
		if want := synPacket(from.addr(family), to.addr(family), want); !bytes.Equal(got, want) {
			t.Errorf("IPv%d SYN with %d from %d:\n got %x\nwant %x", family, mss, from.number, got, want)
		}
	}
	syn(a, b, 6, 1360, 1140)
	syn(b, a, 6, 1360, 1140)
	syn(a, b, 4, 1380, 1160)
	syn(b, a, 4, 1380, 1160)
	syn(a, c, 6, 1360, 1360)
	a.know(t, b.peer(), c.peer()) // it carries all again
	syn(a, b, 6, 1360, 1360)
	syn(b, a, 6, 1360, 1360)
}

// A SYN that waits for the handshake is clamped as well.
func TestSegmentSizeOfFirstPacket(t *testing.T) {
	t.Parallel()
	for _, x := range []struct{ from, to int }{{1300, 1500}, {1500, 1300}} {
		a, b := newEnd(t, 1, setup{mtu: x.from}), newEnd(t, 2, setup{mtu: x.to})
		a.know(t, b.peer())
		b.know(t, a.peer())
		a.send(t, packet.Offload{}, synPacket(a.addr(4), b.addr(4), 8960))
		if _, got := b.expect(t); !bytes.Equal(got, synPacket(a.addr(4), b.addr(4), 1260)) {
			t.Errorf("from MTU %d to %d: %x", x.from, x.to, got)
		}
	}
}

func TestCongestionMarks(t *testing.T) {
	t.Parallel()
	a, b, r := throughRelay(t, setup{})
	marks := map[byte]string{0: "NotECT", 1: "ECT1", 2: "ECT0", 3: "CE"}
	lost := uint64(0)
	for _, family := range []int{4, 6} {
		for inner := range byte(4) {
			for outer := range byte(4) {
				t.Run(fmt.Sprintf("IPv%d %s in %s", family, marks[inner], marks[outer]), func(t *testing.T) {
					seen := make(chan byte, 100)
					r.through(func(from int, ecn byte, d []byte) bool {
						if from == 0 && len(d) > wg.Overhead && d[0] == 4 {
							seen <- ecn
						}
						return true
					})
					p := udpPacket(a.addr(family), b.addr(family), []byte(marks[inner]))
					packet.SetECN(p, packet.ECN(inner))
					r.option(t, unix.IP_TOS, int(outer)) // the network's
					a.send(t, packet.Offload{}, p)
					mark, deliver := packet.Decapsulate(packet.ECN(outer), packet.ECN(inner))
					if deliver {
						_, got := b.expect(t)
						if packet.SetECN(p, mark); !bytes.Equal(got, p) {
							t.Errorf("got %x, want %x", got, p)
						}
					} else {
						lost++
						dropped(t, b, map[string]uint64{tunnel.DropECN: lost})
					}
					// The first packet has waited for the session, and goes unmarked.
					if first := family == 4 && inner == 0 && outer == 0; !first {
						select {
						case got := <-seen:
							if got != inner {
								t.Errorf("the datagram was marked %s, want %s", marks[got], marks[inner])
							}
						case <-time.After(arrival):
							t.Error("no datagram was seen")
						}
					}
				})
			}
		}
	}
	if lost != 2 {
		t.Errorf("%d lost, want one of each family", lost)
	}
}

func TestSpoofedIsCounted(t *testing.T) {
	t.Parallel()
	a, b := pair(t, setup{})
	foreign := netip.MustParsePrefix("10.99.77.0/24")
	a.apply(t, tunnel.Config{Own: append(slices.Clone(a.own), foreign), Peers: []tunnel.Peer{b.peer()}})
	good := tunneltest.Packet(a.addr(4), b.addr(4), []byte("good"))
	for range 3 { // one that was good must not make the next good
		a.send(t, packet.Offload{}, good)
		a.send(t, packet.Offload{}, tunneltest.Packet(foreign.Addr().Next(), b.addr(4), []byte("bad")))
		a.send(t, packet.Offload{}, tunneltest.Packet(netip.MustParseAddr("192.0.2.1"), b.addr(4), []byte("bad")))
	}
	for range 3 {
		if _, got := b.expect(t); !bytes.Equal(got, good) {
			t.Errorf("got %x, want %x", got, good)
		}
	}
	dropped(t, a, map[string]uint64{tunnel.DropSource: 3})
	dropped(t, b, map[string]uint64{tunnel.DropSpoofed: 3})
}

// What the sender's kernel has left to do is done; what it did not vouch for is
// for the receiver's to judge.
func TestChecksums(t *testing.T) {
	t.Parallel()
	a, b := pair(t, setup{})
	for _, family := range []int{4, 6} {
		l4 := 10*family - 20
		segment := func(seq uint32) []byte {
			return dataPacket(a.addr(family), b.addr(family), seq, bytes.Repeat([]byte{byte(seq)}, 100))
		}
		partial := segment(1)
		o := packet.Offload{Flags: packet.NeedsChecksum, ChecksumStart: uint16(l4), ChecksumOffset: 16}
		be.PutUint16(partial[l4+16:], pseudo(partial, l4))
		a.send(t, o, partial)
		if o, got := b.expect(t); !bytes.Equal(got, segment(1)) || o != (packet.Offload{}) {
			t.Errorf("IPv%d, partial: %+v %x, want %x", family, o, got, segment(1))
		}

		// In one super-packet, so that they cross in one train.
		whole := dataPacket(a.addr(family), b.addr(family), 1, bytes.Repeat([]byte{7}, 300))
		be.PutUint16(whole[l4+16:], pseudo(whole, l4))
		o.Type, o.SegmentSize = uint8(packet.SegmentTCP4+(family-4)/2*3), 100
		a.send(t, o, whole)
		got := 0
		for got < 300 {
			_, p := b.expect(t)
			got += len(p) - l4 - 20
		}

		// A wrong one: on its own, and among others.
		wrong := segment(101)
		wrong[len(wrong)-1] ^= 1
		for _, p := range [][]byte{segment(1), wrong, segment(201)} {
			a.send(t, packet.Offload{}, p)
		}
		for bad := false; !bad; {
			o, p := b.expect(t)
			if bad = bytes.Equal(p, wrong); bad && o != (packet.Offload{}) {
				t.Errorf("IPv%d, wrong checksum: %+v", family, o)
			}
			if len(p) > len(wrong) {
				t.Fatalf("IPv%d: the wrong one was joined with others: %+v %x", family, o, p)
			}
		}
		if _, p := b.expect(t); !bytes.Equal(p, segment(201)) {
			t.Errorf("IPv%d, after it: %x", family, p)
		}
	}
	dropped(t, b, map[string]uint64{})
}

// pseudo is the sum that the kernel leaves in a checksum to be completed.
func pseudo(p []byte, l4 int) uint16 {
	var b []byte
	if packet.Version(p) == 4 {
		b = append(b, p[12:20]...)
	} else {
		b = append(b, p[8:40]...)
	}
	b = append(b, 0, 6)
	return packet.Sum(binary.BigEndian.AppendUint16(b, uint16(len(p)-l4)), 0)
}

// An answer leaves from the address that was asked, also the answer to a handshake.
func TestAnswersFromTheAddressThatWasAsked(t *testing.T) {
	t.Parallel()
	a, b := newEnd(t, 1, setup{}), newEnd(t, 2, setup{})
	second := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), a.Port())
	viaSecond := a.peer()
	viaSecond.Endpoints = []netip.AddrPort{second}
	a.know(t, b.peer()) // a knows where b is, so it moves nowhere
	b.know(t, viaSecond)
	p := tunneltest.Packet(b.addr(4), a.addr(4), []byte("b"))
	b.send(t, packet.Offload{}, p)
	a.expect(t)
	p = tunneltest.Packet(a.addr(4), b.addr(4), []byte("a"))
	a.send(t, packet.Offload{}, p)
	b.expect(t)
	if got := b.Stats().Peers[a.id].Endpoint; got != second {
		t.Errorf("b was answered from %s, want %s", got, second)
	}
}

func TestRunEndsUnderLoad(t *testing.T) {
	t.Parallel()
	a, b := pair(t, setup{})
	stop := make(chan struct{})
	flooded := make(chan struct{})
	go func() {
		defer close(flooded)
		p := append(make([]byte, packet.OffloadLen), udpPacket(a.addr(4), b.addr(4), make([]byte, 100))...)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := a.tun.theirs[0].Write(p); err != nil {
				return // its end was closed
			}
		}
	}()
	defer func() { close(stop); <-flooded }()
	b.expect(t)
	begin := time.Now()
	a.stop()
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("Run ended after %v", d)
	}
	if err := <-a.ended; err != nil {
		t.Errorf("run: %v", err)
	}
}
