//go:build linux

package e2e

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	meshpkg "meshd/mesh"
	"meshd/mesh/statedir"
	"meshd/mesh/trust"
	"meshd/overlay/config"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/status"
)

// siege is a mesh of three, of which alpha is attacked, and a host that is no
// member.
type siege struct {
	c                  *cluster.Cluster
	alpha, beta, gamma *cluster.Node
	stranger           *lab.Host
	token              *trust.Token // for one more node
}

func besieged(t *testing.T) *siege {
	t.Helper()
	c := hosts(t, 4)
	s := &siege{c: c, alpha: c.Nodes[0], beta: c.Nodes[1], gamma: c.Nodes[2], stranger: c.Nodes[3].Host}
	c.Nodes = c.Nodes[:3]
	must(t, c.Init(t.Context()))
	text, err := s.alpha.Token(t.Context())
	must(t, err)
	s.token, err = trust.ParseToken(text)
	must(t, err)
	must(t, c.Start())
	must(t, c.WaitAllPairs(bounded(t)))
	watch(t, 2*time.Second) // until it is calm
	return s
}

// The bounds of an attack.
const (
	maxGrowth = 64 << 20 // of memory, in bytes
	maxLines  = 12       // of the log, of each node
	calmAgain = time.Second
	maxMore   = 4 // descriptors, at last: it may try whom it was told of, two at a time
)

// attack does something to alpha while pings flow through it and past it. few is
// which part of them may be lost; of those between the others none may.
func (s *siege) attack(t *testing.T, few float64, do func(ctx context.Context)) {
	t.Helper()
	nodes := []*cluster.Node{s.alpha, s.beta, s.gamma}
	before := map[*cluster.Node]cluster.Usage{}
	lines, leases := map[*cluster.Node]int{}, map[*cluster.Node]string{}
	for _, n := range nodes {
		u, err := n.Usage()
		must(t, err)
		before[n], lines[n], leases[n] = u, strings.Count(n.Log(), "\n"), lease(document(t, n))
	}
	through := pings(t, s.beta, s.alpha)
	defer through.Stop()
	past := pings(t, s.beta, s.gamma)
	defer past.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()

	var peak [3]atomic.Int64
	watching, stopWatching := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for tick := time.NewTicker(50 * time.Millisecond); watching.Err() == nil; <-tick.C {
			for i, n := range nodes {
				if u, err := n.Usage(); err == nil {
					peak[i].Store(max(peak[i].Load(), int64(u.RSS-before[n].RSS)))
				}
			}
		}
	})
	begin := time.Now()
	do(ctx)
	wait(ctx, 500*time.Millisecond-time.Since(begin)) // for some pings
	end := time.Now()
	stopWatching()
	watcher.Wait()

	after, err := through.Flows(bounded(t), end)
	must(t, err)
	_, err = past.Flows(bounded(t), end)
	must(t, err)
	lost, sent := through.Lost(end)
	lostPast, sentPast := past.Lost(end)
	t.Logf("%s; pings lost: %d of %d through it, %d of %d past it; they flow again after %s; memory grew by %d, %d and %d MiB",
		end.Sub(begin).Round(time.Millisecond), lost, sent, lostPast, sentPast, after.Round(time.Millisecond),
		peak[0].Load()>>20, peak[1].Load()>>20, peak[2].Load()>>20)
	if float64(lost) > few*float64(sent)+1 || sent < 5 {
		t.Errorf("of %d pings through it %d got lost", sent, lost)
	}
	if float64(lostPast) > few*float64(sentPast)/2+1 {
		t.Errorf("of %d pings past it %d got lost", sentPast, lostPast)
	}
	if after > calmAgain {
		t.Errorf("pings flow %s after the end", after)
	}
	asked := time.Now()
	ask, stop := context.WithTimeout(t.Context(), calmAgain)
	defer stop()
	if _, err := s.alpha.Document(ask); err != nil {
		t.Errorf("it does not answer within %s after the end: %v", time.Since(asked), err)
	}
	for i, n := range nodes {
		if grew := peak[i].Load(); grew > maxGrowth {
			t.Errorf("%s grew by %d MiB", n.Name, grew>>20)
		}
		log := strings.Split(n.Log(), "\n")
		if more := log[lines[n]:]; len(more)-1 > maxLines {
			t.Errorf("%s logged %d lines:\n%s", n.Name, len(more)-1, strings.Join(more[:maxLines], "\n"))
		}
		if err := cluster.Poll(bounded(t), func() (bool, error) {
			u, err := n.Usage()
			return err == nil && u.Descriptors <= before[n].Descriptors+maxMore, fmt.Errorf("%d descriptors, and %d before", u.Descriptors, before[n].Descriptors)
		}); err != nil {
			t.Errorf("%s: %v", n.Name, err)
		}
		must(t, n.WaitReady(bounded(t))) // it is not for a moment, whenever something is applied
		if d := document(t, n); lease(d) != leases[n] {
			t.Errorf("%s has %s, and had %s", n.Name, lease(d), leases[n])
		}
	}
	// They still hear each other: whatever is new gets round.
	must(t, cluster.WaitPairs(bounded(t), nodes...))
}

