//go:build linux

// Package netns runs functions in network namespaces.
//
// An [NS] is one goroutine, locked for its whole life to an operating system
// thread that is inside the namespace. Whatever is opened there stays in the
// namespace and may be used from any goroutine afterwards: sockets, netlink
// handles, TUN devices. Processes that are started there inherit it.
//
//	ns, err := netns.New()
//	err = ns.Do(func() (err error) { l, err = net.Listen("tcp", "10.0.0.1:80"); return err })
//
// A namespace has no name and no mount. It ends with the last of the NS, the
// sockets and the processes in it, so a crash leaves nothing to clean up.
//
// The owner calls [NS.Close]. Needs CAP_SYS_ADMIN.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// errClosed is returned by [NS.Do] after [NS.Close].
var errClosed = errors.New("network namespace is closed")

// NS is a network namespace with a thread inside. Its methods may be called
// from any goroutine.
type NS struct {
	tid  int           // fixed at construction: the thread inside
	jobs chan job      // unbuffered, taken by the thread
	quit chan struct{} // closed by Close
	done chan struct{} // closed when the goroutine has returned
	once sync.Once     // guards the closing of quit
}

type job struct {
	fn   func() error
	done chan<- error
}

// New makes an empty namespace. Its loopback interface is down.
func New() (*NS, error) {
	ns, err := start(func() error { return unix.Unshare(unix.CLONE_NEWNET) })
	if err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	return ns, nil
}

// Open enters an existing namespace, given by a path such as /run/netns/NAME
// or /proc/PID/ns/net.
func Open(path string) (*NS, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	defer f.Close()
	ns, err := start(func() error { return unix.Setns(int(f.Fd()), unix.CLONE_NEWNET) })
	if err != nil {
		return nil, fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return ns, nil
}

// Run runs fn in the namespace at path.
func Run(path string, fn func() error) error {
	ns, err := Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(fn)
}

func start(enter func() error) (*NS, error) {
	ns := &NS{jobs: make(chan job), quit: make(chan struct{}), done: make(chan struct{})}
	entered := make(chan error)
	go ns.run(enter, entered)
	if err := <-entered; err != nil {
		<-ns.done
		return nil, err
	}
	return ns, nil
}

func (ns *NS) run(enter func() error, entered chan<- error) {
	// Never unlocked: the thread's namespace is spoilt for others, and a
	// goroutine that returns locked takes its thread along.
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread cannot end, and what looks at /proc/PID looks at it.
		// While it is held here, the next goroutine gets another one.
		moved := make(chan error)
		go ns.run(enter, moved)
		err := <-moved
		runtime.UnlockOSThread()
		entered <- err
		return
	}
	defer close(ns.done)
	if err := enter(); err != nil {
		entered <- err
		return
	}
	ns.tid = unix.Gettid()
	entered <- nil
	for {
		select {
		case j := <-ns.jobs:
			j.run()
		case <-ns.quit:
			return
		}
	}
}

func (j job) run() {
	err := errors.New("function ended its goroutine") // stays when fn calls runtime.Goexit
	defer func() { j.done <- err }()
	err = j.fn()
}

// Do runs fn on the thread inside the namespace and returns its error. Calls
// run one after the other, so fn opens what it needs and returns; it may call
// Do again. It must not end its goroutine, as t.Fatal does: that closes the
// namespace.
func (ns *NS) Do(fn func() error) error {
	if unix.Gettid() == ns.tid { // called from fn: nobody else runs on this thread
		return fn()
	}
	done := make(chan error, 1)
	select {
	case ns.jobs <- job{fn, done}:
		return <-done
	case <-ns.done:
		return errClosed
	}
}

// Path names the namespace for other programs (nsenter --net=PATH) and for
// [Open]. It is valid until Close.
func (ns *NS) Path() string {
	return fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), ns.tid)
}

// Close ends the thread, after the running function if there is one. Processes
// whose parent-death signal is set get it. Further calls do nothing.
func (ns *NS) Close() {
	ns.once.Do(func() { close(ns.quit) })
	if unix.Gettid() != ns.tid {
		<-ns.done
	}
}
