//go:build linux

package inside

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kernel is the network of one namespace. Its sysctls are those of the thread.
type kernel struct {
	*netlink.Handle
	fd int // of the namespace
}

// in runs do on a thread in the namespace at path ns; host is the caller's. The
// thread ends with it: none whose namespace has changed ever runs anything else.
func in(ns string, do func(host, there kernel) error) error {
	target, err := openNamespace(ns)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	own, err := openNamespace("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer unix.Close(own)
	same, err := sameFile(target, own)
	if err != nil {
		return err
	}
	if same {
		return ErrOwn
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer handle.Close()
	done := make(chan error)
	go onThread(done, func() error {
		if err := unix.Setns(target, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		there, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer there.Close()
		return do(kernel{handle, own}, kernel{there, target})
	})
	return <-done
}

// lockPoll is how often who waits for its turn looks: a turn takes milliseconds.
const lockPoll = 2 * time.Millisecond

// lock makes the caller the only one of this package, in any process, who changes
// the namespace, until the kernel's fd is closed.
func (k kernel) lock(ctx context.Context) error {
	for {
		switch err := unix.Flock(k.fd, unix.LOCK_EX|unix.LOCK_NB); {
		case err == nil:
			return ctx.Err()
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("lock network namespace: %w", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lockPoll):
		}
	}
}

// onThread runs do on a thread that ends with it.
func onThread(done chan<- error, do func() error) {
	runtime.LockOSThread() // never unlocked: a goroutine that returns locked takes its thread along
	if unix.Gettid() == unix.Getpid() {
		// The main thread cannot end, and what looks at /proc/PID looks at it.
		// While it is held here, the next goroutine gets another one.
		moved := make(chan error)
		go onThread(moved, do)
		err := <-moved
		runtime.UnlockOSThread()
		done <- err
		return
	}
	done <- do()
}

// openNamespace opens what must be a network namespace.
func openNamespace(path string) (int, error) {
	// What is no namespace may be a FIFO, on which nobody writes.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOTDIR) {
		return -1, ErrNoNamespace
	}
	if err != nil {
		return -1, fmt.Errorf("open network namespace: %w", err)
	}
	var st unix.Statfs_t
	kind := 0
	if err = unix.Fstatfs(fd, &st); err == nil && int64(st.Type) == unix.NSFS_MAGIC {
		kind, err = unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	}
	if err == nil && kind != unix.CLONE_NEWNET {
		// A name in /run/netns whose namespace is unmounted is such a file.
		err = fmt.Errorf("%w: it is something else", ErrNoNamespace)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func sameFile(a, b int) (bool, error) {
	var x, y unix.Stat_t
	if err := errors.Join(unix.Fstat(a, &x), unix.Fstat(b, &y)); err != nil {
		return false, fmt.Errorf("compare network namespaces: %w", err)
	}
	return x.Dev == y.Dev && x.Ino == y.Ino, nil
}
