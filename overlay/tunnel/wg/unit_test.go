package wg

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"meshd/mesh"
)

// naive is the window in the simplest way.
type naive struct {
	seen map[uint64]bool
	last uint64
}

func (n *naive) accept(counter uint64) bool {
	if counter < n.last && n.last-counter > windowSize || n.seen[counter] {
		return false
	}
	n.seen[counter] = true
	n.last = max(n.last, counter)
	return true
}

func TestWindow(t *testing.T) {
	if windowSize < 8192 {
		t.Errorf("a window of %d bits", windowSize)
	}
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 0))
		w, n := &window{}, &naive{seen: map[uint64]bool{}}
		var next uint64
		for i := range 20000 {
			switch r.IntN(100) {
			case 0:
				next += r.Uint64N(3 * windowSize) // jumps, also beyond the window
			case 1:
				next += 64 * (r.Uint64N(4) + windowWords - 2)
			default:
				next++
			}
			counter := next
			if r.IntN(3) == 0 {
				counter -= min(counter, r.Uint64N(windowSize+200))
			}
			if got, want := w.accept(counter), n.accept(counter); got != want {
				t.Fatalf("seed %d, step %d: counter %d of %d: accepted %t, want %t", seed, i, counter, n.last, got, want)
			}
		}
	}
}

func FuzzWindow(f *testing.F) {
	f.Add([]byte{1, 0, 1, 0, 0, 0, 255, 255, 0, 64})
	f.Fuzz(func(t *testing.T, moves []byte) {
		w, n := &window{}, &naive{seen: map[uint64]bool{}}
		at := uint64(1 << 20)
		for ; len(moves) >= 2; moves = moves[2:] {
			at += uint64(int64(int8(moves[0])) * int64(moves[1])) // to and fro
			if got, want := w.accept(at), n.accept(at); got != want {
				t.Fatalf("counter %d of %d: accepted %t, want %t", at, n.last, got, want)
			}
		}
	})
}

func TestSession(t *testing.T) {
	for _, suite := range bothSuites {
		t.Run(suite.String(), func(t *testing.T) {
			a, b := sessions(t, suite, start)
			seal := func(s *Session, packet string) []byte {
				t.Helper()
				counter, ok := s.Reserve(1)
				if !ok {
					t.Fatal("nothing to reserve")
				}
				return s.Seal(make([]byte, 0, len(packet)+Overhead), counter, []byte(packet))
			}
			good := seal(a, "packet")
			if got, err := b.Open(bytes.Clone(good)); err != nil || string(got) != "packet" {
				t.Errorf("opened %q, %v", got, err)
			}
			if _, err := b.Open(bytes.Clone(good)); !errors.Is(err, ErrReplay) {
				t.Errorf("the same again: %v", err)
			}
			for bit := range len(good) * 8 {
				bad := seal(a, "packet")
				bad[bit/8] ^= 1 << (bit % 8)
				if got, err := b.Open(bad); err == nil {
					t.Fatalf("with bit %d turned: opened %q", bit, got)
				}
			}
			for n := range len(good) {
				if _, err := b.Open(bytes.Clone(good[:n])); err == nil {
					t.Fatalf("opened %d bytes of %d", n, len(good))
				}
			}
			if _, err := a.Open(seal(a, "to itself")); err == nil {
				t.Error("opened its own message")
			}

			// Order does not matter, and a forgery before the message neither.
			var train [][]byte
			for range 100 {
				train = append(train, seal(b, "other way"))
			}
			for i := range train {
				d := train[(i*37)%100]
				bad := bytes.Clone(d)
				bad[len(bad)-1] ^= 1
				if _, err := a.Open(bad); !errors.Is(err, ErrForged) {
					t.Errorf("forged: %v", err)
				}
				if _, err := a.Open(d); err != nil {
					t.Errorf("message %d: %v", i, err)
				}
			}

			// A train in one buffer.
			first, _ := a.Reserve(3)
			buffer := a.Seal(make([]byte, 0, 200), first, []byte("one"))
			one := len(buffer)
			buffer = a.SealPadded(buffer, first+1, []byte("two"), 16)
			two := len(buffer)
			buffer = a.Seal(buffer, first+2, nil)
			for i, d := range [][]byte{buffer[:one:one], buffer[one:two:two], buffer[two:]} {
				want := []string{"one", "two" + strings.Repeat("\x00", 13), ""}[i]
				if got, err := b.Open(d); err != nil || string(got) != want {
					t.Errorf("part %d of a train: %q, %v, want %q", i, got, err, want)
				}
			}
		})
	}
}

