package gossip

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"meshd/mesh"
	"meshd/mesh/member"
	"meshd/mesh/trust"
)

// logbook collects log lines. It is safe for concurrent use.
type logbook struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (l *logbook) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logbook) lines() []string { return strings.Split(strings.TrimSpace(l.String()), "\n") }

// talker believes everything and says its endpoints.
type talker struct {
	mu    sync.Mutex
	heard map[string]bool
	out   [][]byte
}

func (c *talker) Receive(raw []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard[string(raw)] = true
	return nil
}

func (c *talker) SetEndpoints(e []netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out = append(c.out, []byte(e[0].String()))
}

func (c *talker) Step(time.Time) member.Output {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := member.Output{Broadcast: c.out}
	c.out = nil
	return out
}

func (c *talker) has(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.heard[text]
}

func (c *talker) Synced()                         {}
func (c *talker) OtherKey(bool)                   {}
func (c *talker) Asked(uint64)                    {}
func (c *talker) Leave(time.Time)                 {}
func (c *talker) Slept(time.Time, time.Duration)  {}
func (c *talker) Jumped(time.Time, time.Duration) {}
func (c *talker) Use(time.Time, []string) error   { return nil }
func (c *talker) SetInUse([]string)               {}
func (c *talker) Next() (time.Time, bool)         { return time.Time{}, false }
func (c *talker) Table() [][]byte                 { return nil }
func (c *talker) Lookup(...trust.Hash) [][]byte   { return nil }
func (c *talker) Settled() []trust.Hash           { return nil }

type nowhere struct{}

func (nowhere) SaveCharter([]byte) error         { return nil }
func (nowhere) SaveState(member.State) error     { return nil }
func (nowhere) SaveTable([][]byte) error         { return nil }
func (nowhere) SavePeers([]netip.AddrPort) error { return nil }
func (nowhere) SaveKeyring(member.Keyring) error { return nil }
func (nowhere) SaveCertificate([]byte) error     { return nil }
func (nowhere) Check() error                     { return nil }

// onLoopback runs a gossip on real sockets until the test ends.
func onLoopback(t *testing.T, n byte, log *logbook, seeds ...string) (*Gossip, *talker, netip.AddrPort) {
	t.Helper()
	c := &talker{heard: map[string]bool{}}
	g, err := New(Options{
		Core: c, Store: nowhere{}, Self: mesh.NodeID{n}, Keyring: member.NewKeyring(bytes.Repeat([]byte{1}, 32)),
		Bind: netip.MustParseAddrPort("127.0.0.1:0"), Seeds: seeds, Log: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	soon(t, "it listens", func() bool { return g.Stats().Address.IsValid() })
	return g, c, g.Stats().Address
}

// soon waits, on the real clock.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !ok() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("never: %s", what)
		}
	}
}

func ignoreMemberlist() goleak.Option {
	// A probe in flight outlives Shutdown by up to its interval.
	return goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode")
}

func TestOnSockets(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t, goleak.IgnoreCurrent(), ignoreMemberlist()) })
	var log logbook
	g1, _, at := onLoopback(t, 1, &log)
	g2, c2, _ := onLoopback(t, 2, &log, at.String())
	g3, c3, _ := onLoopback(t, 3, &log, at.String())
	for _, g := range []*Gossip{g1, g2, g3} {
		soon(t, "all see two others", func() bool { return len(g.Stats().Live) == 2 })
	}
	said := "198.51.100.1:51880"
	g1.SetEndpoints([]netip.AddrPort{netip.MustParseAddrPort(said)})
	soon(t, "both hear it", func() bool { return c2.has(said) && c3.has(said) })

	// A move to another name of the same sockets: nobody can take the port.
	moved := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), at.Port())
	name := g1.Stats().Name
	g1.SetAddress(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.9"), at.Port()))
	soon(t, "it moves away", func() bool { return g1.Stats().Name != name })
	g1.SetAddress(moved)
	soon(t, "it moves back", func() bool { s := g1.Stats(); return s.Address == moved && len(s.Live) == 2 })
	said = "198.51.100.1:51881"
	g1.SetEndpoints([]netip.AddrPort{netip.MustParseAddrPort(said)})
	soon(t, "both hear it after the moves", func() bool { return c2.has(said) && c3.has(said) })
}

