package statedir

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"meshd/mesh/member"
)

// withMounts runs do on a thread with mounts of its own.
func withMounts(t *testing.T, do func() error) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("MESHD_REQUIRE_ROOT") == "1" {
			t.Fatal("MESHD_REQUIRE_ROOT is set, and this is not root")
		}
		t.Skip("only root can mount")
	}
	done := make(chan error, 1)
	go func() {
		err := errors.New("the test ended on the way") // stays when it did
		defer func() { done <- err }()
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err = unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = do()
		}
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// checkUnchanged looks that nothing can be saved, and nothing is lost.
func checkUnchanged(t *testing.T, path string, keys Keys, why error) {
	d, err := readAll(path)
	if err != nil {
		t.Errorf("%v: read: %v", why, err)
		return
	}
	if s, err := d.State(); err != nil || !reflect.DeepEqual(s, testState()) || !reflect.DeepEqual(d.Keys(), keys) {
		t.Errorf("%v: state is %+v, %v", why, s, err)
	}
	for name, save := range map[string]func() error{
		"state":      func() error { return d.SaveState(member.State{Epoch: 8}) },
		"membership": func() error { return d.SaveMembership(d.Membership()) },
		"table":      func() error { return d.SaveTable([][]byte{make([]byte, 100<<10)}) },
		"check":      d.Check,
	} {
		if err := save(); !errors.Is(err, why) || !strings.Contains(err.Error(), path) {
			t.Errorf("%v: save %s: %v", why, name, err)
		}
	}
	if d, err = readAll(path); err != nil {
		t.Errorf("%v: read again: %v", why, err)
	} else if s, err := d.State(); err != nil || !reflect.DeepEqual(s, testState()) {
		t.Errorf("%v: state became %+v, %v", why, s, err)
	}
}

// checkSaves looks that all goes well again.
func checkSaves(t *testing.T, path string, keys Keys) {
	d, err := Open(path)
	if err != nil {
		t.Error(err)
		return
	}
	if err := errors.Join(d.Check(), d.SaveState(member.State{Epoch: 8}), d.SaveTable(nil)); err != nil {
		t.Error(err)
	}
	if s, err := d.State(); err != nil || s.Epoch != 8 || !reflect.DeepEqual(d.Keys(), keys) {
		t.Errorf("state is %+v, %v", s, err)
	}
}

func TestFullDisk(t *testing.T) {
	base := t.TempDir()
	withMounts(t, func() error {
		if err := unix.Mount("tmpfs", base, "tmpfs", 0, "size=128k"); err != nil {
			return err
		}
		path, keys, err := createAt(t, filepath.Join(base, "state"))
		if err != nil {
			return err
		}
		filler := filepath.Join(base, "filler")
		if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("the disk is not full: %v", err)
		}
		checkUnchanged(t, path, keys, syscall.ENOSPC)
		fresh := filepath.Join(base, "fresh")
		if err := createNew(t, fresh); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("Create: %v", err)
		}
		if _, err := Open(fresh); !errors.Is(err, ErrNoState) {
			t.Errorf("half a state was left: %v", err)
		}
		if err := os.Remove(filler); err != nil {
			return err
		}
		checkSaves(t, path, keys)
		return createNew(t, fresh)
	})
}

func TestReadOnlyDisk(t *testing.T) {
	path, keys := create(t)
	withMounts(t, func() error {
		if err := errors.Join(unix.Mount(path, path, "", unix.MS_BIND, ""), unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")); err != nil {
			return err
		}
		checkUnchanged(t, path, keys, syscall.EROFS)
		if _, err := Lock(path); !errors.Is(err, syscall.EROFS) {
			t.Errorf("Lock: %v", err)
		}
		if err := unix.Unmount(path, 0); err != nil {
			return err
		}
		checkSaves(t, path, keys)
		return nil
	})
}
