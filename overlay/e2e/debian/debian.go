//go:build linux

// Package debian is what tests with real container engines need of the
// distribution: its programs, a root file system made of them, and a look at what
// they leave behind.
package debian

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Tool gives the path of a program of the distribution, others of that name may be
// in PATH; empty: there is none.
func Tool(name string) string {
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/bin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	return ""
}

// Lacks says which of the programs is not there.
func Lacks(names ...string) error {
	for _, name := range names {
		if Tool(name) == "" {
			return fmt.Errorf("there is no %s: make test-deps installs it", name)
		}
	}
	return nil
}

// RootFS is a tar of a root file system with busybox and its names.
func RootFS() ([]byte, error) {
	raw, err := rootFS()
	if err != nil {
		return nil, fmt.Errorf("make root file system: %w", err)
	}
	return raw, nil
}

func rootFS() ([]byte, error) {
	program, err := os.ReadFile(Tool("busybox"))
	if err != nil {
		return nil, err
	}
	names, err := exec.Command(Tool("busybox"), "--list").Output()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	var errs []error
	add := func(h tar.Header, content []byte) {
		h.Size = int64(len(content))
		errs = append(errs, w.WriteHeader(&h))
		_, err := w.Write(content)
		errs = append(errs, err)
	}
	for _, dir := range []string{"bin/", "etc/", "tmp/", "root/"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, program)
	for name := range strings.FieldsSeq(string(names)) {
		if name != "busybox" {
			add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox", Mode: 0o777}, nil)
		}
	}
	err = errors.Join(append(errs, w.Close())...)
	return out.Bytes(), err
}

// RemoveCgroups removes the control groups of a name with all below them, which
// containers leave that were killed.
func RemoveCgroups(ctx context.Context, name string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := tryRemoveCgroups(name)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C: // the kernel may be about to empty it
		case <-ctx.Done():
			return fmt.Errorf("remove control groups %s: %w", name, err)
		}
	}
}

func tryRemoveCgroups(name string) error {
	var errs []error
	for _, pattern := range []string{"/sys/fs/cgroup/" + name, "/sys/fs/cgroup/*/" + name} { // version 2, version 1
		found, _ := filepath.Glob(pattern)
		for _, root := range found {
			var dirs []string
			_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			slices.Reverse(dirs) // the inner ones first
			for _, dir := range dirs {
				if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
					errs = append(errs, err)
				}
			}
		}
	}
	return errors.Join(errs...)
}
