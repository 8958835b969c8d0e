package packet

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// clones makes each packet a slice of its own that can be edited and ends where
// the packet ends.
func clones(packets [][]byte) [][]byte {
	var out [][]byte
	for _, p := range packets {
		out = append(out, slices.Clip(bytes.Clone(p)))
	}
	return out
}

// joinAll puts packets through a Joiner, draining it when it is full and at the
// end.
func joinAll(tb testing.TB, j *Joiner, packets [][]byte) []super {
	tb.Helper()
	var out []super
	drain := func() {
		for {
			parts, ok := j.Next()
			if !ok {
				return
			}
			o, err := ParseOffload(parts[0])
			if err != nil {
				tb.Errorf("offload header %x: %v", parts[0], err)
			}
			out = append(out, super{o, slices.Concat(parts[1:]...)})
		}
	}
	for _, p := range clones(packets) {
		if !j.Add(p) {
			drain()
			if !j.Add(p) {
				tb.Fatal("an empty joiner takes nothing")
			}
		}
	}
	drain()
	return out
}

func diffSupers(tb testing.TB, got, want []super) {
	tb.Helper()
	if len(got) != len(want) {
		tb.Errorf("%d super-packets, want %d", len(got), len(want))
	}
	for i := range min(len(got), len(want)) {
		if got[i].offload != want[i].offload {
			tb.Errorf("super-packet %d: offload %+v, want %+v", i, got[i].offload, want[i].offload)
		}
		diff(tb, fmt.Sprintf("super-packet %d", i), [][]byte{got[i].packet}, [][]byte{want[i].packet})
	}
}

// A super-packet that is split and joined again is the same, byte for byte, but
// for what stays apart.
func TestSplitThenJoin(t *testing.T) {
	apart := []string{"v4 options", "v6 hop by hop", "v6 destination options", "v4 FIN, CWR, ECE", "v4 one"}
	for _, c := range superCases() {
		t.Run(c.name, func(t *testing.T) {
			packet, o := c.spec.build(), c.spec.offload(c.size)
			segments, err := split(t, packet, o)
			if err != nil {
				t.Fatal(err)
			}
			got := joinAll(t, &Joiner{UDP: true}, segments)
			if slices.Contains(apart, c.name) {
				if len(got) != len(segments) && c.name != "v4 FIN, CWR, ECE" {
					t.Errorf("%d segments made %d super-packets, want as many", len(segments), len(got))
				}
				return
			}
			diffSupers(t, got, []super{{o, packet}})
		})
	}
}

// shape prints what joined: the number of packets in each group, with the flow.
func shape(supers []super) string {
	var out []string
	for _, s := range supers {
		n := 1
		if s.offload.Type != SegmentNone {
			n = len(naiveSplit(s.packet, s.offload))
		}
		source := s.packet[15]
		if s.packet[0]>>4 == 6 {
			source = s.packet[23]
		}
		out = append(out, fmt.Sprintf("%c%d", 'a'+source, n))
	}
	return strings.Join(out, " ")
}

