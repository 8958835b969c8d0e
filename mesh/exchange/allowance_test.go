package exchange

import (
	"testing"
	"time"
)

// An allowance begins full, grows back one by one, keeps what has begun to grow, and
// never grows beyond what it was.
func TestAllowance(t *testing.T) {
	a := Allowance{Most: 3, Every: time.Second}
	begin := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		at   time.Duration
		want int
	}{
		{0, 3},
		{time.Second - 1, 0},
		{time.Second, 1},
		{2500 * time.Millisecond, 1},
		{3 * time.Second, 1}, // the half of before counts
		{time.Hour, 3},
		{time.Hour + 2*time.Second, 2},
	} {
		got := 0
		for got < 10 && a.Take(begin.Add(tt.at)) {
			got++
		}
		if got != tt.want {
			t.Errorf("after %s there are %d, want %d", tt.at, got, tt.want)
		}
	}
}
