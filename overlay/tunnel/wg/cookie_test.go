package wg

import (
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
