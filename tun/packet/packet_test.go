package packet

import (
	"bytes"
	"net/netip"
	"testing"
)

func TestAddresses(t *testing.T) {
	v4, v6 := spec{flow: 7, payload: text(5)}, spec{flow: 7, v6: true, payload: text(5)}
	options := spec{flow: 7, ipOptions: make([]byte, 40)}
	for _, c := range []struct {
		name     string
		packet   []byte
		version  int
		src, dst string
	}{
		{"v4", v4.build(), 4, "10.9.0.7", "10.9.0.99"},
		{"v4 bare header", v4.build()[:20], 4, "10.9.0.7", "10.9.0.99"},
		{"v4 options", options.build(), 4, "10.9.0.7", "10.9.0.99"},
		{"v6", v6.build(), 6, "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fd07", "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fd63"},
		{"v6 bare header", v6.build()[:40], 6, "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fd07", "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fd63"},
		{"v4 short", v4.build()[:19], 0, "", ""},
		{"v4 options short", options.build()[:59], 0, "", ""},
		{"v4 header of 16 bytes", append([]byte{0x44}, make([]byte, 60)...), 0, "", ""},
		{"v6 short", v6.build()[:39], 0, "", ""},
		{"empty", nil, 0, "", ""},
		{"version 5", append([]byte{0x55}, make([]byte, 60)...), 0, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Version(c.packet); got != c.version {
				t.Errorf("version %d, want %d", got, c.version)
			}
			src, dst, ok := Addresses(c.packet)
			if ok != (c.version != 0) {
				t.Fatalf("ok = %t", ok)
			}
			if ok && (src != netip.MustParseAddr(c.src) || dst != netip.MustParseAddr(c.dst)) {
				t.Errorf("from %s to %s, want from %s to %s", src, dst, c.src, c.dst)
			}
		})
	}
}

func TestLength(t *testing.T) {
	for _, s := range []spec{{payload: text(30)}, {v6: true, payload: text(30)}} {
		p := s.build()
		padded := append(bytes.Clone(p), 0, 0, 0)
		for _, c := range []struct {
			packet []byte
			ok     bool
		}{{p, true}, {padded, true}, {p[:len(p)-1], false}, {p[:10], false}, {nil, false}} {
			if n, ok := Length(c.packet); ok != c.ok || ok && n != len(p) {
				t.Errorf("%d bytes of %d: %d, %t", len(c.packet), len(p), n, ok)
			}
		}
	}
	short := spec{}.build()
	copy(short[2:], word(19))
	if _, ok := Length(short); ok {
		t.Error("a packet is shorter than its own header")
	}
}

func TestECN(t *testing.T) {
	for _, s := range []spec{{tos: 0xfd}, {v6: true, tos: 0xfd}, {tos: 0}, {v6: true}} {
		p := s.build()
		for _, e := range []ECN{NotECT, ECT1, ECT0, CE, CE, NotECT} {
			SetECN(p, e)
			if got := GetECN(p); got != e {
				t.Errorf("mark %d, want %d", got, e)
			}
			want := s
			want.tos = s.tos&^3 | byte(e)
			diff(t, "marked", [][]byte{p}, [][]byte{want.build()})
		}
	}
}

// The table of RFC 6040, figure 4.
func TestDecapsulate(t *testing.T) {
	const drop = 9
	want := map[ECN][4]ECN{ // by outer mark: NotECT, ECT1, ECT0, CE
		NotECT: {NotECT, NotECT, NotECT, drop},
		ECT0:   {ECT0, ECT1, ECT0, CE},
		ECT1:   {ECT1, ECT1, ECT1, CE},
		CE:     {CE, CE, CE, CE},
	}
	for inner, row := range want {
		if got := OuterECN(inner); got != inner {
			t.Errorf("outer mark of %d is %d", inner, got)
		}
		for outer, want := range row {
			got, deliver := Decapsulate(ECN(outer), inner)
			if deliver != (want != drop) || deliver && got != want {
				t.Errorf("outer %d, inner %d: %d, %t; want %d", outer, inner, got, deliver, want)
			}
		}
	}
}

