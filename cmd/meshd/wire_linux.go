package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
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
	"meshd/overlay/tunnel"
	"meshd/overlay/tunnel/native"
	"meshd/overlay/tunnel/wggo"
	"meshd/tun/device"
	"meshd/tun/hostnet"
	"meshd/tun/nft"
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

// newEngine opens a TUN device and builds an engine on it.
func newEngine(cfg *config.Config, dir *statedir.Dir, log *slog.Logger) (overlay.Engine, error) {
	want := device.Options{Name: cfg.Interface.Name, Offload: device.Mode(cfg.Interface.Offload)}
	if isNative(cfg) {
		if want.Offload == device.Off {
			return nil, errNoOffload
		}
		want.Queues, want.USO = queues(), true
	}
	dev, err := device.Open(want)
	if err != nil {
		return nil, err
	}
	key, port := dir.Keys().Tunnel, cfg.Listen.Tunnel.Port()
	switch {
	case len(dev.Queues()) > 0:
		stamp, err := dir.LoadStamp()
		if err != nil {
			log.Warn("time of the last handshake not read, going on without", "err", err)
		}
		return native.New(native.Options{TUN: dev, PrivateKey: key, Port: port, Stamp: stamp, SaveStamp: dir.SaveStamp, Log: log}), nil
	case isNative(cfg):
		return nil, errors.Join(errNoOffload, dev.Close())
	}
	return wggo.New(wggo.Options{TUN: dev, PrivateKey: key, Port: port, Log: log}), nil
}

// firewall is nil where the kernel has none that we can use.
func firewall(ctx context.Context, log *slog.Logger) overlay.Firewall {
	f := nft.New(nft.Options{Log: log})
	if _, err := f.Obstacles(ctx); err != nil {
		log.Warn("no container can be attached to the mesh on this host: have what is missing, and restart the daemon", "err", err)
		return nil
	}
	return f
}

// tuneRuntime prepares Go's runtime for the engine, but for what whoever runs us
// has set, who may know better.
func tuneRuntime(cfg *config.Config) {
	if isNative(cfg) && os.Getenv("GOMAXPROCS") == "" {
		// A worker that waits in the kernel holds a slot of the scheduler for a
		// moment; with slots to spare, whoever is awake need not wait for one.
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + native.WorkersPerQueue*queues())
	}
	switch {
	case os.Getenv("GOGC") != "":
	case isNative(cfg):
		// Little is in use, so with Go's 100 it collects after every few MiB, and each
		// time bothers all those slots: a quarter of a start among 30 nodes. This takes
		// 4 MiB more, of which it gives most back soon after.
		debug.SetGCPercent(200)
	default:
		// wireguard-go has 24 MiB of buffers that count as in use and are hardly
		// touched. With Go's 100 an idle node of a mesh of 50 had 55 MiB resident,
		// with this 33. It reuses its buffers, so there is little to collect under load.
		debug.SetGCPercent(25)
	}
}

// queues is how many the TUN device has: one for each processor that we may use,
// which a quota may limit, up to where the network is the limit.
var queues = sync.OnceValue(func() int { return min(runtime.GOMAXPROCS(0), 8) })

var errNoOffload = errors.New("the kernel gives the TUN device no offloads, and the engine native needs them: set engine: wireguard-go")

// isNative tells which engine it is. Peers are told what it speaks, so it is not
// for the kernel to choose.
func isNative(cfg *config.Config) bool {
	return cfg.Engine == config.EngineNative || cfg.Engine == config.EngineAuto && cfg.Interface.Offload != config.OffloadOff
}

// suites are what this node offers its peers.
func suites(cfg *config.Config) []string {
	if isNative(cfg) && cfg.Suite == config.SuiteAuto {
		return native.Suites()
	}
	return []string{tunnel.ChaCha20Poly1305}
}

// checkStart says whether configuration and state are good for a start, without
// changing anything. It tries neither ports nor the TUN device: a daemon that
// runs has them.
func checkStart(ctx context.Context, cfg *config.Config, path string, stdout io.Writer) error {
	core, err := dryStart(ctx, cfg)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s and the state in %s are good: node %s\n", path, cfg.StateDir, core.Name())
	return nil
}

// checkHost refuses a start that would take traffic which this host has already.
func checkHost(ctx context.Context, dir *statedir.Dir, log *slog.Logger) error {
	charter, err := trust.ParseCharter(dir.Membership().Charter, mesh.ID{})
	if err != nil {
		return withCode(err)
	}
	state, err := dir.State()
	if err != nil {
		return withCode(err)
	}
	own := plan.Own(mesh.ControlAddr(charter.ID(), dir.Keys().ID()), state.Leases)
	return withCode(overlay.CheckHost(ctx, hostnet.New(hostnet.Options{}), plan.Needed(charter.Control(), charter.Networks), own, log))
}

// dryStart refuses what a start would, and saves nothing.
func dryStart(ctx context.Context, cfg *config.Config) (*member.Member, error) {
	dir, err := openState(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	state, err := dir.State()
	if err != nil {
		return nil, withCode(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	state.Epoch++ // as a start would
	core, err := newMember(cfg, dir, state, quiet)
	if err != nil {
		return nil, err
	}
	return core, checkHost(ctx, dir, quiet)
}

// cleanUp removes what is ours from the host: by way of the daemon if one runs
// with this configuration, by hand if none runs at all.
func cleanUp(ctx context.Context, cfg *config.Config, stdout io.Writer) error {
	switch err := status.NewClient(cfg.Control).Down(ctx); {
	case err == nil:
		fmt.Fprintln(stdout, "the daemon has removed everything and ended")
		return nil
	case !errors.Is(err, status.ErrNoDaemon):
		return withCode(err)
	}
	removed, err := hostnet.New(hostnet.Options{}).Cleanup(ctx)
	if err == nil {
		var rules []string
		if rules, err = nft.New(nft.Options{}).Remove(ctx); errors.Is(err, nft.ErrNoNFTables) {
			err = nil
		}
		removed = append(removed, rules...)
	}
	switch {
	case errors.Is(err, hostnet.ErrRunning):
		return exit.With(exit.Unavailable, fmt.Errorf(
			"clean up host network: %w, and not with this configuration: stop it first, or use `meshd --cleanup --config` with its file", err))
	case err != nil:
		return withCode(fmt.Errorf("clean up host network: %w", err))
	case len(removed) == 0:
		fmt.Fprintln(stdout, "there is nothing of meshd's in this host's network")
		return nil
	}
	fmt.Fprintln(stdout, strings.Join(removed, "\n"))
	fmt.Fprintln(stdout, "nothing of meshd's is left in this host's network; IP forwarding stays as it is")
	return nil
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
