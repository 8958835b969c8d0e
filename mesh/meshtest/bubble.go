package meshtest

import (
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// Bubble runs a test in virtual time, and gives the goroutines that memberlist
// leaves behind, which end with their current probe, the time to do so. Such a
// test must not run in parallel with others.
func Bubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	// With the race detector, timers of one bubble that fire on two threads at
	// once crash Go 1.26 (golang/go#78156).
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { time.Sleep(time.Minute) }) // the test's own cleanups run before this one
		test(t)
	})
}
