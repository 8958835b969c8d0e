package packet

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

const guard = 64 // bytes on each side of a packet that nobody may touch

// split runs a Splitter as an engine does, and worse: what Next returned is
// overwritten, with the padding, before the next call.
func split(tb testing.TB, packet []byte, o Offload) ([][]byte, error) {
	tb.Helper()
	buf := bytes.Repeat([]byte{0xee}, guard+len(packet)+TailRoom+guard)
	copy(buf[guard:], packet)
	end := guard + len(packet)
	var s Splitter
	if err := s.Reset(buf[guard:end], o); err != nil {
		if _, ok := s.Next(); ok || s.Segments() != 0 {
			tb.Errorf("a segment after %v", err)
		}
		return nil, err
	}
	n, size := s.Segments(), s.Size()
	var out [][]byte
	for {
		seg, ok := s.Next()
		if !ok {
			break
		}
		out = append(out, bytes.Clone(seg))
		if cap(seg)-len(seg) != TailRoom {
			tb.Errorf("segment %d: room for %d bytes behind it, want %d", len(out), cap(seg)-len(seg), TailRoom)
		}
		seg = seg[:cap(seg)]
		for i := range seg {
			seg[i] = 0xdd
		}
	}
	if len(out) != n {
		tb.Errorf("%d segments, Segments said %d", len(out), n)
	}
	for i, seg := range out {
		if len(seg) > size || len(seg) < size && i != len(out)-1 {
			tb.Errorf("segment %d of %d: length %d, Size is %d", i, n, len(seg), size)
		}
	}
	around := slices.Concat(buf[:guard], buf[end+TailRoom:])
	if bytes.Count(around, []byte{0xee}) != 2*guard {
		tb.Error("bytes around the packet were touched")
	}
	return out, nil
}

func diff(tb testing.TB, what string, got, want [][]byte) {
	tb.Helper()
	if len(got) != len(want) {
		tb.Errorf("%s: %d packets, want %d", what, len(got), len(want))
	}
	for i := range min(len(got), len(want)) {
		if !bytes.Equal(got[i], want[i]) {
			head := min(100, len(got[i]), len(want[i]))
			tb.Errorf("%s: packet %d (%d bytes, want %d)\n got %x\nwant %x", what, i, len(got[i]), len(want[i]), got[i][:head], want[i][:head])
			return
		}
	}
}

// noise is what payloads are made of.
var noise = func() []byte {
	b := make([]byte, 1<<17)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}()

func text(n int) []byte { return textAt(0, n) }

// textAt gives bytes that differ from those at another place.
func textAt(at, n int) []byte {
	out := make([]byte, 0, n)
	for at %= len(noise); len(out) < n; at = 0 {
		out = append(out, noise[at:min(len(noise), at+n-len(out))]...)
	}
	return out
}

var (
	timestamps = []byte{1, 1, 8, 10, 0, 0, 1, 2, 0, 0, 3, 4}
	hopByHop   = []byte{protoTCP, 0, 1, 4, 0, 0, 0, 0}
)

type superCase struct {
	name string
	spec spec
	size int
}