func pings(t *testing.T, from, to *cluster.Node) *lab.Pings {
	t.Helper()
	p, err := from.Host.Pings(t.Context(), addresses(t, to)[0], 20*time.Millisecond)
	must(t, err)
	return p
}

// Whoever ever had a token has the gossip key. That is good for a hearing, and
// for nothing else.
func TestFloodByInsider(t *testing.T) {
	s := besieged(t)
	i := newInsider(t, s.stranger, s.token, s.alpha)
	other := newInsider(t, s.stranger, s.token, s.beta)
	peers := func() int { return len(document(t, s.alpha).Peers) }
	known := peers()
	send := func(t *testing.T, messages [][]byte, how func(*insider, []byte) error) func(context.Context) {
		return func(ctx context.Context) {
			for n, m := range messages {
				to := i
				if n%4 == 3 {
					to = other
				}
				if err := how(to, m); err != nil {
					t.Error(err)
					return
				}
				if ctx.Err() != nil {
					t.Logf("after %s %d of %d are sent", soon, n, len(messages))
					return // enough is enough
				}
			}
		}
	}
	packet := func(i *insider, m []byte) error { return i.packet(m) }
	stream := func(i *insider, m []byte) error { return i.stream(t.Context(), m) }
	messages := func(n int, make func() []byte) (all [][]byte) {
		for range n {
			all = append(all, make())
		}
		return all
	}

	t.Run("junk objects", func(t *testing.T) {
		s.attack(t, 0, send(t, messages(10_000, func() []byte { return userPacket(objectsMessage(random(900))) }), packet))
	})
	t.Run("records without a certificate", func(t *testing.T) {
		s.attack(t, 0, send(t, messages(10_000, func() []byte { return userPacket(objectsMessage(orphan(t))) }), packet))
	})
	t.Run("certificates that nobody admits", func(t *testing.T) {
		var all [][]byte
		late := shortToken(t, s.alpha, s.token, 6*time.Second)
		for range 1000 {
			certificate, record := unadmitted(t, late)
			all = append(all, userStream(objectsMessage(certificate)), userPacket(objectsMessage(record)))
		}
		watch(t, time.Until(late.Credential.NotAfter.Add(1500*time.Millisecond)))
		s.attack(t, 0, send(t, all, func(i *insider, m []byte) error {
			if len(m) > 1300 || m[1] == 0x81 {
				return i.stream(t.Context(), m)
			}
			return i.packet(m)
		}))
	})
	t.Run("whole tables of junk", func(t *testing.T) {
		table := pushPull(nil, stateMessage(instanceName(), junkObjects(2000, 1000)...))
		s.attack(t, 0, send(t, messages(40, func() []byte { return table }), stream))
	})
	t.Run("tables of tiny objects", func(t *testing.T) {
		table := pushPull(nil, stateMessage(instanceName(), junkObjects(16<<10, 1)...))
		s.attack(t, 0, send(t, messages(40, func() []byte { return table }), stream))
	})
	t.Run("huge objects", func(t *testing.T) {
		message := userStream(objectsMessage(junkObjects(100, trust.MaxObject)...))
		s.attack(t, 0, send(t, messages(100, func() []byte { return message }), stream))
	})
	t.Run("wants", func(t *testing.T) {
		s.attack(t, 0, send(t, messages(10_000, func() []byte { return userPacket(wantMessage(instanceName(), 32)) }), packet))
	})
	t.Run("names that nobody has", func(t *testing.T) {
		at := netip.AddrPortFrom(netip.MustParseAddr("198.18.0.250"), gossipPort)
		s.attack(t, 0, send(t, messages(10_000, func() []byte { return alive(instanceName(), at) }), packet))
		list := messages(5000, func() []byte { return listedNode(instanceName(), at) })
		s.attack(t, 0, send(t, messages(10, func() []byte { return pushPull(list, stateMessage(instanceName())) }), stream))
	})
	t.Run("what would harm", func(t *testing.T) {
		harm := [][]byte{
			{}, {0}, {6}, {9, 0x80}, {10, 0, 0, 0, 29},
			append([]byte{6, 0x83}, bytes.Join([][]byte{field("Nodes", number(1<<20)), field("UserStateLen", number(20<<20)), field("Join", []byte{0xc2})}, nil)...),
			append([]byte{8, 0x81}, field("UserMsgLen", number(20<<20))...),
		}
		var all [][]byte
		for range 50 {
			all = append(all, harm...)
		}
		s.attack(t, 0, send(t, all, stream))
		s.attack(t, 0, send(t, all, packet))
	})
	t.Run("versions that nobody speaks", func(t *testing.T) {
		at := netip.AddrPortFrom(netip.MustParseAddr("198.18.0.250"), gossipPort)
		s.attack(t, 0, send(t, messages(50, func() []byte {
			return bytes.Replace(alive(instanceName(), at), []byte(versions), []byte("\x09\x09\x09\x09\x09\x09"), 1)
		}), packet))
		// Whoever starts still gets the table.
		must(t, s.gamma.Stop(bounded(t)))
		must(t, s.gamma.Start())
		must(t, cluster.WaitPairs(bounded(t), s.alpha, s.beta, s.gamma))
	})
	if now := peers(); now != known {
		t.Errorf("alpha had %d peers and has %d", known, now)
	}
}