func mss(v int) []byte { return append([]byte{2, 4}, word(v)...) }

func TestClampMSS(t *testing.T) {
	nop := []byte{1}
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	base := spec{flags: tcpSYN}
	with := func(options []byte, change func(*spec)) spec {
		s := base
		s.tcpOptions = options
		change(&s)
		return s
	}
	same := func(*spec) {}
	v6 := func(s *spec) { s.v6 = true }
	for _, c := range []struct {
		name string
		spec spec
		want []byte // options; nil: unchanged
	}{
		{"v4", with(mss(1460), same), mss(1380)},
		{"v4 SYN ACK", with(mss(1460), func(s *spec) { s.flags |= tcpACK }), mss(1380)},
		{"v4 with options", with(mss(9000), func(s *spec) { s.ipOptions = make([]byte, 8) }), mss(1380)},
		{"v6", with(mss(1440), v6), mss(1360)},
		{"v6 hop by hop", with(mss(1440), func(s *spec) { s.v6, s.extension = true, hopByHop }), mss(1360)},
		{"fits", with(mss(1380), same), nil},
		{"smaller", with(mss(536), same), nil},
		{"behind others", with(cat([]byte{4, 2, 3, 3, 7, 1}, mss(1460), []byte{1, 0}), same), cat([]byte{4, 2, 3, 3, 7, 1}, mss(1380), []byte{1, 0})},
		{"odd place", with(cat(nop, mss(1460), nop, nop, nop), same), cat(nop, mss(1380), nop, nop, nop)},
		{"with payload", with(mss(1460), func(s *spec) { s.payload = text(77) }), mss(1380)},
		{"no SYN", with(mss(1460), func(s *spec) { s.flags = tcpACK }), nil},
		{"none", with(nil, same), nil},
		{"behind the end", with(cat([]byte{0, 0, 0, 0}, mss(1460)), same), nil},
		{"option of length 0", with(cat([]byte{3, 0, 1, 1}, mss(1460)), same), nil},
		{"option too long", with([]byte{3, 9, 1, 1}, same), nil},
		{"option cut", with([]byte{1, 1, 1, 2}, same), nil},
		{"MSS of 3 bytes", with([]byte{2, 3, 255, 0}, same), nil},
		{"fragment", with(mss(1460), func(s *spec) { s.frag = 5 }), nil},
		{"UDP", spec{udp: true, payload: cat(make([]byte, 12), mss(1460))}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, want := c.spec.build(), c.spec
			if c.want != nil {
				want.tcpOptions = c.want
			}
			if got := ClampMSS(p, 1420); got != (c.want != nil) {
				t.Errorf("changed: %t", got)
			}
			diff(t, "packet", [][]byte{p}, [][]byte{want.build()})
			for n := range p { // truncated: no panic
				ClampMSS(bytes.Clone(p[:n]), 68)
			}
		})
	}
}

// An incremental update keeps a wrong checksum wrong.
func TestClampMSSKeepsWrongChecksum(t *testing.T) {
	p := spec{flags: tcpSYN, tcpOptions: mss(1460), wrongSum: true}.build()
	if !ClampMSS(p, 1420) || naiveValid(p) {
		t.Errorf("clamped packet %x is valid", p)
	}
}

func TestHeadersAllocateNothing(t *testing.T) {
	syn := spec{flags: tcpSYN, tcpOptions: mss(1460)}.build()
	syn6 := spec{v6: true, flags: tcpSYN, tcpOptions: mss(1460)}.build()
	answer := make([]byte, AnswerLen)

	n := testing.AllocsPerRun(10, func() {
		for _, p := range [][]byte{syn, syn6} {
			_, _, _ = Addresses(p)
			ClampMSS(p, 1420)
			SetECN(p, CE)
			SetECN(p, ECT0)
		}
		if TooBig(answer, syn, 1400, us4) == nil || TooBig(answer, syn6, 1400, us6) == nil || Unreachable(answer, syn, us4) == nil {
			t.Fatal("no answer")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}