func TestJoin(t *testing.T) {
	type specs = []spec
	// tcp gives n segments of 100 bytes in sequence.
	tcp := func(n int, changes ...func(i int, s *spec)) specs {
		var out specs
		for i := range n {
			s := spec{df: true, seq: uint32(i * 100), flags: tcpACK, payload: textAt(i*100, 100), window: 9, tcpOptions: timestamps}
			for _, change := range changes {
				change(i, &s)
			}
			out = append(out, s)
		}
		return out
	}
	udp := func(i int, s *spec) { s.udp = true }
	at := func(k int, change func(*spec)) func(int, *spec) {
		return func(i int, s *spec) {
			if i == k {
				change(s)
			}
		}
	}
	all := func(change func(*spec)) func(int, *spec) { return func(_ int, s *spec) { change(s) } }
	flow := func(n byte) func(int, *spec) { return all(func(s *spec) { s.flow = n }) }
	mix := func(a, b specs) specs { // a0 b0 a1 b1 ...
		var out specs
		for i := range a {
			out = append(out, a[i], b[i])
		}
		return out
	}
	for _, c := range []struct {
		name  string
		specs specs
		want  string
	}{
		{"in sequence", tcp(5), "a5"},
		{"last smaller", tcp(5, at(2, func(s *spec) { s.payload = text(99) })), "a3 a2"},
		{"larger", tcp(4, at(2, func(s *spec) { s.payload = text(101) })), "a2 a1 a1"},
		{"gap", tcp(4, func(i int, s *spec) { s.seq += uint32(i / 2) }), "a2 a2"},
		{"again", append(tcp(2), tcp(2)...), "a2 a2"},
		{"sequence number wraps", tcp(4, all(func(s *spec) { s.seq += 0xffffff38 })), "a4"},
		{"PSH", tcp(5, at(2, func(s *spec) { s.flags |= tcpPSH })), "a3 a2"},
		{"PSH first", tcp(3, at(0, func(s *spec) { s.flags |= tcpPSH })), "a1 a2"},
		{"FIN", tcp(3, at(2, func(s *spec) { s.flags |= tcpFIN })), "a3"},
		{"ECE on all", tcp(3, all(func(s *spec) { s.flags |= tcpECE })), "a3"},
		{"ECE on some", tcp(4, at(2, func(s *spec) { s.flags |= tcpECE })), "a2 a1 a1"},
		{"CWR", tcp(4, at(0, func(s *spec) { s.flags |= tcpCWR })), "a1 a3"},
		{"CWR on all", tcp(3, all(func(s *spec) { s.flags |= tcpCWR })), "a1 a1 a1"},
		{"SYN", tcp(3, all(func(s *spec) { s.flags |= tcpSYN })), "a1 a1 a1"},
		{"RST", tcp(3, at(1, func(s *spec) { s.flags |= tcpRST })), "a1 a1 a1"},
		{"URG", tcp(3, at(1, func(s *spec) { s.flags |= tcpURG })), "a1 a1 a1"},
		{"no ACK flag", tcp(2, all(func(s *spec) { s.flags = 0 })), "a1 a1"},
		{"other reserved bits", tcp(4, func(i int, s *spec) { s.reserved = byte(i / 2) }), "a2 a2"},
		{"pure ACKs", tcp(3, all(func(s *spec) { s.payload, s.seq = nil, 0 })), "a1 a1 a1"},
		{"pure ACK between", tcp(5, at(2, func(s *spec) { s.payload = nil })), "a2 a1 a2"},
		{"other acknowledgment", tcp(4, func(i int, s *spec) { s.ack = uint32(i / 2) }), "a2 a2"},
		{"other window", tcp(4, func(i int, s *spec) { s.window = uint16(i / 2) }), "a2 a2"},
		{"other timestamp", tcp(4, func(i int, s *spec) {
			s.tcpOptions = bytes.Clone(timestamps)
			s.tcpOptions[7] = byte(i / 2)
		}), "a2 a2"},
		{"other options", tcp(4, at(2, func(s *spec) { s.tcpOptions = nil })), "a2 a1 a1"},
		{"other TOS", tcp(4, func(i int, s *spec) { s.tos = byte(i/2) << 2 }), "a2 a2"},
		{"CE", tcp(4, func(i int, s *spec) { s.tos = byte(2 + i/2) }), "a2 a2"},
		{"other TTL", tcp(4, func(i int, s *spec) { s.ttl = byte(i / 2) }), "a2 a2"},
		{"DF, any ID", tcp(4, func(i int, s *spec) { s.id = uint16(i * i) }), "a4"},
		{"no DF, same ID", tcp(3, all(func(s *spec) { s.df = false })), "a1 a1 a1"},
		{"no DF, ID counts", tcp(4, func(i int, s *spec) { s.df, s.id = false, 0xfffe+uint16(i) }), "a4"},
		{"DF on some", tcp(4, func(i int, s *spec) { s.df, s.id = i < 2, uint16(i) }), "a2 a2"},
		{"wrong checksum", tcp(5, at(2, func(s *spec) { s.wrongSum = true })), "a2 a1 a2"},
		{"wrong checksum first", tcp(4, at(0, func(s *spec) { s.wrongSum = true })), "a1 a3"},
		{"wrong checksum on all", tcp(3, all(func(s *spec) { s.wrongSum = true })), "a1 a1 a1"},
		{"wrong IPv4 checksum", tcp(5, at(2, func(s *spec) { s.wrongIPv4Sum = true })), "a2 a1 a2"},
		{"partial checksum", tcp(2, all(func(s *spec) { s.partial = true })), "a1 a1"},
		{"fragments", tcp(3, at(1, func(s *spec) { s.frag = moreFragments })), "a1 a1 a1"},
		{"fragment of another flow", tcp(4, at(2, func(s *spec) { s.frag, s.flow = 5, 1 })), "a2 b1 a1"},
		{"reserved flag", tcp(2, all(func(s *spec) { s.frag = 0x8000 })), "a1 a1"},
		{"IPv4 options", tcp(2, all(func(s *spec) { s.ipOptions = []byte{1, 1, 1, 0} })), "a1 a1"},
		{"IPv4 options between", tcp(3, at(1, func(s *spec) { s.ipOptions = []byte{1, 1, 1, 0} }), at(2, func(s *spec) { s.seq = 100 })), "a1 a1 a1"},
		{"two flows", mix(tcp(3), tcp(3, flow(1))), "a3 b3"},
		{"two ports", mix(tcp(3), tcp(3, all(func(s *spec) { s.dport = 1 }))), "a3 a3"},
		{"TCP and UDP of the same ports", mix(tcp(3), tcp(3, udp)), "a3 a3"},
		{"a flow that is closed and opened again", mix(tcp(4, at(1, func(s *spec) { s.flags |= tcpPSH })), tcp(4, flow(1))), "a2 b4 a2"},
		{"many", tcp(100), "a64 a36"},
		{"more than fits", tcp(60, func(i int, s *spec) { s.payload, s.seq = textAt(i*1448, 1448), uint32(i*1448) }), "a45 a15"},
		{"more than the table", tcp(300), "a64 a64 a64 a64 a44"},
		{"v6", tcp(4, all(func(s *spec) { s.v6 = true })), "a4"},
		{"v6 class", tcp(4, func(i int, s *spec) { s.v6, s.tos = true, byte(i/2) }), "a2 a2"},
		{"v6 hop limit", tcp(4, func(i int, s *spec) { s.v6, s.ttl = true, byte(i/2) }), "a2 a2"},
		{"v6 flows", mix(tcp(3, all(func(s *spec) { s.v6 = true })), tcp(3, all(func(s *spec) { s.v6, s.flow = true, 1 }))), "a3 b3"},
		{"v6 extension", tcp(2, all(func(s *spec) { s.v6, s.extension = true, hopByHop })), "a1 a1"},
		{"UDP", tcp(5, udp), "a5"},
		{"UDP last smaller", tcp(5, udp, at(2, func(s *spec) { s.payload = text(9) })), "a3 a2"},
		{"UDP without checksum", tcp(3, udp, at(1, func(s *spec) { s.noUDPSum = true })), "a1 a1 a1"},
		{"UDP without checksum where the sum is right", tcp(2, udp, all(func(s *spec) {
			s.payload = textAt(0, 100)
			s.payload[0], s.payload[1] = 0, 0
			copy(s.payload, s.build()[26:28]) // now the rest sums up to 0xffff
			s.noUDPSum = true
		})), "a1 a1"},
		{"UDP without payload", tcp(3, udp, all(func(s *spec) { s.payload = nil })), "a1 a1 a1"},
		{"UDP wrong checksum", tcp(4, udp, at(1, func(s *spec) { s.wrongSum = true })), "a1 a1 a2"},
		{"UDP v6", tcp(4, udp, all(func(s *spec) { s.v6 = true })), "a4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var packets [][]byte
			for _, s := range c.specs {
				packets = append(packets, s.build())
			}
			got := joinAll(t, &Joiner{UDP: true}, packets)
			if len(packets) <= JoinerPackets { // the twin has no table that gets full
				diffSupers(t, got, naiveJoin(packets, true))
			}
			if s := shape(got); s != c.want {
				t.Errorf("joined as %s, want %s", s, c.want)
			}
			lossless(t, packets, got)
		})
	}
}