// More connections than anybody needs.
func TestFloodOfConnections(t *testing.T) {
	s := besieged(t)
	const connections = 1000
	gossip := netip.AddrPortFrom(s.alpha.Host.IPv4, gossipPort).String()
	web := fmt.Sprintf("127.0.0.1:%d", config.DefaultHTTPPort)
	for name, target := range map[string]struct {
		dial func(ctx context.Context) (net.Conn, error)
		half []byte // the beginning of what belongs there
	}{
		"control socket": {func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", s.alpha.Socket())
		}, []byte("GET /v1/status HTTP/1.1\r\nHost: x\r\n")},
		"HTTP": {func(ctx context.Context) (net.Conn, error) {
			return s.alpha.Host.Dial(ctx, "tcp", web)
		}, []byte("GET /metrics HTTP/1.1\r\nHost: x\r\n")},
		"gossip": {func(ctx context.Context) (net.Conn, error) {
			return s.stranger.Dial(ctx, "tcp", gossip)
		}, append([]byte{10, 0, 0x20, 0, 0}, random(1000)...)},
	} {
		for manner, use := range map[string]func(ctx context.Context, conn net.Conn){
			"held open": func(context.Context, net.Conn) {},
			"half sent": func(_ context.Context, conn net.Conn) { _, _ = conn.Write(target.half) },
			"slow": func(ctx context.Context, conn net.Conn) {
				for n := 0; n < len(target.half) && ctx.Err() == nil; n++ {
					if _, err := conn.Write(target.half[n : n+1]); err != nil {
						return
					}
					wait(ctx, 100*time.Millisecond)
				}
			},
		} {
			t.Run(name+" "+manner, func(t *testing.T) {
				s.attack(t, 0, func(ctx context.Context) {
					ctx, cancel := context.WithCancel(ctx)
					var users sync.WaitGroup
					defer users.Wait()
					defer cancel()
					refused := 0
					for range connections {
						one, stop := context.WithTimeout(ctx, 2*time.Second)
						conn, err := target.dial(one)
						stop()
						if err != nil {
							refused++ // so much the better
							continue
						}
						defer conn.Close()
						users.Go(func() { use(ctx, conn) })
					}
					watch(t, time.Second)
					t.Logf("%d connections, %d refused", connections, refused)
					if u, err := s.alpha.Usage(); err != nil || u.Descriptors > 500 {
						t.Errorf("alpha holds %d descriptors, %v", u.Descriptors, err)
					}
				})
			})
		}
	}
}

