//go:build linux

package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"meshd/overlay/e2e/debian"
	"meshd/overlay/e2e/lab"
)

// Containerd is a containerd in a box, and its containers. Its methods may be
// called from any goroutine.
type Containerd struct {
	box     *Box         // fixed at construction
	process *lab.Process // fixed at construction
	pid     int          // fixed at construction: the first of its processes
}

const containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
`

// Containerd starts one, waits until it answers, and gives it [Image].
func (b *Box) Containerd(ctx context.Context) (*Containerd, error) {
	c, err := b.containerd(ctx)
	if err != nil {
		return nil, fmt.Errorf("start containerd on %s: %w", b.Node.Name, err)
	}
	return c, nil
}

func (b *Box) containerd(ctx context.Context) (*Containerd, error) {
	config, logFile := filepath.Join(b.dir, "etc/containerd.toml"), filepath.Join(b.dir, "containerd.log")
	if err := os.WriteFile(config, []byte(containerdConfig), 0o644); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := b.command(context.WithoutCancel(ctx), []string{"--pid", "--fork", "--kill-child", "--mount-proc"}, debian.Tool("containerd"), "--config", "/etc/containerd.toml")
	cmd.Stdout, cmd.Stderr = log, log
	c := &Containerd{box: b}
	if c.process, err = b.Node.Host.Start(cmd); err != nil {
		return nil, err
	}
	err = c.await(ctx)
	if err == nil {
		err = c.load(ctx)
	}
	if err != nil {
		raw, _ := os.ReadFile(logFile)
		return nil, errors.Join(err, errors.New(string(raw)), c.Kill())
	}
	return c, nil
}

// await waits until it answers.
func (c *Containerd) await(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", c.process.Pid()))
		if err == nil {
			_, err = fmt.Sscan(string(children), &c.pid)
		}
		if err == nil {
			_, err = c.Ctr(ctx, "version")
		}
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-c.process.Done():
			return errors.New("it has ended")
		case <-ctx.Done():
			return fmt.Errorf("wait for its answer: %w", err)
		}
	}
}

func (c *Containerd) load(ctx context.Context) error {
	archive, err := image()
	if err != nil {
		return err
	}
	cmd := c.ctr(ctx, "image", "import", "--snapshotter", "native", "-")
	cmd.Stdin = bytes.NewReader(archive)
	_, err = c.box.Node.Host.Run(cmd)
	return err
}

// ctr builds a command that sees what containerd does.
func (c *Containerd) ctr(ctx context.Context, args ...string) *exec.Cmd {
	all := append([]string{"--target", fmt.Sprint(c.pid), "--mount", "--pid", debian.Tool("ctr")}, args...)
	cmd := exec.CommandContext(ctx, debian.Tool("nsenter"), all...)
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	return cmd
}

// Ctr runs ctr and gives what it printed. The error quotes what it complained
// about.
func (c *Containerd) Ctr(ctx context.Context, args ...string) (string, error) {
	out, err := c.box.Node.Host.Run(c.ctr(ctx, args...))
	return strings.TrimSpace(string(out)), err
}

// Run starts a container on the network of the box, or runs it to its end and
// removes it unless it is detached.
func (c *Containerd) Run(ctx context.Context, detached bool, name string, args ...string) (string, error) {
	how := "--rm"
	if detached {
		how = "--detach"
	}
	return c.Ctr(ctx, append([]string{"run", how, "--cni", "--snapshotter", "native", "--cgroup", "/" + c.cgroup() + "/" + name, Image, name}, args...)...)
}

// Exec runs a program in a container.
func (c *Containerd) Exec(ctx context.Context, name string, args ...string) (string, error) {
	return c.Ctr(ctx, append([]string{"task", "exec", "--exec-id", fmt.Sprint(time.Now().UnixNano()), name}, args...)...)
}

// cgroup is that of all its containers.
func (c *Containerd) cgroup() string {
	return fmt.Sprintf("meshd-cni-%d-%s", os.Getpid(), c.box.Node.Name)
}

// Kill ends containerd and its containers at once. A crash of the test leaves at
// most empty control groups behind.
func (c *Containerd) Kill() error {
	if c.pid != 0 {
		_ = unix.Kill(c.pid, unix.SIGKILL) // the first of its processes: all the others end with it
	}
	c.process.Kill()
	<-c.process.Done()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return debian.RemoveCgroups(ctx, c.cgroup())
}