// lossless checks, without the twin, what a Joiner promises: its super-packets
// split again give every packet, in the order of its flow, and only sound
// packets are vouched for.
func lossless(tb testing.TB, packets [][]byte, supers []super) {
	tb.Helper()
	got, want := map[string][]string{}, map[string][]string{}
	for _, p := range packets {
		p = canonical(p)
		want[naiveFlow(p)] = append(want[naiveFlow(p)], string(p))
	}
	for _, s := range supers {
		segments := [][]byte{s.packet}
		if s.offload.Type != SegmentNone {
			if len(s.packet) > maxPacket {
				tb.Errorf("super-packet of %d bytes", len(s.packet))
			}
			segments = naiveSplit(s.packet, s.offload)
		} else if s.offload != (Offload{}) {
			tb.Errorf("packet that goes alone has the offload header %+v", s.offload)
		}
		for _, p := range segments {
			p = canonical(p)
			got[naiveFlow(p)] = append(got[naiveFlow(p)], string(p))
		}
	}
	for flow, packets := range want {
		if !slices.Equal(packets, got[flow]) {
			tb.Errorf("flow %x: other packets or another order came out: %d, want %d", flow, len(got[flow]), len(packets))
		}
		delete(got, flow)
	}
	if len(got) != 0 {
		tb.Errorf("%d flows came out that never went in", len(got))
	}
}