// 100 000 packets of junk a second, as far as this machine gets, to each port.
func TestFloodOfPackets(t *testing.T) {
	s := besieged(t)
	const seconds, perSecond = 3, 100_000
	for name, target := range map[string]struct {
		port  uint16
		first func() byte // of each packet
	}{
		"tunnel": {tunnelPort, func() byte { return random(1)[0]%4 + 1 }},
		"gossip": {gossipPort, func() byte { return 1 }},
	} {
		t.Run(name, func(t *testing.T) {
			var sent atomic.Int64
			s.attack(t, 0.3, func(ctx context.Context) {
				ctx, cancel := context.WithTimeout(ctx, seconds*time.Second)
				defer cancel()
				var senders sync.WaitGroup
				for range 2 {
					conn, err := s.stranger.Dial(ctx, "udp", netip.AddrPortFrom(s.alpha.Host.IPv4, target.port).String())
					must(t, err)
					senders.Go(func() {
						defer conn.Close()
						junk := random(148) // a handshake's size
						junk[0], junk[1], junk[2], junk[3] = target.first(), 0, 0, 0
						begin := time.Now()
						for n := 0; ctx.Err() == nil; n++ {
							if n%64 == 0 { // half of the rate each
								wait(ctx, time.Until(begin.Add(time.Duration(n)*time.Second*2/perSecond)))
							}
							if _, err := conn.Write(junk); err == nil {
								sent.Add(1)
							}
						}
					})
				}
				senders.Wait()
			})
			t.Logf("%d packets a second", sent.Load()/seconds)
		})
	}
}

// A daemon that may open no more files forwards on, and is well when it may.
func TestOutOfDescriptors(t *testing.T) {
	s := besieged(t)
	pid := s.alpha.Process().Pid()
	u, err := s.alpha.Usage()
	must(t, err)
	var old unix.Rlimit
	must(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &old))
	s.attack(t, 0, func(ctx context.Context) {
		// Descriptors have the lowest free numbers, so these are all.
		must(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(u.Descriptors), Max: old.Max}, nil))
		defer func() { must(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &old, nil)) }()
		var held []net.Conn
		defer func() {
			for _, c := range held {
				c.Close()
			}
		}()
		for range 50 {
			if c, err := s.stranger.Dial(ctx, "tcp", netip.AddrPortFrom(s.alpha.Host.IPv4, gossipPort).String()); err == nil {
				held = append(held, c)
			}
			if c, err := new(net.Dialer).DialContext(ctx, "unix", s.alpha.Socket()); err == nil {
				held = append(held, c)
			}
		}
		watch(t, 4*time.Second)
	})
	if now := s.alpha.Process().Pid(); now != pid {
		t.Errorf("it was %d and is %d", pid, now)
	}
	must(t, s.alpha.WaitFor(bounded(t), "to be well", func(d *status.Document) bool { return len(d.Health) == 0 }))
	must(t, s.alpha.Stop(bounded(t)))
	must(t, s.alpha.Start())
	must(t, s.alpha.WaitReady(bounded(t)))
}

