//go:build linux

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
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
	fail := func(err error) (Binaries, error) {
		return Binaries{}, fmt.Errorf("build meshd with clocks to set: %w", err)
	}
	places, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", "time", "meshd/mesh/gossip", "meshd/cmd/meshd").Output()
	if err != nil {
		return fail(err)
	}
	dirs := strings.Fields(string(places))
	if len(dirs) != 3 {
		return fail(fmt.Errorf("sources are in %s", dirs))
	}
	replace := map[string]string{}
	write := func(path, source string) error {
		to := filepath.Join(dir, strconv.Itoa(len(replace))+".go")
		replace[path] = to
		return os.WriteFile(to, []byte(source), 0o644)
	}
	change := func(path, old, new string) error {
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		source := string(raw)
		if n := strings.Count(source, old); n != 1 {
			return fmt.Errorf("%s has %d times %q, not once: it has changed, and what this test changes in it has to follow", path, n, old)
		}
		return write(path, strings.Replace(source, old, new, 1))
	}
	err = errors.Join(
		change(filepath.Join(dirs[0], "time.go"), nowCall, nowCall+"\tsec += ClockShift.Load()\n"),
		write(filepath.Join(dirs[0], "clockshift.go"), shiftVar),
		change(filepath.Join(dirs[1], "clocks_linux.go"), wallCall, wallCall+" + time.Duration(time.ClockShift.Load())*time.Second"),
		write(filepath.Join(dirs[2], "clockshift.go"), shiftFile),
	)
	if err != nil {
		return fail(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o644)
	}
	if err != nil {
		return fail(err)
	}
	b.Meshd, b.clocks = filepath.Join(dir, "meshd"), true
	cmd := exec.CommandContext(ctx, "go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", b.Meshd, "meshd/cmd/meshd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fail(fmt.Errorf("%w: %s", err, out))
	}
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
