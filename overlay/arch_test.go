package overlay_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// This file is where the rules on imports are written; docs/architecture.md,
// "Packages", shows the picture behind them. A failing test names its table.
const (
	inMayImport = "rule: mayImport in overlay/arch_test.go"
	inPure      = "rule: pure in overlay/arch_test.go; see docs/architecture.md, Packages"
	inHomes     = "rule: homes in overlay/arch_test.go"
	inTestOnly  = "rule: testOnly and testPackages in overlay/arch_test.go"
)

const vocabulary = "mesh tun overlay/tunnel"

// mayImport says what each package may import of ours besides the packages
// below it. "x/..." is x and everything below it, "*" is all but commands.
// Every package must match a line; the longest one counts.
var mayImport = []struct{ pkg, ours string }{
	// The roots import nothing: they are what everybody speaks.
	{"mesh", ""},
	{"tun", ""},
	// Vocabulary of the engines.
	{"overlay/tunnel", "mesh tun"},

	// Pure packages: vocabulary, and what is pure in their own tree.
	{"mesh/trust", "mesh pure"},
	{"mesh/lease", "mesh pure"},
	{"mesh/registry", "mesh pure"},
	{"mesh/member", "mesh pure"},
	{"tun/packet", ""},
	{"overlay/plan", vocabulary + " pure"},
	{"overlay/tunnel/wg", "mesh"},

	// Adapters know their own tree.
	{"mesh/exchange", "mesh mesh/trust"},
	{"mesh/gossip", "mesh/..."},
	{"mesh/statedir", "mesh/..."},
	{"mesh/meshtest", "mesh/..."},
	{"tun/device", "tun/..."},
	{"tun/hostnet", "tun/..."},
	{"tun/inside", "tun/..."},
	{"tun/netns", "tun/..."},
	{"tun/nft", "tun/..."},
	{"tun/rawio", ""},
	{"tun/rtnl", ""},
	{"tun/tuntest", "tun/..."},
	{"overlay/tunnel/wggo", "tun/packet " + vocabulary},
	// The engine's workers move packets from one kernel queue to the other.
	{"overlay/tunnel/native", "overlay/tunnel/wg overlay/udp tun/device tun/packet tun/rawio " + vocabulary},
	{"overlay/tunnel/tunneltest", vocabulary},

	// The loop declares interfaces; it never imports an adapter.
	{"overlay/reconcile", "overlay/plan " + vocabulary},
	{"overlay/probe", "mesh"},
	// What it needs of the host and of the disk it declares too.
	{"overlay/attach", "mesh tun"},
	{"overlay/attach/attachtest", "mesh tun"},
	{"overlay/attach/docker", "mesh tun overlay/attach overlay/unixsock"},
	// Sockets and TUN queues are waited for alike.
	{"overlay/udp", "tun/rawio"},
	// It carries what doors say to overlay/attach.
	{"overlay/status", "mesh overlay/attach overlay/unixsock"},
	{"overlay/unixsock", ""},
	{"overlay/subnetenv", "overlay/attach"},
	{"overlay/config", "mesh"},
	// It puts real nodes into a world of fakes.
	{"overlay/sim", "*"},
	// The assembled node gets its concrete parts from the command.
	{"overlay", "overlay/attach overlay/plan overlay/probe overlay/reconcile overlay/status " + vocabulary},

	// Commands choose the concrete parts.
	{"cmd/internal/exit", ""},
	{"cmd/internal/setup", "overlay/config overlay/status mesh/statedir mesh/trust cmd/internal/exit"},
	// init and join look at what the host's network has, hence tun/hostnet, and
	// overlay/plan decides what collides with the mesh.
	{"cmd/meshctl", "overlay/status overlay/attach overlay/config overlay/plan mesh mesh/trust mesh/registry mesh/statedir tun tun/hostnet tun/inside cmd/internal/..."},
	{"cmd/meshd", "* cmd/internal/..."},
	{"cmd/mesh-cni", "overlay/attach overlay/config overlay/status mesh tun/inside"},
	{"examples/...", "*"},
	{"overlay/e2e/...", "*"},
}

