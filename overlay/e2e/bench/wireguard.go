//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
)

// wgVersion is the newest wireguard-go, which is the commit at its end.
const (
	wgModule  = "golang.zx2c4.com/wireguard"
	wgVersion = "v0.0.0-20260522210424-ecfc5a8d5446"
	wgMTU     = 1420
	wgPort    = 51820
)

// prepareWG builds wireguard-go, unless an earlier run has.
func prepareWG(ctx context.Context, t *tools) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "meshd-bench", wgVersion)
	t.wg = filepath.Join(dir, "wireguard")
	if _, err := os.Stat(t.wg); err == nil {
		return wgVersion, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "install", "-trimpath", wgModule+"@"+wgVersion)
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, lastLine(out))
	}
	return wgVersion, nil
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

// startWG runs wireguard-go and configures it as wg(8) does, on its socket. All
// hosts share /var/run/wireguard, so each one's interface has a name of its own.
func startWG(ctx context.Context, t *tools, l *lab.Lab) (*network, error) {
	n := &network{mtu: wgMTU}
	var sockets []string
	n.close = func() error {
		err := stopAll(n.daemons)
		for _, s := range sockets { // those that a killed program has left
			if e := os.Remove(s); !errors.Is(e, os.ErrNotExist) {
				err = errors.Join(err, e)
			}
		}
		return err
	}
	keys := make([]*ecdh.PrivateKey, len(l.Hosts()))
	for i := range keys {
		var err error
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return n, err
		}
	}
	for i, h := range l.Hosts() {
		name := fmt.Sprintf("wg%d-%d", os.Getpid(), i)
		cmd := exec.Command(t.wg, "-f", name)
		cmd.Env = append(os.Environ(), "WG_PROCESS_FOREGROUND=1", "LOG_LEVEL=error")
		cmd.Stderr = os.Stderr
		p, err := h.Start(cmd)
		if err != nil {
			return n, err
		}
		n.daemons = append(n.daemons, p)
		n.addrs = append(n.addrs, ours(i).Addr())
		sockets = append(sockets, "/var/run/wireguard/"+name+".sock")

		var set strings.Builder
		fmt.Fprintf(&set, "set=1\nprivate_key=%x\nlisten_port=%d\n", keys[i].Bytes(), wgPort)
		for j, other := range l.Hosts() {
			if other != h {
				fmt.Fprintf(&set, "public_key=%x\nendpoint=%s:%d\nallowed_ip=%s/32\n", keys[j].PublicKey().Bytes(), other.IPv4, wgPort, ours(j).Addr())
			}
		}
		if err := configureWG(ctx, sockets[i], set.String()); err != nil {
			return n, fmt.Errorf("configure wireguard-go on %s: %w", h.Name, err)
		}
		if err := h.Do(func() error { return up(name, ours(i), wgMTU) }); err != nil {
			return n, fmt.Errorf("set up wireguard-go on %s: %w", h.Name, err)
		}
	}
	return n, nil
}

// configureWG speaks https://www.wireguard.com/xplatform/ on a socket that will be
// there soon.
func configureWG(ctx context.Context, socket, set string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var c net.Conn
	err := cluster.Poll(ctx, func() (ok bool, err error) {
		c, err = net.Dial("unix", socket)
		return err == nil, err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, set+"\n"); err != nil {
		return err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	if answer != "errno=0\n" {
		return fmt.Errorf("it answers %q", answer)
	}
	return nil
}
