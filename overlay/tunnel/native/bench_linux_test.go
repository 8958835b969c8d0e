package native

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"meshd/overlay/tunnel"
	"meshd/tun/packet"
)

func BenchmarkLookup(b *testing.B) {
	var peers []*peer
	for i := range 200 {
		peers = append(peers, &peer{config: tunnel.Peer{AllowedIPs: prefixes(fmt.Sprintf("10.86.%d.0/24 10.87.0.%d/32 fd86:0:0:%x::/64", i, i, i))}})
	}
	r := newRoutes(tunnel.Config{}, peers)
	for _, a := range []string{"10.86.199.7", "fd86::c7:0:0:0:7"} {
		b.Run(a, func(b *testing.B) {
			addr := netip.MustParseAddr(a)
			if r.lookup(addr) != peers[199] {
				b.Fatal("found another")
			}
			b.ReportAllocs()
			for b.Loop() {
				r.lookup(addr)
			}
		})
	}
}

// BenchmarkEngines measures all that two engines do to packets, and what the
// kernel and its wake-ups add on loopback.
func BenchmarkEngines(b *testing.B) {
	for _, suite := range Suites() {
		for _, c := range []struct {
			name      string
			size      int // of a payload
			count     int // of packets that are under way together
			transport func(from, to *end) (packet.Offload, []byte)
		}{
			{"super-packet", 44 * 1380, 1, func(from, to *end) (packet.Offload, []byte) {
				p := dataPacket(from.addr(4), to.addr(4), 1, make([]byte, 44*1380))
				be.PutUint16(p[36:], pseudo(p, 20))
				return packet.Offload{
					Flags: packet.NeedsChecksum, Type: packet.SegmentTCP4, HeaderLen: 40, SegmentSize: 1380, ChecksumStart: 20, ChecksumOffset: 16,
				}, p
			}},
			{"64 of 64 B", 64, 64, func(from, to *end) (packet.Offload, []byte) {
				return packet.Offload{}, udpPacket(from.addr(4), to.addr(4), make([]byte, 64))
			}},
		} {
			b.Run(suite+"/"+c.name, func(b *testing.B) {
				from, to := newEnd(b, 1, setup{}), newEnd(b, 2, setup{})
				from.suite, to.suite = suite, suite
				from.know(b, to.peer())
				to.know(b, from.peer())
				offload, p := c.transport(from, to)
				sent := make([]byte, packet.OffloadLen, packet.OffloadLen+len(p))
				offload.Put(sent)
				sent = append(sent, p...)
				headers := len(p) - c.size
				buf := make([]byte, packet.OffloadLen+maxPacket)
				from.send(b, packet.Offload{}, udpPacket(from.addr(4), to.addr(4), nil))
				to.expect(b) // there is a session now
				if err := to.tun.theirs[0].SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(c.size * c.count))
				b.ReportAllocs()
				for b.Loop() {
					for range c.count {
						if _, err := from.tun.theirs[0].Write(sent); err != nil {
							b.Fatal(err)
						}
					}
					for got := 0; got < c.size*c.count; {
						n, err := to.tun.theirs[0].Read(buf)
						if err != nil {
							b.Fatal(err)
						}
						got += n - packet.OffloadLen - headers
					}
				}
			})
		}
	}
}
