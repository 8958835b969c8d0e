package gossip

import (
	"bytes"
	"compress/lzw"
	"context"
	"encoding/binary"
	"hash/crc32"
	"io"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"meshd/mesh"
	"meshd/mesh/member"
)

var goodKey = bytes.Repeat([]byte{1}, 32) // of onLoopback

func mustSealer(t testing.TB, keys ...[]byte) *sealer {
	t.Helper()
	s, err := newSealer(member.NewKeyring(keys...))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What we seal is what memberlist seals: one that has the key joins, by packet
// and by stream.
func TestSealIsMemberlists(t *testing.T) {
	var lines logbook
	g, core, at := onLoopback(t, 1, &lines)
	c := memberlist.DefaultLocalConfig()
	c.Name = newName([20]byte{9})
	c.BindAddr, c.BindPort = "127.0.0.1", 0
	c.SecretKey = goodKey
	c.EnableCompression = false
	c.Logger = log.New(io.Discard, "", 0)
	c.Delegate = &plainDelegate{broadcast: make(chan []byte, 1)}
	m, err := memberlist.Create(c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Shutdown() }()
	if _, err := m.Join([]string{at.String()}); err != nil {
		t.Fatal(err)
	}
	soon(t, "both see each other", func() bool { return len(g.Stats().Live) == 1 && m.NumMembers() == 2 })
	var us *memberlist.Node
	for _, n := range m.Members() {
		if n.Name != c.Name {
			us = n
		}
	}
	if err := m.SendReliable(us, encodeObjects(maxAnswer, []byte("by stream"))); err != nil {
		t.Fatal(err)
	}
	if err := m.SendBestEffort(us, encodeObjects(maxAnswer, []byte("by packet"))); err != nil {
		t.Fatal(err)
	}
	soon(t, "both are heard", func() bool { return core.has("by stream") && core.has("by packet") })
	if text := lines.String(); strings.Contains(text, "level=WARN") {
		t.Errorf("something was refused:\n%s", text)
	}
}

// plainDelegate says nothing and takes everything.
type plainDelegate struct{ broadcast chan []byte }

func (*plainDelegate) NodeMeta(int) []byte             { return nil }
func (*plainDelegate) NotifyMsg([]byte)                {}
func (*plainDelegate) GetBroadcasts(int, int) [][]byte { return nil }
func (*plainDelegate) LocalState(bool) []byte {
	return encodeState(newName([20]byte{9}), [16]byte{}, nil)
}
func (*plainDelegate) MergeRemoteState(_ []byte, _ bool) {}

// compressed is a message that grows a thousandfold.
func compressed(size int) []byte {
	var packed bytes.Buffer
	w := lzw.NewWriter(&packed, lzw.LSB, 8)
	_, _ = w.Write(make([]byte, size))
	_ = w.Close()
	out := append([]byte{9, 0x82, 0xa4}, "Algo\x00\xa3Buf\xdb"...) // str 32, as it encodes bytes
	out = binary.BigEndian.AppendUint32(out, uint32(packed.Len()))
	return append(out, packed.Bytes()...)
}

func withCRC(m []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{mlCRC}, crc32.ChecksumIEEE(m)), m...)
}

func compound(parts ...[]byte) []byte {
	out := []byte{mlCompound, byte(len(parts))}
	for _, p := range parts {
		out = binary.BigEndian.AppendUint16(out, uint16(len(p)))
	}
	return append(out, bytes.Join(parts, nil)...)
}