// pure packages decide and do nothing else: no network, no file, no log, no
// system call. They take the time as an argument (the linter looks for
// time.Now).
var (
	pure = []string{
		"mesh", "mesh/trust", "mesh/lease", "mesh/registry", "mesh/member",
		"tun", "tun/packet", "overlay/plan", "overlay/tunnel", "overlay/tunnel/wg",
	}
	impure = []string{"net", "net/...", "os", "os/...", "log", "log/...", "syscall", "io/ioutil", "golang.org/x/sys/..."}
	isFine = []string{"net/netip"}
)

// homes says where each third-party module may be imported, tests aside.
var homes = []struct{ module, homes string }{
	{"github.com/containernetworking/cni", "cmd/mesh-cni"},
	{"github.com/coreos/go-systemd/v22", "cmd/meshd"},
	{"github.com/fxamacker/cbor/v2", "mesh/trust"},
	{"github.com/google/nftables", "tun/nft overlay/e2e/..."},                    // the lab's faults
	{"github.com/hashicorp/memberlist", "mesh/gossip mesh/meshtest overlay/sim"}, // its transport in memory
	{"github.com/prometheus/client_golang", "overlay/status"},
	{"github.com/songgao/water", "tun/device"},
	{"github.com/spf13/cobra", "cmd/meshd cmd/meshctl"},
	{"github.com/vishvananda/netlink", "tun/hostnet tun/inside tun/rtnl overlay/e2e/..."}, // e2e builds its lab with it
	{"github.com/vishvananda/netns", "tun/netns"},
	{"golang.org/x/crypto", "overlay/tunnel/wg mesh/trust"},                                                                   // the tunnel's handshake; boxes for gossip keys
	{"golang.org/x/sys", "tun/... mesh/exchange mesh/gossip mesh/statedir overlay/udp overlay/tunnel/native overlay/e2e/..."}, // system calls that package syscall lacks
	{"golang.zx2c4.com/wireguard", "overlay/tunnel/wggo"},
	{"gopkg.in/yaml.v3", "overlay/config"},
}

// testOnly modules are for tests: _test.go files and packages that only tests
// import.
var (
	testOnly     = []string{"github.com/flynn/noise", "github.com/rogpeppe/go-internal", "go.uber.org/goleak", "pgregory.net/rapid"}
	testPackages = []string{"mesh/meshtest", "tun/netns", "tun/tuntest", "overlay/tunnel/tunneltest", "overlay/attach/attachtest", "overlay/sim", "overlay/e2e/..."}
)

// goPackage is what `go list -json` prints, as far as it matters here.
type goPackage struct {
	ImportPath   string
	Dir          string
	GoFiles      []string
	IgnoredFiles []string `json:"IgnoredGoFiles"`
	Imports      []string
	TestImports  []string
	XTestImports []string
	Standard     bool
	Module       *struct{ Main bool }
}

const module = "meshd/"

// match tells whether a package path is pattern, or below it for "x/...".
func match(pattern, path string) bool {
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == base || strings.HasPrefix(path, base+"/")
	}
	return path == pattern
}

func matchAny(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return match(p, path) })
}

// checkImport says which rule an import breaks.
func checkImport(pkg, imported string, inTest bool) error {
	first, _, _ := strings.Cut(imported, "/")
	ours, isOurs := strings.CutPrefix(imported, module)
	switch {
	case imported == "C":
		return errors.New("meshd is built without cgo (rule: build in the Makefile)")
	case !inTest && slices.Contains(pure, pkg) && matchAny(impure, imported) && !slices.Contains(isFine, imported):
		return fmt.Errorf("a pure package touches no network, file, log or system call (%s)", inPure)
	case isOurs && inTest:
		return checkOursInTest(pkg, ours)
	case isOurs:
		return checkOurs(pkg, ours)
	case strings.Contains(first, "."):
		return checkThirdParty(pkg, imported, inTest)
	}
	return nil
}

func checkOursInTest(pkg, ours string) error {
	switch {
	case ours == pkg: // an external test
		return nil
	case pkg == "mesh" || pkg == "tun":
		return fmt.Errorf("the tests of the roots mesh and tun import nothing of ours either (%s)", inMayImport)
	case match("cmd/...", ours) && !match("cmd/...", pkg) && !match("overlay/e2e/...", pkg):
		return fmt.Errorf("a test outside cmd runs the binaries, it does not import them (%s)", inMayImport)
	}
	return nil
}

