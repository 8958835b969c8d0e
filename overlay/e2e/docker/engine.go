//go:build linux

// Package docker runs real Docker engines on hosts of the lab.
//
//	host alpha: network of the lab                      host beta
//	└─ dockerd: mounts and processes of its own         └─ dockerd
//	   └─ containers                                       └─ ...
//
// An engine has its own /run, data and cgroups, and ends with all of its
// containers when its process does: a crash of the test leaves at most empty
// cgroups behind. Nothing is fetched from a registry.
//
// The owner calls [Engine.Stop] before it closes the lab.
package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"meshd/overlay/e2e/debian"
	"meshd/overlay/e2e/lab"
)

// Image is what every engine has: busybox, statically linked.
const Image = "busybox"

// Engine is a Docker engine. Its methods may be called from any goroutine.
type Engine struct {
	host    *lab.Host    // fixed at construction
	dir     string       // fixed at construction
	cgroup  string       // fixed at construction
	process *lab.Process // fixed at construction
	log     *os.File     // fixed at construction
}

// Possible says what is missing here to run engines.
func Possible() error {
	return debian.Lacks("dockerd", "docker", "docker-compose", "containerd", "runc", "busybox", "iptables", "unshare", "mount")
}

// prepare gives the engine a /run of its own, in which it finds the plugin, and
// whatever else it would write to outside of its directory. Then it is the first
// process there, which starts the engine again when USR1 or USR2 has ended it.
const prepare = `set -e
for dir in /run /etc/docker /opt; do
	if [ -d "$dir" ]; then mount -t tmpfs tmpfs "$dir"; fi
done
mkdir -p /run/docker/plugins
ln -s "$1" /run/docker/plugins/meshd.sock
shift
set +e
trap 'kill -TERM $engine' TERM
trap 'again=1; kill -TERM $engine' USR1
trap 'again=1; kill -KILL $engine' USR2
again=1
while [ "$again" ]; do
	again=
	"$@" &
	engine=$!
	while kill -0 $engine 2>/dev/null; do wait $engine; done
done`

// Options for [Start].
type Options struct {
	Plugin string // socket of the plugin meshd
	// LiveRestore keeps containers running while there is no engine.
	LiveRestore bool
	// Bridge is the engine's own, docker0; the zero value: it has none.
	Bridge Bridge
}

// Bridge is what people say of docker0, as dockerd's flags.
type Bridge struct {
	BIP, MTU string
	Masq     string // --ip-masq
}

func (o Options) flags() []string {
	all := []string{"--live-restore=" + strconv.FormatBool(o.LiveRestore)}
	if o.Bridge == (Bridge{}) {
		return append(all, "--bridge", "none")
	}
	return append(all, "--bip", o.Bridge.BIP, "--mtu", o.Bridge.MTU, "--ip-masq="+o.Bridge.Masq)
}

// Start starts an engine on a host and waits until it answers. It keeps its data
// in dir, also for the next engine there.
func Start(ctx context.Context, host *lab.Host, dir string, opt Options) (*Engine, error) {
	e, err := start(ctx, host, dir, opt)
	if err != nil {
		return nil, fmt.Errorf("start Docker on %s: %w", host.Name, err)
	}
	return e, nil
}

func start(ctx context.Context, host *lab.Host, dir string, opt Options) (*Engine, error) {
	log, err := os.OpenFile(filepath.Join(dir, "dockerd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	e := &Engine{host: host, dir: dir, cgroup: fmt.Sprintf("meshd-lab-%d-%s", os.Getpid(), host.Name), log: log}
	if err := os.Remove(e.socket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(err, log.Close())
	}
	config := filepath.Join(dir, "daemon.json") // else the machine's own would count
	if err := os.WriteFile(config, []byte("{}\n"), 0o600); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	cmd := exec.Command(debian.Tool("unshare"),
		"--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
		"sh", "-c", prepare, "sh", opt.Plugin,
		debian.Tool("dockerd"), "--config-file", config, "--host", "unix://"+e.socket(),
		"--data-root", filepath.Join(dir, "data"), "--exec-root", "/run/docker", "--pidfile", "/run/docker.pid",
		"--storage-driver", "vfs", "--cgroup-parent", "/"+e.cgroup, "--exec-opt", "native.cgroupdriver=cgroupfs")
	cmd.Args = append(cmd.Args, opt.flags()...)
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.Stdout, cmd.Stderr = log, log
	if e.process, err = host.Start(cmd); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	if err := e.await(ctx); err != nil {
		return nil, errors.Join(err, errors.New(e.Log()), e.Stop(context.WithoutCancel(ctx)))
	}
	return e, nil
}

func (e *Engine) socket() string { return filepath.Join(e.dir, "docker.sock") }

// await waits until the engine answers.
func (e *Engine) await(ctx context.Context) error {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", e.socket())
		},
	}}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/_ping", nil)
		if err != nil {
			return err
		}
		answer, err := client.Do(r)
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(answer.Status)
		}
		select {
		case <-tick.C:
		case <-e.process.Done():
			return errors.New("it has ended")
		case <-ctx.Done():
			return fmt.Errorf("wait for its answer: %w", errors.Join(context.Cause(ctx), err))
		}
	}
}

