//go:build linux

// Package e2e tests the real programs: meshes on a lab of network namespaces.
//
// [cluster.Programs] says where these come from.
// The bounds on time are generous, since the machine may be busy; the figures
// are in the log (go test -v).
package e2e

import (
	"testing"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/sandbox"
)

func TestMain(m *testing.M) {
	if err := sandbox.Main(); err != nil {
		panic(err)
	}
	cluster.Main(m)
}