func TestPadded(t *testing.T) {
	for _, c := range [][3]int{{0, 1420, 0}, {1, 1420, 16}, {16, 1420, 16}, {17, 1420, 32}, {1408, 1420, 1408}, {1409, 1420, 1420}, {1420, 1420, 1420}, {1500, 1420, 1500}} {
		if got := Padded(c[0], c[1]); got != c[2] {
			t.Errorf("%d bytes at an MTU of %d become %d, want %d", c[0], c[1], got, c[2])
		}
	}
}

func TestSessionEnds(t *testing.T) {
	a, b := sessions(t, ChaCha20Poly1305, start)
	if !a.Alive(start.Add(RejectAfter-1)) || a.Alive(start.Add(RejectAfter)) {
		t.Error("lives too short or too long")
	}
	for _, c := range []struct {
		after time.Duration
		due   bool
	}{{0, false}, {RekeyAfter - 1, false}, {RekeyAfter, true}} {
		if got := a.NoteSent(start.Add(c.after), true); got != c.due {
			t.Errorf("after %s another session is due: %t", c.after, got)
		}
		if b.NoteSent(start.Add(c.after), true) {
			t.Errorf("after %s the responder wants another session", c.after)
		}
	}
	if a.NoteSent(start.Add(RekeyAfter+time.Second/2), true) || !a.NoteSent(start.Add(RekeyAfter+time.Second), true) {
		t.Error("told other than once a second")
	}

	// Messages run out.
	b.counter.Store(b.suite.rekeyMessages)
	if !b.NoteSent(start, true) {
		t.Error("many messages make no session due")
	}
	b.counter.Store(rejectMessages - 10)
	if first, ok := b.Reserve(10); !ok || first != rejectMessages-10 {
		t.Errorf("the last ten: %d, %t", first, ok)
	}
	for range 10000 {
		if _, ok := b.Reserve(64); ok {
			t.Fatal("more than the last")
		}
	}
	sealed := b.Seal(make([]byte, 0, 100), rejectMessages, nil)
	if _, err := a.Open(sealed); !errors.Is(err, ErrReplay) {
		t.Errorf("a counter beyond the last: %v", err)
	}
	a.ended.Store(true)
	if _, ok := a.Reserve(1); ok || a.Alive(start) {
		t.Error("an ended session is used")
	}
	if _, err := a.Open(b.Seal(make([]byte, 0, 100), 0, nil)); !errors.Is(err, ErrEnded) {
		t.Errorf("open after the end: %v", err)
	}
}

