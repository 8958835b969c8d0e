package native

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/overlay/tunnel"
	"meshd/overlay/tunnel/wg"
	"meshd/overlay/udp"
)

func prefixes(s string) (out []netip.Prefix) {
	for p := range strings.FieldsSeq(s) {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func endpoints(s string) (out []netip.AddrPort) {
	for ep := range strings.FieldsSeq(s) {
		out = append(out, netip.MustParseAddrPort(ep))
	}
	return out
}

func TestStaged(t *testing.T) {
	var p peer
	packet := make([]byte, 4)
	for i := range maxStaged + 10 {
		copy(packet, fmt.Sprintf("%04d", i)) // what is staged is a copy
		// Four a second: every fourth asks for a session.
		s, dropped, ask := p.stage(packet, time.Unix(1000, 0).Add(time.Duration(i)*askEvery/4))
		if want := i >= maxStaged; s != nil || dropped != want || ask != (i%4 == 0) {
			t.Fatalf("packet %d: session %v, dropped %v, asks %v; want none, %v, %v", i, s, dropped, ask, want, i%4 == 0)
		}
	}
	if n := len(p.staged.packets); n != maxStaged {
		t.Fatalf("%d packets wait, want %d", n, maxStaged)
	}
	for i, got := range p.staged.packets {
		if want := fmt.Sprintf("%04d", i+10); string(got) != want {
			t.Errorf("packet %d is %q, want %q: the newest, in order", i, got, want)
		}
	}
	if n := p.giveUp(); n != maxStaged {
		t.Errorf("gave up %d packets, want %d", n, maxStaged)
	}
	if n := p.giveUp(); n != 0 {
		t.Errorf("gave up %d packets of none", n)
	}
}

// A packet that takes the place of another takes its memory, whatever their sizes.
func TestStagedSizes(t *testing.T) {
	var s staged
	for i := range 3 * maxStaged {
		s.add(bytes.Repeat([]byte{byte(i)}, 1+i*37%100))
	}
	for i, got := range s.packets {
		n := 2*maxStaged + i
		if want := bytes.Repeat([]byte{byte(n)}, 1+n*37%100); !bytes.Equal(got, want) {
			t.Errorf("packet %d is %x, want %x", i, got, want)
		}
	}
}

func TestFloodOfStagedAllocatesNothing(t *testing.T) {
	var s staged
	packet := make([]byte, 1400)
	for range maxStaged {
		s.add(packet)
	}
	if n := testing.AllocsPerRun(1000, func() { s.add(packet) }); n != 0 {
		t.Errorf("%v allocations for a packet beyond the bound", n)
	}
}

func TestNextEndpoint(t *testing.T) {
	const learned, none = "192.0.2.9:9", "none"
	for _, c := range []struct{ candidates, at, turn string }{
		{"", "", none},
		{"", learned, learned},
		{"192.0.2.1:1", "", "192.0.2.1:1"},
		{"192.0.2.1:1", "192.0.2.1:1", "192.0.2.1:1"},
		{"192.0.2.1:1 192.0.2.2:2 192.0.2.3:3", "192.0.2.1:1", "192.0.2.2:2 192.0.2.3:3 192.0.2.1:1"},
		{"192.0.2.1:1 192.0.2.2:2", learned, "192.0.2.1:1 192.0.2.2:2 " + learned + " 192.0.2.1:1"},
	} {
		p := &peer{config: tunnel.Peer{Endpoints: endpoints(c.candidates)}}
		if c.at != "" {
			p.moveTo(netip.MustParseAddrPort(c.at))
		}
		var turn []string
		for range max(1, len(strings.Fields(c.turn))) {
			at := p.next()
			p.moveTo(at)
			if at.IsValid() {
				turn = append(turn, at.String())
			} else {
				turn = append(turn, none)
			}
		}
		if got := strings.Join(turn, " "); got != c.turn {
			t.Errorf("from %q of %q: %s, want %s", c.at, c.candidates, got, c.turn)
		}
		if !slices.Equal(p.config.Endpoints, endpoints(c.candidates)) {
			t.Errorf("the candidates became %v", p.config.Endpoints)
		}
	}
}

func TestUsable(t *testing.T) {
	got := usable(endpoints("[::ffff:192.0.2.1]:1 10.86.1.1:2 [::ffff:10.86.1.1]:3 [fd86::1]:4 [2001:db8::1]:5"), prefixes("10.86.0.0/16 fd86::/48"))
	if want := endpoints("192.0.2.1:1 [2001:db8::1]:5"); !slices.Equal(got, want) {
		t.Errorf("usable are %v, want %v", got, want)
	}
}

func TestConfigurePeer(t *testing.T) {
	const a, b, c, learned = "192.0.2.1:1", "192.0.2.2:2", "192.0.2.3:3", "192.0.2.9:9"
	for _, x := range []struct{ name, before, at, after, inside, want string }{
		{"first candidate", "", "", a + " " + b, "", a},
		{"no candidate", "", "", "", "", "invalid AddrPort"},
		{"candidates stay", a, learned, a, "", learned},
		{"candidates change", a, learned, b, "", b},
		{"present one is among the new", a + " " + b, b, c + " " + b, "", b},
		{"candidates go", a, learned, "", "", learned},
		{"present one comes inside, candidates stay", a, learned, a, "192.0.2.9/32", a},
		{"present one comes inside, no candidate", "", learned, "", "192.0.2.9/32", "invalid AddrPort"},
	} {
		t.Run(x.name, func(t *testing.T) {
			var p peer
			p.configure(tunnel.Peer{Endpoints: endpoints(x.before)}, nil)
			if x.at != "" {
				p.moveTo(netip.MustParseAddrPort(x.at))
			}
			p.configure(tunnel.Peer{Endpoints: endpoints(x.after)}, prefixes(x.inside))
			if got := p.endpoint().String(); got != x.want {
				t.Errorf("the peer is at %s, want %s", got, x.want)
			}
		})
	}
}

// What was learned once is not tried again when it came inside the mesh.
func TestLearnedEndpointInside(t *testing.T) {
	want := tunnel.Peer{Endpoints: endpoints("192.0.2.1:1 192.0.2.2:2")}
	var p peer
	p.configure(want, nil)
	p.moveTo(netip.MustParseAddrPort("192.0.2.9:9"))
	p.moveTo(p.next()) // remembers the learned one
	p.configure(want, prefixes("192.0.2.9/32"))
	for range 4 {
		if p.moveTo(p.next()); !slices.Contains(want.Endpoints, p.endpoint()) {
			t.Errorf("tried %s, which is inside", p.endpoint())
		}
	}
}

func TestOurAddressStaysWithThePlace(t *testing.T) {
	at, elsewhere := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2")
	ours := udp.Source{Addr: netip.MustParseAddr("192.0.2.100")}
	var p peer
	p.came(at, ours)
	if p.path.Load() != nil {
		t.Fatal("a datagram told where the peer is, which only an authentic message may: the machine says so")
	}
	p.moveTo(at)
	p.came(elsewhere, ours)
	if got := *p.path.Load(); got.local != (udp.Source{}) {
		t.Errorf("path %+v took an address that goes with another", got)
	}
	p.came(at, ours)
	p.moveTo(at)
	if got := *p.path.Load(); got.local != ours {
		t.Errorf("path %+v, want our address %s", got, ours.Addr)
	}
	p.moveTo(elsewhere)
	if got := *p.path.Load(); got.local != (udp.Source{}) || got.remote != elsewhere {
		t.Errorf("path %+v after a move, want %s and no address of ours", got, elsewhere)
	}
}

func TestAllowance(t *testing.T) {
	var a allowance
	now := time.Unix(1000, 0)
	for second := range 3 {
		for i := range 3 * answersPerSecond {
			at := now.Add(time.Duration(second)*time.Second + time.Duration(i)*time.Millisecond)
			if got, want := a.take(at), i < answersPerSecond; got != want {
				t.Fatalf("second %d, answer %d: %v, want %v", second, i, got, want)
			}
		}
	}
}

func TestDropReasonsHaveNames(t *testing.T) {
	var d drops
	seen := map[string]bool{}
	for r, name := range reasonNames {
		if name == "" || seen[name] {
			t.Errorf("reason %d is named %q: none, or that of another", r, name)
		}
		seen[name] = true
		d.add(reason(r), r+1)
	}
	for r, name := range reasonNames {
		if got := d.snapshot()[name]; got != uint64(r+1) {
			t.Errorf("%s: %d, want %d", name, got, r+1)
		}
	}
}

func TestSuites(t *testing.T) {
	for _, s := range Suites() {
		if _, err := wg.ParseSuite(s); err != nil {
			t.Error(err)
		}
	}
	if !slices.Contains(Suites(), tunnel.ChaCha20Poly1305) {
		t.Error("WireGuard's own suite is missing")
	}
}
