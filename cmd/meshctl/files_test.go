package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/cmd/internal/exit"
	"meshd/cmd/internal/setup"
	"meshd/mesh"
	"meshd/mesh/statedir"
	"meshd/mesh/trust"
	"meshd/overlay/config"
	"meshd/overlay/status"
	"meshd/tun"
)

func route(prefix string) tun.Use {
	return tun.Use{Prefix: netip.MustParsePrefix(prefix), What: "the route to " + prefix}
}

func TestAutoIPv4(t *testing.T) {
	for _, tt := range []struct {
		name   string
		routes []tun.Use
		want   string // empty: refused
	}{
		{"nothing in the way", nil, "10.86.0.0/16"},
		{"something else", []tun.Use{route("192.168.1.0/24"), route("fd00::/8")}, "10.86.0.0/16"},
		{"a part of the first", []tun.Use{route("10.86.255.0/24")}, "10.113.0.0/16"},
		{"the first two", []tun.Use{route("10.64.0.0/10")}, "10.171.0.0/16"},
		{"all", []tun.Use{route("10.0.0.0/8")}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := chooseIPv4("auto", tt.routes)
			if tt.want == "" {
				if err == nil {
					t.Errorf("chose %s", got)
				}
				return
			}
			if err != nil || got.String() != tt.want {
				t.Errorf("chose %s, %v; want %s", got, err, tt.want)
			}
		})
	}
}

func TestExplicitRangeMustBeFree(t *testing.T) {
	_, err := chooseIPv4("10.99.0.0/16", []tun.Use{route("10.99.7.0/24")})
	if exit.Code(err) != exit.Config || !strings.Contains(err.Error(), "10.99.7.0/24") {
		t.Errorf("IPv4: %v", err)
	}
	_, err = chooseIPv6("fd12::/48", netip.Prefix{}, []tun.Use{route("fd12::/16")})
	if exit.Code(err) != exit.Config {
		t.Errorf("IPv6: %v", err)
	}
}

func TestSSHUses(t *testing.T) {
	for env, want := range map[string]string{
		"":                                     "[]",
		"10.1.2.3 50000 192.0.2.1 22":          "[10.1.2.3/32 192.0.2.1/32]",
		"fe80::1%eth0 50000 2001:db8::1 22":    "[fe80::1/128 2001:db8::1/128]",
		"::ffff:10.1.2.3 1 ::ffff:10.0.0.1 22": "[10.1.2.3/32 10.0.0.1/32]",
		"junk":                                 "[]",
	} {
		got := []netip.Prefix{}
		for _, o := range sshUses(env) {
			got = append(got, o.Prefix)
		}
		if fmt.Sprint(got) != want {
			t.Errorf("%q: %v, want %s", env, got, want)
		}
	}
}

func TestOnlyPrivate(t *testing.T) {
	for _, tt := range []struct {
		seeds []string
		want  bool
	}{
		{[]string{"10.0.0.1:1", "172.16.0.1:1", "192.168.0.1:1", "100.127.0.1:1", "[fd00::1]:1", "127.0.0.1:1"}, true},
		{[]string{"10.0.0.1:1", "203.0.113.7:1"}, false},
		{[]string{"10.0.0.1:1", "[2001:db8::1]:1"}, false},
		{[]string{"mesh.example.org:1"}, false},
		{[]string{"100.128.0.1:1"}, false},
	} {
		if got := onlyPrivate(tt.seeds); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.seeds, got, tt.want)
		}
	}
}

func TestNewConfigIsTheCommentedDefault(t *testing.T) {
	p := &place{cfg: config.Default(), newConfig: true, configPath: filepath.Join(t.TempDir(), "etc", "meshd", "config.yaml")}
	p.cfg.Node.Name = "alpha"
	if err := p.writeConfig(); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(p.configPath)
	if err != nil || cfg.Node.Name != "alpha" || cfg.StateDir != "/var/lib/meshd" {
		t.Errorf("it reads as %+v, %v", cfg, err)
	}
	text, err := os.ReadFile(p.configPath)
	if err != nil || !bytes.Contains(text, []byte("# ")) {
		t.Errorf("no comments, %v:\n%s", err, text)
	}
	info, err := os.Stat(p.configPath)
	if err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, %v; want 0644: members of the group meshd read it too", info.Mode(), err)
	}
	if err := p.writeConfig(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("writing it again: %v, want a refusal", err)
	}
	entries, err := os.ReadDir(filepath.Dir(p.configPath))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind %v, %v", entries, err)
	}
}

