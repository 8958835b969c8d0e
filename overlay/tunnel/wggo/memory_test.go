package wggo

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"testing"

	"meshd/mesh"
	"meshd/overlay/tunnel"
	"meshd/overlay/tunnel/tunneltest"
)

// BenchmarkIdleMemory tells by how much an idle engine with ten peers grows the
// process. Run it alone and once (-bench IdleMemory -benchtime 1x).
func BenchmarkIdleMemory(b *testing.B) {
	before := resident(b)
	e := New(Options{TUN: tunneltest.NewPipe(), PrivateKey: [32]byte{1}})
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error)
	go func() { ended <- e.Run(ctx) }()
	var config tunnel.Config
	for i := range byte(10) {
		config.Peers = append(config.Peers, tunnel.Peer{ID: mesh.NodeID{i}, PublicKey: mesh.Key{1, i}})
	}
	if err := e.Apply(ctx, config); err != nil {
		b.Fatal(err)
	}
	debug.FreeOSMemory()
	growth := resident(b) - before
	for b.Loop() { // nothing to repeat
	}
	b.ReportMetric(float64(growth), "KiB")
	cancel()
	if err := <-ended; err != nil {
		b.Error(err)
	}
}

func resident(b *testing.B) (kib int) {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Skip(err)
	}
	_, after, _ := strings.Cut(string(status), "VmRSS:")
	if _, err := fmt.Sscan(after, &kib); err != nil {
		b.Fatal(err)
	}
	return kib
}
