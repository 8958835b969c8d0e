package statedir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// ServiceUser is the user that the service runs as. Where there is one, a new
// state directory that root makes belongs to it.
const ServiceUser = "meshd"

// Owner is a user with its main group.
type Owner struct{ UID, GID int }

// OwnerOf says whom the state in a directory is for: the directory's owner; if
// that is root, or there is no directory yet, the user of that name if there is
// one.
func OwnerOf(path, name string) (Owner, error) {
	info, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Owner{}, fmt.Errorf("find owner of state: %w", err)
	}
	if err == nil {
		if have := ownerOf(info); have.UID != 0 {
			return have, nil
		}
	}
	service, err := lookup(name)
	if errors.As(err, new(user.UnknownUserError)) {
		return Owner{}, nil
	}
	if err != nil {
		return Owner{}, fmt.Errorf("find owner of state: %w", err)
	}
	return service, nil
}

// giveNew gives a directory that was just made to the service.
func giveNew(path, service string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	to, err := OwnerOf(path, service)
	if err != nil || to.UID == 0 {
		return err
	}
	return os.Lchown(path, to.UID, to.GID)
}

func lookup(name string) (Owner, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return Owner{}, err
	}
	var o Owner
	if o.UID, err = strconv.Atoi(u.Uid); err != nil {
		return Owner{}, err
	}
	o.GID, err = strconv.Atoi(u.Gid)
	return o, err
}

// Do runs fn with the owner's access to files. So the kernel itself says what it
// allows, also where lists of access rights and parent directories decide.
func (o Owner) Do(fn func() error) error {
	if o.UID == 0 {
		return fn()
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- o.do(fn)
	}()
	return <-done
}

func (o Owner) do(fn func() error) error {
	// For this thread alone, unlike [unix.Setgroups].
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return fmt.Errorf("drop groups: %w", errno)
	}
	if err := errors.Join(unix.Setfsgid(o.GID), unix.Setfsuid(o.UID)); err != nil {
		return fmt.Errorf("become user %d: %w", o.UID, err)
	}
	return fn()
}

func ownerOf(info fs.FileInfo) Owner {
	stat := info.Sys().(*syscall.Stat_t)
	return Owner{int(stat.Uid), int(stat.Gid)}
}

// Give makes what root has in a state directory, and at last the directory, the
// owner's. It lists the paths that it changed. Needs root. The owner may work
// against it meanwhile: nothing outside of the directory changes hands.
func Give(path string, to Owner) (changed []string, err error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("give state to user %d: %w", to.UID, err)
	}
	defer root.Close()
	g := giver{root: root, to: to}
	if err := g.give("."); err != nil {
		return g.changed, fmt.Errorf("give state to user %d: %w", to.UID, err)
	}
	return g.changed, nil
}

type giver struct {
	root    *os.Root
	to      Owner
	changed []string
}

func (g *giver) give(name string) error {
	// What is open and was looked at cannot be swapped for something else.
	f, err := g.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	switch {
	case info.IsDir():
		if err := g.giveAll(f, name); err != nil {
			return err
		}
	case !info.Mode().IsRegular(), info.Sys().(*syscall.Stat_t).Nlink != 1: // its other name may be anywhere
		return nil
	}
	if ownerOf(info).UID != 0 || g.to.UID == 0 {
		return nil
	}
	if err := f.Chown(g.to.UID, g.to.GID); err != nil {
		return err
	}
	g.changed = append(g.changed, filepath.Join(g.root.Name(), name))
	return nil
}

// giveAll gives what is in a directory.
func (g *giver) giveAll(dir *os.File, name string) error {
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		// Links and sockets are not ours; others come and go while a daemon runs.
		if !e.Type().IsRegular() && !e.IsDir() || name == "." && !ours(e.Name()) {
			continue
		}
		if err := g.give(filepath.Join(name, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