// superCases are super-packets that the kernel makes.
func superCases() []superCase {
	tcp := spec{partial: true, df: true, id: 0xfffe, seq: 0xfffff000, ack: 7, flags: tcpACK | tcpPSH, window: 500}
	with := func(change func(*spec)) spec { s := tcp; change(&s); return s }
	return []superCase{
		{"v4", with(func(s *spec) { s.payload = text(5000) }), 1460},
		{"v4 exact", with(func(s *spec) { s.payload = text(2920) }), 1460},
		{"v4 one", with(func(s *spec) { s.payload = text(100) }), 1460},
		{"v4 timestamps", with(func(s *spec) { s.payload, s.tcpOptions = text(30000), timestamps }), 1448},
		{"v4 whole", with(func(s *spec) { s.payload = text(65495) }), 1380},
		{"v4 options", with(func(s *spec) { s.payload, s.ipOptions = text(5000), []byte{1, 1, 1, 0} }), 1000},
		{"v4 small segments", with(func(s *spec) { s.payload = text(100) }), 8},
		{"v4 odd segments", with(func(s *spec) { s.payload = text(999) }), 333},
		{"v4 FIN, CWR, ECE", with(func(s *spec) { s.payload, s.flags = text(5000), 0xd9 }), 1460},
		{"v4 no DF", with(func(s *spec) { s.payload, s.df, s.tos = text(5000), false, 3 }), 1460},
		{"v6", with(func(s *spec) { s.v6, s.payload = true, text(5000) }), 1440},
		{"v6 timestamps", with(func(s *spec) { s.v6, s.payload, s.tcpOptions, s.tos = true, text(50000), timestamps, 0x12 }), 1428},
		{"v6 hop by hop", with(func(s *spec) {
			s.v6, s.payload, s.extension, s.firstExt = true, text(5000), hopByHop, protoHopByHop
		}), 1400},
		{"v6 destination options", with(func(s *spec) {
			s.v6, s.payload, s.extension, s.firstExt = true, text(5000), hopByHop, protoDestOpts
		}), 1400},
		{"udp v4", with(func(s *spec) { s.udp, s.payload = true, text(5000) }), 1200},
		{"udp v4 small", with(func(s *spec) { s.udp, s.payload = true, text(100) }), 7},
		{"udp v6", with(func(s *spec) { s.udp, s.v6, s.payload = true, true, text(5000) }), 1200},
	}
}

func TestSplit(t *testing.T) {
	for _, c := range superCases() {
		t.Run(c.name, func(t *testing.T) {
			packet, o := c.spec.build(), c.spec.offload(c.size)
			got, err := split(t, packet, o)
			if err != nil {
				t.Fatal(err)
			}
			diff(t, "naive twin", got, naiveSplit(packet, o))

			// Beside the twin: every segment is a sound packet, and together they
			// carry what the whole carried.
			var payload []byte
			for i, seg := range got {
				if n, ok := Length(seg); !ok || n != len(seg) {
					t.Errorf("segment %d: header says %d bytes, has %d", i, n, len(seg))
				}
				if l4, _ := naiveHeaders(seg); l4 == ipv4Len || seg[0]>>4 == 6 && l4 == ipv6Len {
					if !naiveValid(seg) {
						t.Errorf("segment %d: wrong checksum", i)
					}
				}
				payload = append(payload, seg[c.spec.header():]...)
			}
			if !bytes.Equal(payload, c.spec.payload) {
				t.Error("the payload changed")
			}

			// Nothing but the flag tells that the sum is done.
			valid := o
			valid.Flags = DataValid
			again, err := split(t, packet, valid)
			if err != nil {
				t.Fatal(err)
			}
			diff(t, "data valid", again, got)
		})
	}
}

func TestSplitFlags(t *testing.T) {
	s := spec{partial: true, flags: tcpFIN | tcpPSH | tcpACK | tcpECE | tcpCWR, payload: text(300)}
	o := s.offload(100)
	o.Type |= SegmentECN
	got, err := split(t, s.build(), o)
	if err != nil {
		t.Fatal(err)
	}
	var flags []byte
	for _, seg := range got {
		flags = append(flags, seg[33])
	}
	want := []byte{tcpACK | tcpECE | tcpCWR, tcpACK | tcpECE, tcpACK | tcpECE | tcpPSH | tcpFIN}
	if !bytes.Equal(flags, want) {
		t.Errorf("flags %x, want %x", flags, want)
	}
}

func TestSplitSingle(t *testing.T) {
	for _, c := range []struct {
		name   string
		packet []byte
		o      Offload
		want   []byte
	}{
		{"nothing to do", []byte("no packet at all"), Offload{}, []byte("no packet at all")},
		{"empty", nil, Offload{}, nil},
		{"valid", spec{payload: text(9)}.build(), Offload{Flags: DataValid}, spec{payload: text(9)}.build()},
		{
			"partial tcp", spec{partial: true, payload: text(9)}.build(),
			Offload{Flags: NeedsChecksum, ChecksumStart: 20, ChecksumOffset: 16}, spec{payload: text(9)}.build(),
		},
		{
			"partial udp v6", spec{partial: true, udp: true, v6: true, payload: text(77)}.build(),
			Offload{Flags: NeedsChecksum, ChecksumStart: 40, ChecksumOffset: 6}, spec{udp: true, v6: true, payload: text(77)}.build(),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := split(t, c.packet, c.o)
			if err != nil {
				t.Fatal(err)
			}
			diff(t, "segment", got, [][]byte{c.want})
		})
	}
}

