// Package wggo is a tunnel engine on wireguard-go's device, and the reference
// for the engines to come.
//
// Around the device stand two guards. One, on the TUN side, drops packets whose
// inner source (leaving) or destination (arriving) is not ours; wireguard-go
// itself holds the other half of cryptokey routing. The other, on the UDP side,
// drops what came through the mesh itself and keeps receivers alive through
// errors that pass.
//
// A peer with several endpoints is tried at the next one when it does not
// answer at the current one. There is no keepalive: idle peers cost no packet.
//
// The owner builds an [Engine] with New, calls Run once, and Apply as often as
// it likes. It gives the TUN away: Run closes it. When Run returns an error,
// build a new TUN and a new engine. The owner sets the link up, its addresses
// and its MTU.
package wggo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"meshd/mesh"
	"meshd/overlay/tunnel"
)

// ErrPortInUse says that another program has the port of the tunnel.
var ErrPortInUse = fmt.Errorf("taken by another program: %w", syscall.EADDRINUSE)

var (
	errTUNGone    = errors.New("TUN device is gone")
	errNotRunning = errors.New("tunnel engine is not running")
)

// Options say how to build an [Engine].
type Options struct {
	TUN        TUN
	PrivateKey [32]byte     // X25519
	Port       uint16       // UDP, on every address of both families; 0: any
	Log        *slog.Logger // nil: nothing is logged
}

// Engine carries packets between a TUN device and the peers.
//
// Memory: wireguard-go's buffers are 64 KiB each and come in batches of 128, one
// batch for each of two receivers and the TUN reader: 24 MiB of heap, which no
// option reduces on Linux (PreallocatedBuffersPerPool and the queue sizes are
// constants, its socket code relies on the batch size). An idle engine has
// touched few of those pages and keeps about 2 MiB resident (BenchmarkIdleMemory).
// But they count as live, so the garbage collector lets as much garbage pile up
// beside them: a program that is to stay small lowers its GC percentage.
type Engine struct {
	// fixed at construction
	options  Options
	log      *slog.Logger
	bind     *bind
	patience time.Duration // before the next endpoint of a silent peer is tried
	up       chan struct{} // closed by Run when Apply may be called
	down     chan struct{} // closed when Run returns

	started atomic.Bool

	// set by Run before up is closed
	device *device.Device
	filter *filter

	hurry chan struct{} // capacity 1: a key is changing

	mu      sync.Mutex // guards all below, and configuration of the device
	own     ownKey
	peers   map[mesh.Key]*peer
	renewal uint64 // of the last configuration
}

// New builds an engine; it does nothing before [Engine.Run].
func New(o Options) *Engine {
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{
		options:  o,
		log:      log,
		patience: 10 * time.Second, // two retries of a handshake, 5 s apart
		up:       make(chan struct{}),
		down:     make(chan struct{}),
		hurry:    make(chan struct{}, 1),
		peers:    map[mesh.Key]*peer{},
	}
	e.bind = newBind(e.takeIn)
	e.bind.hurry = e.hurry
	return e
}

// Name implements the engine's part of the status document.
func (e *Engine) Name() string { return "wireguard-go" }

// Port gives the UDP port in use; 0 before the engine is ready.
func (e *Engine) Port() uint16 { return uint16(e.bind.port.Load()) }

// Ready is closed once the engine carries packets.
func (e *Engine) Ready() <-chan struct{} { return e.up }

// Run carries packets until ctx is done, and then returns nil. It fails with
// [ErrPortInUse] at the start, or when the TUN device was deleted, cannot be read
// any more or lost its name, to which all routes go. Sockets are opened in the
// network namespace of the calling thread. It can be called once.
func (e *Engine) Run(ctx context.Context) (err error) {
	if e.started.Swap(true) {
		return errors.New("run tunnel engine: called twice")
	}
	defer close(e.down)
	mtu, err := e.linkMTU()
	if err != nil {
		return errors.Join(err, e.options.TUN.Close())
	}
	under, err := takeOver(e.options.TUN)
	if err != nil {
		return err
	}
	e.filter = newFilter(under, mtu)
	e.device = device.NewDevice(e.filter, e.bind, deviceLogger(e.log, e.up))
	defer e.device.Close() // closes the TUN, waits for readers and receivers

	if err := e.setKey(e.options.PrivateKey); err != nil {
		return fmt.Errorf("configure tunnel engine: %w", err)
	}
	if err := e.device.IpcSet(fmt.Sprintf("listen_port=%d\n", e.options.Port)); err != nil {
		return fmt.Errorf("configure tunnel engine: %w", err)
	}
	if err := e.device.Up(); err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("listen on UDP port %d: %w", e.options.Port, ErrPortInUse)
		}
		return fmt.Errorf("listen on UDP port %d: %w", e.options.Port, err)
	}
	close(e.up)
	return e.watch(ctx)
}

