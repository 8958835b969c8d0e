package gossip

import (
	"time"

	"golang.org/x/sys/unix"
)

// KernelClocks reads the clocks of this host.
func KernelClocks() Clocks { return readTogether(read) }

// readTogether reads all clocks at one moment, or again: where there is much to do a second
// may pass between two of them, which would look like a suspend.
func readTogether(read func(clock int32) time.Duration) Clocks {
	for {
		c := Clocks{Boot: read(unix.CLOCK_BOOTTIME), Monotonic: read(unix.CLOCK_MONOTONIC), Wall: read(unix.CLOCK_REALTIME)}
		if read(unix.CLOCK_BOOTTIME)-c.Boot < clockStep/10 {
			return c
		}
	}
}

func read(clock int32) time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(clock, &t) // never fails for these
	return time.Duration(t.Nano())
}
