package native

import (
	"net/netip"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/overlay/tunnel"
	"meshd/overlay/tunnel/wg"
	"meshd/overlay/udp"
)

// What goes out in copies goes where the peer was heard since; else it tries all places.
func TestCopiesGoWhereThePeerIsHeard(t *testing.T) {
	first, second := netip.MustParseAddrPort("198.51.100.1:1"), netip.MustParseAddrPort("198.51.100.2:2")
	initiation := make([]byte, 148)
	initiation[0] = 1
	for _, heard := range []bool{true, false} {
		m, err := wg.New(wg.Config{PrivateKey: [32]byte{1}})
		if err != nil {
			t.Fatal(err)
		}
		c, p, moved := &control{Engine: &Engine{}, machine: m}, &peer{}, false
		p.configure(tunnel.Peer{Endpoints: []netip.AddrPort{first, second}}, nil)
		for try := range 5 {
			if heard {
				p.rx.Add(100)
			}
			c.sendTo(p, wg.Send{Packet: initiation, Copies: min(try+1, 4)})
			moved = moved || p.endpoint() != first
		}
		if moved == heard {
			t.Errorf("heard %v: has it gone to another endpoint: %v", heard, moved)
		}
	}
}

// An initiation that is refused, since somebody repeats an old one, makes us begin a
// handshake; from which of our addresses is not for him to say.
func TestRefusedMessageMovesNothing(t *testing.T) {
	key := func(b byte) (k [32]byte) { k[0], k[31] = b, 64; return k }
	a, err := wg.New(wg.Config{PrivateKey: key(8)})
	if err != nil {
		t.Fatal(err)
	}
	b, err := wg.New(wg.Config{PrivateKey: key(16)})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	initiate := func(at time.Time) (h handshake) {
		if _, err := a.SetPeers(at, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := a.SetPeers(at, []wg.Peer{{Key: b.PublicKey(), Suite: wg.ChaCha20Poly1305}}); err != nil {
			t.Fatal(err)
		}
		for _, action := range a.Want(at, b.PublicKey()) {
			if s, ok := action.(wg.Send); ok {
				h.size = copy(h.message[:], s.Packet)
			}
		}
		if h.size == 0 {
			t.Fatal("no initiation")
		}
		return h
	}
	old, young := initiate(now.Add(-20*time.Second)), initiate(now.Add(-10*time.Second))

	if _, err := b.SetPeers(now, []wg.Peer{{Key: a.PublicKey(), Suite: wg.ChaCha20Poly1305}}); err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort("198.51.100.1:1")
	mine := udp.Source{Addr: netip.MustParseAddr("192.0.2.1")}
	p := &peer{}
	p.moveTo(at)
	c := &control{Engine: &Engine{}, machine: b, byKey: map[mesh.Key]*peer{a.PublicKey(): p}}
	young.from, young.local = at, mine
	c.shake(young)
	if got := p.path.Load().local; got != mine {
		t.Fatalf("it answers from %v, want %v", got, mine)
	}
	for _, h := range []handshake{old, young} {
		h.from, h.local = at, udp.Source{Addr: netip.MustParseAddr("10.9.9.9")}
		c.shake(h)
		if got := p.path.Load().local; got != mine {
			t.Errorf("it speaks from %v after what was repeated, want %v", got, mine)
		}
	}
}
