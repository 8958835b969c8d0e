package wg

import (
	"bytes"
	"crypto/ecdh"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"meshd/mesh"
)

func keyPair(tb testing.TB, seed byte) (private [32]byte, public mesh.Key) {
	tb.Helper()
	binary.LittleEndian.PutUint32(private[:], uint32(seed)*0x01010101)
	k, err := ecdh.X25519().NewPrivateKey(private[:])
	if err != nil {
		tb.Fatal(err)
	}
	return private, mesh.Key(k.PublicKey().Bytes())
}

// sessions gives both ends of a session, made at that time.
func sessions(tb testing.TB, suite Suite, at time.Time) (initiator, responder *Session) {
	tb.Helper()
	var ends [2]*Machine
	var keys [2]mesh.Key
	var used [2]*Session
	for i := range ends {
		private, public := keyPair(tb, byte(i+1))
		m, err := New(Config{PrivateKey: private, Rand: &counting{uint64(i)}})
		if err != nil {
			tb.Fatal(err)
		}
		ends[i], keys[i] = m, public
	}
	for i, m := range ends {
		if _, err := m.SetPeers(at, []Peer{{Key: keys[1-i], Suite: suite}}); err != nil {
			tb.Fatal(err)
		}
	}
	var do func(i int, actions []Action)
	do = func(i int, actions []Action) {
		for _, a := range actions {
			switch a := a.(type) {
			case Use:
				used[i] = a.Session
			case Send:
				if index, ok := SessionIndex(a.Packet); ok {
					s := ends[1-i].Table().Lookup(index)
					if _, err := s.Open(a.Packet); err != nil {
						tb.Fatal(err)
					}
					s.NoteReceived(at, false, netip.AddrPort{})
					do(1-i, ends[1-i].Step(at))
					continue
				}
				more, err := ends[1-i].Receive(at, a.Packet, netip.AddrPort{})
				if err != nil {
					tb.Fatal(err)
				}
				do(1-i, more)
			}
		}
	}
	do(0, ends[0].Want(at, keys[1]))
	if used[0] == nil || used[1] == nil {
		tb.Fatalf("no session: %v", used)
	}
	return used[0], used[1]
}

func TestFirstContact(t *testing.T) {
	for _, suite := range []Suite{ChaCha20Poly1305, AES256GCM} {
		t.Run(suite.String(), func(t *testing.T) {
			a, b := sessions(t, suite, start)
			for i, pair := range [][2]*Session{{a, b}, {b, a}} {
				first, ok := pair[0].Reserve(2)
				if !ok {
					t.Fatal("nothing to reserve")
				}
				sealed := pair[0].Seal(room(100), first, []byte("hello"))
				got, err := pair[1].Open(sealed)
				if err != nil || string(got) != "hello" {
					t.Errorf("%d: opened %q, %v", i, got, err)
				}
			}
		})
	}
}

func room(n int) []byte { return make([]byte, 0, n) }

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
	b.counter.Store(sendMessages - 10)
	if first, ok := b.Reserve(10); !ok || first != sendMessages-10 {
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
					index, _ := SessionIndex(d)
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