// Several workers use one session, while the machine works on its peer. The race
// detector looks; each message must be opened exactly once.
func TestSessionOfManyWorkers(t *testing.T) {
	w := newWorld(t)
	a, b := w.pair(Peer{})
	a.send(b, "first")
	w.run(time.Second)
	s := a.peers[b.machine.PublicKey()].session
	r := b.peers[a.machine.PublicKey()].session
	const workers, trains, size = 4, 50, 8
	var wg sync.WaitGroup
	opened := make([]int, workers)
	counters := make([][]uint64, workers)
	for i := range workers {
		wg.Go(func() {
			now := w.now.Add(time.Duration(i) * time.Microsecond)
			for range trains {
				first, ok := s.Reserve(size)
				if !ok {
					t.Error("nothing to reserve")
					return
				}
				for j := range uint64(size) {
					counters[i] = append(counters[i], first+j)
					d := s.Seal(make([]byte, 0, 100), first+j, []byte("packet"))
					index, _ := Receiver(d)
					found := b.machine.Table().Lookup(index)
					if found != r {
						t.Errorf("index %x is of %p", index, found)
						return
					}
					for range 2 {
						if _, err := found.Open(bytes.Clone(d)); err == nil {
							opened[i]++
						}
					}
				}
				s.NoteSent(now, true)
				r.NoteReceived(now, true, netip.AddrPortFrom(a.addr.Addr(), uint16(i)))
			}
		})
	}
	for i := range 200 {
		for _, h := range w.hosts {
			h.machine.Step(w.now.Add(time.Duration(i) * time.Microsecond))
			h.machine.Next()
		}
	}
	// Other peers come and go, and the table grows under the readers.
	peers := []Peer{a.peers[b.machine.PublicKey()].peer}
	for i := range 100 {
		_, public := keyPair(t, byte(100+i))
		peers = append(peers, Peer{Key: public, Suite: ChaCha20Poly1305})
	}
	if _, err := a.machine.SetPeers(w.now, peers); err != nil {
		t.Error(err)
	}
	for _, p := range peers {
		a.machine.Want(w.now, p.Key)
	}
	wg.Wait()
	total, all := 0, slices.Concat(counters...)
	for _, n := range opened {
		total += n
	}
	if total != workers*trains*size {
		t.Errorf("%d messages were opened, want %d", total, workers*trains*size)
	}
	slices.Sort(all)
	if len(slices.Compact(all)) != workers*trains*size {
		t.Error("a counter was given twice")
	}
}

