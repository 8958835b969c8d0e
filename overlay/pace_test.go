package overlay

import (
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	begun := time.Unix(1_000_000, 0)
	for _, c := range []struct {
		name   string
		every  time.Duration // changes come
		within time.Duration
		looks  [2]int // at least, at most
		late   time.Duration
	}{
		{"without rest", time.Millisecond, 10 * time.Second, [2]int{10, 16}, lastLook},
		{"now and then", 3 * time.Second, 30 * time.Second, [2]int{10, 11}, 0},
		{"once a second", time.Second, 30 * time.Second, [2]int{29, 31}, time.Second},
		{"one", time.Hour, time.Minute, [2]int{1, 1}, 0},
	} {
		var p pace
		looks, latest := 0, time.Duration(0)
		for now := begun; now.Before(begun.Add(c.within)); now = now.Add(c.every) {
			wait := p.next(now)
			if now.Equal(begun) && wait != 0 {
				t.Errorf("%s: the first change waits %s", c.name, wait)
			}
			latest = max(latest, wait)
			looks++
			if wait > 0 { // changes that come meanwhile are the same look
				for at := now.Add(wait); now.Before(at); {
					now = now.Add(c.every)
				}
			}
		}
		if looks < c.looks[0] || looks > c.looks[1] || latest > c.late {
			t.Errorf("%s: %d looks, the latest after %s; want %d to %d, and at most %s", c.name, looks, latest, c.looks[0], c.looks[1], c.late)
		}
	}

	var p pace
	for now := begun; now.Before(begun.Add(10 * time.Second)); now = now.Add(time.Millisecond) {
		now = now.Add(p.next(now))
	}
	if wait := p.next(begun.Add(20 * time.Second)); wait != 0 {
		t.Errorf("after a quiet time a change waits %s", wait)
	}
}