// canonical blanks what joining may change: the IPv4 ID where DF makes it
// meaningless, and which of its two zeros a right checksum is.
func canonical(p []byte) []byte {
	p = bytes.Clone(p)
	if naiveFamily(p, true) != "flow" {
		return p
	}
	l4, header := naiveHeaders(p)
	if header > len(p) || header < l4 || !naiveValid(p) {
		return p
	}
	if p[0]>>4 == 4 {
		if p[6]&0x40 != 0 {
			copy(p[4:], word(0))
		}
		copy(p[10:], word(0))
	}
	if naiveTCP(p) {
		copy(p[l4+16:], word(0))
	} else if p[l4+6] != 0 || p[l4+7] != 0 {
		copy(p[l4+6:], word(0xffff))
	}
	return p
}

// So many flows share places in the table.
func TestJoinManyFlows(t *testing.T) {
	var packets [][]byte
	for i := range JoinerPackets {
		packets = append(packets, spec{flow: byte(i % 64), df: true, udp: true, payload: textAt(i*100, 100)}.build())
	}
	got := joinAll(t, &Joiner{UDP: true}, packets)
	diffSupers(t, got, naiveJoin(packets, true))
	if len(got) != 64 {
		t.Errorf("%d super-packets, want one for each of 64 flows", len(got))
	}
}

func TestJoinWithoutUDP(t *testing.T) {
	var packets [][]byte
	for range 4 {
		packets = append(packets, spec{udp: true, payload: text(100)}.build())
	}
	got := joinAll(t, &Joiner{}, packets)
	if s := shape(got); s != "a1 a1 a1 a1" {
		t.Errorf("joined as %s, want every datagram alone", s)
	}
}

func TestJoinerIsDrained(t *testing.T) {
	var j Joiner
	if _, ok := j.Next(); ok {
		t.Error("an empty joiner has a group")
	}
	p := spec{flags: tcpACK, payload: text(9)}.build()
	for i := range JoinerPackets {
		if !j.Add(p) {
			t.Fatalf("packet %d was not taken, want %d", i, JoinerPackets)
		}
	}
	if j.Add(p) {
		t.Errorf("more than %d packets were taken", JoinerPackets)
	}
	for ok := true; ok; _, ok = j.Next() {
	}
	j.Add(p)
	j.Add(p)
	if _, ok := j.Next(); !ok {
		t.Fatal("no group")
	}
	if j.Add(p) {
		t.Error("a packet was taken in the middle of emptying")
	}
	for ok := true; ok; _, ok = j.Next() {
	}
	if !j.Add(p) {
		t.Error("an empty joiner takes nothing")
	}
}