func TestTable(t *testing.T) {
	table, r := newTable(), rand.New(rand.NewPCG(1, 2))
	owners := make([]*peer, 3)
	for i := range owners {
		owners[i] = &peer{}
	}
	have := map[uint32]*Session{}
	for step := range 20000 {
		if len(have) < 2000 && r.IntN(5) < 3 {
			owner := owners[step%3]
			s := &Session{local: table.reserve(owner, &counting{r.Uint64()})}
			if s.local == 0 || have[s.local] != nil || table.Lookup(s.local) != nil || table.peer(s.local) != owner {
				t.Fatalf("step %d: index %x", step, s.local)
			}
			table.put(s)
			have[s.local] = s
			continue
		}
		for index := range have {
			table.release(index)
			table.release(index) // nothing
			if table.Lookup(index) != nil || table.peer(index) != nil {
				t.Fatalf("step %d: index %x is there after its release", step, index)
			}
			delete(have, index)
			break
		}
	}
	for index, s := range have {
		if table.Lookup(index) != s || table.Lookup(index^1<<31) != nil {
			t.Errorf("index %x gives another session", index)
		}
	}
	if table.used != len(have) || table.Lookup(0) != nil || table.peer(0) != nil {
		t.Errorf("%d indices in use, want %d", table.used, len(have))
	}
	// A source that always says the same, also zero, gives different indices.
	table = newTable()
	for i := range 1000 {
		index := table.reserve(owners[0], zeros{})
		if table.peer(index) != owners[0] || table.used != i+1 {
			t.Fatalf("index %x", index)
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestStamps(t *testing.T) {
	var last stamp
	given := func(s *stamps, now time.Time) bool {
		t.Helper()
		st, save := s.next(now)
		if !st.after(last) {
			t.Fatalf("at %s: %x is not after %x", now, st, last)
		}
		if s.saved.Before(s.last) {
			t.Fatalf("%s was given, %s is saved", s.last, s.saved)
		}
		last = st
		return save
	}
	// TAI64N of a known moment, as wireguard-go writes it.
	if got, want := stampOf(coarse(time.Unix(1700000000, 999999999))), (stamp{0x40, 0, 0, 0, 0x65, 0x53, 0xf1, 0x0a, 0x3b}); got != want {
		t.Errorf("stamp %x, want %x", got, want)
	}
	s, now, saves := &stamps{}, start, 0
	for range 1000 {
		if given(s, now) {
			saves++
		}
		now = now.Add(time.Second)
	}
	if saves < 15 || saves > 18 {
		t.Errorf("%d saves in 1000 s", saves)
	}
	// A thousand at the same time, then the clock goes back, then restarts.
	for range 1000 {
		given(s, now)
	}
	now = now.Add(-10 * time.Hour)
	for range 1000 {
		given(s, now)
	}
	for range 100 {
		s = &stamps{last: s.saved, saved: s.saved}
		given(s, now)
	}
	// Restarts drive the stamps ahead of the clock by a second each, not more.
	s = &stamps{}
	last = stamp{}
	for range 60 {
		given(s, now)
		s = &stamps{last: s.saved, saved: s.saved}
	}
	if ahead := s.saved.Sub(now); ahead > reserve+65*time.Second {
		t.Errorf("after 60 restarts the stamps are %s ahead", ahead)
	}
}

func TestLimiter(t *testing.T) {
	l := limiter{buckets: map[netip.Addr]bucket{}}
	host := netip.MustParseAddr("2001:db8::1")
	count := func(now time.Time, addr netip.Addr) (n int) {
		for range 100 {
			if l.allow(now, addr) {
				n++
			}
		}
		return n
	}
	now := start
	if n := count(now, host); n != 5 {
		t.Errorf("a burst of %d, want 5", n)
	}
	if n := count(now, netip.MustParseAddr("2001:db8::2")); n != 0 {
		t.Errorf("another address of the host is allowed %d", n)
	}
	if n := count(now, netip.MustParseAddr("192.0.2.1")); n != 5 {
		t.Errorf("another host is allowed %d", n)
	}
	now = now.Add(100 * time.Millisecond)
	if n := count(now, host); n != 2 {
		t.Errorf("%d within 100 ms, want 2", n)
	}
	if n := count(now.Add(-time.Hour), host); n != 5 {
		t.Errorf("after the clock went back: %d, want 5", n)
	}
	// Many hosts: bounded, and as soon as they are quiet there is room.
	now = now.Add(time.Hour)
	allowed := 0
	for i := range 3 * maxBuckets {
		if l.allow(now, netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})) {
			allowed++
		}
	}
	if len(l.buckets) > maxBuckets || allowed > maxBuckets {
		t.Errorf("%d buckets, %d allowed", len(l.buckets), allowed)
	}
	if !l.allow(now.Add(2*time.Second), host) {
		t.Error("no room after 2 s")
	}
}

func TestSetPeersRefuses(t *testing.T) {
	private, public := keyPair(t, 1)
	_, other := keyPair(t, 2)
	m, err := New(Config{PrivateKey: private})
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.SetPeers(start, []Peer{
		{Key: other, Suite: ChaCha20Poly1305},
		{Key: other, Suite: AES256GCM},
		{Key: public, Suite: ChaCha20Poly1305},
		{Key: mesh.Key{}, Suite: ChaCha20Poly1305},
		{Key: mesh.Key{9}},
	})
	for _, want := range []string{"is there twice", "that is this end", "not a public key", "suite(0) is not a suite"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q: %v", want, err)
		}
	}
	if len(m.order) != 1 || m.Want(start, other) == nil {
		t.Error("the peer that can be one is not")
	}
	if m.Want(start, public) != nil {
		t.Error("a handshake with nobody")
	}
}

