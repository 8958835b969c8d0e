package udp

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseControl(t *testing.T) {
	ours4, ours6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	four := func(n uint32) []byte { return native.AppendUint32(nil, n) }
	pktinfo4 := appendMessage(nil, unix.IPPROTO_IP, unix.IP_PKTINFO, slices.Concat(four(7), ours4.AsSlice(), []byte{192, 0, 2, 255}))
	pktinfo6 := appendMessage(nil, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, slices.Concat(ours6.AsSlice(), four(8)))
	gro := appendMessage(nil, unix.SOL_UDP, unix.UDP_GRO, four(1400))
	near := netip.MustParseAddr("fe80::1")
	for _, c := range []struct {
		name    string
		control []byte
		want    meta
	}{
		{"nothing", nil, meta{}},
		{"IPv4", slices.Concat(pktinfo4, appendMessage(nil, unix.IPPROTO_IP, unix.IP_TOS, []byte{0xfe}), gro), meta{Source{ours4, 0}, 2, 1400}},
		{"IPv6", slices.Concat(gro, appendMessage(nil, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, four(0xb9)), pktinfo6), meta{Source{ours6, 0}, 1, 1400}},
		{"link-local", appendMessage(nil, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, slices.Concat(near.AsSlice(), four(8))), meta{local: Source{near, 8}}},
		{"unknown ones between", slices.Concat(appendMessage(nil, unix.SOL_SOCKET, unix.SO_TIMESTAMP, make([]byte, 3)), gro), meta{size: 1400}},
		{"too short", appendMessage(nil, unix.SOL_UDP, unix.UDP_GRO, []byte{1, 2}), meta{}},
		{"cut off", gro[:len(gro)-5], meta{}},
		{"length of nothing", slices.Concat(make([]byte, unix.SizeofCmsghdr), gro), meta{}},
		{"length beyond the end", slices.Concat(bytes.Repeat([]byte{0xff}, word), gro[word:]), meta{}},
		{"size of nobody", appendMessage(nil, unix.SOL_UDP, unix.UDP_GRO, four(1<<31)), meta{size: 65535}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := parseControl(c.control); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

// What we write, package unix reads as it should.
func FuzzAppendControl(f *testing.F) {
	f.Add([]byte{192, 0, 2, 1}, uint32(3), byte(2), uint16(1400))
	f.Add(netip.MustParseAddr("2001:db8::1").AsSlice(), uint32(3), byte(1), uint16(1400))
	f.Add(netip.MustParseAddr("fe80::1").AsSlice(), uint32(3), byte(3), uint16(1))
	f.Fuzz(func(t *testing.T, ip []byte, index uint32, ecn byte, size uint16) {
		addr, ok := netip.AddrFromSlice(ip)
		if !ok {
			t.Skip()
		}
		b := appendSource(nil, Source{addr, index}, addr.Is6())
		b = appendECN(b, ecn, addr.Is6())
		b = appendSegment(b, int(size))
		if len(b) > controlRoom {
			t.Fatalf("needs %d bytes, there are %d", len(b), controlRoom)
		}
		messages, err := unix.ParseSocketControlMessage(b)
		if err != nil || len(messages) != 3 {
			t.Fatalf("%d messages, %v", len(messages), err)
		}
		if got := native.Uint16(messages[2].Data); got != size || len(messages[2].Data) != 2 {
			t.Errorf("size %d, want %d", got, size)
		}
		if got := native.Uint32(messages[1].Data); got != uint32(ecn&3) {
			t.Errorf("ECN %d, want %d", got, ecn&3)
		}
		want := meta{local: Source{Addr: addr}, ecn: ecn & 3}
		if addr.Is6() && addr.IsLinkLocalUnicast() {
			want.local.Interface = index
		}
		if addr.Is4() {
			want.ecn = messages[1].Data[0] & ecnMask // the kernel takes four bytes and gives one
		}
		if got := parseControl(b); got != want {
			t.Errorf("read %+v, want %+v", got, want)
		}
	})
}

// The twin is package unix, which is strict about the end of what it reads.
func FuzzParseControl(f *testing.F) {
	f.Add(appendSource(nil, Source{Addr: netip.MustParseAddr("192.0.2.1")}, false))
	f.Add(appendSource(nil, Source{Addr: netip.MustParseAddr("2001:db8::1")}, true))
	f.Add(slices.Concat(appendECN(nil, 1, true), appendMessage(nil, unix.SOL_UDP, unix.UDP_GRO, native.AppendUint32(nil, 1400))))
	from := func(a netip.Addr, index uint32) Source {
		if a.IsLinkLocalUnicast() {
			return Source{a, index}
		}
		return Source{Addr: a} // the route decides
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got := parseControl(b)
		messages, err := unix.ParseSocketControlMessage(b)
		if err != nil {
			return
		}
		var want meta
		for _, m := range messages {
			switch level, kind := m.Header.Level, m.Header.Type; {
			case level == unix.IPPROTO_IP && kind == unix.IP_PKTINFO && len(m.Data) >= 12:
				addr, _ := netip.AddrFromSlice(m.Data[4:8])
				want.local = from(addr, native.Uint32(m.Data))
			case level == unix.IPPROTO_IPV6 && kind == unix.IPV6_PKTINFO && len(m.Data) >= 20:
				addr, _ := netip.AddrFromSlice(m.Data[:16])
				want.local = from(addr, native.Uint32(m.Data[16:]))
			case level == unix.IPPROTO_IP && kind == unix.IP_TOS && len(m.Data) > 0:
				want.ecn = m.Data[0] % 4
			case level == unix.IPPROTO_IPV6 && kind == unix.IPV6_TCLASS && len(m.Data) >= 4:
				want.ecn = byte(native.Uint32(m.Data) % 4)
			case level == unix.SOL_UDP && kind == unix.UDP_GRO && len(m.Data) >= 4:
				want.size = int(min(native.Uint32(m.Data), 65535))
			}
		}
		if got != want {
			t.Errorf("read %+v, want %+v", got, want)
		}
	})
}

func FuzzAddress(f *testing.F) {
	f.Add([]byte{2, 0, 0, 9, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add(slices.Concat([]byte{10, 0, 0, 9, 0, 0, 0, 0}, netip.MustParseAddr("fe80::1").AsSlice(), native.AppendUint32(nil, 3)))
	f.Fuzz(func(t *testing.T, b []byte) {
		a := parseAddress(b)
		if !a.IsValid() || a.Addr().Is4In6() {
			return
		}
		var again [unix.SizeofSockaddrInet6]byte
		n, err := putAddress(&again, a, a.Addr().Is6())
		if err != nil {
			t.Fatal(err)
		}
		if got := parseAddress(again[:n]); got != a {
			t.Errorf("%v became %v", a, got)
		}
	})
}

func TestDatagrams(t *testing.T) {
	for _, c := range []struct {
		data string
		size int
		want []string
	}{
		{"", 0, nil},
		{"", 3, nil},
		{"abc", 0, []string{"abc"}},
		{"abc", 3, []string{"abc"}},
		{"abc", 9, []string{"abc"}},
		{"abcdefgh", 3, []string{"abc", "def", "gh"}},
	} {
		var got []string
		train := Train{Data: []byte(c.data), Size: c.size}
		for d := range train.Datagrams() {
			got = append(got, string(d))
			if cap(d) != len(d) {
				t.Errorf("%q could be appended to, over the next", d)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%q by %d: got %q, want %q", c.data, c.size, got, c.want)
		}
	}
	for range (&Train{Data: []byte("abc"), Size: 1}).Datagrams() {
		break
	}
}