// watch does what is done from time to time, until the end.
func (e *Engine) watch(ctx context.Context) error {
	// A second, so that with the time to build it again a renamed link is back
	// within two.
	ticker := time.NewTicker(min(time.Second, e.patience/2))
	defer ticker.Stop()
	// Reading the device takes a millisecond for 200 peers.
	endpointsAt, endpointsEvery := time.Time{}, e.patience/4
	changes := time.NewTicker(changeEvery) // of keys
	defer changes.Stop()
	changes.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.device.Wait():
			return e.tunError()
		case <-e.hurry:
			e.changeKeys(time.Now())
			changes.Reset(changeEvery)
		case now := <-changes.C:
			if !e.changeKeys(now) {
				changes.Stop()
			}
		case now := <-ticker.C:
			switch mtu, err := e.linkMTU(); {
			case err == nil:
				e.filter.setMTU(mtu)
			case errors.Is(err, errTUNGone):
				return err
			} // else no descriptor was left, or the like: ask again later
			e.renewSessions(now)
			if now.Sub(endpointsAt) >= endpointsEvery {
				endpointsAt = now
				e.tryNextEndpoints(now)
			}
		}
	}
}

// tunError says why the device closed itself, which only a TUN makes it do.
func (e *Engine) tunError() error {
	name := e.options.TUN.Name()
	if cause := e.filter.failed.Load(); cause != nil && !errors.Is(*cause, os.ErrClosed) {
		return fmt.Errorf("%w: read %s: %w", errTUNGone, name, *cause)
	}
	return fmt.Errorf("%w: %s was deleted", errTUNGone, name)
}

// linkMTU asks for the MTU, which somebody else sets. It fails with errTUNGone
// if the link is not to be found under its name: whoever sets it up, and routes
// to it, would not find it either.
func (e *Engine) linkMTU() (int, error) {
	mtu, err := e.options.TUN.MTU()
	if errors.Is(err, syscall.ENODEV) {
		err = fmt.Errorf("%w: renamed or deleted: %w", errTUNGone, err)
	}
	return mtu, err
}

// ready waits until Run has come so far that the device can be configured.
func (e *Engine) ready(ctx context.Context) error {
	select {
	case <-e.down:
		return errNotRunning
	default:
	}
	select {
	case <-e.up:
		return nil
	case <-e.down:
		return errNotRunning
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", errNotRunning, ctx.Err())
	}
}

// Apply makes the engine do what the configuration says, and nothing else. It
// waits until Run has started. Sessions and learned endpoints of peers that
// stay are kept; peers that cannot be configured are left out and reported.
func (e *Engine) Apply(ctx context.Context, want tunnel.Config) error {
	if err := e.ready(ctx); err != nil {
		return fmt.Errorf("apply tunnel configuration: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	wanted, bad := byKey(want.Peers, want.Inside)
	now, err := e.readDevice()
	if err != nil {
		return fmt.Errorf("apply tunnel configuration: %w", err)
	}
	next, ops := diff(e.peers, wanted, now)
	e.filter.setOwn(want.Own)
	e.filter.setNarrow(want.Peers)
	e.bind.setInside(want.Inside)
	e.bind.yield(e.own.public, next)
	if ops != "" {
		if err := e.device.IpcSet(ops); err != nil {
			return fmt.Errorf("apply tunnel configuration: %w", err)
		}
	}
	e.peers = next
	if want.Renewal != e.renewal {
		e.renewal = want.Renewal
		for key, p := range next {
			carrier := p.carrier(key)
			p.owed = renewal{until: time.Now().Add(renewFor), last: now[carrier].LastHandshake}
			if d := e.device.LookupPeer(device.NoisePublicKey(carrier)); d != nil {
				_ = d.SendHandshakeInitiation(false) // the device itself retries, and logs
			}
		}
	}
	return errors.Join(bad, e.planKeys(want.Key))
}

// Stats gives a snapshot of the counters. It is empty before the engine is
// ready.
func (e *Engine) Stats() tunnel.Stats {
	stats := tunnel.Stats{Peers: map[mesh.NodeID]tunnel.PeerStats{}, Drops: map[string]uint64{}}
	select {
	case <-e.up:
	default:
		return stats
	}
	stats.Drops[tunnel.DropSource] = e.filter.dropSource.Load()
	stats.Drops[tunnel.DropDestination] = e.filter.dropDestination.Load()
	stats.Drops[tunnel.DropMalformed] = e.filter.dropMalformed.Load()
	stats.Drops[tunnel.DropEndpoint] = e.bind.dropEndpoint.Load()
	e.mu.Lock()
	defer e.mu.Unlock()
	now, err := e.readDevice()
	if err != nil {
		return stats // a closed device has no peers
	}
	for key, p := range e.peers {
		s := now[p.carrier(key)]
		s.Suite = tunnel.ChaCha20Poly1305
		stats.Peers[p.want.ID] = s
	}
	return stats
}
