//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Binaries are the programs of a mesh.
type Binaries struct {
	Meshd, Meshctl, MeshCNI string // paths
	clocks                  bool   // by WithClocks
}

// Find looks for the programs in a directory.
func Find(dir string) (Binaries, error) {
	b := Binaries{Meshd: filepath.Join(dir, "meshd"), Meshctl: filepath.Join(dir, "meshctl"), MeshCNI: filepath.Join(dir, "mesh-cni")}
	for _, p := range []string{b.Meshd, b.Meshctl, b.MeshCNI} {
		if _, err := exec.LookPath(p); err != nil {
			return Binaries{}, fmt.Errorf("find programs: %w: `make build` makes it", err)
		}
	}
	return b, nil
}

// Build compiles the programs into a directory; with race, they look for data
// races at run time. The working directory is in our module.
func Build(ctx context.Context, dir string, race bool) (Binaries, error) {
	args := []string{"build", "-o", dir + string(filepath.Separator)}
	cgo := "CGO_ENABLED=0"
	if race {
		args, cgo = append(args, "-race"), "CGO_ENABLED=1"
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "meshd/cmd/meshd", "meshd/cmd/meshctl", "meshd/cmd/mesh-cni")...)
	cmd.Env = append(os.Environ(), cgo)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return Binaries{}, errors.Join(fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err), errors.New(string(out)))
	}
	return Find(dir)
}
