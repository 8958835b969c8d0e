package gossip

import (
	"time"

	"golang.org/x/sys/unix"
)

// KernelClocks reads the clocks of this host.
func KernelClocks() Clocks {
	return Clocks{Boot: read(unix.CLOCK_BOOTTIME), Monotonic: read(unix.CLOCK_MONOTONIC), Wall: read(unix.CLOCK_REALTIME)}
}

func read(clock int32) time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(clock, &t) // never fails for these
	return time.Duration(t.Nano())
}