// Names, labels and all other words of members are plain. What is not never gets
// to a terminal or a log, whoever signed it.
func TestEvilWords(t *testing.T) {
	s := besieged(t)
	i := newInsider(t, s.stranger, s.token, s.alpha)
	_, identity, err := ed25519.GenerateKey(nil)
	must(t, err)
	made, err := s.token.Certify(identity.Public().(ed25519.PublicKey), meshpkg.Key(random(32)), "good", time.Now())
	must(t, err)
	named := func(name string) []byte {
		return forged(t, made.Raw, "meshd v1 certificate\x00", s.token.Key, func(b map[uint64]any) { b[3] = name })
	}
	good, err := trust.ParseCertificate(named("evil"), s.token.Charter.CA)
	must(t, err)
	words := []string{"\x1b[31mevil\x1b[0m", "evil\nlevel=ERROR msg=owned", "evil\r", "\u202elive", "evil\x00", "\u009b31m", "ev\u200bil", strings.Repeat("e", 300)}
	var objects [][]byte
	for _, w := range append(words, "EVIL") { // good for a label
		objects = append(objects, named(w))
	}
	// One that is good, to be admitted; then its records lie.
	must(t, i.stream(t.Context(), userStream(objectsMessage(good.Raw))))
	must(t, s.beta.WaitFor(bounded(t), "to know the node", func(d *status.Document) bool { return peer(d, "evil") != nil }))
	record := recordOf(t, identity, good.Hash)
	for n, w := range words {
		for _, change := range []func(map[uint64]any){
			func(b map[uint64]any) { b[8] = map[string]string{"site": w} },
			func(b map[uint64]any) { b[8] = map[string]string{w: "fra"} },
			func(b map[uint64]any) { b[9] = []string{w} },
			func(b map[uint64]any) { b[10] = []string{w} },
			func(b map[uint64]any) { b[6] = []any{[]byte(w)} },
			func(b map[uint64]any) {
				b[7] = []any{map[uint64]any{1: w, 2: []any{}, 3: 1, 4: 1, 5: 1}}
			},
		} {
			objects = append(objects, forged(t, record, "meshd v1 record\x00", identity, func(b map[uint64]any) {
				b[2] = uint64(100 + n)
				change(b)
			}))
		}
	}
	for _, o := range objects {
		must(t, i.stream(t.Context(), userStream(objectsMessage(o))))
		must(t, i.stream(t.Context(), pushPull(nil, stateMessage(instanceName(), o))))
	}
	for _, w := range words {
		must(t, i.packet(alive(w, netip.AddrPortFrom(i.host.IPv4, gossipPort))))
		must(t, i.stream(t.Context(), append([]byte{0, 0x81}, field("Node", text(w))...))) // a ping for that name
		must(t, i.stream(t.Context(), append([]byte{13, 0x81}, field("Error", text(w))...)))
		must(t, i.stream(t.Context(), pushPull(nil, stateMessage(w))))
		must(t, i.packet(userPacket(append(wantMessage(w, 1), 0)[:40])))
	}
	// One with plain words, which is older than all those, is taken: they were not.
	plain := forged(t, record, "meshd v1 record\x00", identity, func(b map[uint64]any) {
		b[2], b[8] = uint64(99), map[string]string{"site": "fra"}
	})
	must(t, i.stream(t.Context(), userStream(objectsMessage(plain))))
	must(t, s.alpha.WaitFor(bounded(t), "to take a good record", func(d *status.Document) bool {
		p := peer(d, "evil")
		return p != nil && p.Labels["site"] == "fra"
	}))

	for _, n := range []*cluster.Node{s.alpha, s.beta, s.gamma} {
		for _, args := range [][]string{{"status"}, {"status", "-o", "wide"}, {"status", "-o", "json"}, {"status", "-o", "yaml"}} {
			out, _ := n.Meshctl(t.Context(), args...) // its exit code tells of the node that does not answer
			if out == "" {
				t.Errorf("meshctl %v on %s says nothing", args, n.Name)
			}
			checkPlain(t, fmt.Sprint("meshctl ", args, " on ", n.Name), out, words)
		}
		checkPlain(t, "log of "+n.Name, n.Log(), words)
		if lines := strings.Count(n.Log(), "refused"); lines > 3 {
			t.Errorf("%s logged %d refusals", n.Name, lines)
		}
	}
}

// checkPlain looks for what could fool a terminal or who reads a log.
func checkPlain(t *testing.T, what, text string, words []string) {
	t.Helper()
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if at := strings.IndexFunc(line, func(r rune) bool { return r > unicode.MaxASCII || r < ' ' }); at >= 0 {
			t.Errorf("%s has %q", what, line)
		}
		if strings.HasPrefix(line, "level=") {
			t.Errorf("%s has a forged line: %q", what, line)
		}
	}
	for _, w := range words {
		if strings.Contains(text, w) {
			t.Errorf("%s has %q", what, w)
		}
	}
}

// State and tokens of another mesh do not fit.
func TestForeignStateAndToken(t *testing.T) {
	c := hosts(t, 3)
	alpha, beta, gamma := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	for _, n := range []*cluster.Node{alpha, beta} {
		_, err := n.Meshctl(t.Context(), "init", "--name", "lab")
		must(t, err)
	}
	token, err := alpha.Token(t.Context())
	must(t, err)
	// beta's own CA makes no tokens for alpha's mesh.
	ca := filepath.Join(beta.Dir, "ca.key")
	if _, err := alpha.Meshctl(t.Context(), "token", "create", "--ca", ca); exitCode(err) != 65 || !strings.Contains(err.Error(), "another mesh") {
		t.Errorf("token create with another CA: %v", err)
	}
	// Whoever is a member joins no other mesh.
	before := remember(t, beta.StateDir())
	if err := beta.Join(t.Context(), token); exitCode(err) != 65 {
		t.Errorf("join by a member: %v", err)
	}
	if remember(t, beta.StateDir()) != before {
		t.Error("that changed its state")
	}
	// A node with the membership of one mesh and the gossip key of another one
	// hears nobody, and harms nobody.
	must(t, gamma.Join(t.Context(), token))
	dir, err := statedir.Open(gamma.StateDir())
	must(t, err)
	other, err := statedir.Open(beta.StateDir())
	must(t, err)
	m := dir.Membership()
	m.Charter = other.Membership().Charter
	must(t, dir.SaveMembership(m))
	if out, code := daemon(t, gamma); code != 65 || !strings.Contains(out, filepath.Join(gamma.StateDir(), "mesh")) {
		t.Errorf("with the charter of another mesh it exits %d: %s", code, out)
	}
}
