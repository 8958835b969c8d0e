// Package examples has no code: its test keeps the examples true.
package examples

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/coreos/go-systemd/v22/unit"

	"meshd/mesh/statedir"
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
			if filepath.Dir(path) == "docker" {
				return nil // TestDocker of overlay/e2e/docker has docker-compose run them
			}
			if _, err := config.Load(path); err != nil {
				t.Error(err)
			}
		case ".spec":
			raw, err := os.ReadFile(path)
			if want := "unix://" + config.Default().Docker.Socket + "\n"; err != nil || string(raw) != want {
				t.Errorf("%s: %q, %v; want %q", path, raw, err, want)
			}
		case ".service":
			checkUnit(t, path)
		case ".conflist":
			checkConflist(t, path)
		case ".conf": // TestUserOfTheService
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

// checkConflist reads a CNI configuration. Real runtimes do in overlay/e2e/cni.
func checkConflist(t *testing.T, path string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var list types.NetConfList
	if err := json.Unmarshal(raw, &list); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if list.CNIVersion != "1.0.0" || list.Name != "meshd" || len(list.Plugins) != 1 {
		t.Fatalf("%s: it is %s", path, raw)
	}
	if p := list.Plugins[0]; p.Type != "mesh-cni" || !p.Capabilities["ips"] || !p.Capabilities["mac"] {
		t.Errorf("%s: the plugin is %+v", path, p)
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
		if o.Name == "StartLimitIntervalSec" && o.Section != "Unit" {
			t.Errorf("%s: %s in [%s] counts for nothing", path, o.Name, o.Section)
		}
	}
	if got["Type"] != "notify" || !strings.Contains(got["ExecStart"], "meshd --config "+config.DefaultPath) {
		t.Errorf("%s: Type=%s, ExecStart=%s", path, got["Type"], got["ExecStart"])
	}
	// The + is what gives it the rights that the daemon lacks.
	if want := "+-/usr/bin/meshd --preflight --config " + config.DefaultPath; got["ExecStartPre"] != want {
		t.Errorf("%s: ExecStartPre=%s, want %s", path, got["ExecStartPre"], want)
	}
	for key, want := range map[string]string{
		"User": statedir.ServiceUser, "Group": statedir.ServiceUser,
		"AmbientCapabilities": "CAP_NET_ADMIN", "CapabilityBoundingSet": "CAP_NET_ADMIN",
		"StateDirectory":   filepath.Base(config.Default().StateDir),
		"RuntimeDirectory": filepath.Base(filepath.Dir(config.Default().Control)),
	} {
		if got[key] != want {
			t.Errorf("%s: %s=%s, want %s", path, key, got[key], want)
		}
	}
	if got["Restart"] != "on-failure" {
		t.Errorf("%s: Restart=%s would undo meshctl down, which ends the daemon with success", path, got["Restart"])
	}
	if got["StartLimitIntervalSec"] != "0" {
		t.Errorf("%s: some quick failures end the service for good", path)
	}
	// Usage, bad state, missing file, permission, configuration: a person's turn.
	for _, code := range []string{"64", "65", "66", "77", "78"} {
		if !slices.Contains(strings.Fields(got["RestartPreventExitStatus"]), code) {
			t.Errorf("%s: restarts after exit code %s", path, code)
		}
	}
}

const unitFile = "systemd/meshd.service"

// missing skips a test for want of something, or fails it if MESHD_REQUIRE_ROOT=1.
func missing(t *testing.T, err error) {
	t.Helper()
	if os.Getenv("MESHD_REQUIRE_ROOT") == "1" {
		t.Fatalf("%v: make test-deps", err)
	}
	t.Skip(err)
}

// run runs a program of systemd's that looks at files and changes nothing.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		missing(t, err)
	}
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(cmd.Environ(), "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return string(out)
}

func TestUnitIsSandboxed(t *testing.T) {
	out := run(t, "systemd-analyze", "security", "--offline=true", "--threshold=20", unitFile) // 2.0
	lines := strings.Split(strings.TrimSpace(out), "\n")
	t.Log(lines[len(lines)-1])
}

func TestUnitIsGood(t *testing.T) {
	// It wants the programs to be there, and they are not before the installation.
	raw, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("/usr/bin/meshd ", program+" ", "/usr/bin/meshctl ", program+" ").Replace(string(raw))
	path := filepath.Join(t.TempDir(), "meshd.service")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := run(t, "systemd-analyze", "verify", "--man=no", path); strings.Contains(out, path) {
		t.Error(out) // a warning, of which it does not think less
	}
}

func TestUserOfTheService(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	conf, err := filepath.Abs("systemd/sysusers.conf")
	if err != nil {
		t.Fatal(err)
	}
	out := run(t, "systemd-sysusers", "--dry-run", "--root="+root, conf)
	for _, want := range []string{"group '" + statedir.ServiceUser + "'", "user '" + statedir.ServiceUser + "'"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not create %s: %s", want, out)
		}
	}
}