// program makes packets from instructions of 6 bytes: mostly what continues a
// flow, sometimes what does not.
func program(code []byte) [][]byte {
	var packets [][]byte
	var seq [8]uint32
	var id [8]uint16
	for ins := range slices.Chunk(code, 6) {
		if len(ins) < 6 {
			break
		}
		f := ins[0] & 7
		s := spec{
			flow: f & 1, udp: f&2 != 0, v6: f&4 != 0, df: ins[0]&8 == 0,
			tos: ins[0] >> 4 & 3, ttl: ins[0] >> 6 & 1,
			seq: seq[f], id: id[f], flags: tcpACK,
			payload: textAt(100*len(packets), int(ins[1])),
		}
		if ins[2]&1 != 0 {
			s.flags |= tcpPSH
		}
		switch ins[2] >> 1 & 31 {
		case 1:
			s.flags = ins[3]
		case 2:
			s.seq += uint32(ins[3])
		case 3:
			s.id += uint16(ins[3])
		case 4:
			s.tcpOptions = timestamps
		case 5:
			s.wrongSum = true
		case 6:
			s.wrongIPv4Sum = true
		case 7:
			s.frag = uint16(ins[3])<<8 | uint16(ins[4])
		case 8:
			s.ipOptions = make([]byte, ins[3]&7*4)
		case 9:
			s.extension, s.firstExt = []byte{s.protocol(), 0, 1, 4, 0, 0, 0, 0}, ins[3]
		case 10:
			s.noUDPSum = true
		case 11:
			s.payload = textAt(100*len(packets), int(ins[1])*64)
		case 12:
			s.window = uint16(ins[3])
		case 13:
			s.dport = uint16(ins[3] & 1)
		}
		p := s.build()
		seq[f] = s.seq + uint32(len(s.payload))
		id[f] = s.id + 1
		switch ins[5] {
		case 1: // corrupt
			p[int(ins[4])%len(p)] ^= ins[3]
		case 2: // truncate
			p = p[:int(ins[4])%len(p)]
		case 3: // pad
			p = append(p, make([]byte, ins[4]&15)...)
		}
		packets = append(packets, p)
		if len(packets) == JoinerPackets {
			break
		}
	}
	return packets
}

func FuzzJoin(f *testing.F) {
	f.Add(bytes.Repeat([]byte{0, 100, 0, 0, 0, 0}, 5), true)
	f.Add(bytes.Repeat([]byte{2, 100, 0, 0, 0, 0}, 5), true)
	f.Add(bytes.Repeat([]byte{2, 100, 0, 0, 0, 0, 4, 90, 0, 0, 0, 0}, 5), true)
	f.Add(bytes.Repeat([]byte{8, 100, 0, 0, 0, 0, 1, 90, 0, 0, 0, 0, 1, 90, 7 << 1, 32, 0, 0}, 5), false)
	f.Add(bytes.Repeat([]byte{0, 200, 11 << 1, 0, 0, 0}, 70), true)
	f.Add([]byte{0, 100, 0, 0, 0, 0, 0, 100, 0, 4, 60, 1, 0, 100, 0, 0, 0, 0}, true)
	f.Fuzz(func(t *testing.T, code []byte, udp bool) {
		packets := program(code)
		j := Joiner{UDP: udp}
		got := joinAll(t, &j, packets)
		diffSupers(t, got, naiveJoin(packets, udp))
		lossless(t, packets, got)
		for i, s := range got {
			if s.offload.Flags&NeedsChecksum == 0 {
				continue
			}
			for _, p := range naiveSplit(s.packet, s.offload) {
				if !naiveValid(p) {
					t.Errorf("super-packet %d gives a packet with a wrong checksum", i)
				}
			}
		}
		diffSupers(t, joinAll(t, &j, packets), got) // nothing is left of the first time
	})
}

// Hostile bytes, no packets in particular.
func FuzzJoinRaw(f *testing.F) {
	f.Add(spec{payload: text(10), flags: tcpACK}.build(), spec{payload: text(10), seq: 10, flags: tcpACK}.build())
	f.Add(spec{udp: true, v6: true, payload: text(10)}.build(), spec{udp: true, v6: true, payload: text(10)}.build())
	f.Fuzz(func(t *testing.T, a, b []byte) {
		packets := [][]byte{a, b, a}
		got := joinAll(t, &Joiner{UDP: true}, packets)
		diffSupers(t, got, naiveJoin(packets, true))
	})
}

func TestJoinAllocatesNothing(t *testing.T) {
	j := Joiner{UDP: true}
	for _, c := range superCases() {
		segments, err := split(t, c.spec.build(), c.spec.offload(c.size))
		if err != nil {
			t.Fatal(err)
		}
		work := clones(segments)
		if n := testing.AllocsPerRun(10, func() {
			for i := range work {
				copy(work[i], segments[i])
				if !j.Add(work[i]) {
					t.Fatal("full")
				}
			}
			for ok := true; ok; _, ok = j.Next() {
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
	}
}
