//go:build linux

package cluster

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"meshd/tun/netns"
)

// Soon bounds whatever a mesh does by itself. What it really takes is far below,
// but the machine may be busy.
const Soon = 20 * time.Second

// Bounded gives a context that ends [Soon], or with the test.
func Bounded(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Soon)
	t.Cleanup(cancel)
	return ctx
}

// build is where programs are built, once for all tests of a package.
type build struct {
	once sync.Once
	dir  string // empty: nothing was built
	bin  Binaries
	err  error
}

var built, builtWithClocks build

// get gives the programs, which program puts into a directory.
func (b *build) get(t testing.TB, program func(dir string) (Binaries, error)) Binaries {
	t.Helper()
	b.once.Do(func() {
		if b.dir, b.err = os.MkdirTemp("", "meshd-bin-"); b.err != nil { //nolint:usetesting // outlives the test
			return
		}
		if b.err = os.Chmod(b.dir, 0o755); b.err == nil { // daemons run as other users, too
			b.bin, b.err = program(b.dir)
		}
	})
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.bin
}

// Main runs the tests and removes what [Programs] and [ProgramsWithClocks] have
// built: TestMain calls it.
func Main(m *testing.M) {
	m.Run()
	for _, b := range []*build{&built, &builtWithClocks} {
		if b.dir != "" {
			os.RemoveAll(b.dir)
		}
	}
}

// Programs gives those in the directory that MESHD_BIN names, or builds them. It
// skips the test where no daemon can run, and says why; with
// MESHD_REQUIRE_ROOT=1 in the environment it fails instead.
func Programs(t testing.TB) Binaries {
	t.Helper()
	netns.RequireRoot(t)
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		if os.Getenv("MESHD_REQUIRE_ROOT") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	if dir := os.Getenv("MESHD_BIN"); dir != "" {
		bin, err := Find(dir)
		if err != nil {
			t.Fatal(err)
		}
		return bin
	}
	return built.get(t, func(dir string) (Binaries, error) { return Build(t.Context(), dir, false) })
}

// ProgramsWithClocks is [Programs] with [Binaries.WithClocks].
func ProgramsWithClocks(t testing.TB) Binaries {
	t.Helper()
	bin := Programs(t)
	return builtWithClocks.get(t, func(dir string) (Binaries, error) { return bin.WithClocks(t.Context(), dir) })
}

// ForTest is [Binaries.ForTest] with what [Programs] gives.
func ForTest(t testing.TB, names []string, extra ...string) *Cluster {
	t.Helper()
	return Programs(t).ForTest(t, names, extra...)
}

// ForTest is [New] for a test, with [Cluster.CloseAfter].
func (b Binaries) ForTest(t testing.TB, names []string, extra ...string) *Cluster {
	t.Helper()
	c, err := New(t.Context(), b, names, extra...)
	if err != nil {
		t.Fatal(err)
	}
	c.CloseAfter(t)
	return c
}

// CloseAfter closes the cluster when a test ends, which fails if something is left
// over or a daemon has logged what none should.
func (c *Cluster) CloseAfter(t testing.TB) {
	t.Helper()
	t.Cleanup(func() {
		for _, n := range c.Nodes {
			CheckLog(t, n.Name, n.Log())
		}
		if t.Failed() {
			t.Log(c.Logs(max(5, 600/len(c.Nodes))))
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(c.Dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", c.Dir, err)
		}
	})
}

// CheckLog looks for what no daemon should log, such as a data race or a panic.
func CheckLog(t testing.TB, name, log string) {
	t.Helper()
	for _, bad := range []string{"DATA RACE", "panic:", "fatal error:", "SIGSEGV"} {
		if strings.Contains(log, bad) {
			t.Errorf("%s logged: %s", name, bad)
		}
	}
}
