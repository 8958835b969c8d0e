package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"meshd/cmd/internal/exit"
	"meshd/cmd/internal/setup"
	"meshd/mesh"
	"meshd/mesh/exchange"
	"meshd/mesh/gossip"
	"meshd/mesh/lease"
	"meshd/mesh/member"
	"meshd/mesh/statedir"
	"meshd/mesh/trust"
	"meshd/overlay"
	"meshd/overlay/attach"
	"meshd/overlay/config"
	"meshd/overlay/plan"
	"meshd/overlay/status"
	"meshd/overlay/subnetenv"
	"meshd/overlay/tunnel/native"
	"meshd/overlay/tunnel/wggo"
	"meshd/tun/device"
	"meshd/tun/hostnet"
)

// parts are those of a node that a reload changes.
type parts struct {
	node       *overlay.Node
	gossip     *gossip.Gossip
	core       *member.Member // gossip's, once it runs: see Gossip.Do
	dir        *statedir.Dir
	containers *attach.Manager
}

// assemble chooses the concrete parts of a node and puts them together. It
// raises the epoch, so each call is a new start.
func assemble(ctx context.Context, cfg *config.Config, log *slog.Logger) (*parts, error) {
	tuneRuntime(cfg)
	if err := calmMonitor(); err != nil {
		log.Debug("idle takes more CPU than it could", "err", err)
	}
	dir, err := openState(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	if err := checkHost(ctx, dir, log); err != nil {
		return nil, err
	}
	state, err := dir.BeginEpoch()
	if err != nil {
		return nil, withCode(err)
	}
	core, err := newMember(cfg, dir, state, log)
	if err != nil {
		return nil, err
	}
	peers, err := dir.LoadPeers()
	if err != nil {
		log.Warn("last known peers not read, going on without", "err", err)
	}
	p := &parts{core: core, dir: dir}
	kernel := hostnet.New(hostnet.Options{Log: log})
	p.containers = attach.New(attach.Options{
		Host: kernel, Store: dir, Delegated: delegated(cfg), Boot: bootID(), Changed: func(ctx context.Context) error { return p.node.ContainersChanged(ctx) },
	})
	if err := loadContainers(ctx, p.containers, core); err != nil {
		return nil, err
	}
	p.gossip, err = gossip.New(gossip.Options{
		Core: core, Self: core.ID(), Keyring: dir.Membership().Keyring, Bind: cfg.Listen.Gossip,
		Seeds: seeds(cfg, dir), Peers: peers, Store: dir, Tunnels: exchange.Kernel{}, Log: log, Clocks: gossip.KernelClocks,
	})
	if err != nil {
		return nil, err
	}
	var delegate overlay.Delegate
	if cfg.SubnetEnv != "" {
		delegate = subnetenv.File{Path: cfg.SubnetEnv, Masquerade: cfg.Masquerade}
	}
	p.node = overlay.New(overlay.Options{
		Self: core.ID(), Name: core.Name(), Version: version, Log: log,
		Mesh: p.gossip, Host: kernel, Firewall: firewall(ctx, log), Containers: p.containers,
		NoMasquerade: !cfg.Masquerade,
		Delegate:     delegate,
		NewEngine:    func() (overlay.Engine, error) { return newEngine(cfg, dir, log) },
		Link:         cfg.Interface.Name,
		MTU:          cfg.Interface.MTU,
		TunnelPort:   cfg.Listen.Tunnel.Port(),
		GossipPort:   cfg.Listen.Gossip.Port(),
		Advertise:    cfg.Advertise,
	})
	return p, nil
}

// delegated is the network whose addresses are for programs that read flannel's file.
func delegated(cfg *config.Config) string {
	if cfg.SubnetEnv == "" {
		return ""
	}
	return mesh.DefaultNetwork
}

// bootID tells one start of the host from the next; see random(4).
func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// loadContainers takes up the containers of the last run, and the leases that they
// need.
func loadContainers(ctx context.Context, containers *attach.Manager, core *member.Member) error {
	if err := containers.Load(ctx); err != nil {
		return withCode(err)
	}
	used, inUse := overlay.Uses(containers.Networks())
	if err := core.Use(time.Now(), used); err != nil {
		return exit.With(exit.BadData, fmt.Errorf("take up containers of the last run: %w", err))
	}
	core.SetInUse(inUse)
	return nil
}

// check is what a start would check of a configuration beyond the file itself.
func (p *parts) check(file *config.Config) error {
	return checkAddresses(file, seeds(file, p.dir), p.dir.Membership().Charter)
}

// appliers says for each key that can change while the daemon runs how to make
// it so.
func (p *parts) appliers(server *status.Server, logs *logSwitch) map[string]func(context.Context, *config.Config) error {
	core := p.change
	toLogs := func(_ context.Context, c *config.Config) error { logs.Set(c.Log); return nil }
	return map[string]func(context.Context, *config.Config) error{
		"node.labels": func(ctx context.Context, c *config.Config) error {
			return core(ctx, func(now time.Time) error { return p.core.SetLabels(now, c.Node.Labels) })
		},
		"seeds": func(ctx context.Context, c *config.Config) error {
			all := seeds(c, p.dir)
			err := core(ctx, func(time.Time) error { p.core.SetHasSeeds(len(all) > 0); return nil })
			if err == nil { // else the seeds before stay in force
				p.gossip.SetSeeds(all)
			}
			return err
		},
		"advertise":     func(_ context.Context, c *config.Config) error { p.node.SetAdvertise(c.Advertise); return nil },
		"http":          func(ctx context.Context, c *config.Config) error { return server.SetHTTP(ctx, httpAddress(c)) },
		"interface.mtu": func(_ context.Context, c *config.Config) error { p.node.SetMTU(c.Interface.MTU); return nil },
		"lease.on_conflict": func(ctx context.Context, c *config.Config) error {
			return core(ctx, func(time.Time) error { p.core.SetOnConflict(lease.OnConflict(c.Lease.OnConflict)); return nil })
		},
		"log.level":  toLogs,
		"log.format": toLogs,
	}
}

// change changes the core while gossip does not use it.
func (p *parts) change(ctx context.Context, change func(now time.Time) error) error {
	var err error
	if missed := p.gossip.Do(ctx, func(now time.Time) { err = change(now) }); missed != nil {
		return missed
	}
	return err
}

func openState(path string) (*statedir.Dir, error) {
	dir, err := statedir.Open(path)
	if err != nil {
		return nil, withCode(err)
	}
	return dir, nil
}

// newMember builds the membership machine from what is on disk.
func newMember(cfg *config.Config, dir *statedir.Dir, state member.State, log *slog.Logger) (*member.Member, error) {
	if state.Left {
		return nil, exit.With(exit.BadData, errors.New("this node has left its mesh: join one again with `meshctl join TOKEN`"))
	}
	table, err := dir.LoadTable()
	if err != nil {
		log.Warn("table of the mesh not read, it will be fetched", "err", err)
	}
	of := dir.Member()
	of.HasSeeds = len(seeds(cfg, dir)) > 0
	of.OnConflict, of.Labels = lease.OnConflict(cfg.Lease.OnConflict), cfg.Node.Labels
	of.Suites = suites(cfg)
	of.TTL, of.RotateEvery = cfg.Lease.TTL, rotateEvery
	m, err := member.New(time.Now(), of, state, table)
	if err != nil {
		return nil, exit.With(exit.BadData, fmt.Errorf("state in %s: %w", cfg.StateDir, err))
	}
	if err := checkAddresses(cfg, seeds(cfg, dir), dir.Membership().Charter); err != nil {
		return nil, exit.With(exit.Config, err)
	}
	return m, nil
}

// rotateEvery is how often the gossip key changes by itself. Random nonces limit a
// key of AES-GCM to 2^32 messages: weeks in a large mesh.
const rotateEvery = 30 * 24 * time.Hour

// checkAddresses refuses seeds that could be reached only through the mesh that
// they are to lead to, and our own addresses that nobody could.
func checkAddresses(cfg *config.Config, seeds []string, rawCharter []byte) error {
	charter, err := trust.ParseCharter(rawCharter, mesh.ID{})
	if err != nil {
		return err
	}
	named := plan.Named("the seed", seeds...)
	for _, a := range cfg.Advertise {
		named = append(named, plan.Named("the address to advertise", config.Address(a))...)
	}
	if overlaps := plan.Overlaps(charter.Ranges(), nil, named); len(overlaps) > 0 {
		return errors.New(overlaps[0].String())
	}
	return nil
}

// seeds are those of the file, then those of the token.
func seeds(cfg *config.Config, dir *statedir.Dir) []string {
	return append(slices.Clone(cfg.Seeds), dir.Membership().Seeds...)
}

// withCode gives an error of the parts its exit code, and advice where the part
// does not know any.
func withCode(err error) error {
	switch {
	case errors.Is(err, native.ErrPortInUse), errors.Is(err, wggo.ErrPortInUse):
		return exit.With(exit.Unavailable, fmt.Errorf("%w: stop the other program, or change listen.tunnel", err))
	case errors.Is(err, gossip.ErrPortInUse):
		return exit.With(exit.Unavailable, err)
	case errors.Is(err, device.ErrNoTUN), errors.Is(err, device.ErrBusy), errors.Is(err, errNoOffload):
		return exit.With(exit.OSError, err)
	case errors.Is(err, gossip.ErrClone):
		return exit.With(exit.BadData, fmt.Errorf("%w: if this host is to be a node of its own, remove its state directory and run `meshctl join` with a new token; if the state was moved here, stop the daemon on the other host", err))
	case errors.Is(err, overlay.ErrOverlap):
		return exit.With(exit.Config, err)
	case errors.Is(err, device.ErrPermission):
		return exit.With(exit.NoPerm, err)
	case errors.Is(err, fs.ErrPermission) && exit.Code(err) == exit.Failed:
		return exit.With(exit.NoPerm, fmt.Errorf("%w: run this as root; for a daemon that is not, let root run `meshd --preflight` first", err))
	}
	return setup.Coded(err)
}
