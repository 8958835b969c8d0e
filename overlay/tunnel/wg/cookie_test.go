package wg

import (
	"bytes"
	"net/netip"
	"testing"
	"time"
)

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

// A cookie serves as long as the secret behind it may, and only its address.
func TestCookie(t *testing.T) {
	_, public := keyPair(t, 1)
	c := checker{macKeys: macKeysOf(public), rand: &counting{}}
	s := signer{macKeys: macKeysOf(public)}
	home, away := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.1:2")
	msg := make([]byte, initiationSize)
	sign := func(now time.Time) []byte {
		clear(msg[len(msg)-2*macSize:])
		s.sign(now, msg)
		return msg
	}
	take := func(now time.Time) {
		t.Helper()
		if err := s.take(now, c.reply(now, suites[ChaCha20Poly1305], msg, home)); err != nil {
			t.Fatal(err)
		}
	}
	if c.valid2(start, sign(start), home) {
		t.Fatal("valid without a cookie")
	}
	take(start)
	for _, at := range []time.Duration{0, time.Minute, cookieUse - 1} {
		now := start.Add(at)
		if !c.valid2(now, sign(now), home) || c.valid2(now, msg, away) {
			t.Errorf("after %s: not valid, or valid for another port", at)
		}
	}
	now := start.Add(cookieUse)
	if sign(now); !bytes.Equal(msg[len(msg)-macSize:], make([]byte, macSize)) {
		t.Error("an old cookie is used")
	}
	now = start.Add(cookieAge)
	s.since = now // as if the cookie had been underway for long
	if c.valid2(now, sign(now), home) {
		t.Error("a cookie outlives its secret")
	}
	secret := c.secret
	take(now)
	if c.secret == secret {
		t.Error("the secret is as it was")
	}
	if !c.valid2(now, sign(now), home) {
		t.Error("a new cookie is not valid")
	}
}

// Under load, a cookie buys no more than the share of one address.
func TestRateUnderLoad(t *testing.T) {
	x := newFuzzed(t, ChaCha20Poly1305)
	from := netip.MustParseAddrPort("192.0.2.1:1")
	x.b.UnderLoad(true)
	p := x.a.order[0]
	now, results := start.Add(RekeyAfter+time.Minute), map[error]int{}
	for range 40 {
		now = now.Add(floodGap)
		p.initiate(now)
		for _, a := range x.a.flush() {
			if a, ok := a.(Send); ok {
				actions, err := x.b.Receive(now, a.Packet, from)
				results[err]++
				if err == ErrCookie {
					if err := p.signer.take(now, actions[0].(Reply).Packet); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	// 780 ms after the first: a burst of 5, and 20 a second.
	if results[ErrCookie] != 1 || results[nil] < 18 || results[nil] > 21 || results[ErrRate] != 39-results[nil] {
		t.Errorf("results %v", results)
	}
}
