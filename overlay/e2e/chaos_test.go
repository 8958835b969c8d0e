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
	out := filepath.Join(t.TempDir(), "report.json")
	cmd, text, dir := chaos(t, append([]string{"-nodes", "5", "-duration", "40s", "-out", out}, strings.Fields(os.Getenv("MESHD_CHAOS"))...)...)
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
}

func TestChaosInterrupted(t *testing.T) {
	t.Parallel()
	cmd, text, dir := chaos(t, "-nodes", "3")
	must(t, cmd.Start())
	pause(t.Context(), 2*time.Second)
	must(t, cmd.Process.Signal(os.Interrupt))
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d:\n%s", code, text)
	}
	checkGone(t, dir)
}

// A fault that stays is a violation.
func TestChaosIsNotBlind(t *testing.T) {
	t.Parallel()
	cmd, text, dir := chaos(t, "-nodes", "3", "-seed", "1", "-step", "1", "-limit", "1ns")
	_ = cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(text.String(), "SEED=1 STEP=1") {
		t.Errorf("exit code %d, want 1 and how to play it again:\n%s", code, text)
	}
	checkGone(t, dir)
}

// chaos is the program, not yet started: what it will say, and where its files are.
func chaos(t *testing.T, args ...string) (cmd *exec.Cmd, text *strings.Builder, dir string) {
	t.Helper()
	bin := filepath.Dir(cluster.Programs(t).Meshd)
	dir, path := t.TempDir(), filepath.Join(t.TempDir(), "chaos")
	if text, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, "meshd/overlay/e2e/chaos").CombinedOutput(); err != nil {
		t.Fatalf("build chaos: %v: %s", err, text)
	}
	cmd = exec.CommandContext(t.Context(), path, append([]string{"-bin", bin}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	endsWithUs(cmd)
	text = new(strings.Builder)
	cmd.Stdout, cmd.Stderr = text, text
	return cmd, text, dir
}