// An init that cannot write the state takes back the CA key, so that it can be
// tried again.
func TestFailedInitCanBeTriedAgain(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config.yaml")
	state := filepath.Join(dir, "state")
	text := fmt.Sprintf("state_dir: %s\ncontrol: %s/s\nnode: {name: alpha}\n", state, dir)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	// A directory where the staged keys should go.
	obstacle := filepath.Join(state, ".tmp-keys", "x")
	if err := os.MkdirAll(obstacle, 0o700); err != nil {
		t.Fatal(err)
	}
	args := []string{"--config", path, "init", "--name", "home", "--ipv4", "none"}
	if got := meshctl(t.Context(), args...); got.code == 0 {
		t.Fatalf("init succeeded: %+v", got)
	}
	if _, err := os.Lstat(filepath.Join(dir, "ca.key")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the CA key is still there: %v", err)
	}
	if err := os.RemoveAll(filepath.Dir(obstacle)); err != nil {
		t.Fatal(err)
	}
	if got := meshctl(t.Context(), args...); got.code != 0 {
		t.Errorf("trying again: %+v", got)
	}
	d, err := statedir.Open(state)
	if err != nil || !d.Membership().Founder {
		t.Errorf("state %v, %v", d, err)
	}
}

func TestCodes(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("any"), 1},
		{fmt.Errorf("a: %w", status.ErrNoDaemon), 3},
		{fmt.Errorf("a: %w", status.ErrHangs), 3},
		{fmt.Errorf("a: %w", status.ErrUnknownNode), 65},
		{fmt.Errorf("a: %w", status.ErrAmbiguousNode), 65},
		{fmt.Errorf("a: %w", statedir.ErrDamaged), 65},
		{fmt.Errorf("a: %w", statedir.ErrLocked), 69},
		{fmt.Errorf("a: %w", statedir.ErrShared), 78},
		{fmt.Errorf("a: %w", fs.ErrPermission), 77},
		{exit.With(exit.NoInput, fs.ErrPermission), 66},
	} {
		if got := exit.Code(setup.Coded(tt.err)); got != tt.want {
			t.Errorf("%v: code %d, want %d", tt.err, got, tt.want)
		}
	}
}

func TestFirstNode(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(path, fmt.Appendf(nil, "state_dir: %s/state\n", dir), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := meshctl(t.Context(), "--config", path, "init", "--name", "home", "--node", "alpha", "--ipv4", "10.99.0.0/16"); got.code != 0 {
		t.Fatalf("init: %+v", got)
	}
	m, charter, err := readMembership(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	want := mesh.Network{
		Name: "default", IPv4: netip.MustParsePrefix("10.99.0.0/16"), IPv4Len: 24, IPv6: mesh.DefaultIPv6(charter.ID()), IPv6Len: 64,
	}
	if charter.Name != "home" || charter.Version != 1 || !slices.Equal(charter.Networks, []mesh.Network{want}) {
		t.Errorf("charter %+v", charter)
	}
	if !m.Founder || len(m.Seeds) != 0 || len(m.Keyring.Keys) != 1 || len(m.Keyring.Keys[0].Key) != trust.GossipKeySize {
		t.Errorf("founder %v, seeds %v, %d gossip keys", m.Founder, m.Seeds, len(m.Keyring.Keys))
	}
	c, err := trust.ParseCertificate(m.Certificate, charter.CA)
	if err != nil {
		t.Fatal(err)
	}
	if c.Name != "alpha" || c.Credential != nil || !slices.Contains(c.Capabilities, trust.CapRotate) || c.NotAfter.Sub(c.NotBefore) != firstLife || !c.ValidAt(time.Now()) {
		t.Errorf("certificate %+v", c)
	}
}
