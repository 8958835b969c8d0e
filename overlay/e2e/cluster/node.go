//go:build linux

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"meshd/mesh"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/status"
)

// Node is one host with its daemon. Its methods may be called from any goroutine.
type Node struct {
	Name string
	Host *lab.Host
	Dir  string // configuration, state, socket and log
	// Wrap, if not nil, changes each command of the daemon before it is started.
	// Set it before Start.
	Wrap func(*exec.Cmd) error

	bin  Binaries     // fixed at construction
	mu   sync.Mutex   // guards proc
	proc *lab.Process // the daemon that was started last; nil: none was
}

// ConfigFile is the path of the node's configuration.
func (n *Node) ConfigFile() string { return filepath.Join(n.Dir, "config.yaml") }

// Socket is the path of the daemon's control socket.
func (n *Node) Socket() string { return filepath.Join(n.Dir, "meshd.sock") }

// DockerSocket is the path of the daemon's socket for Docker's engine.
func (n *Node) DockerSocket() string { return filepath.Join(n.Dir, "docker.sock") }

// StateDir is the path of the node's state.
func (n *Node) StateDir() string { return filepath.Join(n.Dir, "state") }

func (n *Node) configure(extra []string) error {
	if err := os.Mkdir(n.Dir, 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return n.Configure(extra...)
}

// Configure writes the configuration file: name and paths, and the given lines.
// Those that begin with "node:" or "docker:" replace the name or the socket for
// Docker. It counts from the next start or reload on.
func (n *Node) Configure(extra ...string) error {
	lines := []string{"state_dir: " + n.StateDir(), "control: " + n.Socket()}
	lines = append(lines, extra...)
	for _, own := range []string{"node: {name: " + n.Name + "}", "docker: {socket: " + n.DockerSocket() + "}"} {
		key, _, _ := strings.Cut(own, " ")
		if !slices.ContainsFunc(extra, func(l string) bool { return strings.HasPrefix(l, key) }) {
			lines = append(lines, own)
		}
	}
	if err := os.WriteFile(n.ConfigFile(), []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}

// Command builds a command of meshctl for this node; run it on Host.
func (n *Node) Command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, n.bin.Meshctl, append([]string{"--config", n.ConfigFile()}, args...)...)
}

// DaemonCommand builds a command of meshd for this node; run it on Host.
func (n *Node) DaemonCommand(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, n.bin.Meshd, append([]string{"--config", n.ConfigFile()}, args...)...)
}

// Meshctl runs meshctl for this node and gives its standard output.
func (n *Node) Meshctl(ctx context.Context, args ...string) (string, error) {
	out, err := n.Host.Run(n.Command(ctx, args...))
	return string(out), err
}

// Token makes a token on this node.
func (n *Node) Token(ctx context.Context, args ...string) (string, error) {
	return n.Meshctl(ctx, append([]string{"token", "create"}, args...)...)
}

// Join makes this node a member, with the token on standard input.
func (n *Node) Join(ctx context.Context, token string, args ...string) error {
	cmd := n.Command(ctx, append([]string{"join", "-"}, args...)...)
	cmd.Stdin = strings.NewReader(token)
	_, err := n.Host.Run(cmd)
	return err
}

// Start starts the daemon; its log is appended to the node's.
func (n *Node) Start() error {
	f, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer f.Close()
	cmd := exec.Command(n.bin.Meshd, "--config", n.ConfigFile())
	cmd.Stdout, cmd.Stderr = f, f
	if n.bin.clocks {
		cmd.Env = append(os.Environ(), clockEnv+"="+n.clockFile())
	}
	if n.Wrap != nil {
		if err := n.Wrap(cmd); err != nil {
			return err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.proc, err = n.Host.Start(cmd)
	return err
}

// Process is the daemon that was started last.
func (n *Node) Process() *lab.Process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.proc
}

// Kill ends the daemon as kill -9 does, and waits for its end.
func (n *Node) Kill() {
	p := n.Process()
	p.Kill()
	<-p.Done()
}

// Stop ends the daemon with SIGTERM, and waits for its end.
func (n *Node) Stop(ctx context.Context) error { return n.Process().Stop(ctx) }

func (n *Node) logFile() string { return filepath.Join(n.Dir, "meshd.log") }

// Log is everything that the node's daemons have logged.
func (n *Node) Log() string {
	raw, err := os.ReadFile(n.logFile())
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

// Status is what `meshctl status -o json` says, with the exit code.
func (n *Node) Status(ctx context.Context) (*status.Document, int, error) {
	out, err := n.Host.Run(n.Command(ctx, "status", "-o", "json"))
	code := 0
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		code, err = e.ExitCode(), nil
	}
	if err != nil {
		return nil, code, err
	}
	var d status.Document
	if err := json.Unmarshal(out, &d); err != nil {
		return nil, code, fmt.Errorf("read status of %s: %w: %s", n.Name, err, out)
	}
	return &d, code, nil
}

// Document asks the daemon on its socket, which is cheaper than [Node.Status].
func (n *Node) Document(ctx context.Context) (*status.Document, error) {
	return status.NewClient(n.Socket()).Status(ctx)
}

// WaitReady waits until the node says that it is ready. It fails at once when
// the daemon ends.
func (n *Node) WaitReady(ctx context.Context) error {
	return n.WaitFor(ctx, "to be ready", func(d *status.Document) bool { return d.State == mesh.Ready })
}

// WaitFor waits until what the daemon says of itself fulfils a condition, which
// the error calls by its name. It fails at once when the daemon ends.
func (n *Node) WaitFor(ctx context.Context, name string, fulfilled func(*status.Document) bool) error {
	p := n.Process()
	if p == nil {
		return fmt.Errorf("wait for %s %s: its daemon was not started", n.Name, name)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-p.Done():
			cancel(fmt.Errorf("its daemon has ended: %v", p.Wait(context.Background())))
		case <-ctx.Done():
		}
	}()
	var last *status.Document
	err := Poll(ctx, func() (bool, error) {
		d, err := n.Document(ctx)
		if err != nil {
			return false, err
		}
		last = d
		return fulfilled(d), nil
	})
	if err == nil {
		return nil
	}
	state := "it never answered"
	if last != nil {
		raw, _ := json.Marshal(last)
		state = "it says " + string(raw)
	}
	return fmt.Errorf("wait for %s %s: %w: %w; %s", n.Name, name, context.Cause(ctx), err, state)
}

// Addresses are the node's own in its lease: IPv4 before IPv6.
func (n *Node) Addresses(ctx context.Context) ([]netip.Addr, error) {
	d, err := n.Document(ctx)
	if err != nil {
		return nil, fmt.Errorf("look up addresses of %s: %w", n.Name, err)
	}
	var out []netip.Addr
	for _, l := range d.Node.Leases {
		out = append(out, l.Addresses...)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("look up addresses of %s: it has none, state %s", n.Name, d.State)
	}
	return out, nil
}
