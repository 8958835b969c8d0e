//go:build linux

// Package e2e tests the real programs: meshes on a lab of network namespaces.
//
// [cluster.Programs] says where these come from.
// The bounds on time are generous, since the machine may be busy; the figures
// are in the log (go test -v).
package e2e

import (
	"flag"
	"testing"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/sandbox"
)

// together is how many of the tests that may run beside others do so: most wait
// for timers most of the time. Those that flood, or whose figures are in the docs, run
// alone before them.
const together = "6"

func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", together); err != nil {
		panic(err)
	}
	if err := sandbox.Main(); err != nil {
		panic(err)
	}
	cluster.Main(m)
}
