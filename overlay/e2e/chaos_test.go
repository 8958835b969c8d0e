//go:build linux

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"meshd/overlay/e2e/cluster"
)

// A short run of what `make chaos` runs for as long as you like; MESHD_CHAOS has
// more of its arguments.
func TestChaos(t *testing.T) {
	t.Parallel()
	bin := filepath.Dir(cluster.Programs(t).Meshd)
	path, out := filepath.Join(t.TempDir(), "chaos"), filepath.Join(t.TempDir(), "report.json")
	if text, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, "meshd/overlay/e2e/chaos").CombinedOutput(); err != nil {
		t.Fatalf("build chaos: %v: %s", err, text)
	}
	start := func(args ...string) (*exec.Cmd, *strings.Builder, string) {
		dir := t.TempDir()
		cmd := exec.CommandContext(t.Context(), path, append([]string{"-bin", bin}, args...)...)
		cmd.Env = append(os.Environ(), "TMPDIR="+dir)
		endsWithUs(cmd)
		var text strings.Builder
		cmd.Stdout, cmd.Stderr = &text, &text
		return cmd, &text, dir
	}

	t.Run("faults", func(t *testing.T) {
		t.Parallel()
		cmd, text, dir := start(append([]string{"-nodes", "5", "-duration", "45s", "-out", out}, strings.Fields(os.Getenv("MESHD_CHAOS"))...)...)
		err := cmd.Run()
		t.Log(text)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(out)
		must(t, err)
		var report struct {
			Steps      int
			Healthy    struct{ Sent int }
			Frames     int
			Violations []any
		}
		must(t, json.Unmarshal(raw, &report))
		if report.Steps < 2 || report.Healthy.Sent < 100 || report.Frames < 1000 || len(report.Violations) > 0 {
			t.Errorf("it has seen %+v: that proves nothing", report)
		}
		checkGone(t, dir)
	})
	t.Run("interrupted", func(t *testing.T) {
		t.Parallel()
		cmd, text, dir := start("-nodes", "3")
		must(t, cmd.Start())
		pause(t.Context(), 2*time.Second)
		must(t, cmd.Process.Signal(os.Interrupt))
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 130 {
			t.Errorf("exit code %d:\n%s", code, text)
		}
		checkGone(t, dir)
	})
	t.Run("a fault that stays is a violation", func(t *testing.T) {
		t.Parallel()
		cmd, text, dir := start("-nodes", "3", "-seed", "1", "-step", "1", "-limit", "1ns")
		_ = cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(text.String(), "SEED=1 STEP=1") {
			t.Errorf("exit code %d, want 1 and how to play it again:\n%s", code, text)
		}
		checkGone(t, dir)
	})
}
