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

	"meshd/overlay/e2e/lab"
)

// prepareNebula looks for the programs where the user has put them. One of before
// 1.12 has no offloads of the TUN device and is no yardstick.
func prepareNebula(ctx context.Context, t *tools) (string, error) {
	if t.peers == "" {
		return "", errors.New("PEERS_DIR does not say where nebula and nebula-cert are")
	}
	t.nebula = filepath.Join(t.peers, "nebula")
	for _, p := range []string{t.nebula, t.nebula + "-cert"} {
		if _, err := exec.LookPath(p); err != nil {
			return "", err
		}
	}
	out, err := exec.CommandContext(ctx, t.nebula, "-version").Output()
	if err != nil {
		return "", fmt.Errorf("ask nebula for its version: %w", err)
	}
	return strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(string(out)), "Version:")), nil
}

// The offloads are on: they are by default in some versions and not in others. MTU
// is that of the other encrypted systems, and the firewall lets everything pass.
const nebulaConfig = `
pki: {ca: %[1]s/ca.crt, cert: %[1]s/%[2]d.crt, key: %[1]s/%[2]d.key}
static_host_map: {%[3]s}
lighthouse: {am_lighthouse: false}
listen: {host: 0.0.0.0, port: 4242, udp_offloads: true}
cipher: %[4]s
routines: 1
tun: {dev: nebula0, mtu: %[5]d, use_offloads: true}
logging: {level: error}
firewall:
  outbound: [{port: any, proto: any, host: any}]
  inbound: [{port: any, proto: any, host: any}]
`

func startNebula(cipher string) func(context.Context, *tools, *lab.Lab) (*network, error) {
	return func(ctx context.Context, t *tools, l *lab.Lab) (*network, error) {
		n := &network{mtu: wgMTU}
		dir, err := os.MkdirTemp(t.dir, "nebula-")
		if err != nil {
			return n, err
		}
		cert := func(args ...string) error {
			cmd := exec.CommandContext(ctx, t.nebula+"-cert", args...)
			cmd.Dir = dir
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("nebula-cert %s: %w: %s", args[0], err, lastLine(out))
			}
			return nil
		}
		if err := cert("ca", "-name", "bench"); err != nil {
			return n, err
		}
		for i, h := range l.Hosts() {
			var others []string
			for j, o := range l.Hosts() {
				if o != h {
					others = append(others, fmt.Sprintf(`"%s": ["%s:4242"]`, ours(j).Addr(), o.IPv4))
				}
			}
			file := filepath.Join(dir, fmt.Sprintf("%d.yaml", i))
			text := fmt.Sprintf(nebulaConfig, dir, i, strings.Join(others, ", "), cipher, n.mtu)
			err := errors.Join(
				cert("sign", "-name", h.Name, "-networks", ours(i).String(), "-out-crt", fmt.Sprintf("%d.crt", i), "-out-key", fmt.Sprintf("%d.key", i)),
				os.WriteFile(file, []byte(text), 0o600))
			if err != nil {
				return n, err
			}
			cmd := exec.Command(t.nebula, "-config", file)
			cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
			p, err := h.Start(cmd)
			if err != nil {
				return n, err
			}
			n.daemons = append(n.daemons, p)
			n.addrs = append(n.addrs, ours(i).Addr())
		}
		return n, nil
	}
}
