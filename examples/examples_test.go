// Package examples has no code: its test keeps the examples true.
package examples

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/unit"

	"meshd/overlay/config"
)

// TestEveryExample loads every file, and fails on one that it does not know.
func TestEveryExample(t *testing.T) {
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		switch filepath.Ext(path) {
		case ".yaml":
			if _, err := config.Load(path); err != nil {
				t.Error(err)
			}
		case ".service":
			checkUnit(t, path)
		case ".md", ".go":
		default:
			t.Errorf("%s: no test loads it", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// checkUnit parses a unit and compares it with what the daemon does.
func checkUnit(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	options, err := unit.DeserializeOptions(f)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	got := map[string]string{}
	for _, o := range options {
		got[o.Name] = o.Value
	}
	if got["Type"] != "notify" || !strings.Contains(got["ExecStart"], "meshd --config "+config.DefaultPath) {
		t.Errorf("%s: Type=%s, ExecStart=%s", path, got["Type"], got["ExecStart"])
	}
	if want := filepath.Base(config.Default().StateDir); got["StateDirectory"] != want {
		t.Errorf("%s: StateDirectory=%s, the daemon uses %s", path, got["StateDirectory"], want)
	}
	if got["Restart"] != "on-failure" {
		t.Errorf("%s: Restart=%s would undo meshctl down, which ends the daemon with success", path, got["Restart"])
	}
	// Usage, bad state, missing file, permission, configuration: a person's turn.
	for _, code := range []string{"64", "65", "66", "77", "78"} {
		if !slices.Contains(strings.Fields(got["RestartPreventExitStatus"]), code) {
			t.Errorf("%s: restarts after exit code %s", path, code)
		}
	}
}