// A UDP checksum that comes out as zero is sent as 0xffff: zero means none.
func TestSplitZeroUDPChecksum(t *testing.T) {
	for _, size := range []int{0, 4} {
		s := spec{udp: true, payload: []byte{0, 0, 9, 9, 5, 6, 7, 8}}
		if size == 0 {
			s.payload = s.payload[:4]
		}
		// The first word makes the first segment's sum 0xffff.
		first := s
		first.payload = s.payload[:4]
		sum := first.build()[26:28]
		copy(s.payload, sum)
		s.partial = true
		o := s.offload(size)
		if size == 0 {
			o.Type = SegmentNone
		}
		got, err := split(t, s.build(), o)
		if err != nil {
			t.Fatal(err)
		}
		if sum := be.Uint16(got[0][26:]); sum != 0xffff {
			t.Errorf("segment size %d: checksum %#04x, want 0xffff", size, sum)
		}
	}
}

func TestSplitRefuses(t *testing.T) {
	good := spec{partial: true, payload: text(3000)}
	v6 := spec{partial: true, v6: true, payload: text(3000)}
	udp := spec{partial: true, udp: true, payload: text(3000)}
	offload := func(s spec, change func(*Offload)) Offload { o := s.offload(1000); change(&o); return o }
	edit := func(s spec, at int, v ...byte) []byte { b := s.build(); copy(b[at:], v); return b }
	long := spec{partial: true, v6: true, payload: text(3000), firstExt: protoDestOpts, extension: append([]byte{protoTCP, 31}, make([]byte, 254)...)}
	// The extension headers fit, and with the TCP header they do not.
	longer := long
	longer.extension = append([]byte{protoTCP, 25}, make([]byte, 206)...)
	for _, c := range []struct {
		name   string
		packet []byte
		o      Offload
		want   error
	}{
		{"flag", good.build(), offload(good, func(o *Offload) { o.Flags = 4 }), ErrFlags},
		{"type", good.build(), offload(good, func(o *Offload) { o.Type = 3 }), ErrType},
		{"type of ECN alone", good.build(), offload(good, func(o *Offload) { o.Type = SegmentECN }), ErrType},
		{"ECN of UDP", udp.build(), offload(udp, func(o *Offload) { o.Type |= SegmentECN }), ErrType},
		{"no size", good.build(), offload(good, func(o *Offload) { o.SegmentSize = 0 }), ErrSegmentSize},
		{"too many TCP segments", spec{partial: true, payload: text(9000)}.build(), offload(good, func(o *Offload) { o.SegmentSize = 1 }), ErrSegmentSize},
		{"too many UDP segments", udp.build(), offload(udp, func(o *Offload) { o.SegmentSize = 23 }), ErrSegmentSize},
		{"unvouched", good.build(), offload(good, func(o *Offload) { o.Flags = 0 }), ErrUnvouched},
		{"empty", nil, good.offload(1000), ErrShort},
		{"no version", edit(good, 0, 0x55), good.offload(1000), ErrVersion},
		{"v6 as v4", v6.build(), good.offload(1000), ErrVersion},
		{"v4 as v6", good.build(), v6.offload(1000), ErrVersion},
		{"UDP as TCP", udp.build(), good.offload(1000), ErrProtocol},
		{"TCP as UDP", good.build(), udp.offload(1000), ErrProtocol},
		{"fragment", spec{partial: true, payload: text(3000), frag: moreFragments}.build(), good.offload(1000), ErrFragment},
		{"v4 length", edit(good, 2, 0, 100), good.offload(1000), ErrLength},
		{"v4 length of nothing", edit(good, 2, 0, 0), good.offload(1000), ErrLength},
		{"v6 jumbo", edit(v6, 4, 0, 0), v6.offload(1000), ErrLength},
		{"UDP length", edit(udp, 24, 0, 99), udp.offload(1000), ErrLength},
		{"header length", edit(good, 0, 0x4f)[:50], good.offload(1000), ErrShort},
		{"TCP data offset", edit(good, 32, 0x40), good.offload(1000), ErrShort},
		{"TCP header beyond", edit(spec{partial: true, payload: text(1)}, 32, 0xf0), good.offload(1000), ErrShort},
		{"long extension headers", long.build(), long.offload(1000), ErrHeaders},
		{"long headers", longer.build(), longer.offload(1000), ErrHeaders},
		{"checksum start", good.build(), offload(good, func(o *Offload) { o.ChecksumStart = 24 }), ErrChecksum},
		{"checksum offset", good.build(), offload(good, func(o *Offload) { o.ChecksumOffset = 6 }), ErrChecksum},
		{"checksum in IP header", good.build(), Offload{Flags: NeedsChecksum, ChecksumStart: 8, ChecksumOffset: 4}, ErrChecksum},
		{"checksum beyond", good.build(), Offload{Flags: NeedsChecksum, ChecksumStart: 20, ChecksumOffset: 3019}, ErrChecksum},
		{"checksum of no packet", []byte("what is this?"), Offload{Flags: NeedsChecksum, ChecksumStart: 2, ChecksumOffset: 2}, ErrVersion},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := split(t, c.packet, c.o); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
		})
	}
	t.Run("no room", func(t *testing.T) {
		var s Splitter
		if err := s.Reset(slices.Clip(good.build()), good.offload(1000)); err != ErrRoom {
			t.Errorf("error %v, want %v", err, ErrRoom)
		}
	})
}

