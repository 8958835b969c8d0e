package examples

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// files lists the files below a directory, with the directory as the root.
func files(t *testing.T, dir string) map[string]fs.FileMode {
	t.Helper()
	all := map[string]fs.FileMode{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		all[strings.TrimPrefix(path, dir)] = info.Mode().Perm()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestInstall installs into a directory and removes it again.
func TestInstall(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip(err)
	}
	bin := t.TempDir()
	run := func(t *testing.T, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "make", append([]string{"-s", "-C", "..", "BIN=" + bin}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
		}
	}
	for _, prefix := range []string{"/usr", "/opt/mesh"} {
		t.Run(prefix, func(t *testing.T) {
			dest := t.TempDir()
			config := filepath.Join(dest, "etc/meshd/config.yaml")
			if err := os.MkdirAll(filepath.Dir(config), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(config, []byte("node: {name: alpha}\n"), 0o640); err != nil {
				t.Fatal(err)
			}
			run(t, "install", "DESTDIR="+dest, "PREFIX="+prefix)
			want := map[string]fs.FileMode{
				"/etc/meshd/config.yaml":                                 0o640, // as it was
				prefix + "/bin/meshd":                                    0o755,
				prefix + "/bin/meshctl":                                  0o755,
				"/opt/cni/bin/mesh-cni":                                  0o755,
				"/usr/lib/docker/plugins/meshd.spec":                     0o644,
				"/lib/systemd/system/meshd.service":                      0o644,
				"/usr/lib/sysusers.d/meshd.conf":                         0o644,
				prefix + "/share/bash-completion/completions/meshctl":    0o644,
				prefix + "/share/zsh/site-functions/_meshctl":            0o644,
				prefix + "/share/fish/vendor_completions.d/meshctl.fish": 0o644,
			}
			have := files(t, dest)
			for path, mode := range want {
				if have[path] != mode {
					t.Errorf("%s has mode %v, want %v", path, have[path], mode)
				}
			}
			for path := range have {
				if _, ok := want[path]; !ok {
					t.Errorf("%s is installed, and nobody expects it", path)
				}
			}
			raw, err := os.ReadFile(config)
			if err != nil || string(raw) != "node: {name: alpha}\n" {
				t.Errorf("the configuration is %q now: %v", raw, err)
			}
			programs := execs(t, filepath.Join(dest, "lib/systemd/system/meshd.service"))
			if len(programs) != 3 {
				t.Errorf("the unit runs %q, want before the start, for it and for a reload", programs)
			}
			for _, program := range programs {
				if have[program] != 0o755 {
					t.Errorf("the unit runs %s, which is not installed", program)
				}
			}

			run(t, "uninstall", "DESTDIR="+dest, "PREFIX="+prefix)
			if left := files(t, dest); len(left) != 1 || left["/etc/meshd/config.yaml"] == 0 {
				t.Errorf("uninstall leaves %v, want the configuration", left)
			}
		})
	}
}

// execs lists the programs that a unit runs.
func execs(t *testing.T, unit string) []string {
	t.Helper()
	raw, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	var programs []string
	for line := range strings.Lines(string(raw)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if slices.Contains([]string{"ExecStartPre", "ExecStart", "ExecReload"}, key) {
			programs = append(programs, strings.TrimLeft(strings.Fields(value)[0], "+-"))
		}
	}
	return programs
}
