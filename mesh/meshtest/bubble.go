package meshtest

import (
	"testing"
	"testing/synctest"
	"time"
)

// Bubble runs a test in virtual time, and gives the goroutines that memberlist
// leaves behind, which end with their current probe, the time to do so.
func Bubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { time.Sleep(time.Minute) }) // the test's own cleanups run before this one
		test(t)
	})
}