func TestJunkOnBothPorts(t *testing.T) {
	var log logbook
	g1, c1, at := onLoopback(t, 1, &log)
	random := rand.NewChaCha8([32]byte{1})
	junk := func(n int) []byte {
		b := make([]byte, n)
		_, _ = random.Read(b)
		return b
	}
	packets, err := net.Dial("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	for i := range 1000 {
		// Refused or lost datagrams are as good as any.
		_, _ = packets.Write(junk(i % 1400))
	}
	for i := range 2 * strangerStreams {
		stream, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		if i%2 == 0 {
			_, _ = stream.Write(junk(1000)) // the others stay idle
		}
	}
	g2, c2, _ := onLoopback(t, 2, &log, at.String())
	_ = g2
	said := "198.51.100.1:51880"
	soon(t, "members still meet", func() bool { return len(g1.Stats().Live) == 1 })
	g1.SetEndpoints([]netip.AddrPort{netip.MustParseAddrPort(said)})
	soon(t, "and talk", func() bool { return c2.has(said) })
	if len(c1.heard) > 0 {
		t.Errorf("junk was taken for %d objects", len(c1.heard))
	}
	warnings := 0
	for _, line := range log.lines() {
		if strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") {
			warnings++
		}
	}
	if warnings != 1 {
		t.Errorf("%d lines were logged, want one:\n%s", warnings, strings.Join(log.lines(), "\n"))
	}
}

func TestNobodyAnswers(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = gone.Close()
	var log logbook
	onLoopback(t, 1, &log, gone.Addr().String())
	soon(t, "that is logged", func() bool { return strings.Contains(strings.Join(log.lines(), "\n"), "no member answers yet") })
	if line := log.lines()[0]; !strings.Contains(line, gone.Addr().String()) || strings.Contains(line, `\n`) {
		t.Errorf("logged %s", line)
	}
}

func TestPortInUse(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			var taken string
			if network == "tcp" {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				taken = l.Addr().String()
			} else {
				l, err := net.ListenPacket("udp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				taken = l.LocalAddr().String()
			}
			g, err := New(Options{
				Core: &talker{}, Store: nowhere{}, Self: mesh.NodeID{1}, Keyring: member.NewKeyring(make([]byte, 32)), Bind: netip.MustParseAddrPort(taken),
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := g.Run(t.Context()); !errors.Is(err, ErrPortInUse) || !strings.Contains(err.Error(), taken) {
				t.Errorf("Run: %v", err)
			}
		})
	}
}

func TestListenOnAllAddresses(t *testing.T) {
	for _, bind := range []string{"0.0.0.0:0", "[::]:0"} {
		s, err := listen(netip.MustParseAddrPort(bind))
		if errors.Is(err, os.ErrPermission) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		conn, err := net.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.port()).String())
		if err != nil {
			t.Errorf("%s: %v", bind, err)
			continue
		}
		_ = conn.Close()
	}
}

func TestBadKeys(t *testing.T) {
	for _, keys := range [][][]byte{nil, {{}}, {make([]byte, 32), make([]byte, 31)}} {
		if _, err := New(Options{Keyring: member.NewKeyring(keys...)}); err == nil {
			t.Errorf("keys %x are accepted", keys)
		}
	}
}

func TestSeeds(t *testing.T) {
	for seed, ok := range map[string]bool{
		"192.0.2.1:51881": true, "[2001:db8::1]:51881": true,
		"192.0.2.1": false, ":51881": false, "192.0.2.1:0": false, "192.0.2.1:70000": false, "": false,
	} {
		got, err := resolve(t.Context(), seed)
		if ok != (err == nil && len(got) == 1 && got[0].String() == seed) {
			t.Errorf("seed %q is %s, %v", seed, got, err)
		}
	}
}

func TestMemberlistLines(t *testing.T) {
	var log logbook
	out := newLines(newLimiter(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))))
	for range 100 {
		out.Printf("[ERR] memberlist: failed to receive: EOF from=192.0.2.1:1")
		out.Printf("[WARN] memberlist: Got ping for unexpected node x from=192.0.2.1:1")
		out.Printf("[DEBUG] memberlist: Stream connection from=192.0.2.1:1")
	}
	if lines := log.lines(); len(lines) != 1 || !strings.Contains(lines[0], "level=DEBUG") {
		t.Errorf("logged:\n%s", strings.Join(lines, "\n"))
	}
}

// A stream that ends early is one of a member that was killed. Others are junk,
// which is told once.
func TestJunkIsTold(t *testing.T) {
	var log logbook
	_, _, at := onLoopback(t, 1, &log)
	sealed := func(key byte) []byte {
		header := binary.BigEndian.AppendUint32([]byte{sealedStream}, uint32(1+sealOverhead))
		return mustSealer(t, bytes.Repeat([]byte{key}, 32)).seal(bytes.Clone(header), []byte{mlPing}, header)
	}
	warnings := func() int { return strings.Count(log.String(), "level=WARN") }
	for _, cut := range []int{0, 3, streamHeader, 20} {
		sendTo(t, "tcp", at, sealed(1)[:cut])
	}
	if warnings() != 0 {
		t.Errorf("logged:\n%s", log.String())
	}
	for range 10 {
		sendTo(t, "tcp", at, sealed(1))
		sendTo(t, "tcp", at, sealed(2))
		sendTo(t, "udp", at, []byte("junk"))
		sendTo(t, "tcp", at, []byte("GET / HTTP/1.1\r\n\r\n"))
	}
	if text := log.String(); warnings() != 1 || !strings.Contains(text, "junk on the gossip port") {
		t.Errorf("logged:\n%s", text)
	}
}
