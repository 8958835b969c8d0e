package wg

import (
	"testing"
	"time"
)

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
