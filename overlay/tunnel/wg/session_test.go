package wg

import (
	"crypto/ecdh"
	"encoding/binary"
	"net/netip"
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
				if index, ok := Receiver(a.Packet); ok {
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
