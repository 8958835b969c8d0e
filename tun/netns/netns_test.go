//go:build linux

package netns

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// interfaces lists the names of the interfaces of the calling thread.
func interfaces() ([]string, error) {
	all, err := net.Interfaces()
	var names []string
	for _, i := range all {
		names = append(names, i.Name)
	}
	return names, err
}

// inode identifies the namespace that path leads to.
func inode(path string) (string, error) { return os.Readlink(path) }

const own = "/proc/thread-self/ns/net"

func TestNamespaceIsApart(t *testing.T) {
	ns := ForTest(t)
	outside, err := inode(own)
	if err != nil {
		t.Fatal(err)
	}
	var inside string
	var names []string
	err = ns.Do(func() (err error) {
		if inside, err = inode(own); err != nil {
			return err
		}
		names, err = interfaces()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if inside == outside {
		t.Errorf("Do ran in the caller's namespace, %s", inside)
	}
	if !slices.Equal(names, []string{"lo"}) {
		t.Errorf("interfaces = %q, want only lo", names)
	}
	if got, err := inode(ns.Path()); err != nil || got != inside {
		t.Errorf("Path leads to %q, %v; want %q", got, err, inside)
	}
}

func TestSocketsStayInside(t *testing.T) {
	ns := ForTest(t)
	var l net.Listener
	err := ns.Do(func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:0"); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("a listener inside was reached from outside")
	}
	err = ns.Do(func() error {
		c, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			c.Close()
		}
		return err
	})
	if err != nil {
		t.Errorf("not reached from inside: %v", err)
	}
}

func TestOpen(t *testing.T) {
	ns := ForTest(t)
	var want, got string
	if err := ns.Do(func() (err error) { want, err = inode(own); return err }); err != nil {
		t.Fatal(err)
	}
	if err := Run(ns.Path(), func() (err error) { got, err = inode(own); return err }); err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("Run was in %s, want %s", got, want)
	}
	for _, path := range []string{"/nonexistent", "/dev/null"} {
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("Open(%q) = %v, want an error that names the path", path, err)
		}
	}
}

func TestProcessesInheritAndDie(t *testing.T) {
	ns := ForTest(t)
	var out bytes.Buffer
	show := exec.Command("readlink", "/proc/self/ns/net")
	show.Stdout = &out
	wait := exec.Command("sleep", "600")
	wait.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := ns.Do(func() error { return errors.Join(show.Run(), wait.Start()) })
	if err != nil {
		t.Fatal(err)
	}
	want, _ := inode(ns.Path())
	if got := strings.TrimSpace(out.String()); got != want {
		t.Errorf("process ran in %s, want %s", got, want)
	}

	ns.Close()
	exited := make(chan struct{})
	go func() { defer close(exited); _ = wait.Wait() }()
	select {
	case <-exited:
	case <-time.After(10 * time.Second):
		_ = wait.Process.Kill()
		t.Error("the process outlived the namespace's thread")
	}
}

func TestDo(t *testing.T) {
	t.Run("returns the error", func(t *testing.T) {
		want := errors.New("no")
		if err := ForTest(t).Do(func() error { return want }); err != want {
			t.Errorf("Do = %v, want %v", err, want)
		}
	})
	t.Run("nests", func(t *testing.T) {
		ns := ForTest(t)
		ran := false
		err := ns.Do(func() error { return ns.Do(func() error { ran = true; return nil }) })
		if err != nil || !ran {
			t.Errorf("inner Do ran: %t, error %v", ran, err)
		}
	})
	t.Run("after close", func(t *testing.T) {
		ns := ForTest(t)
		ns.Close()
		ns.Close()
		if err := ns.Do(func() error { return nil }); !errors.Is(err, errClosed) {
			t.Errorf("Do = %v, want errClosed", err)
		}
	})
	t.Run("survives the end of the goroutine", func(t *testing.T) {
		ns := ForTest(t)
		if err := ns.Do(func() error { runtime.Goexit(); return nil }); err == nil {
			t.Error("Do = nil, want an error")
		}
		<-ns.done
	})
	t.Run("from many goroutines", func(t *testing.T) {
		ns := ForTest(t)
		n := 0 // needs no lock: the thread runs one at a time
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { _ = ns.Do(func() error { n++; return nil }) })
		}
		wg.Wait()
		if n != 20 {
			t.Errorf("ran %d times, want 20", n)
		}
	})
}

func TestNoThreadGoesBack(t *testing.T) {
	RequireRoot(t)
	want, err := inode("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		ns, err := New()
		if err != nil {
			t.Fatal(err)
		}
		ns.Close()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				if got, _ := inode(own); got != want {
					t.Errorf("a goroutine got a thread in %s, want %s", got, want)
				}
			})
		}
		wg.Wait()
	}
}
