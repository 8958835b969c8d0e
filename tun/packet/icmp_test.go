package packet

import (
	"bytes"
	"net/netip"
	"testing"
)

var (
	us4 = netip.MustParseAddr("10.9.0.1")
	us6 = netip.MustParseAddr("fd00::1")
)

// edited is a packet with some bytes of the IP header changed.
func edited(s spec, at int, v ...byte) []byte {
	p := s.build()
	copy(p[at:], v)
	return p
}

// icmp is a packet that carries an ICMP message of the kind.
func icmp(v6 bool, kind byte) []byte {
	p := spec{v6: v6, payload: text(100)}.build()
	if v6 {
		p[6], p[40] = protoICMPv6, kind
	} else {
		p[9], p[20] = protoICMP, kind
	}
	return p
}

func TestTooBig(t *testing.T) {
	for _, n := range []int{0, 100, 3000} {
		p := spec{flow: 7, payload: text(n)}.build()
		got := TooBig(bytes.Repeat([]byte{0xff}, AnswerLen), p, 1400, us4)
		quote := p[:min(len(p), 576-28)]
		if clean := TooBig(nil, p, 1400, us4); !bytes.Equal(got, clean) {
			t.Errorf("the answer %x depends on what was in the buffer, %x", got, clean)
		}
		if got == nil || len(got) > 576 {
			t.Fatalf("answer of %d bytes", len(got))
		}
		if src, dst, _ := Addresses(got); src != us4 || dst != netip.MustParseAddr("10.9.0.7") {
			t.Errorf("from %s to %s", src, dst)
		}
		if l, ok := Length(got); !ok || l != len(got) || naiveSum(got[:20]) != 0xffff || got[9] != protoICMP || got[8] == 0 {
			t.Errorf("IP header %x", got[:20])
		}
		if naiveSum(got[20:]) != 0xffff {
			t.Error("wrong ICMP checksum")
		}
		if head := append(got[20:22:22], got[24:28]...); !bytes.Equal(head, []byte{3, 4, 0, 0, 0x05, 0x78}) {
			t.Errorf("ICMP header %x", head)
		}
		if !bytes.Equal(got[28:], quote) {
			t.Errorf("quotes %x, want %x", got[28:], quote)
		}
	}
}

func TestTooBig6(t *testing.T) {
	for _, n := range []int{0, 100, 3000} {
		p := spec{v6: true, flow: 7, payload: text(n)}.build()
		got := TooBig(bytes.Repeat([]byte{0xff}, AnswerLen), p, 1400, us6)
		quote := p[:min(len(p), 1280-48)]
		if clean := TooBig(nil, p, 1400, us6); !bytes.Equal(got, clean) {
			t.Errorf("the answer %x depends on what was in the buffer, %x", got, clean)
		}
		if got == nil || len(got) > 1280 {
			t.Fatalf("answer of %d bytes", len(got))
		}
		if src, dst, _ := Addresses(got); src != us6 || dst.As16()[15] != 7 {
			t.Errorf("from %s to %s", src, dst)
		}
		if l, ok := Length(got); !ok || l != len(got) || got[6] != protoICMPv6 || got[7] == 0 {
			t.Errorf("IP header %x", got[:40])
		}
		if naiveSum(got[8:40], word(protoICMPv6), word(len(got)-40), got[40:]) != 0xffff {
			t.Error("wrong ICMP checksum")
		}
		if head := append(got[40:42:42], got[44:48]...); !bytes.Equal(head, []byte{2, 0, 0, 0, 0x05, 0x78}) {
			t.Errorf("ICMP header %x", head)
		}
		if !bytes.Equal(got[48:], quote) {
			t.Errorf("quotes %x, want %x", got[48:], quote)
		}
	}
}

func TestUnreachable(t *testing.T) {
	got := Unreachable(nil, spec{payload: text(3000)}.build(), us4)
	if head := append(got[20:22:22], got[24:28]...); !bytes.Equal(head, []byte{3, 0, 0, 0, 0, 0}) {
		t.Errorf("ICMP header %x", head)
	}
	got = Unreachable(nil, spec{v6: true, payload: text(3000)}.build(), us6)
	if head := append(got[40:42:42], got[44:48]...); !bytes.Equal(head, []byte{1, 0, 0, 0, 0, 0}) {
		t.Errorf("ICMPv6 header %x", head)
	}
}

