//go:build linux

package lab

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a running program. Its methods may be called from any goroutine.
type Process struct {
	cmd  *exec.Cmd     // fixed at construction
	done chan struct{} // closed when the program has ended
	err  error         // of cmd.Wait; set before done is closed
}

// Start starts a program on the host. It is killed when the lab closes or when
// our process dies, and the signals of the terminal do not reach it. Do not
// call cmd.Wait.
func (h *Host) Start(cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr.Setpgid = true
	// Else a grandchild that holds the output open keeps Wait waiting.
	cmd.WaitDelay = cmp.Or(cmd.WaitDelay, 2*time.Second)

	h.lab.mu.Lock()
	defer h.lab.mu.Unlock()
	if h.lab.closed {
		return nil, errors.New("lab is closed")
	}
	// On the namespace's own thread, which lives as long as the host: the death
	// signal comes when the thread ends that started the program.
	if err := h.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", filepath.Base(cmd.Path), h.Name, err)
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	h.lab.processes = append(h.lab.processes, p)
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Run runs a program on the host to its end and returns its standard output.
// The error, if any, quotes the standard error and unwraps to *exec.ExitError.
func (h *Host) Run(cmd *exec.Cmd) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout = &stdout
	if cmd.Stderr == nil {
		cmd.Stderr = &stderr
	}
	p, err := h.Start(cmd)
	if err != nil {
		return nil, err
	}
	<-p.done
	if p.err != nil {
		name := strings.Join(append([]string{filepath.Base(cmd.Path)}, cmd.Args[1:]...), " ")
		return stdout.Bytes(), fmt.Errorf("run %s on %s: %w: %s", name, h.Name, p.err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}

// Pid gives the program's process ID.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal; to a program that has ended, it does nothing.
func (p *Process) Signal(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", filepath.Base(p.cmd.Path), err)
	}
	return nil
}

// Kill ends the program at once, as kill -9 does. It does not wait.
func (p *Process) Kill() { _ = p.cmd.Process.Kill() }

// Wait waits for the program's end and returns how it ended, as exec.Cmd.Wait.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of %s: %w", filepath.Base(p.cmd.Path), ctx.Err())
	}
}

// Stop asks the program to end with SIGTERM, waits for it, and returns how it
// ended.
func (p *Process) Stop(ctx context.Context) error {
	if err := p.Signal(unix.SIGTERM); err != nil {
		return err
	}
	return p.Wait(ctx)
}

// stray is a program in a host's network.
type stray struct {
	pid  int
	name string
}

// strays finds the programs in the host's network, ourselves excepted.
func (h *Host) strays() ([]stray, error) {
	want, err := os.Readlink(h.ns.Path())
	if err != nil {
		return nil, fmt.Errorf("look for programs on %s: %w", h.Name, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for programs on %s: %w", h.Name, err)
	}
	var out []stray
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// One that has just ended has neither; a zombie has no network.
		ns, err := os.Readlink(filepath.Join("/proc", e.Name(), "ns/net"))
		if err != nil || ns != want {
			continue
		}
		name, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "comm"))
		out = append(out, stray{pid, strings.TrimSpace(string(name))})
	}
	return out, nil
}

// killStrays kills what is left in the host's network and reports it.
func (h *Host) killStrays() error {
	strays, err := h.strays()
	errs := []error{err}
	for _, s := range strays {
		errs = append(errs, fmt.Errorf("process %d (%s) was left on %s", s.pid, s.name, h.Name))
		_ = unix.Kill(s.pid, unix.SIGKILL)
	}
	return errors.Join(errs...)
}
