package packet

import (
	"fmt"
	"net/netip"
	"testing"
)

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{20, 64, 1400, 65535} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			buf := text(n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				Sum(buf, 0)
			}
		})
	}
}

// whole are super-packets of nearly 64 KiB, and a lone small datagram.
func whole() []superCase {
	base := spec{df: true, flags: tcpACK, tcpOptions: timestamps}
	v4, v6, udp := base, base, base
	v4.payload = text(45 * 1368)
	v6.v6, v6.payload = true, text(45*1348)
	udp.udp, udp.payload = true, text(45*1392)
	small := spec{df: true, udp: true, payload: text(64)}
	return []superCase{{"tcp4", v4, 1368}, {"tcp6", v6, 1348}, {"udp4", udp, 1392}, {"small", small, 64}}
}

func BenchmarkSplit(b *testing.B) {
	for _, c := range whole() {
		b.Run(c.name, func(b *testing.B) {
			c.spec.partial = true
			packet, o := c.spec.build(), c.spec.offload(c.size)
			buf := append(packet, make([]byte, TailRoom)...)[:len(packet)]
			if len(packet) < 1000 {
				o.Type = SegmentNone
			}
			header := c.spec.header()
			saved := [maxHeaders]byte{}
			copy(saved[:], packet[:header])
			var s Splitter
			b.SetBytes(int64(len(packet)))
			b.ReportAllocs()
			for b.Loop() {
				copy(buf, saved[:header])
				if err := s.Reset(buf, o); err != nil {
					b.Fatal(err)
				}
				for ok := true; ok; _, ok = s.Next() {
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(s.Segments()), "ns/segment")
		})
	}
}

func BenchmarkJoin(b *testing.B) {
	bench := func(b *testing.B, j *Joiner, segments [][]byte) {
		var bytes int
		headers := make([][maxHeaders]byte, len(segments))
		for i, s := range segments {
			bytes += len(s)
			copy(headers[i][:], s)
		}
		b.SetBytes(int64(bytes))
		b.ReportAllocs()
		for b.Loop() {
			copy(segments[0], headers[0][:80]) // edited by the round before
			for _, s := range segments {
				if !j.Add(s) {
					b.Fatal("full")
				}
			}
			for ok := true; ok; _, ok = j.Next() {
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(segments)), "ns/packet")
	}
	for _, c := range whole() {
		b.Run(c.name, func(b *testing.B) {
			c.spec.partial = true
			segments, err := split(b, c.spec.build(), c.spec.offload(c.size))
			if err != nil {
				b.Fatal(err)
			}
			bench(b, &Joiner{UDP: true}, segments)
		})
	}
	for _, udp := range []bool{false, true} {
		b.Run(fmt.Sprintf("64 flows of small packets, udp %t", udp), func(b *testing.B) {
			var packets [][]byte
			for i := range 64 {
				packets = append(packets, spec{udp: udp, flow: byte(i), flags: tcpACK, payload: text(64)}.build())
			}
			bench(b, &Joiner{UDP: true}, packets)
		})
	}
}

func BenchmarkAddresses(b *testing.B) {
	for _, v6 := range []bool{false, true} {
		b.Run(fmt.Sprintf("v6 %t", v6), func(b *testing.B) {
			p := spec{v6: v6}.build()
			b.ReportAllocs()
			for b.Loop() {
				_, _, _ = Addresses(p)
			}
		})
	}
}

func BenchmarkClampMSS(b *testing.B) {
	for name, s := range map[string]spec{"data": {flags: tcpACK}, "data v6": {v6: true, flags: tcpACK}, "syn": {flags: tcpSYN, tcpOptions: mss(1380)}} {
		b.Run(name, func(b *testing.B) {
			p := s.build()
			b.ReportAllocs()
			for b.Loop() {
				ClampMSS(p, 1420)
			}
		})
	}
}

func BenchmarkTooBig(b *testing.B) {
	p, answer, from := spec{payload: text(1400)}.build(), make([]byte, AnswerLen), netip.MustParseAddr("10.9.0.1")
	b.ReportAllocs()
	for b.Loop() {
		TooBig(answer, p, 1400, from)
	}
}
