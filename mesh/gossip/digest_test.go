package gossip

import (
	"testing"
	"time"

	"meshd/mesh/exchange"
)

func TestComparison(t *testing.T) {
	var c comparison
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for i, tt := range []struct {
		after      time.Duration
		own, other byte
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
		if got := c.note(now, exchange.Digest{tt.own}, exchange.Digest{tt.other}); got != tt.exchange {
			t.Errorf("answer %d: exchange %v, want %v: %s", i+1, got, tt.exchange, tt.why)
		}
	}
}
