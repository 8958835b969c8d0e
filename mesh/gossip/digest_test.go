package gossip

import (
	"crypto/ed25519"
	"testing"
	"time"

	"meshd/mesh/trust"
)

func TestComparison(t *testing.T) {
	var c comparison
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for i, tt := range []struct {
		after      time.Duration
		own, other uint64
		exchange   bool
		why        string
	}{
		{0, 1, 2, false, "one answer may have crossed a broadcast"},
		{2 * time.Second, 1, 2, true, "two differ"},
		{2 * time.Second, 1, 2, false, "the exchange has just been made"},
		{2 * time.Second, 1, 2, true, "it did not help"},
		{4 * time.Second, 1, 2, false, "the pause grows"},
		{4 * time.Second, 1, 2, true, "and ends"},
		{2 * time.Second, 1, 1, false, "same"},
		{10 * time.Second, 1, 2, false, "the first again"},
		{2 * time.Second, 3, 2, false, "news came: the first with this table"},
		{20 * time.Second, 3, 2, true, "the second"},
	} {
		now = now.Add(tt.after)
		if got := c.note(now, tt.own, tt.other); got != tt.exchange {
			t.Errorf("answer %d: exchange %v, want %v: %s", i+1, got, tt.exchange, tt.why)
		}
	}
}

// Two nodes that heard different witnesses have the same to say.
func TestDigestLeavesOutAdmissions(t *testing.T) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	admission := trust.Admission{Seen: time.Unix(1, 0)}
	raw := admission.Sign(key)
	if !isAdmission(raw) || isAdmission([]byte("junk")) {
		t.Error("an admission is not known as one, or junk is")
	}
	a, b, c := [32]byte{1}, [32]byte{2}, [32]byte{3}
	admissions := map[[32]byte]bool{b: true, c: true}
	one := digestOf(map[[32]byte]bool{a: true, b: true}, admissions)
	other := digestOf(map[[32]byte]bool{a: true, c: true}, admissions)
	if one != other {
		t.Error("tables differ by their admissions")
	}
	if one == digestOf(map[[32]byte]bool{b: true}, admissions) {
		t.Error("tables with different records are the same")
	}
}