func checkOurs(pkg, ours string) error {
	if matchAny(testPackages, ours) && !matchAny(testPackages, pkg) {
		return fmt.Errorf("%s is for tests only (%s)", ours, inTestOnly)
	}
	found := false
	var line struct{ pkg, ours string }
	for _, l := range mayImport {
		if match(l.pkg, pkg) && (!found || len(l.pkg) > len(line.pkg)) {
			found, line = true, l
		}
	}
	if !found {
		return fmt.Errorf("%s is in no line of the table: say what it may import (%s)", pkg, inMayImport)
	}
	tree, _, _ := strings.Cut(pkg, "/")
	for allowed := range strings.FieldsSeq(line.ours) {
		switch {
		case match(allowed, ours),
			allowed == "*" && !match("cmd/...", ours),
			allowed == "pure" && slices.Contains(pure, ours) && match(tree+"/...", ours):
			return nil
		}
	}
	return fmt.Errorf("%s may import of ours: %q (%s)", line.pkg, line.ours, inMayImport)
}

func checkThirdParty(pkg, imported string, inTest bool) error {
	below := func(module string) bool { return match(module+"/...", imported) }
	if slices.ContainsFunc(testOnly, below) {
		if inTest || matchAny(testPackages, pkg) {
			return nil
		}
		return fmt.Errorf("this library is for tests only (%s)", inTestOnly)
	}
	if pkg == "mesh" || pkg == "tun" {
		return fmt.Errorf("the roots mesh and tun import nothing third-party (%s)", inHomes)
	}
	for _, h := range homes {
		if !below(h.module) {
			continue
		}
		if inTest || matchAny(strings.Fields(h.homes), pkg) {
			return nil
		}
		return fmt.Errorf("the home of %s is %s (%s)", h.module, h.homes, inHomes)
	}
	return fmt.Errorf("this library is not on the list: give it a home (%s)", inHomes)
}

// list runs `go list` for the whole module.
func list(t *testing.T) []goPackage {
	t.Helper()
	// The test cache knows the directories that a test opened, not what `go list`
	// read: without this walk the result would outlive an edit elsewhere.
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		hidden := strings.HasPrefix(d.Name(), ".") && path != ".."
		if d.IsDir() && (hidden || d.Name() == "bin" || d.Name() == "testdata") {
			return fs.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// -e: a package that does not build is some other test's failure.
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Dir,GoFiles,IgnoredGoFiles,Imports,TestImports,XTestImports", "meshd/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var all []goPackage
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := d.Decode(&p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func TestArchitecture(t *testing.T) {
	packages := list(t)
	if len(packages) < 10 {
		t.Fatalf("go list found only %d packages", len(packages))
	}
	for _, p := range packages {
		path := strings.TrimPrefix(p.ImportPath, module)
		t.Run(path, func(t *testing.T) {
			// What other systems build counts too: go list leaves out the imports
			// of files that this one ignores.
			imports := slices.Concat(p.Imports, importsOf(t, p.Dir, p.IgnoredFiles, false))
			tests := slices.Concat(p.TestImports, p.XTestImports, importsOf(t, p.Dir, p.IgnoredFiles, true))
			check := func(imports []string, inTest bool, in string) {
				slices.Sort(imports)
				for _, imported := range slices.Compact(imports) {
					if err := checkImport(path, imported, inTest); err != nil {
						t.Errorf("%s%s imports %s: %v", path, in, imported, err)
					}
				}
			}
			check(imports, false, "")
			check(tests, true, " (in a test)")
		})
	}
}

// importsOf reads the imports of the test or the other files among those named.
func importsOf(t *testing.T, dir string, files []string, tests bool) []string {
	t.Helper()
	var all []string
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") != tests {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, name), nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if spec, ok := n.(*ast.ImportSpec); ok {
				all = append(all, strings.Trim(spec.Path.Value, `"`))
			}
			return true
		})
	}
	return all
}

