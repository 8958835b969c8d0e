//go:build linux

// Package cni runs what calls mesh-cni on hosts of the lab: cnitool, and
// containerd with real containers.
//
// Each host has a [Box] with directories of its own where runtimes expect plugins,
// configuration and their state, so nothing outside is read or written. Nothing is
// fetched from a registry of images.
//
// The owner closes the lab, which ends whatever runs.
package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/debian"
)

// plugins is where Debian's package containernetworking-plugins puts them.
const plugins = "/usr/lib/cni"

// Possible says what is missing here.
func Possible() error {
	if err := debian.Lacks("containerd", "ctr", "runc", "busybox", "iptables", "unshare", "nsenter", "mount"); err != nil {
		return err
	}
	if _, err := exec.LookPath(filepath.Join(plugins, "portmap")); err != nil {
		return fmt.Errorf("%w: make test-deps installs it", err)
	}
	return nil
}

// buildTool builds cnitool as pinned, unless go has it already.
var buildTool = sync.OnceValues(func() (path string, err error) {
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "tool", "-modfile=.ci/tools.mod", "-n", "cnitool")
	cmd.Dir = filepath.Dir(strings.TrimSpace(string(mod)))
	var said strings.Builder // also what it downloads, when all goes well
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, &said)
	}
	return strings.TrimSpace(string(out)), nil
})

// Box is where the programs of one host see their own files. Its methods may be
// called from any goroutine.
type Box struct {
	Node *cluster.Node // fixed at construction
	dir  string        // fixed at construction
}

// NewBox makes a box for the host of a node, with mesh-cni in it.
func NewBox(n *cluster.Node, bin cluster.Binaries) (*Box, error) {
	b := &Box{n, filepath.Join(n.Dir, "box")}
	err := b.fill(bin)
	if err != nil {
		return nil, fmt.Errorf("make box on %s: %w", n.Name, err)
	}
	return b, nil
}

func (b *Box) fill(bin cluster.Binaries) error {
	for _, dir := range []string{"opt/cni/bin", "etc/cni/net.d", "var/lib"} {
		if err := os.MkdirAll(filepath.Join(b.dir, dir), 0o755); err != nil {
			return err
		}
	}
	for _, file := range []string{"/etc/passwd", "/etc/group", "/etc/ld.so.cache"} {
		if err := install(file, filepath.Join(b.dir, file), 0o644); err != nil {
			return err
		}
	}
	cnitool, err := buildTool()
	if err != nil {
		return err
	}
	return errors.Join(
		os.CopyFS(filepath.Join(b.dir, "etc/alternatives"), os.DirFS("/etc/alternatives")), // iptables is one
		install(cnitool, filepath.Join(b.dir, "opt/cni/cnitool"), 0o755),
		install(bin.MeshCNI, filepath.Join(b.dir, "opt/cni/bin/mesh-cni"), 0o755))
}

func install(from, to string, mode os.FileMode) error {
	raw, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, raw, mode)
}

// Configure adds a configuration list, or replaces the one of its name. In each
// entry of mesh-cni the daemon's socket is put.
func (b *Box) Configure(conflist []byte) error {
	var list map[string]any
	if err := json.Unmarshal(conflist, &list); err != nil {
		return fmt.Errorf("read configuration list: %w", err)
	}
	entries, _ := list["plugins"].([]any)
	for _, e := range entries {
		if entry, ok := e.(map[string]any); ok && entry["type"] == "mesh-cni" {
			entry["socket"] = b.Node.Socket()
		}
	}
	raw, err := json.Marshal(list)
	if err == nil {
		err = os.WriteFile(filepath.Join(b.dir, "etc/cni/net.d", fmt.Sprintf("%v.conflist", list["name"])), raw, 0o644)
	}
	if err != nil {
		return fmt.Errorf("write configuration list: %w", err)
	}
	return nil
}

// enter replaces what programs look at and write to with the box.
const enter = `set -e
for dir in opt etc var/lib; do mount --bind "$1/$dir" "/$dir"; done
mount -t tmpfs tmpfs /run
shift
exec "$@"`

// command runs a program in the box. The first arguments are those of unshare.
func (b *Box) command(ctx context.Context, unshare []string, args ...string) *exec.Cmd {
	all := append(unshare, "--mount", "--propagation", "private", "sh", "-c", enter, "sh", b.dir)
	cmd := exec.CommandContext(ctx, debian.Tool("unshare"), append(all, args...)...)
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	return cmd
}

// Cnitool runs cnitool with a command (add, check, del, gc, status) for a
// configuration list, by its name, and a namespace, and gives what it printed. The
// error quotes what it complained about. More of the environment is like
// "CNI_IFNAME=eth1".
func (b *Box) Cnitool(ctx context.Context, command, list, ns string, env ...string) ([]byte, error) {
	cmd := b.command(ctx, nil, "/opt/cni/cnitool", command, list, ns)
	cmd.Env = append(cmd.Env, "CNI_PATH=/opt/cni/bin:"+plugins)
	cmd.Env = append(cmd.Env, env...)
	return b.Node.Host.Run(cmd)
}

// Plugin calls mesh-cni itself, as a runtime does, and gives what it printed.
func (b *Box) Plugin(ctx context.Context, command, container, ns, conf string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(b.dir, "opt/cni/bin/mesh-cni"))
	cmd.Env = []string{
		"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + container, "CNI_NETNS=" + ns, "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin",
	}
	cmd.Stdin = strings.NewReader(conf)
	out, err := b.Node.Host.Run(cmd)
	if err != nil {
		err = errors.Join(err, errors.New(string(out))) // in CNI's form
	}
	return out, err
}
