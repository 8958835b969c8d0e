package gossip

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Clocks that are read with a pause between them, as where hundreds of processes want a
// processor, tell of no suspend.
func TestClocksAreReadTogether(t *testing.T) {
	for pause := range 4 { // before which reading
		now, readings := time.Hour, 0
		got := readTogether(func(clock int32) time.Duration {
			if readings++; readings == pause+1 {
				now += 2 * time.Second
			}
			if clock == unix.CLOCK_REALTIME {
				return 1000*time.Hour + now
			}
			return now
		})
		if got != (Clocks{Boot: now, Monotonic: now, Wall: 1000*time.Hour + now}) {
			t.Errorf("with a pause before reading %d: %+v", pause, got)
		}
	}
	if c := KernelClocks(); c.Boot < c.Monotonic-clockStep || c.Wall < 50*365*24*time.Hour {
		t.Errorf("the kernel's clocks show %+v", c)
	}
}
