package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"meshd/mesh/statedir"
	"meshd/tun/netns"
)

// What the daemon's user has put on the way to the socket must not have root make
// or give away anything elsewhere.
func TestSocketDirectory(t *testing.T) {
	netns.RequireRoot(t)
	user := statedir.Owner{UID: 64000, GID: 64000}
	base := t.TempDir()
	for _, dir := range []string{base, filepath.Dir(base)} { // whoever else it is must get through
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(base, name) }
	for _, err := range []error{
		os.Mkdir(in("roots"), 0o755), os.Mkdir(in("outside"), 0o755),
		os.Mkdir(in("users"), 0o755), os.Chown(in("users"), user.UID, user.GID),
		os.Symlink("roots", in("link")),
		os.Symlink(in("outside"), in("users/planted")), os.Lchown(in("users/planted"), user.UID, user.GID),
		os.Symlink(in("outside/new"), in("users/dangling")), os.Lchown(in("users/dangling"), user.UID, user.GID),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for dir, ok := range map[string]bool{
		"roots/new": true, "roots/one/two": true, "link/other": true, "users/new": true, "users/one/two": true,
		"users/planted/new": false, "users/dangling": false, "users/dangling/new": false,
	} {
		f := flight{stdout: io.Discard, owner: user}
		if err := f.haveFolder("control", filepath.Join(in(dir), "sock")); ok != (err == nil) {
			t.Errorf("%s: %v", dir, err)
		}
		if !ok {
			continue
		}
		made := f.changes == 1
		if info, err := os.Stat(in(dir)); err != nil || !info.IsDir() || !made {
			t.Errorf("%s: %v, made %t", dir, err, made)
		}
	}
	// The usual directory goes over from a daemon of root's, another one does not.
	for dir, usual := range map[string]string{"roots": in("roots"), "outside": in("elsewhere")} {
		f := flight{stdout: io.Discard, owner: user, run: usual}
		if err, want := f.haveFolder("control", filepath.Join(in(dir), "sock")), dir == "roots"; want != (err == nil) || want != (f.changes == 1) {
			t.Errorf("%s of root's, where %s is usual: %v, %d changes", dir, usual, err, f.changes)
		}
	}
	if _, err := os.Stat(in("outside/new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("made elsewhere: %v", err)
	}
	if info, err := os.Stat(in("outside")); err != nil || info.Mode().Perm() != 0o755 {
		t.Error(info, err)
	}
}