// A limit on initiations: those of one peer follow each other at floodGap.
func TestFlood(t *testing.T) {
	ours, public := keyPair(t, 1)
	theirs, peer := keyPair(t, 2)
	m, err := New(Config{PrivateKey: ours})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.SetPeers(start, []Peer{{Key: peer, Suite: ChaCha20Poly1305}}); err != nil {
		t.Fatal(err)
	}
	now, taken := start, 0
	for i := range 100 {
		now = now.Add(5 * time.Millisecond)
		// Each is new, and from a machine that does not limit itself.
		e, err := New(Config{PrivateKey: theirs, LastStamp: now.Add(time.Duration(i) * stampStep)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.SetPeers(now, []Peer{{Key: public, Suite: ChaCha20Poly1305}}); err != nil {
			t.Fatal(err)
		}
		for _, a := range e.Want(now, public) {
			if a, ok := a.(Send); ok {
				_, err := m.Receive(now, a.Packet, netip.AddrPort{})
				if err == nil {
					taken++
				} else if !errors.Is(err, ErrFlood) {
					t.Fatal(err)
				}
			}
		}
	}
	if taken != 25 {
		t.Errorf("%d initiations were taken in 500 ms, want 25", taken)
	}
	if used := m.table.used; used != 1 {
		t.Errorf("they hold %d indices, want 1", used)
	}
}

func TestParseSuite(t *testing.T) {
	for _, s := range bothSuites {
		if got, err := ParseSuite(s.String()); got != s || err != nil {
			t.Errorf("%s is read as %s, %v", s, got, err)
		}
	}
	for _, name := range []string{"", "suite(0)", "AES256GCM"} {
		if got, err := ParseSuite(name); err == nil {
			t.Errorf("%q is read as %s", name, got)
		}
	}
}

// What the owner gave comes back where workers and people look for it.
func TestOwnersData(t *testing.T) {
	w := newWorld(t)
	a, b := w.pair(Peer{Handle: "mine"})
	a.send(b, "first")
	w.run(time.Second)
	s := a.peers[b.machine.PublicKey()].session
	if s.Handle() != "mine" || s.Peer() != b.machine.PublicKey() || !s.Created().Equal(start.Add(20*time.Millisecond)) {
		t.Errorf("session of %s, %v, %s", s.Peer(), s.Handle(), s.Created())
	}
	if !a.machine.Stamp().Equal(coarse(start)) {
		t.Errorf("stamp %s, want %s", a.machine.Stamp(), coarse(start))
	}

	// Another keepalive changes nothing else; another handle ends the session.
	r := a.peers[b.machine.PublicKey()]
	r.peer.Keepalive = time.Minute
	a.setPeers()
	if r.session != s || !s.Alive(w.now) {
		t.Error("another keepalive has ended the session")
	}
	r.peer.Handle = "yours"
	a.setPeers()
	if r.session != nil || s.Alive(w.now) {
		t.Error("another handle has not ended the session")
	}
}

// The owner sends to another address; what comes from the old one is news again.
func TestSetEndpoint(t *testing.T) {
	a, b := sessions(t, ChaCha20Poly1305, start)
	home, away := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2")
	if !a.NoteReceived(start, true, home) || a.NoteReceived(start, true, home) {
		t.Error("the first address is no news, or twice")
	}
	if !a.NoteReceived(start, true, away) {
		t.Error("another address is no news")
	}
	private, _ := keyPair(t, 1)
	m, err := New(Config{PrivateKey: private})
	if err != nil {
		t.Fatal(err)
	}
	key := a.Peer()
	if _, err := m.SetPeers(start, []Peer{{Key: key, Suite: ChaCha20Poly1305}}); err != nil {
		t.Fatal(err)
	}
	p := m.peers[key]
	moved := func() (to []netip.AddrPort) {
		for _, a := range m.Step(start) {
			if a, ok := a.(Move); ok {
				to = append(to, a.Endpoint)
			}
		}
		return to
	}
	p.activity.moveTo(home)
	if got := moved(); !slices.Equal(got, []netip.AddrPort{home}) {
		t.Errorf("moved to %s, want %s", got, home)
	}
	m.SetEndpoint(key, away)
	m.SetEndpoint(b.Peer(), away) // no peer
	if got := moved(); got != nil {
		t.Errorf("the owner's own choice is a move to %s", got)
	}
	p.activity.moveTo(home)
	if got := moved(); !slices.Equal(got, []netip.AddrPort{home}) {
		t.Errorf("moved to %s, want %s again", got, home)
	}
}

// What is refused, and why.
func TestRefused(t *testing.T) {
	from := netip.MustParseAddrPort("192.0.2.66:66")
	for _, suite := range bothSuites {
		t.Run(suite.String(), func(t *testing.T) {
			x := newFuzzed(t, suite)
			now := start.Add(RekeyAfter + time.Minute)
			other := newFuzzed(t, suite)
			for m, key := range map[*Machine]mesh.Key{other.a: other.b.PublicKey(), other.b: other.a.PublicKey()} {
				if _, err := m.SetPeers(start, []Peer{{Key: key, Suite: 3 - suite}}); err != nil {
					t.Fatal(err)
				}
			}
			refuse := func(m *Machine, message []byte) error {
				_, err := m.Receive(now, message, from)
				return err
			}
			old, fresh, answer, cookie := x.messages[0], x.messages[1], x.messages[2], x.messages[3]
			index := func(message []byte, at int) []byte {
				message = bytes.Clone(message)
				message[at]++
				forger := signer{macKeys: macKeysOf(x.b.PublicKey())}
				if len(message) != cookieReplySize {
					forger.sign(now, message)
				}
				return message
			}
			mac := bytes.Clone(fresh)
			mac[116] ^= 1
			for _, c := range []struct {
				name    string
				m       *Machine
				message []byte
				want    error
			}{
				{"nothing", x.b, nil, ErrMalformed},
				{"transport message", x.b, x.messages[4], ErrMalformed},
				{"cut", x.b, fresh[:147], ErrMalformed},
				{"reserved bytes", x.b, append([]byte{fresh[0], 1}, fresh[2:]...), ErrMalformed},
				{"MAC", x.b, mac, ErrMAC},
				{"for another", x.a, fresh, ErrMAC},
				{"seen", x.b, old, ErrReplay},
				{"other suite", other.b, fresh, ErrSuite},
				{"response to nothing", x.b, index(answer, 8), ErrUnknown},
				{"response to nothing, other suite", other.b, answer, ErrUnknown},
				{"cookie for nothing", x.b, index(cookie, 4), ErrUnknown},
				{"forged cookie", x.b, index(cookie, 63), ErrForged},
				{"cookie", x.b, cookie, nil},
				{"cookie again", x.b, cookie, ErrUnknown},
				{"response", x.b, answer, nil},
				{"response again", x.b, answer, ErrUnknown},
				{"initiation", x.b, fresh, nil},
				{"initiation again", x.b, fresh, ErrReplay},
			} {
				if err := refuse(c.m, c.message); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
					t.Errorf("%s: %v, want %v", c.name, err, c.want)
				}
			}
			if _, err := x.b.SetPeers(now, nil); err != nil {
				t.Fatal(err)
			}
			if err := refuse(x.b, fresh); !errors.Is(err, ErrUnknown) {
				t.Errorf("initiation of nobody: %v", err)
			}
			if x.b.table.used != 0 {
				t.Errorf("%d indices without a peer", x.b.table.used)
			}
		})
	}
}

// A worker has heard from the initiator, and the next initiation is quicker than
// Step: the session that is in use must not be taken for one that never was.
func TestConfirmedBeforeStep(t *testing.T) {
	for _, suite := range bothSuites {
		x := newFuzzed(t, suite)
		keepalive, fresh := x.messages[4], x.messages[1]
		if _, err := x.session.Open(keepalive); err != nil {
			t.Fatal(err)
		}
		now := start.Add(RekeyAfter)
		if !x.session.NoteReceived(now, false, netip.AddrPort{}) {
			t.Error("the first message of a session is no news")
		}
		actions, err := x.b.Receive(now, fresh, netip.AddrPort{})
		if err != nil {
			t.Fatal(err)
		}
		used := slices.ContainsFunc(actions, func(a Action) bool { u, ok := a.(Use); return ok && u.Session == x.session })
		if !used || !x.session.Alive(now) || x.b.Table().Lookup(x.session.local) != x.session {
			t.Errorf("%s: the session is used: %t, alive: %t", suite, used, x.session.Alive(now))
		}
	}
}
