package statedir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Create writes the state of a new member, whole or not at all. Where there is
// state it refuses with [ErrExists], unless that node has left: then the old
// files are kept in a subdirectory left-N. The caller holds [Lock].
//
// The new files are staged under other names. Renaming the staged keys is the
// moment that counts: from then on whoever opens the directory completes the
// rest, and before it the staged files are leftovers.
func Create(path string, keys Keys, m Membership) error {
	if err := createIn(path, keys, m); err != nil {
		return fmt.Errorf("create state: %w", err)
	}
	return nil
}

func createIn(path string, keys Keys, m Membership) error {
	if err := makeDir(path, ServiceUser); err != nil {
		return err
	}
	if err := complete(path); err != nil {
		return err
	}
	old, err := load(path)
	switch {
	case errors.Is(err, ErrNoState):
	case err != nil:
		return err
	default:
		state, err := old.State()
		if err != nil {
			return err
		}
		if !state.Left {
			return fmt.Errorf("%s: %w", path, ErrExists)
		}
	}
	// Staged keys come first and go last: their absence beside other staged
	// files means that Create got past the moment that counts.
	if err := dropStaged(path); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		body any
	}{{fileKeys, keys.file()}, {fileMesh, membershipFileOf(m)}, {fileNode, nodeFile{Node: keys.ID().String(), Machine: thisMachine()}}} {
		if err := writeFile(path, staged(f.name), f.name, f.body); err != nil {
			return err
		}
	}
	if old != nil {
		if err := keepOld(path); err != nil {
			return fmt.Errorf("keep the state of the mesh that was left: %w", err)
		}
	}
	if err := rename(filepath.Join(path, staged(fileKeys)), filepath.Join(path, fileKeys)); err != nil {
		return err
	}
	if err := syncDir(path); err != nil {
		return err
	}
	return complete(path)
}

// staged is the name of a file that Create has written and not yet put in place.
func staged(name string) string { return ".new-" + name }

// complete puts staged files in place if Create was interrupted after the moment
// that counts.
func complete(path string) error {
	if _, err := os.Lstat(filepath.Join(path, staged(fileKeys))); err == nil {
		return nil // before it
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	moved := false
	for _, name := range []string{fileMesh, fileNode} {
		from := filepath.Join(path, staged(name))
		if _, err := os.Lstat(from); errors.Is(err, os.ErrNotExist) {
			continue // whoever only reads may have a file system that is read-only
		} else if err != nil {
			return err
		}
		err := rename(from, filepath.Join(path, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) { // another reader was quicker
			return err
		}
		moved = true
	}
	if !moved {
		return nil
	}
	return syncDir(path)
}

func dropStaged(path string) error {
	for _, name := range []string{fileNode, fileMesh, fileKeys} {
		if err := remove(filepath.Join(path, staged(name))); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := syncDir(path); err != nil {
			return err
		}
	}
	return nil
}

// keepOld copies, by hard link, the files of a mesh that was left, and drops
// its caches.
func keepOld(path string) error {
	into := ""
	for n := 1; into == ""; n++ {
		try := filepath.Join(path, fmt.Sprintf("left-%d", n))
		switch err := mkdir(try); {
		case err == nil:
			into = filepath.Base(try)
		case !errors.Is(err, os.ErrExist):
			return err
		}
	}
	d, err := os.OpenFile(filepath.Join(path, into), os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(chownLike(d, path), d.Close()); err != nil {
		return err
	}
	attach, err := attachFiles(path)
	if err != nil {
		return err
	}
	for _, name := range slices.Concat(files, attach) {
		err := link(path, name, filepath.Join(into, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := errors.Join(syncDir(filepath.Join(path, into)), syncDir(path)); err != nil {
		return err
	}
	for _, name := range slices.Concat(caches, attach) { // they belong to one membership
		if err := remove(filepath.Join(path, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return syncDir(path)
}

// makeDir makes the state directory, or closes an existing one to others. It
// refuses one that is not for us alone: others would be locked out. A new one
// that root makes is for the service, if there is that user.
func makeDir(path, service string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	err := mkdir(path)
	if err == nil {
		return errors.Join(giveNew(path, service), syncDir(filepath.Dir(path)))
	}
	if !errors.Is(err, os.ErrExist) {
		return err
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return &os.PathError{Op: "open", Path: path, Err: syscall.ENOTDIR}
	case info.Mode().Perm()&0o077 == 0:
		return nil
	case info.Mode()&os.ModeSticky != 0:
		return shared(path, "everybody may write there")
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !ours(e.Name()) {
			return shared(path, fmt.Sprintf("it has mode %04o and holds %q, which is not ours", info.Mode().Perm(), e.Name()))
		}
	}
	return os.Chmod(path, 0o700)
}

// ours tells whether a file in a state directory may be one of ours.
func ours(name string) bool {
	if name == "lost+found" || strings.HasPrefix(name, "left-") { // the first: a volume of its own
		return true
	}
	name = strings.TrimPrefix(strings.TrimPrefix(name, ".new-"), ".tmp-")
	_, attach := attachNetwork(name)
	return attach || name == fileLock || name == fileDocker || slices.Contains(files, name)
}

func shared(path, why string) error {
	return fmt.Errorf("%w: %s: %s: set state_dir to a directory of its own, such as %s", ErrShared, path, why, filepath.Join(path, "meshd"))
}
