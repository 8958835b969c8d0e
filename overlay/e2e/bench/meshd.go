//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
)

// engine is a way to run meshd: lines of its configuration, and what its status has
// to say then.
type engine struct {
	lines       []string
	name, suite string
}

var (
	engineWG     = engine{[]string{"engine: wireguard-go"}, "wireguard-go", "chacha20poly1305"}
	engineChaCha = engine{[]string{"engine: native", "suite: chacha20poly1305"}, "native", "chacha20poly1305"}
	engineAES    = engine{[]string{"engine: native"}, "native", "aes256gcm"}
)

// startTime bounds how long a mesh takes to be ready.
const startTime = time.Minute

// prepare asks whether this meshd can be run so.
func (e engine) prepare(ctx context.Context, t *tools) (string, error) {
	b, err := cluster.Find(t.bin)
	if err != nil {
		return "", err
	}
	file := filepath.Join(t.dir, "check.yaml")
	if err := os.WriteFile(file, []byte(strings.Join(e.lines, "\n")+"\n"), 0o600); err != nil {
		return "", err
	}
	if out, err := exec.CommandContext(ctx, b.Meshctl, "--config", file, "config", "check").CombinedOutput(); err != nil {
		return "", fmt.Errorf("this meshd refuses it: %s", strings.ReplaceAll(lastLine(out), file+":", "line "))
	}
	out, err := exec.CommandContext(ctx, b.Meshd, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask meshd for its version: %w", err)
	}
	return strings.TrimSpace(strings.TrimPrefix(string(out), "meshd version")), nil
}

func (e engine) start(ctx context.Context, t *tools, l *lab.Lab) (*network, error) {
	_, n, err := e.mesh(ctx, t, l)
	return n, err
}

// mesh starts a mesh. The arguments are those of meshctl init.
func (e engine) mesh(ctx context.Context, t *tools, l *lab.Lab, args ...string) (*cluster.Cluster, *network, error) {
	n := &network{}
	b, err := cluster.Find(t.bin)
	if err != nil {
		return nil, n, err
	}
	c, err := cluster.On(l, b, e.lines...)
	if err != nil {
		return nil, n, err
	}
	n.close = c.Close
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if err := errors.Join(c.Init(ctx, args...), c.Start()); err != nil {
		return c, n, err
	}
	for _, node := range c.Nodes {
		n.daemons = append(n.daemons, node.Process())
	}
	if err := c.WaitReady(ctx); err != nil {
		return c, n, fmt.Errorf("%w\n%s", err, c.Logs(10))
	}
	for _, node := range c.Nodes {
		addrs, err := node.Addresses(ctx)
		if err != nil {
			return c, n, err
		}
		n.addrs = append(n.addrs, addrs[0])
	}
	d, err := c.Nodes[0].Document(ctx)
	if err != nil {
		return c, n, err
	}
	n.mtu = d.Engine.MTU
	if d.Engine.Name != e.name {
		return c, n, fmt.Errorf("meshd runs %q, not %q", d.Engine.Name, e.name)
	}
	for _, p := range d.Peers {
		if p.Suite != e.suite {
			return c, n, fmt.Errorf("meshd speaks %q to %s, not %q", p.Suite, p.Name, e.suite)
		}
	}
	return c, n, nil
}
