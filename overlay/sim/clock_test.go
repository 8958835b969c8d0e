package sim

import (
	"testing"
	"time"
)

// What a clock is set to is no time that passes.
func TestClock(t *testing.T) {
	right := time.Date(2000, 1, 1, 0, 0, 0, 1, time.UTC)
	c := clock{skew: time.Minute}
	begin := c.now(right)
	for _, to := range settings {
		t.Run(to.name, func(t *testing.T) {
			c := clock{skew: time.Minute, set: to.of(right.Add(time.Minute)), still: time.Second}
			now := c.now(right.Add(time.Hour))
			if passed := now.Sub(begin); passed != time.Hour-time.Second {
				t.Errorf("%s have passed", passed)
			}
			if want := right.Add(time.Hour + c.skew + c.set); !now.Round(0).Equal(want) || now.Unix() != want.Unix() {
				t.Errorf("it shows %s, not %s", now, want)
			}
			if earlier, later := c.wall(right), right.Add(2*time.Hour+c.skew+c.set); !now.After(earlier) || !now.Before(later) {
				t.Errorf("%s is not between %s and %s", now, earlier, later)
			}
		})
	}
}
