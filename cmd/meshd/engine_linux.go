package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"sync"

	"meshd/mesh/statedir"
	"meshd/overlay"
	"meshd/overlay/config"
	"meshd/overlay/tunnel"
	"meshd/overlay/tunnel/native"
	"meshd/overlay/tunnel/wggo"
	"meshd/tun/device"
	"meshd/tun/nft"
)

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
		// time bothers all those slots: a tenth of a start among 30 nodes, or more. This takes
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
