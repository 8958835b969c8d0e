package statedir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Lock makes this process the only one that may write the state, until release
// is called or the process ends. It makes the directory if there is none, and
// refuses with [ErrShared] one that others use as well. If another process holds
// it, the error is [ErrLocked] and names that process.
func Lock(path string) (release func(), err error) {
	if err := makeDir(path, ServiceUser); err != nil {
		return nil, fmt.Errorf("lock state: %w", err)
	}
	name := filepath.Join(path, fileLock)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state: %w", err)
	}
	if err := lockFile(f, path); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil // closing unlocks
}

func lockFile(f *os.File, dir string) error {
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("lock state: %w", err)
	}
	if !info.Mode().IsRegular() || info.Sys().(*syscall.Stat_t).Nlink != 1 { // its other name may be anywhere
		return fmt.Errorf("lock state: %w: delete %s", errUnfit, f.Name())
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		text, _ := io.ReadAll(io.LimitReader(f, 32))
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			return fmt.Errorf("%w: %s, by process %d", ErrLocked, dir, pid)
		}
		return fmt.Errorf("%w: %s", ErrLocked, dir)
	}
	if err != nil {
		return fmt.Errorf("lock state: %w", err)
	}
	if err := chownLike(f, dir); err != nil {
		return fmt.Errorf("lock state: %w", err)
	}
	// The number is a courtesy to whoever is refused; the lock holds without it.
	_ = f.Truncate(0)
	_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return nil
}
