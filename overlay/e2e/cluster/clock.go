//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// The kernel gives no namespace a wall clock of its own. So meshd is built once more
// from sources of which two are changed for this build alone, and one is added:
//
//	time.Now              adds a shift to what it shows, and none to what has passed
//	gossip.KernelClocks   adds it too, since it asks the kernel
//	meshd                 reads the shift from a file, again and again
//
// Nothing of it is in the program that is shipped.
const (
	clockEnv = "MESHD_TEST_CLOCK" // names the file
	nowCall  = "sec, nsec, mono := runtimeNow()\n"
	wallCall = "Wall: read(unix.CLOCK_REALTIME)"

	shiftVar = `package time

import "sync/atomic"

var ClockShift atomic.Int64 // seconds
`
	shiftFile = `package main

import (
	"os"
	"strconv"
	"time"
)

func init() {
	look := func() {
		raw, _ := os.ReadFile(os.Getenv("` + clockEnv + `"))
		if seconds, err := strconv.ParseInt(string(raw), 10, 64); err == nil {
			time.ClockShift.Store(seconds)
		}
	}
	look()
	go func() {
		for {
			time.Sleep(10 * time.Millisecond)
			look()
		}
	}()
}
`
)

// WithClocks builds meshd into a directory so that [Node.SetClock] works. The other
// programs are the same.
func (b Binaries) WithClocks(ctx context.Context, dir string) (Binaries, error) {
	v := newVariant(ctx, dir, "time", "meshd/mesh/gossip", "meshd/cmd/meshd")
	v.change("time", "time.go", nowCall, nowCall+"\tsec += ClockShift.Load()\n")
	v.add("time", "clockshift.go", shiftVar)
	v.change("meshd/mesh/gossip", "clocks_linux.go", wallCall, wallCall+" + time.Duration(time.ClockShift.Load())*time.Second")
	v.add("meshd/cmd/meshd", "clockshift.go", shiftFile)
	meshd, err := v.build(ctx)
	if err != nil {
		return Binaries{}, fmt.Errorf("build meshd with clocks to set: %w", err)
	}
	b.Meshd, b.clocks = meshd, true
	return b, nil
}

// SetClock sets the clock of the node's daemon, and of those that are started later,
// so far from what is right. It shows in a moment.
func (n *Node) SetClock(by time.Duration) error {
	if !n.bin.clocks {
		return errors.New("set clock: this meshd has the clock of the machine")
	}
	next := n.clockFile() + ".next"
	err := os.WriteFile(next, strconv.AppendInt(nil, int64(by/time.Second), 10), 0o644)
	if err == nil {
		err = os.Rename(next, n.clockFile()) // never half of it is read
	}
	if err != nil {
		return fmt.Errorf("set clock: %w", err)
	}
	return nil
}

func (n *Node) clockFile() string { return filepath.Join(n.Dir, "clock") }
