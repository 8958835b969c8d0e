package wg

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

var bothSuites = []Suite{ChaCha20Poly1305, AES256GCM}

// One train: reserve, seal each packet, note.
func BenchmarkSeal(b *testing.B) {
	for _, suite := range bothSuites {
		for _, size := range []int{64, 1420} {
			b.Run(fmt.Sprint(suite, "/", size), func(b *testing.B) {
				s, _ := sessions(b, suite, start)
				packet, train := make([]byte, size), make([]byte, 0, 32*(size+Overhead))
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for n := 0; b.Loop(); n++ {
					if n%32 == 0 {
						train = train[:0]
						s.NoteSent(start, true)
					}
					first, _ := s.Reserve(1)
					train = s.Seal(train, first, packet)
				}
			})
		}
	}
}

// Open consumes its datagram, so it is copied first: 0.04 ns per byte are not its.
func BenchmarkOpen(b *testing.B) {
	for _, suite := range bothSuites {
		for _, size := range []int{64, 1420} {
			b.Run(fmt.Sprint(suite, "/", size), func(b *testing.B) {
				s, r := sessions(b, suite, start)
				const many = 1024
				var sealed [many][]byte
				seal := func() {
					for i := range sealed {
						first, _ := s.Reserve(1)
						sealed[i] = s.Seal(sealed[i][:0], first, make([]byte, size))
					}
				}
				for i := range sealed {
					sealed[i] = make([]byte, 0, size+Overhead)
				}
				seal()
				datagram := make([]byte, size+Overhead)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for n := 0; b.Loop(); n++ {
					copy(datagram, sealed[n%many])
					// From the second round on it is a replay, which is known last.
					if _, err := r.Open(datagram); err != nil && !errors.Is(err, ErrReplay) {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// What a handshake costs its initiator and its responder, but for the secret of
// both static keys, which is made once.
func BenchmarkHandshake(b *testing.B) {
	ours, public := keyPair(b, 1)
	theirs, peer := keyPair(b, 2)
	for _, suite := range bothSuites {
		make2 := func(b *testing.B) (m, r *Machine) {
			m, err1 := New(Config{PrivateKey: ours})
			r, err2 := New(Config{PrivateKey: theirs})
			_, err3 := m.SetPeers(start, []Peer{{Key: peer, Suite: suite}})
			_, err4 := r.SetPeers(start, []Peer{{Key: public, Suite: suite}})
			if err := errors.Join(err1, err2, err3, err4); err != nil {
				b.Fatal(err)
			}
			return m, r
		}
		b.Run(suite.String()+"/initiation", func(b *testing.B) {
			m, _ := make2(b)
			for b.Loop() {
				m.order[0].initiate(start)
				m.flush()
			}
		})
		b.Run(suite.String()+"/response", func(b *testing.B) {
			m, r := make2(b)
			m.order[0].initiate(start)
			actions := m.flush()
			msg := actions[len(actions)-1].(Send).Packet
			for b.Loop() {
				p := r.order[0]
				p.latest, p.heard = stamp{}, time.Time{} // as if it were a new one
				if _, err := r.Receive(start, msg, netip.AddrPort{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// What does not know the key is refused early.
func BenchmarkJunk(b *testing.B) {
	private, _ := keyPair(b, 1)
	m, err := New(Config{PrivateKey: private})
	if err != nil {
		b.Fatal(err)
	}
	junk := make([]byte, 148)
	junk[0] = 1
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.Receive(start, junk, netip.AddrPort{}); !errors.Is(err, ErrMAC) {
			b.Fatal(err)
		}
	}
}

// Nothing that a worker calls per packet or per train allocates.
func TestNoAllocations(t *testing.T) {
	from := netip.MustParseAddrPort("192.0.2.1:51820")
	for _, suite := range bothSuites {
		t.Run(suite.String(), func(t *testing.T) {
			s, r := sessions(t, suite, start)
			packet, train := make([]byte, 1420), make([]byte, 0, 4*1500)
			now := start
			got := testing.AllocsPerRun(1000, func() {
				now = now.Add(time.Millisecond)
				first, ok := s.Reserve(3)
				if !ok || !s.Alive(now) {
					t.Fatal("session ended")
				}
				train = s.Seal(train[:0], first, packet)
				one := len(train)
				train = s.Seal(train, first+1, packet)
				train = s.SealPadded(train, first+2, packet[:100], Padded(100, 1420))
				s.NoteSent(now, true)
				for _, d := range [][]byte{train[:one], train[one : 2*one], train[2*one:]} {
					if _, ok := SessionIndex(d); !ok {
						t.Fatal("not a transport message")
					}
					if _, err := r.Open(d); err != nil {
						t.Fatal(err)
					}
				}
				r.NoteReceived(now, true, from)
			})
			if got != 0 {
				t.Errorf("%.2f allocations per train", got)
			}
		})
	}
}
