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
)

// variant is a meshd to be built from sources of which a few are changed for this build
// alone.
type variant struct {
	dir     string            // of what is built
	sources map[string]string // of packages, by their paths
	replace map[string]string // files, by what is compiled in their place
	errs    []error
}

func newVariant(ctx context.Context, dir string, packages ...string) *variant {
	v := &variant{dir: dir, sources: map[string]string{}, replace: map[string]string{}}
	for _, p := range packages {
		at, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", p).Output()
		if err != nil {
			v.errs = append(v.errs, fmt.Errorf("find the source of %s: %w", p, err))
		}
		v.sources[p] = strings.TrimSpace(string(at))
	}
	return v
}

// add has a file of a package, which may be new, be another one.
func (v *variant) add(pkg, name, source string) {
	to := filepath.Join(v.dir, strconv.Itoa(len(v.replace))+".go")
	v.replace[filepath.Join(v.sources[pkg], name)] = to
	v.errs = append(v.errs, os.WriteFile(to, []byte(source), 0o644))
}

// change replaces what is in a file once, and may be several lines of it.
func (v *variant) change(pkg, name, old, new string) {
	path := filepath.Join(v.sources[pkg], name)
	from := path
	if changed := v.replace[path]; changed != "" {
		from = changed
	}
	raw, err := os.ReadFile(from)
	source := string(raw)
	if n := strings.Count(source, old); err == nil && n != 1 {
		err = fmt.Errorf("%s has %d times %q, not once: it has changed, and what this test changes in it has to follow", path, n, old)
	}
	if err != nil {
		v.errs = append(v.errs, err)
		return
	}
	v.add(pkg, name, strings.Replace(source, old, new, 1))
}

// build gives the path of the program.
func (v *variant) build(ctx context.Context) (string, error) {
	overlay, err := json.Marshal(map[string]any{"Replace": v.replace})
	file, meshd := filepath.Join(v.dir, "overlay.json"), filepath.Join(v.dir, "meshd")
	if err := errors.Join(append(v.errs, err, os.WriteFile(file, overlay, 0o644))...); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-overlay", file, "-o", meshd, "meshd/cmd/meshd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return meshd, nil
}

// Later builds, into a directory, a meshd of a later version: its records say something
// that those of today do not know of.
func Later(ctx context.Context, dir string) (meshd string, err error) {
	const pkg, file = "meshd/mesh/trust", "record.go"
	v := newVariant(ctx, dir, pkg)
	v.change(pkg, file, "type recordBody struct {\n", "type recordBody struct {\n\tLater string `cbor:\"99,keyasint,omitempty\"`\n")
	v.change(pkg, file, "b := recordBody{\n", "b := recordBody{\n\t\tLater: \"of a later version\",\n")
	if meshd, err = v.build(ctx); err != nil {
		return "", fmt.Errorf("build a later meshd: %w", err)
	}
	return meshd, nil
}
