package main

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"meshd/cmd/internal/exit"
	"meshd/mesh"
	"meshd/mesh/statedir"
	"meshd/mesh/trust"
)

// founder writes a config and the state of a mesh's first node below dir.
func founder(t *testing.T, dir string) (configPath, stateDir string) {
	t.Helper()
	configPath, stateDir = filepath.Join(dir, "config.yaml"), filepath.Join(dir, "state")
	text := fmt.Sprintf("node: {name: alpha}\nstate_dir: %s\ncontrol: %s\nhttp: \"\"\n", stateDir, filepath.Join(dir, "sock"))
	if err := os.WriteFile(configPath, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	_, ca, _ := ed25519.GenerateKey(nil)
	now, keys := time.Now(), statedir.NewKeys()
	charter := trust.Charter{Name: "home", Version: 1, Created: now, Networks: []mesh.Network{
		{Name: "default", IPv4: netip.MustParsePrefix("10.86.0.0/16"), IPv4Len: 24},
	}}
	rawCharter, err := charter.Sign(ca)
	if err != nil {
		t.Fatal(err)
	}
	certificate := trust.Certificate{
		Serial: trust.NewSerial(), Identity: keys.Identity.Public().(ed25519.PublicKey), Name: "alpha",
		SealKey: keys.Seal.Public(), NotBefore: now, NotAfter: now.Add(time.Hour), Admitted: now,
	}
	rawCertificate, err := certificate.Sign(ca)
	if err != nil {
		t.Fatal(err)
	}
	err = statedir.Create(stateDir, keys, statedir.Membership{
		Charter: rawCharter, Certificate: rawCertificate, Keyring: statedir.NewKeyring(make([]byte, trust.GossipKeySize)), Founder: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return configPath, stateDir
}

// leave marks the node as having left.
func leave(t *testing.T, stateDir string) {
	t.Helper()
	dir, err := statedir.Open(stateDir)
	if err != nil {
		t.Fatal(err)
	}
	state, err := dir.State()
	if err != nil {
		t.Fatal(err)
	}
	state.Left = true
	if err := dir.SaveState(state); err != nil {
		t.Fatal(err)
	}
}

// TestRefusals: each ends with its exit code and one line that says what to do.
func TestRefusals(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(t *testing.T, config, state string)
		args    []string
		code    int
		says    string
	}{
		"unknown flag":  {args: []string{"--frobnicate"}, code: exit.Usage, says: "frobnicate"},
		"argument":      {args: []string{"start"}, code: exit.Usage, says: "flags only"},
		"both":          {args: []string{"--check", "--cleanup"}, code: exit.Usage, says: "cleanup"},
		"no config":     {args: []string{"--config", "/does/not/exist"}, code: exit.NoInput, says: "meshctl init"},
		"state damaged": {prepare: func(t *testing.T, _, state string) { write(t, filepath.Join(state, "mesh"), "junk") }, code: exit.BadData, says: "damaged"},
		"no state":      {prepare: func(t *testing.T, _, state string) { remove(t, state) }, code: exit.NoInput, says: "meshctl join"},
		"left":          {prepare: func(t *testing.T, _, state string) { leave(t, state) }, code: exit.BadData, says: "has left"},
		"seed inside": {prepare: func(t *testing.T, config, state string) {
			write(t, config, "state_dir: "+state+"\nseeds: [\"10.86.3.4\"]\n")
		}, code: exit.Config, says: "10.86.0.0/16"},
		"bad key": {prepare: func(t *testing.T, config, _ string) { write(t, config, "nodes: {}\n") }, code: exit.Config, says: "config.yaml:1: nodes"},
	} {
		t.Run(name, func(t *testing.T) {
			config, state := founder(t, t.TempDir())
			if test.prepare != nil {
				test.prepare(t, config, state)
			}
			for _, mode := range [][]string{{"--check"}, nil} {
				args := test.args
				if args == nil {
					args = append([]string{"--config", config}, mode...)
				}
				err := run(t.Context(), args, new(bytes.Buffer), new(bytes.Buffer))
				if exit.Code(err) != test.code || err == nil || !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "\n") {
					t.Errorf("meshd %v: exit code %d, %q; want %d and one line with %q", args, exit.Code(err), err, test.code, test.says)
				}
			}
		})
	}
}

func TestStartMakesNoState(t *testing.T) {
	config, state := founder(t, t.TempDir())
	remove(t, state)
	if err := run(t.Context(), []string{"--config", config}, new(bytes.Buffer), new(bytes.Buffer)); exit.Code(err) != exit.NoInput {
		t.Errorf("%v, want that there is no state", err)
	}
	if _, err := os.Lstat(state); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v, want that it was not made", state, err)
	}
}

func TestCheckChangesNothing(t *testing.T) {
	config, state := founder(t, t.TempDir())
	before := snapshot(t, state)
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--config", config, "--check"}, &out, new(bytes.Buffer)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "node alpha") {
		t.Errorf("says %q", out.String())
	}
	if after := snapshot(t, state); after != before {
		t.Errorf("state was\n%s\nand is\n%s", before, after)
	}
}

func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %q\n", e.Name(), raw)
	}
	return b.String()
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}
