package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"meshd/cmd/internal/exit"
	"meshd/mesh"
	"meshd/mesh/statedir"
	"meshd/mesh/trust"
	"meshd/overlay/config"
	"meshd/tun"
)

const initHelp = `Make a new mesh, with this host as its first node.

It makes three things: the CA key, which signs invitations; the state of this
node; and, where there is none yet, a commented config file. It needs no network
and changes nothing but files.

--ipv4 auto takes the first of 10.86.0.0/16, 10.113.0.0/16 and 10.171.0.0/16
that means nothing to this host already. Each node gets a subnet of it. --ipv6 auto
takes a unique local /48, with a /64 per node.`

const (
	ipv6SubnetLen = 64
	firstLife     = 365 * 24 * time.Hour // of the first node's certificate
)

type initFlags struct {
	name, node, ca string
	rangeFlags
}

// rangeFlags say what ranges a network has.
type rangeFlags struct {
	ipv4, ipv6 string
	ipv4Len    int
	given      func(flag string) bool // on the command line
}

func (f *rangeFlags) addFlags(cmd *cobra.Command) {
	f.given = cmd.Flags().Changed
	cmd.Flags().StringVar(&f.ipv4, "ipv4", "auto", "IPv4 range: auto, none or a `PREFIX`")
	cmd.Flags().IntVar(&f.ipv4Len, "ipv4-subnet-len", 24, "`LENGTH` of each node's IPv4 subnet")
	cmd.Flags().StringVar(&f.ipv6, "ipv6", "auto", "IPv6 range: auto, none or a `PREFIX`")
}

func (c *cli) init() *cobra.Command {
	var f initFlags
	cmd := &cobra.Command{
		Use: "init --name MESH", Short: "Make a new mesh, with this host as its first node", Long: initHelp,
		Example: "  meshctl init --name home\n  meshctl init --name lab --ipv4 10.99.0.0/16 --ipv4-subnet-len 26 --ipv6 none",
		Args:    exactly(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.runInit(cmd.Context(), f) },
	}
	cmd.Flags().StringVar(&f.name, "name", "", "name of the `MESH`: a-z, 0-9 and - (required)")
	f.addFlags(cmd)
	cmd.Flags().StringVar(&f.node, "node", "", "name of this `NODE` (default: as the config file or the hostname says)")
	caFlag(cmd, &f.ca)
	return cmd
}

// runInit checks all it can before it writes. The state comes last: while there
// is none, init may be tried again.
func (c *cli) runInit(ctx context.Context, f initFlags) error {
	if f.name == "" {
		return usage("--name is missing: give the mesh a name, such as `meshctl init --name home`")
	}
	if err := checkName("--name", f.name); err != nil {
		return err
	}
	place, err := c.openPlace(f.node)
	if err != nil {
		return err
	}
	defer place.release()
	all, err := uses(ctx, candidates(f.rangeFlags)...)
	if err != nil {
		return err
	}
	if _, err := chooseNetwork(mesh.DefaultNetwork, f.rangeFlags, mesh.DefaultIPv6(mesh.ID{}), all); err != nil {
		return err
	}
	ca := c.caPath(f.ca)
	if _, err := os.Lstat(ca); err == nil {
		return exit.With(exit.BadData, fmt.Errorf("CA key %s is there already, and may be that of a mesh: if a mesh uses it, move it away; if it is left over from an init that did not finish, delete it; or name another file with --ca", ca))
	}

	if err := place.writeConfig(); err != nil {
		return err
	}
	key, err := statedir.CreateCAKey(ca)
	if err != nil {
		return err
	}
	id := trust.IdentityOf(key.Public().(ed25519.PublicKey))
	network, err := chooseNetwork(mesh.DefaultNetwork, f.rangeFlags, mesh.DefaultIPv6(id), all)
	if err == nil {
		err = place.found(f.name, network, key)
	}
	if err != nil {
		if checkNoMember(place.cfg.StateDir) == nil {
			err = errors.Join(err, os.Remove(ca)) // it signed nothing that is left
		}
		return err
	}
	c.sayFounded(place, f.name, network, key, ca)
	return nil
}

func checkName(flag, name string) error {
	if trust.CheckName(name) != nil {
		return usage("%s %q: a name has 1 to 63 of a-z, 0-9 and -, neither first nor last a -", flag, name)
	}
	return nil
}

// chooseNetwork makes a network; autoIPv6 is what auto stands for.
func chooseNetwork(name string, f rangeFlags, autoIPv6 netip.Prefix, all []tun.Use) (mesh.Network, error) {
	n := mesh.Network{Name: name}
	if f.ipv4 == "none" && f.given("ipv4-subnet-len") {
		return n, usage("--ipv4-subnet-len does not go with --ipv4 none")
	}
	var err error
	if n.IPv4, err = chooseIPv4(f.ipv4, all); err != nil {
		return n, err
	}
	if n.IPv6, err = chooseIPv6(f.ipv6, autoIPv6, all); err != nil {
		return n, err
	}
	if n.IPv4.IsValid() {
		n.IPv4Len = f.ipv4Len
	}
	if n.IPv6.IsValid() {
		n.IPv6Len = ipv6SubnetLen
	}
	if n.IPv4.IsValid() && (n.IPv4Len <= n.IPv4.Bits() || n.IPv4Len > 30) {
		return n, usage("--ipv4-subnet-len %d: each node gets a subnet of %s, so /%d to /%d", n.IPv4Len, n.IPv4, n.IPv4.Bits()+1, 30)
	}
	if err := trust.CheckNetwork(n); err != nil {
		return n, usage("%w", err)
	}
	return n, nil
}

