package rawio

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 10 * time.Second

// pair gives two connected datagram sockets, which are closed with the test.
func pair(t testing.TB) (a, b *File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var files [2]*File
	for i, fd := range fds {
		if files[i], err = NewFile(fd); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = files[i].Close() }) // may be closed by the test
	}
	return files[0], files[1]
}

func newWaiter(t testing.TB, files ...*File) *Waiter {
	t.Helper()
	w, err := NewWaiter(files...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

func write(t testing.TB, f *File, text string) {
	t.Helper()
	b := []byte(text)
	v := []unix.Iovec{{Base: &b[0]}}
	v[0].SetLen(len(b))
	if n, err := f.Writev(v); n != len(text) || err != nil {
		t.Fatalf("wrote %d, %v", n, err)
	}
}

func TestFile(t *testing.T) {
	a, b := pair(t)
	buf := make([]byte, 100)
	if n, err := b.Read(buf); err != unix.EAGAIN || n != 0 {
		t.Errorf("read of nothing: %d, %v; want %v", n, err, unix.EAGAIN)
	}
	write(t, a, "one")
	if n, err := b.Read(buf); err != nil || string(buf[:n]) != "one" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	m := &unix.Msghdr{Iov: &unix.Iovec{Base: &buf[0]}}
	m.SetIovlen(1)
	m.Iov.SetLen(copy(buf, "two"))
	if n, err := a.Sendmsg(m); n != 3 || err != nil {
		t.Errorf("sent %d, %v", n, err)
	}
	clear(buf)
	m.Iov.SetLen(len(buf))
	if n, err := b.Recvmsg(m); err != nil || string(buf[:n]) != "two" {
		t.Errorf("received %q, %v", buf[:n], err)
	}
	if _, err := b.Recvmsg(m); err != unix.EAGAIN {
		t.Errorf("receive of nothing: %v, want %v", err, unix.EAGAIN)
	}
}

func TestClose(t *testing.T) {
	a, _ := pair(t)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	m := new(unix.Msghdr)
	for name, call := range map[string]func() error{
		"read":    func() error { _, err := a.Read(make([]byte, 1)); return err },
		"writev":  func() error { _, err := a.Writev(nil); return err },
		"recvmsg": func() error { _, err := a.Recvmsg(m); return err },
		"sendmsg": func() error { _, err := a.Sendmsg(m); return err },
		"control": func() error { return a.Control(func(int) error { return nil }) },
		"close":   a.Close,
	} {
		if err := call(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: %v, want %v", name, err, os.ErrClosed)
		}
	}
}

func isOpen(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}

// The number of a descriptor is not free as long as somebody may use it.
func TestCloseWaitsForCalls(t *testing.T) {
	a, _ := pair(t)
	fd := a.fd
	err := a.Control(func(int) error {
		err := a.Close()
		if !isOpen(fd) {
			t.Error("closed during a call")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if isOpen(fd) {
		t.Error("open after the last call")
	}
}

// A call that comes too late leaves alone whoever has the number now.
func TestNumberIsReused(t *testing.T) {
	a, _ := pair(t)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	b, _ := pair(t)
	if b.fd != a.fd {
		t.Fatalf("the kernel gave %d, want the lowest free number, %d", b.fd, a.fd)
	}
	_, _ = a.Read(make([]byte, 1))
	_ = a.Close()
	if !isOpen(b.fd) {
		t.Error("another file was closed")
	}
}

// Numbers are reused at once here; a call that is late would steal the byte of
// another file.
func TestCloseUnderUse(t *testing.T) {
	var wg sync.WaitGroup
	for range 200 {
		a, b := pair(t)
		for range 4 {
			wg.Go(func() {
				buf := make([]byte, 10)
				for {
					n, err := a.Read(buf)
					if n > 0 {
						t.Errorf("read %q of another file", buf[:n])
					}
					if errors.Is(err, os.ErrClosed) {
						return
					}
				}
			})
		}
		closes := make(chan error, 3)
		for range cap(closes) {
			wg.Go(func() { closes <- a.Close() })
		}
		c, d := pair(t)
		write(t, c, "mine")
		done := 0
		for range cap(closes) {
			if <-closes == nil {
				done++
			}
		}
		if done != 1 {
			t.Fatalf("%d of 3 closed it", done)
		}
		buf := make([]byte, 10)
		if n, err := d.Read(buf); err != nil || string(buf[:n]) != "mine" {
			t.Fatalf("read %q, %v", buf[:n], err)
		}
		_ = b.Close()
		_ = c.Close()
		_ = d.Close()
	}
	wg.Wait()
}

func TestWait(t *testing.T) {
	a, b := pair(t)
	c, d := pair(t)
	w := newWaiter(t, b, d)
	expect := func(timeout time.Duration, want Ready) {
		t.Helper()
		if got, err := w.Wait(timeout); got != want || err != nil {
			t.Errorf("ready %b, %v; want %b", got, err, want)
		}
	}
	expect(0, 0)
	write(t, c, "x")
	expect(-1, 0b10)
	expect(patience, 0b10) // until it is read
	write(t, a, "x")
	expect(patience, 0b11)
	if !Ready(0b10).Has(1) || Ready(0b10).Has(0) {
		t.Error("Has is wrong")
	}
	buf := make([]byte, 10)
	_, _ = b.Read(buf)
	_, _ = d.Read(buf)
	w.Wake()
	w.Wake()
	expect(patience, 0)
	start := time.Now() // both were for that one
	expect(20*time.Millisecond, 0)
	if took := time.Since(start); took < 20*time.Millisecond {
		t.Errorf("gave up after %v", took)
	}
}

func TestWaitEnds(t *testing.T) {
	for _, c := range []struct {
		name  string
		end   func(w *Waiter, f *File) error
		ready Ready
		err   error
	}{
		{"wake", func(w *Waiter, _ *File) error { w.Wake(); return nil }, 0, nil},
		{"file closed", func(_ *Waiter, f *File) error { return f.Close() }, 1, nil},
		{"waiter closed", func(w *Waiter, _ *File) error { return w.Close() }, 0, os.ErrClosed},
	} {
		for _, before := range []bool{true, false} {
			name := c.name + " while it waits"
			if before {
				name = c.name + " before it waits"
			}
			t.Run(name, func(t *testing.T) {
				_, f := pair(t)
				w := newWaiter(t, f)
				type result struct {
					ready Ready
					err   error
				}
				ended := make(chan result, 1)
				wait := func() {
					for {
						r, err := w.Wait(-1)
						// The end of a Wait is noticed by the next one.
						if r != 0 || err != nil || c.ready == 0 && c.err == nil {
							ended <- result{r, err}
							return
						}
					}
				}
				if before {
					if err := c.end(w, f); err != nil {
						t.Fatal(err)
					}
					go wait()
				} else {
					go wait()
					inPoll(t, f)
					if err := c.end(w, f); err != nil {
						t.Fatal(err)
					}
				}
				select {
				case got := <-ended:
					if got.ready != c.ready || !errors.Is(got.err, c.err) {
						t.Errorf("ready %b, %v; want %b, %v", got.ready, got.err, c.ready, c.err)
					}
				case <-time.After(patience):
					t.Fatal("the wait did not end")
				}
			})
		}
	}
}

// A Wait that begins while the Waiter is closed ends, too.
func TestCloseBetweenWaits(t *testing.T) {
	_, f := pair(t)
	for range 500 {
		w := newWaiter(t, f)
		ended := make(chan error, 1)
		go func() {
			for {
				if _, err := w.Wait(-1); err != nil {
					ended <- err
					return
				}
			}
		}()
		inPoll(t, f)
		w.Wake() // more than one may come
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			if !errors.Is(err, os.ErrClosed) {
				t.Fatalf("wait: %v, want %v", err, os.ErrClosed)
			}
		case <-time.After(patience):
			t.Fatal("the wait did not end")
		}
	}
}

// inPoll waits until a Wait holds the file.
func inPoll(t *testing.T, f *File) {
	t.Helper()
	for deadline := time.Now().Add(patience); f.state.Load() == 0; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("nobody waits")
		}
	}
}

// With one slot of the Go scheduler, goroutines that wait leave it to others.
func TestWaitLeavesTheScheduler(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	a, b := pair(t)
	w := newWaiter(t, a)
	ended := make(chan error, 1)
	go func() {
		_, err := w.Wait(patience)
		ended <- err
	}()
	inPoll(t, a)
	write(t, b, "x")
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience / 2):
		t.Error("the wait ended late")
	}
}