// harmful are messages that no member sends.
func harmful() map[string][]byte {
	nested := append([]byte{mlPing, 0x81, 0xa1, 'x'}, bytes.Repeat([]byte{0x91}, 1<<10)...)
	return map[string][]byte{
		"empty":                   {},
		"a type alone":            {mlPing},
		"unknown type":            {200, 0x80},
		"sealed twice":            {sealedStream, 0, 0, 0, 0},
		"compressed":              compressed(16 << 20),
		"many nodes":              append([]byte{mlPushPull, 0x83, 0xa5}, "Nodes\xce\x00\x0f\xff\xff\xacUserStateLen\x00\xa4Join\xc2"...),
		"many nodes, signed":      append([]byte{mlPushPull, 0x82, 0xa5}, "Nodes\xd2\x00\x0f\xff\xff\xacUserStateLen\x00"...),
		"negative nodes":          append([]byte{mlPushPull, 0x82, 0xa5}, "Nodes\xff\xacUserStateLen\x00"...),
		"nodes twice":             append([]byte{mlPushPull, 0x82, 0xa5}, "Nodes\x00\xa5Nodes\xce\x00\x0f\xff\xff"...),
		"nodes as float":          append([]byte{mlPushPull, 0x81, 0xa5}, "Nodes\xcb\x41\x2e\x84\x80\x00\x00\x00\x00"...),
		"header as array":         {mlPushPull, 0x93, 0xce, 0x00, 0x0f, 0xff, 0xff, 0x00, 0xc2},
		"a state that is short":   append([]byte{mlPushPull, 0x82, 0xa5}, "Nodes\x00\xacUserStateLen\xce\x01\x00\x00\x00"...),
		"a message that is short": append([]byte{mlUser, 0x81, 0xaa}, "UserMsgLen\xce\x01\x00\x00\x00"...),
		"deep":                    nested,
		"a text that is short":    append([]byte{mlPing, 0x81, 0xa4}, "Node\xdb\xff\xff\xff\xff"...),
		"bytes that are short":    append([]byte{mlAlive, 0x81, 0xa4}, "Addr\xc6\xff\xff\xff\xff"...),
		"many fields":             {mlPing, 0xde, 0xff, 0xff},
		"incarnation as float":    append([]byte{mlDead, 0x81, 0xab}, "Incarnation\xcb\x41\xef\xff\xff\xff\xe0\x00\x00"...),
		"negative incarnation":    append([]byte{mlAlive, 0x81, 0xab}, "Incarnation\xff"...),
	}
}

// Whoever has the key may say what he likes: nothing ends the process, or makes
// it take much memory.
func TestHarmfulMessages(t *testing.T) {
	var lines logbook
	g, core, at := onLoopback(t, 1, &lines)
	soon(t, "it listens", func() bool { return g.Stats().Name != "" })
	seals := mustSealer(t, goodKey)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for name, m := range harmful() {
		for _, form := range [][]byte{m, withCRC(m), compound(m), withCRC(compound(m, m)), compound(compound(m))} {
			if name != "a message that is short" && checkPacket(form, nil) == nil {
				t.Errorf("%s passes as a packet: %x", name, form)
			}
			packet := seals.seal(nil, form, nil)
			sendTo(t, "udp", at, packet)
			packet[0] = 0 // the older format, with padding
			sendTo(t, "udp", at, packet)
		}
		if checkStream(m, nil) == nil {
			t.Errorf("%s passes in a stream", name)
		}
		for _, version := range []byte{sealVersion, 0, 2} {
			header := binary.BigEndian.AppendUint32([]byte{sealedStream}, uint32(len(m)+sealOverhead))
			stream := seals.seal(bytes.Clone(header), m, header)
			stream[streamHeader] = version
			sendTo(t, "tcp", at, stream)
		}
	}
	sendTo(t, "tcp", at, []byte{sealedStream, 0, 0, 0, 0})
	sendTo(t, "tcp", at, []byte{sealedStream, 0xff, 0xff, 0xff, 0xff})
	sendTo(t, "udp", at, make([]byte, 60000))
	runtime.ReadMemStats(&after)
	if grew := int64(after.TotalAlloc - before.TotalAlloc); grew > 32<<20 {
		t.Errorf("it took %d MiB", grew>>20)
	}

	g2, _, _ := onLoopback(t, 2, &lines, at.String())
	said := "198.51.100.3:51880"
	g2.SetEndpoints([]netip.AddrPort{netip.MustParseAddrPort(said)})
	soon(t, "it goes on", func() bool { return core.has(said) })
	if n := strings.Count(lines.String(), "level=WARN"); n > 3 {
		t.Errorf("%d lines:\n%s", n, lines.String())
	}
}

// Where packets get lost, memberlist probes by stream. Both sides let that pass.
func TestProbeByStream(t *testing.T) {
	var lines logbook
	g, _, at := onLoopback(t, 1, &lines)
	conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	sealed := &sealedConn{Conn: conn, seals: mustSealer(t, goodKey), say: newLimiter(slog.New(slog.DiscardHandler))}
	if _, err := sealed.Write(append([]byte{mlPing, 0x82}, "\xa5SeqNo\x07\xa4Node"+text(g.Stats().Name)...)); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(sealed); err != nil || len(answer) == 0 || answer[0] != mlAck {
		t.Errorf("answer is %x, %v", answer, err)
	}
}