func FuzzOffload(f *testing.F) {
	f.Add([]byte{1, 1, 0, 54, 0x5, 0xb4, 0, 34, 0, 16})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{1, 0x84})
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := ParseOffload(b)
		if err != nil {
			return
		}
		out := make([]byte, OffloadLen)
		if o.Put(out); !bytes.Equal(out, b[:OffloadLen]) {
			t.Errorf("%x was read as %+v and written as %x", b, o, out)
		}
		if o.Type != SegmentNone && o.SegmentSize == 0 {
			t.Errorf("%x: no size", b)
		}
	})
}

func FuzzSplit(f *testing.F) {
	for _, c := range superCases() {
		// Small ones: the engine spends its time in minimizing large ones.
		c.spec.payload = text(min(len(c.spec.payload), 100))
		o := c.spec.offload(min(c.size, 33))
		f.Add(c.spec.build(), o.Flags, o.Type, o.SegmentSize, o.ChecksumStart, o.ChecksumOffset)
		f.Add(c.spec.build(), o.Flags, uint8(0), o.SegmentSize, o.ChecksumStart, o.ChecksumOffset)
	}
	f.Fuzz(func(t *testing.T, packet []byte, flags, kind uint8, size, start, offset uint16) {
		if len(packet) > maxPacket+ipv6Len {
			return
		}
		o := Offload{Flags: flags, Type: kind, SegmentSize: size, ChecksumStart: start, ChecksumOffset: offset}
		got, err := split(t, packet, o)
		if err == nil {
			diff(t, fmt.Sprintf("%+v", o), got, naiveSplit(packet, o))
		}
	})
}

func TestSplitAllocatesNothing(t *testing.T) {
	var s Splitter
	for _, c := range superCases() {
		packet, o := c.spec.build(), c.spec.offload(c.size)
		buf := make([]byte, len(packet), len(packet)+TailRoom)
		if n := testing.AllocsPerRun(10, func() {
			copy(buf, packet)
			if err := s.Reset(buf, o); err != nil {
				t.Fatal(err)
			}
			for ok := true; ok; _, ok = s.Next() {
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
	}
	if n := testing.AllocsPerRun(10, func() { _ = s.Reset(nil, Offload{}) }); n != 0 {
		t.Errorf("an error costs %v allocations", n)
	}
}