// place is where this host's membership will be: no state yet, the directory
// locked.
type place struct {
	cfg        *config.Config
	node       string // name
	configPath string
	newConfig  bool
	release    func()
}

// openPlace finds the config, or takes the default one, and locks the state
// directory. It refuses where there is a member already.
func (c *cli) openPlace(node string) (*place, error) {
	p := &place{configPath: absolute(c.configPath), node: node}
	cfg, err := c.loadConfig()
	if exit.Code(err) == exit.NoInput {
		p.newConfig = true
		cfg, err = config.Default(), nil
		if node != "" {
			cfg.Node.Name = node
		}
	}
	if err != nil {
		return nil, err
	}
	p.cfg = cfg
	if p.node == "" {
		p.node = cfg.Node.Name
	}
	if err := checkName("--node", p.node); err != nil {
		return nil, err
	}
	// Before the lock, since a daemon that runs holds that, and "is a member" is
	// the better answer.
	if err := checkNoMember(cfg.StateDir); err != nil {
		return nil, err
	}
	if p.release, err = statedir.Lock(cfg.StateDir); err != nil {
		return nil, err
	}
	return p, nil
}

func checkNoMember(path string) error {
	dir, err := statedir.Open(path)
	if errors.Is(err, statedir.ErrNoState) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	state, err := dir.State()
	if err != nil || state.Left {
		return err
	}
	if state.Epoch == 0 {
		return fmt.Errorf("%s: %w; no daemon ever ran with it, so you may also delete it", path, statedir.ErrExists)
	}
	return fmt.Errorf("%s: %w", path, statedir.ErrExists)
}

// writeConfig writes the commented default where there is no config yet.
func (p *place) writeConfig() error {
	if !p.newConfig {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(p.configPath), 0o755); err != nil {
		return fmt.Errorf("write config: %w", err)
	}
	if err := writeNew(p.configPath, config.Template(p.cfg)); err != nil {
		return fmt.Errorf("write config: %w", err)
	}
	return nil
}

// writeNew makes a file that everybody may read, whole or not at all, and
// overwrites nothing.
func writeNew(path string, content []byte) (err error) {
	temp, err := os.CreateTemp(filepath.Dir(path), ".meshctl-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(temp.Name())) }()
	_, err = temp.Write(content)
	if err = errors.Join(err, temp.Chmod(0o644), temp.Sync(), temp.Close()); err != nil {
		return err
	}
	return os.Link(temp.Name(), path)
}

// found makes the mesh and writes the state of its first node.
func (p *place) found(name string, network mesh.Network, ca ed25519.PrivateKey) error {
	now, keys := time.Now(), statedir.NewKeys()
	charter := trust.Charter{Name: name, Version: 1, Networks: []mesh.Network{network}, Created: now}
	rawCharter, err := charter.Sign(ca)
	if err != nil {
		return err
	}
	certificate := trust.Certificate{
		Serial: trust.NewSerial(), Identity: keys.Identity.Public().(ed25519.PublicKey), Name: p.node,
		SealKey: keys.Seal.Public(), Capabilities: []string{trust.CapRotate},
		NotBefore: now, NotAfter: now.Add(firstLife), Admitted: now,
	}
	rawCertificate, err := certificate.Sign(ca)
	if err != nil {
		return err
	}
	gossipKey := make([]byte, trust.GossipKeySize)
	_, _ = rand.Read(gossipKey) // never fails since Go 1.24
	return statedir.Create(p.cfg.StateDir, keys, statedir.Membership{
		Charter: rawCharter, Certificate: rawCertificate, Keyring: statedir.NewKeyring(gossipKey), Founder: true,
	})
}

func (c *cli) sayFounded(p *place, name string, network mesh.Network, key ed25519.PrivateKey, ca string) {
	w := c.stdout
	fmt.Fprintf(w, "Made the mesh %s and its first node %s.\n\n", name, p.node)
	fmt.Fprintf(w, "Mesh ID  %s\n", trust.IdentityOf(key.Public().(ed25519.PublicKey)))
	fmt.Fprintf(w, "Network  %s\n", networkText(network))
	fmt.Fprintf(w, "Config   %s\n", p.configText())
	fmt.Fprintf(w, "State    %s\n", p.cfg.StateDir)
	fmt.Fprintf(w, "CA key   %s\n", ca)
	fmt.Fprintf(w, `
The CA key signs every invitation; the daemon never reads it. Whoever has it can
admit nodes to the mesh, so keep it where few can reach it, with a backup: move
the file to another disk or machine, and name it with --ca FILE when a command
needs it. If it is lost, the mesh runs on, but nobody can be invited or thrown out,
and no certificate renewed; this node's ends on %s.

Next:
  %s
  %s
`, time.Now().Add(firstLife).UTC().Format(time.DateOnly), c.daemonCommand(), c.again("token create"))
}

// configText names the config file and whether it is new.
func (p *place) configText() string {
	if p.newConfig {
		return p.configPath + " (new, with defaults)"
	}
	return p.configPath
}

func networkText(n mesh.Network) string {
	var parts []string
	for _, r := range []struct {
		prefix netip.Prefix
		bits   int
	}{{n.IPv4, n.IPv4Len}, {n.IPv6, n.IPv6Len}} {
		if r.prefix.IsValid() {
			parts = append(parts, fmt.Sprintf("%s in subnets of /%d", r.prefix, r.bits))
		}
	}
	return fmt.Sprintf("%s: %s; room for %d nodes", n.Name, strings.Join(parts, ", "), n.Slots())
}
