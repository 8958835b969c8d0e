package gossip

import (
	"bytes"
	"net"
	"testing"
	"time"

	"meshd/mesh/member"
)

// at is an address of gossip, of as many as one likes.
func at(n int) *net.UDPAddr {
	return &net.UDPAddr{IP: net.IPv4(192, 0, byte(n>>8), byte(n)), Port: 51881}
}

// Who seals with another of our keys is told what we say with that one, for as long as
// anything comes that is sealed so, and habitFor after that.
func TestHabits(t *testing.T) {
	newer, older := bytes.Repeat([]byte{3}, 32), bytes.Repeat([]byte{2}, 32)
	ring := mustSealer(t, newer, older)
	keys := ring.keys.Load()
	ours, theirs := keys.open[0], keys.open[1]
	if keys.send != ours {
		t.Fatal("sends with the older key")
	}
	begin := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		then  func(h *habits) // after theirs was seen at the beginning
		to    int
		after time.Duration
		want  *sealKey
	}{
		"at once":              {nil, 1, 0, theirs},
		"until it is over":     {nil, 1, habitFor - 1, theirs},
		"then no longer":       {nil, 1, habitFor, ours},
		"another is not meant": {nil, 2, 0, ours},
		"seen again, it lasts": {func(h *habits) {
			h.note(at(1), theirs, ours, begin.Add(habitFor-1))
		}, 1, 2*habitFor - 2, theirs},
		"looked up, it does not": {func(h *habits) {
			h.key(at(1).String(), keys, begin.Add(habitFor-1))
		}, 1, habitFor, ours},
		"who goes over is told with ours": {func(h *habits) {
			h.note(at(1), ours, ours, begin)
		}, 1, 0, ours},
	} {
		h := &habits{}
		h.note(at(1), theirs, ours, begin)
		if tt.then != nil {
			tt.then(h)
		}
		if got := h.key(at(tt.to).String(), keys, begin.Add(tt.after)); got != tt.want {
			t.Errorf("%s: sealed with key %s, want %s", name, got.id, tt.want.id)
		}
	}

	h := &habits{}
	h.note(at(1), theirs, ours, begin)
	if err := ring.set(member.NewKeyring(newer), begin); err != nil {
		t.Fatal(err)
	}
	if got := h.key(at(1).String(), ring.keys.Load(), begin); got.id != ours.id {
		t.Error("sealed with a key that we have given up")
	}
}

// Hosts with an old key fill so much, and what is over makes room.
func TestHabitsAreBounded(t *testing.T) {
	keys := mustSealer(t, bytes.Repeat([]byte{3}, 32), bytes.Repeat([]byte{2}, 32)).keys.Load()
	ours, theirs := keys.open[0], keys.open[1]
	h, begin := &habits{}, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for n := range maxHabits {
		h.note(at(n), theirs, ours, begin)
	}
	for _, tt := range []struct {
		after time.Duration
		want  *sealKey
	}{{habitFor - 1, ours}, {habitFor, theirs}} {
		now := begin.Add(tt.after)
		h.note(at(maxHabits), theirs, ours, now)
		if got := h.key(at(maxHabits).String(), keys, now); got != tt.want || len(h.of) > maxHabits {
			t.Errorf("%s after %d others one more is sealed for with key %s, want %s; %d are remembered", tt.after, maxHabits, got.id, tt.want.id, len(h.of))
		}
	}
}
