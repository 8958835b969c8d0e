//go:build linux

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"meshd/overlay/e2e/cluster"
)

// buildDemo builds the demo and gives a command that runs it, with a directory for
// its files.
func buildDemo(t *testing.T) func(args ...string) (*exec.Cmd, *bytes.Buffer, string) {
	t.Helper()
	bin := filepath.Dir(cluster.Programs(t).Meshd)
	path := filepath.Join(t.TempDir(), "demo")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, "meshd/overlay/e2e/demo").CombinedOutput(); err != nil {
		t.Fatalf("build demo: %v: %s", err, out)
	}
	return func(args ...string) (*exec.Cmd, *bytes.Buffer, string) {
		dir := t.TempDir()
		cmd := exec.Command(path, append([]string{"-bin", bin}, args...)...)
		cmd.Env = append(os.Environ(), "TMPDIR="+dir)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		endsWithUs(cmd)
		return cmd, &out, dir
	}
}

// endsWithUs has a command, which this goroutine is to start, be killed when this
// program ends. What the kernel looks at is the thread, so it is not shared.
func endsWithUs(cmd *exec.Cmd) {
	runtime.LockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

func TestDemo(t *testing.T) {
	t.Parallel()
	run := buildDemo(t)
	t.Run("to its end", func(t *testing.T) {
		t.Parallel()
		cmd, out, dir := run("-load", "500ms")
		start := time.Now()
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v:\n%s", err, out)
		}
		t.Logf("it took %.1f s", time.Since(start).Seconds())
		for _, want := range []string{"meshctl init", "10.86.", "Mbit/s", "kill -9", "everything held"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("it does not show %q:\n%s", want, out)
			}
		}
		checkGone(t, dir)
	})
	for _, after := range []time.Duration{50 * time.Millisecond, 300 * time.Millisecond, 1500 * time.Millisecond, 4 * time.Second} {
		t.Run("interrupted after "+after.String(), func(t *testing.T) {
			t.Parallel()
			cmd, out, dir := run("-load", "10s")
			must(t, cmd.Start())
			<-time.After(after)
			must(t, cmd.Process.Signal(os.Interrupt))
			_ = cmd.Wait()
			// On a busy host it may not have begun: then the signal itself ends it.
			begun := out.Len() > 0
			if code := cmd.ProcessState.ExitCode(); begun && (code != 130 || !strings.Contains(out.String(), "cleaned up")) {
				t.Errorf("exit code %d:\n%s", code, out)
			}
			checkGone(t, dir)
		})
	}
	t.Run("nobody reads on", func(t *testing.T) {
		t.Parallel()
		cmd, _, dir := run("-load", "10s")
		r, w, err := os.Pipe()
		must(t, err)
		cmd.Stdout = w
		must(t, cmd.Start())
		must(t, w.Close())
		_, err = r.Read(make([]byte, 100))
		must(t, err)
		must(t, r.Close())
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 130 {
			t.Errorf("exit code %d", code)
		}
		checkGone(t, dir)
	})
	t.Run("killed", func(t *testing.T) { // it cannot clean up, but nothing may run on
		t.Parallel()
		cmd, _, dir := run("-load", "10s")
		must(t, cmd.Start())
		must(t, cluster.Poll(bounded(t), func() (bool, error) {
			daemon := func(p string) bool { return strings.Contains(p, "/meshd --config") }
			return slices.ContainsFunc(runningBelow(t, dir), daemon), errors.New("no daemon runs: there is nothing to end")
		}))
		pause(t.Context(), time.Second)
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
		must(t, cluster.Poll(bounded(t), func() (bool, error) {
			left := runningBelow(t, dir)
			return len(left) == 0, fmt.Errorf("still running: %v", left)
		}))
	})
	t.Run("not root", func(t *testing.T) {
		t.Parallel()
		cmd, out, _ := run()
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		cmd.Path = forAll(t, cmd.Path)
		if err := cmd.Run(); err == nil || !strings.Contains(out.String(), "sudo") {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// checkGone looks that nothing is left of a demo.
func checkGone(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		t.Errorf("%s is still there", e.Name())
	}
	if left := runningBelow(t, dir); len(left) > 0 {
		t.Errorf("still running: %v", left)
	}
}

// runningBelow finds programs that were started with a file below a directory.
func runningBelow(t *testing.T, dir string) (found []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, path := range all {
		raw, _ := os.ReadFile(path)
		if bytes.Contains(raw, []byte(dir)) {
			found = append(found, path+": "+strings.ReplaceAll(string(raw), "\x00", " "))
		}
	}
	return found
}

// forAll copies a program to where everybody may run it.
func forAll(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	must(t, err)
	dir, err := os.MkdirTemp("", "meshd-bin-") //nolint:usetesting // t.TempDir is closed to others
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	openToAll(t, dir)
	to := filepath.Join(dir, filepath.Base(path))
	must(t, os.WriteFile(to, raw, 0o755))
	return to
}