func TestNoAllocation(t *testing.T) {
	a, b := pair(t)
	w := newWaiter(t, b)
	text, buf := []byte("text"), make([]byte, 100)
	v := []unix.Iovec{{Base: &text[0]}}
	v[0].SetLen(len(text))
	if n := testing.AllocsPerRun(100, func() {
		_, err1 := a.Writev(v)
		_, err2 := w.Wait(patience)
		_, err3 := b.Read(buf)
		_, err4 := b.Read(buf)
		w.Wake()
		_, err5 := w.Wait(patience)
		if err1 != nil || err2 != nil || err3 != nil || err4 != unix.EAGAIN || err5 != nil {
			t.Fatal(err1, err2, err3, err4, err5)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestTooManyFiles(t *testing.T) {
	a, _ := pair(t)
	files := make([]*File, maxFiles+1)
	for i := range files {
		files[i] = a
	}
	if _, err := NewWaiter(files...); err == nil {
		t.Error("a waiter for more files than it has bits")
	}
	if _, err := NewFile(-1); !errors.Is(err, unix.EBADF) {
		t.Errorf("file of no descriptor: %v, want %v", err, unix.EBADF)
	}
}

func BenchmarkRead(b *testing.B) {
	a, _ := pair(b)
	buf := make([]byte, 10)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = a.Read(buf) // EAGAIN
	}
}

func BenchmarkWait(b *testing.B) {
	a, c := pair(b)
	write(b, c, "x")
	w := newWaiter(b, a)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.Wait(-1); err != nil {
			b.Fatal(err)
		}
	}
}