func TestAnswers(t *testing.T) {
	v4, v6 := spec{payload: text(2000), flow: 7}, spec{v6: true, payload: text(2000), flow: 7}
	fragment6 := func(offset uint16) []byte {
		s := v6
		s.extension, s.firstExt = append([]byte{protoTCP, 0}, append(word(int(offset)), 0, 0, 0, 1)...), protoFragment
		return s.build()
	}
	in6 := func(p []byte, prefix ...byte) []byte { copy(p[8:], prefix); return p }
	for _, c := range []struct {
		name   string
		packet []byte
		from   netip.Addr
		want   bool
	}{
		{"v4", v4.build(), us4, true},
		{"v4 without DF", v4.build(), us4, true},
		{"v4 from v6", v4.build(), us6, false},
		{"from nobody", v4.build(), netip.Addr{}, false},
		{"v4 echo", icmp(false, 8), us4, true},
		{"v4 echo reply", icmp(false, 0), us4, true},
		{"v4 unreachable", icmp(false, 3), us4, false},
		{"v4 source quench", icmp(false, 4), us4, false},
		{"v4 redirect", icmp(false, 5), us4, false},
		{"v4 time exceeded", icmp(false, 11), us4, false},
		{"v4 unknown ICMP", icmp(false, 77), us4, false},
		{"v4 ICMP without type", icmp(false, 8)[:20], us4, false},
		{"v4 first fragment", spec{frag: moreFragments, payload: text(9)}.build(), us4, true},
		{"v4 further fragment", spec{frag: 1, payload: text(9)}.build(), us4, false},
		{"v4 to multicast", edited(v4, 16, 224, 0, 0, 5), us4, false},
		{"v4 to broadcast", edited(v4, 16, 255, 255, 255, 255), us4, false},
		{"v4 from multicast", edited(v4, 12, 239, 0, 0, 5), us4, false},
		{"v4 from nowhere", edited(v4, 12, 0, 0, 0, 0), us4, false},
		{"v4 from loopback", edited(v4, 12, 127, 0, 0, 1), us4, false},
		{"v4 from broadcast", edited(v4, 12, 255, 255, 255, 255), us4, false},
		{"v4 short", v4.build()[:19], us4, false},
		{"empty", nil, us4, false},
		{"v6", v6.build(), us6, true},
		{"v6 from v4", v6.build(), us4, false},
		{"v6 echo", icmp(true, 128), us6, true},
		{"v6 neighbour", icmp(true, 135), us6, true},
		{"v6 too big", icmp(true, 2), us6, false},
		{"v6 redirect", icmp(true, 137), us6, false},
		{"v6 first fragment", fragment6(1), us6, true},
		{"v6 further fragment", fragment6(9), us6, false},
		{"v6 extension cut", fragment6(1)[:44], us6, false},
		{"v6 endless extensions", func() []byte {
			s := v6
			s.extension, s.firstExt = append([]byte{protoTCP, 31}, make([]byte, 254)...), protoDestOpts
			return s.build()
		}(), us6, false},
		{"v6 to multicast", edited(v6, 24, 0xff, 2), us6, false},
		{"v6 from multicast", edited(v6, 8, 0xff, 2), us6, false},
		{"v6 from nowhere", in6(v6.build(), make([]byte, 16)...), us6, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := bytes.Clone(c.packet)
			if got := TooBig(nil, c.packet, 1280, c.from); (got != nil) != c.want {
				t.Errorf("too big: %x, want an answer: %t", got, c.want)
			}
			if got := Unreachable(nil, c.packet, c.from); (got != nil) != c.want {
				t.Errorf("unreachable: %x, want an answer: %t", got, c.want)
			}
			if !bytes.Equal(c.packet, before) {
				t.Error("the packet changed")
			}
			// An error is never answered, so two hosts cannot go on for ever.
			if got := TooBig(nil, c.packet, 1280, c.from); got != nil && TooBig(nil, got, 68, c.from) != nil {
				t.Error("the answer is answered")
			}
		})
	}
}

// Hostile bytes go through everything that looks at headers.
func FuzzHeaders(f *testing.F) {
	for _, s := range []spec{
		{flags: tcpSYN, tcpOptions: mss(1460)}, {v6: true, flags: tcpSYN, tcpOptions: append([]byte{1}, append(mss(1460), 1, 1, 0)...)},
		{v6: true, extension: hopByHop, flags: tcpSYN, tcpOptions: mss(1460)}, {udp: true, payload: text(20)}, {ipOptions: make([]byte, 8)},
	} {
		f.Add(s.build(), 1400)
	}
	f.Add(icmp(false, 8), 1400)
	f.Add(icmp(true, 128), 1400)
	f.Fuzz(func(t *testing.T, packet []byte, mtu int) {
		src, _, ok := Addresses(packet)
		if n, whole := Length(packet); whole && (!ok || n > len(packet)) {
			t.Errorf("length %d of %d bytes", n, len(packet))
		}
		for _, from := range []netip.Addr{us4, us6} {
			for _, answer := range [][]byte{TooBig(nil, packet, mtu, from), Unreachable(nil, packet, from)} {
				if answer == nil {
					continue
				}
				if s, d, _ := Addresses(answer); s != from || d != src {
					t.Errorf("the answer goes from %s to %s, want from %s to %s", s, d, from, src)
				}
				if n, ok := Length(answer); !ok || n != len(answer) || n > AnswerLen || from.Is4() && n > 576 {
					t.Errorf("answer of %d bytes, its header says %d", len(answer), n)
				}
				if TooBig(nil, answer, mtu, from) != nil || Unreachable(nil, answer, from) != nil {
					t.Error("the answer is answered")
				}
			}
		}
		if !ok {
			return
		}
		before := bytes.Clone(packet)
		sound := naiveFamily(packet, false) == "flow" && naiveValid(packet)
		if ClampMSS(packet, mtu) {
			if bytes.Equal(packet, before) {
				t.Error("nothing was clamped")
			}
			if ClampMSS(packet, mtu) {
				t.Error("clamped twice")
			}
		} else if !bytes.Equal(packet, before) {
			t.Error("it was changed, and said not to be")
		}
		if sound && !naiveValid(packet) {
			t.Errorf("%x was valid, %x is not", before, packet)
		}
		mark := GetECN(packet)
		for e := range CE + 1 {
			if SetECN(packet, e); GetECN(packet) != e {
				t.Errorf("mark %d, want %d", GetECN(packet), e)
			}
		}
		if SetECN(packet, mark); sound && !naiveValid(packet) {
			t.Errorf("%x was valid, %x is not", before, packet)
		}
	})
}