// Docker runs the command line tool against the engine and gives what it printed,
// without the last line break. The error quotes what it complained about.
func (e *Engine) Docker(ctx context.Context, args ...string) (string, error) {
	return e.docker(ctx, nil, args...)
}

// Compose runs Docker Compose against the engine, with settings of its environment
// such as "KEY=value".
func (e *Engine) Compose(ctx context.Context, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, debian.Tool("docker-compose"), args...)
	cmd.Env = env
	return e.command(cmd)
}

func (e *Engine) docker(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, debian.Tool("docker"), args...)
	cmd.Stdin = stdin
	return e.command(cmd)
}

// command runs a tool of Docker's.
func (e *Engine) command(cmd *exec.Cmd) (string, error) {
	cmd.Env = slices.Concat(os.Environ(), []string{"DOCKER_HOST=unix://" + e.socket(), "DOCKER_CONFIG=" + e.dir}, cmd.Env)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	out := strings.TrimSpace(stdout.String())
	if err != nil {
		err = fmt.Errorf("%s %s on %s: %w: %s", filepath.Base(cmd.Path), strings.Join(cmd.Args[1:], " "), e.host.Name, err, strings.TrimSpace(stderr.String()))
	}
	return out, err
}

// LoadImage gives the engine [Image].
func (e *Engine) LoadImage(ctx context.Context) error {
	archive, err := debian.RootFS()
	if err == nil {
		_, err = e.docker(ctx, bytes.NewReader(archive), "import", "-", Image)
	}
	if err != nil {
		return fmt.Errorf("load image: %w", err)
	}
	return nil
}

// Log gives what the engine has logged.
func (e *Engine) Log() string {
	log, err := os.ReadFile(e.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(log)
}

// Kill ends the engine and its containers at once, as when the power fails. Call
// Stop all the same.
func (e *Engine) Kill() error { return e.end(context.Background(), unix.SIGKILL) }

// Stop ends the engine and its containers, as a machine does that goes down.
// Further calls do nothing.
func (e *Engine) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err := e.end(ctx, unix.SIGTERM)
	e.log.Close()
	if err = errors.Join(err, debian.RemoveCgroups(ctx, e.cgroup)); err != nil {
		return fmt.Errorf("stop Docker on %s: %w", e.host.Name, err)
	}
	return nil
}

// Restart ends the engine alone and starts it again: in order, or at once as when
// it was killed.
func (e *Engine) Restart(ctx context.Context, killed bool) error {
	signal := unix.SIGUSR1
	if killed {
		signal = unix.SIGUSR2
	}
	first, before := e.first()
	if first == 0 {
		return fmt.Errorf("restart Docker on %s: it does not run", e.host.Name)
	}
	err := unix.Kill(first, signal)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for err == nil {
		if _, now := e.first(); now != before && now != 0 {
			err = e.await(ctx)
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		return fmt.Errorf("restart Docker on %s: %w", e.host.Name, err)
	}
	return nil
}

// Namespace gives a path of a running container's network namespace, which lies in
// the engine's own /run.
func (e *Engine) Namespace(ctx context.Context, container string) (string, error) {
	key, err := e.Docker(ctx, "inspect", "--format", "{{.NetworkSettings.SandboxKey}}", container)
	if err != nil {
		return "", err
	}
	first, _ := e.first()
	if key == "" || first == 0 {
		return "", fmt.Errorf("find namespace of %s on %s: it does not run", container, e.host.Name)
	}
	return fmt.Sprintf("/proc/%d/root%s", first, key), nil
}

// first finds the first process of the engine's namespace, and the engine, which
// is its child; 0: there is none.
func (e *Engine) first() (first, engine int) {
	for _, pid := range children(e.process.Pid()) {
		first = pid
	}
	for _, pid := range children(first) {
		if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && strings.TrimSpace(string(name)) == "dockerd" {
			engine = pid
		}
	}
	return first, engine
}

// children lists those of a process; one that has ended has none.
func children(pid int) []int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err != nil {
		return nil
	}
	var all []int
	for word := range strings.FieldsSeq(string(text)) {
		if child, err := strconv.Atoi(word); err == nil {
			all = append(all, child)
		}
	}
	return all
}

// end signals the first process and waits until nothing of the engine runs:
// whatever else is in its namespace ends with it.
func (e *Engine) end(ctx context.Context, s unix.Signal) error {
	pid, _ := e.first()
	if pid == 0 {
		return nil // it has ended, or is about to
	}
	_ = unix.Kill(pid, s)
	select {
	case <-e.process.Done():
	case <-ctx.Done():
		_ = unix.Kill(pid, unix.SIGKILL)
		<-e.process.Done()
		return errors.New("it does not end")
	}
	return nil
}