// A name that is made up, with versions that nobody speaks, would keep memberlist
// from every exchange of tables.
func TestForeignVersions(t *testing.T) {
	for name, versions := range map[string]string{
		"newer":           "\x09\x09\x09\x00\x00\x00",
		"older":           "\x01\x01\x01\x00\x00\x00",
		"speaks another":  "\x01\x05\x03\x00\x00\x00",
		"of the delegate": "\x01\x05\x02\x01\x02\x01",
		"of both":         "\x09\x09\x09\x09\x09\x09",
	} {
		t.Run(name, func(t *testing.T) {
			var lines logbook
			g, core, at := onLoopback(t, 1, &lines)
			seals, nobody := mustSealer(t, goodKey), netip.MustParseAddrPort("127.0.0.1:9")
			sendTo(t, "udp", at, seals.seal(nil, alive(newName([20]byte{77}), nobody, versions), nil))
			// What comes later shows that the other was dealt with.
			sendTo(t, "udp", at, seals.seal(nil, alive(newName([20]byte{78}), nobody, "\x01\x05\x02\x00\x00\x00"), nil))
			soon(t, "a name comes up", func() bool { return len(g.Stats().Live) > 0 })
			if live := g.Stats().Live; len(live) != 1 || live[0] != (mesh.NodeID{78}) {
				t.Errorf("live: %v", live)
			}

			g2, _, _ := onLoopback(t, 2, &lines, at.String())
			g2.SetEndpoints([]netip.AddrPort{netip.MustParseAddrPort("198.51.100.3:51880")})
			soon(t, "tables are exchanged", func() bool { return core.has("198.51.100.3:51880") })
		})
	}
}

// alive is memberlist's message that a name is live.
func alive(name string, at netip.AddrPort, versions string) []byte {
	return append([]byte{mlAlive, 0x86},
		text("Node")+text(name)+text("Addr")+text(string(at.Addr().AsSlice()))+
			text("Port")+"\xcd"+string(binary.BigEndian.AppendUint16(nil, at.Port()))+
			text("Meta")+"\xc0"+text("Incarnation")+"\x01"+text("Vsn")+text(versions)...)
}

// text is a string in MessagePack.
func text(s string) string {
	return "\xda" + string(binary.BigEndian.AppendUint16(nil, uint16(len(s)))) + s
}

// sendTo sends something, and reads what comes back by stream until the end.
func sendTo(t *testing.T, network string, to netip.AddrPort, what []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, network, to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(what); err != nil {
		t.Fatal(err)
	}
	if stream, ok := conn.(*net.TCPConn); ok {
		_ = stream.CloseWrite()
		_ = stream.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.Copy(io.Discard, stream)
	}
}

func TestSeal(t *testing.T) {
	older, newer, foreign := bytes.Repeat([]byte{2}, 32), bytes.Repeat([]byte{3}, 32), bytes.Repeat([]byte{4}, 32)
	message, additional := []byte("message"), []byte("additional")
	ring := mustSealer(t, newer, older)
	for name, test := range map[string]struct {
		key    []byte
		change func([]byte) []byte
		with   []byte
		ok     bool
	}{
		"newer key":        {newer, nil, additional, true},
		"older key":        {older, nil, additional, true},
		"foreign key":      {foreign, nil, additional, false},
		"other additional": {newer, nil, nil, false},
		"cut":              {newer, func(b []byte) []byte { return b[:len(b)-1] }, additional, false},
		"nothing":          {newer, func([]byte) []byte { return nil }, additional, false},
		"a tag alone":      {newer, func(b []byte) []byte { return b[:sealOverhead] }, additional, false},
		"other version":    {newer, func(b []byte) []byte { b[0] = 0; return b }, additional, false},
		"a flipped bit":    {newer, func(b []byte) []byte { b[len(b)/2] ^= 1; return b }, additional, false},
	} {
		sealed := mustSealer(t, test.key).seal([]byte("before"), message, additional)
		sealed = sealed[len("before"):]
		if len(sealed) != len(message)+sealOverhead {
			t.Errorf("%s: %d bytes", name, len(sealed))
		}
		if test.change != nil {
			sealed = test.change(sealed)
		}
		got, _, err := ring.open(sealed, test.with)
		if (err == nil) != test.ok || test.ok && !bytes.Equal(got, message) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for _, keys := range [][][]byte{nil, {nil}, {newer[:31]}, {newer, {}}} {
		if _, err := newSealer(member.NewKeyring(keys...)); err == nil {
			t.Errorf("keys %x pass", keys)
		}
	}
}

func FuzzCheck(f *testing.F) {
	for _, m := range harmful() {
		f.Add(m[:min(len(m), 4<<10)])
		f.Add(compound(m[:min(len(m), 4<<10)]))
	}
	f.Fuzz(func(t *testing.T, m []byte) {
		if checkPacket(m, nil) == nil && len(m) == 0 || checkStream(m, nil) == nil && len(m) < 2 {
			t.Errorf("%x passes", m)
		}
		numbers := map[string]uint64{}
		if rest, ok := skipMap(m, numbers); ok && (len(rest) >= len(m) || len(numbers) > maxFields) {
			t.Errorf("of %x %x is left", m, rest)
		}
	})
}
