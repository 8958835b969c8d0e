package wg

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
)

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
				{"copy of the last one", x.b, old, ErrCopy},
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
				{"initiation again", x.b, fresh, ErrCopy},
				{"seen, and another since", x.b, old, ErrReplay},
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

// Who has sent data has the response: a copy of its initiation is a replay, even before
// Step knows that the session is used.
func TestCopyAfterData(t *testing.T) {
	for _, suite := range bothSuites {
		x := newFuzzed(t, suite)
		initiation, keepalive := x.messages[0], x.messages[4]
		if _, err := x.b.Receive(start, initiation, netip.AddrPort{}); !errors.Is(err, ErrCopy) {
			t.Errorf("%s: copy before data: %v, want %v", suite, err, ErrCopy)
		}
		if _, err := x.session.Open(keepalive); err != nil {
			t.Fatal(err)
		}
		x.session.NoteReceived(start, false, netip.AddrPort{})
		if actions, err := x.b.Receive(start, initiation, netip.AddrPort{}); !errors.Is(err, ErrReplay) || len(actions) > 0 {
			t.Errorf("%s: copy after data: %v and %v, want %v", suite, err, actions, ErrReplay)
		}
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

// Workers may receive something right after Next was asked: by then the machine
// must look again, before that is due to be answered.
func TestNextIsSoonEnough(t *testing.T) {
	x := newFuzzed(t, ChaCha20Poly1305)
	if _, err := x.session.Open(x.messages[4]); err != nil {
		t.Fatal(err)
	}
	x.session.NoteReceived(start.Add(RekeyTry), false, netip.AddrPort{})
	now := start.Add(RekeyTry)
	x.b.Step(now)
	next, ok := x.b.Next()
	if !ok || next.After(now.Add(KeepAlive)) {
		t.Fatalf("to be looked at after %s, %t", next.Sub(now), ok)
	}
	got := now.Add(early + time.Nanosecond) // what came before that is answered now
	x.session.NoteReceived(got, true, netip.AddrPort{})
	x.b.Step(next)
	if next, _ := x.b.Next(); !next.Equal(got.Add(KeepAlive)) {
		t.Errorf("a keepalive is due after %s", next.Sub(got))
	}
}

// What came shortly before the end of a session is not answered after it.
func TestNothingOwedAfterTheEnd(t *testing.T) {
	w := newWorld(t)
	a, b := w.pair(Peer{})
	a.send(b, "first")
	w.run(RekeyAfter - time.Second)
	w.lose = func(from, _ *host, _ string) bool { return from == b }
	b.boot()
	s := a.peers[b.machine.PublicKey()].session
	w.run(RejectAfter - w.now.Sub(s.Created()) - time.Second)
	s.NoteReceived(w.now, true, netip.AddrPort{})
	w.run(5 * time.Minute) // fails if a machine does not rest
	if at, ok := a.machine.Next(); ok {
		t.Errorf("something is due after %s", at.Sub(w.now))
	}
}

// What is kept to answer a copy of an initiation goes with its session, whose keys
// nothing may keep, and with its peer.
func TestAnsweredEndsWithItsSession(t *testing.T) {
	for _, c := range []struct {
		name string
		ends func(w *world, b *host)
	}{
		{"too old", func(w *world, _ *host) { w.run(RejectAfter + time.Minute) }},
		{"peer removed", func(w *world, b *host) {
			if _, err := b.machine.SetPeers(w.now, nil); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			a, b := w.pair(Peer{})
			a.send(b, "first")
			w.run(time.Second)
			kept := &b.machine.answered
			if s := b.remote(a).session; s == nil || kept.session != s {
				t.Fatal("it is not kept as long as the session is used")
			}
			c.ends(w, b)
			if kept.session != nil || kept.peer != nil || kept.response != nil {
				t.Error("it is still there")
			}
		})
	}
}

// An owner that looks late has too much to do: it repeats an initiation once, not in
// copies, and rests before the next. When it is in time again all is as usual.
func TestLateRepetitionRests(t *testing.T) {
	private, _ := keyPair(t, 1)
	_, other := keyPair(t, 2)
	m, err := New(Config{PrivateKey: private})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.SetPeers(start, []Peer{{Key: other, Suite: ChaCha20Poly1305}}); err != nil {
		t.Fatal(err)
	}
	m.Want(start, other)
	for _, c := range []struct {
		late   time.Duration
		copies int
		pause  time.Duration
	}{
		{patience, 2, 2 * firstTry},
		{patience + time.Second, 1, 4*firstTry + lateRest*time.Second},
		{time.Minute / 2, 1, RekeyTry + longestRest},
		{0, maxCopies, RekeyTry},
	} {
		next, _ := m.Next()
		now := next.Add(c.late)
		var sent []Send
		for _, a := range m.Step(now) {
			if s, ok := a.(Send); ok {
				sent = append(sent, s)
			}
		}
		if len(sent) != 1 || sent[0].Copies != c.copies {
			t.Errorf("%s late: %d initiations go out, want one in %d copies", c.late, len(sent), c.copies)
		}
		if next, _ := m.Next(); next.Sub(now) < c.pause || next.Sub(now) > c.pause+maxJitter {
			t.Errorf("%s late: the next is due after %s, want %s", c.late, next.Sub(now), c.pause)
		}
	}
}