// The linter keeps the clock out of the same packages that are pure here.
func TestLinterKnowsWhatIsPure(t *testing.T) {
	text, err := os.ReadFile("../.golangci.yml")
	if err != nil {
		t.Fatal(err)
	}
	line := `path-except: ^(` + strings.Join(pure, "|") + `)/[^/]+\.go$`
	if !strings.Contains(string(text), line) {
		t.Errorf(".golangci.yml lacks %s (%s)", line, inPure)
	}
}

// The rules can fail: each line breaks or keeps one of them.
func TestArchitectureRules(t *testing.T) {
	for _, tt := range []struct {
		pkg, imported string
		inTest        bool
		wantErr       string // part of it; empty: allowed
	}{
		{"mesh", "meshd/tun", false, "may import of ours"},
		{"mesh", "meshd/mesh", true, ""},
		{"mesh", "meshd/mesh/lease", true, "nothing of ours either"},
		{"mesh", "gopkg.in/yaml.v3", false, "nothing third-party"},
		{"mesh", "pgregory.net/rapid", true, ""},
		{"mesh", "os", false, "a pure package"},
		{"mesh", "net/netip", false, ""},
		{"mesh", "net/http", false, "a pure package"},
		{"mesh/trust", "log/slog", false, "a pure package"},
		{"mesh/trust", "os", true, ""},
		{"mesh/trust", "meshd/mesh", false, ""},
		{"mesh/trust", "meshd/tun", false, "may import of ours"},
		{"mesh/member", "meshd/mesh/lease", false, ""},
		{"mesh/member", "meshd/mesh/gossip", false, "may import of ours"},
		{"mesh/member", "meshd/overlay/plan", false, "may import of ours"},
		{"mesh/member", "github.com/fxamacker/cbor/v2", false, "the home of"},
		{"mesh/trust", "github.com/fxamacker/cbor/v2", false, ""},
		{"mesh/trust", "golang.org/x/sys/unix", false, "a pure package"},
		{"mesh/gossip", "meshd/overlay/config", false, "may import of ours"},
		{"mesh/gossip", "meshd/overlay/config", true, ""},
		{"tun/device", "meshd/mesh", false, "may import of ours"},
		{"overlay/reconcile", "meshd/tun/hostnet", false, "may import of ours"},
		{"overlay/reconcile", "meshd/tun/hostnet", true, ""},
		{"overlay/reconcile", "meshd/cmd/meshd", true, "runs the binaries"},
		{"overlay", "meshd/tun/hostnet", false, "may import of ours"},
		{"overlay", "meshd/overlay/plan", false, ""},
		{"overlay", "meshd/overlay/tunnel/wggo", false, "may import of ours"},
		{"overlay", "meshd/overlay/tunnel/tunneltest", false, "tests only"},
		{"cmd/meshctl", "meshd/tun/hostnet", false, ""},
		{"cmd/meshctl", "meshd/mesh/gossip", false, "may import of ours"},
		{"cmd/meshd", "meshd/mesh/gossip", false, ""},
		{"cmd/meshd", "meshd/cmd/meshctl", false, "may import of ours"},
		{"cmd/meshd", "meshd/tun/tuntest", false, "tests only"},
		{"cmd/meshd", "go.uber.org/goleak", false, "tests only"},
		{"cmd/meshd", "github.com/unknown/library", false, "not on the list"},
		{"cmd/meshd", "github.com/unknown/library", true, "not on the list"},
		{"cmd/meshd", "C", false, "cgo"},
		{"overlay/e2e/lab", "meshd/tun/netns", false, ""},
		{"overlay/e2e/lab", "github.com/vishvananda/netlink", false, ""},
		{"overlay/elsewhere", "meshd/mesh", false, "in no line"},
	} {
		err := checkImport(tt.pkg, tt.imported, tt.inTest)
		switch {
		case tt.wantErr == "" && err != nil:
			t.Errorf("%s imports %s: %v; want it allowed", tt.pkg, tt.imported, err)
		case tt.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tt.wantErr)):
			t.Errorf("%s imports %s: %v; want %q", tt.pkg, tt.imported, err, tt.wantErr)
		}
	}
}
