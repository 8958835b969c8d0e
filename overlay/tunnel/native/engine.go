// Package native is the tunnel engine: packets from one kernel queue to the
// other, sealed or opened on the way, by one goroutine that runs to completion.
//
//	          ┌────────── worker: one per TUN queue ─────────────┐
//	TUN ────► │ sender:   route, split, seal     ► train         │ ────► UDP
//	    ◄──── │ receiver: join    ◄ check, open  ◄ train         │ ◄──── one socket per family
//	          └───────▲───────────────────────────────┬──────────┘
//	       routes, sessions, paths             handshake messages
//	          ┌───────┴───────────────────────────────▼──────────┐
//	          │ control: wg.Machine, Apply, endpoints, the clock │
//	          └──────────────────────────────────────────────────┘
//
// On the way of a packet nothing is allocated or handed over, and nothing locked
// but a session's window of counters, to look for what was seen before. Workers
// read routes, sessions and paths through atomic pointers; control alone changes
// them. No error ends a worker but of its TUN queue or sockets that is final, or of waiting.
//
// The owner builds an [Engine] with New, calls Run once, and Apply as often as
// it likes. It gives the TUN away: Run closes it. When Run returns an error,
// build a new TUN and a new engine. The owner sets the link up, its addresses
// and its MTU.
package native

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"meshd/mesh"
	"meshd/overlay/tunnel"
	"meshd/overlay/tunnel/wg"
	"meshd/overlay/udp"
	"meshd/tun/device"
)

var be = binary.BigEndian

// ErrPortInUse says that another program has the port of the tunnel.
var ErrPortInUse = fmt.Errorf("taken by another program: %w", syscall.EADDRINUSE)

var (
	errTUNGone    = errors.New("TUN device is gone")
	errNotRunning = errors.New("tunnel engine is not running")
)

// TUN is the device that the engine serves; [device.Device] is one, with Queues.
type TUN interface {
	Queues() []*device.Queue
	USO() bool // the kernel takes super-packets of UDP
	Name() string
	// MTU of the link now, also after Close; fails with ENODEV when no link has
	// its name any more, or another one has it.
	MTU() (int, error)
	Close() error
}

// Options say how to build an [Engine].
type Options struct {
	TUN        TUN
	PrivateKey [32]byte // X25519
	Port       uint16   // UDP, on every address of both families; 0: any
	// Stamp is what SaveStamp was last called with; zero: nothing is known.
	Stamp time.Time
	// SaveStamp makes a time durable, once a minute, or more often while the clock
	// is behind what was saved: peers refuse handshakes that are dated before the
	// last one, so ours must never go back. nil: after a restart with a clock that
	// was set back, peers refuse the first one and begin one themselves. It is called on a goroutine
	// of its own, one call at a time: a disk that hangs stops no handshake, and may
	// keep the last call from returning before Run does.
	SaveStamp func(time.Time) error
	Log       *slog.Logger // nil: nothing is logged
}

// Engine carries packets between a TUN device and the peers.
//
// Memory: of each worker the sender has one packet and a few trains of up to 64 KiB, each
// receiver one train. A peer has up to three sessions with 2 KiB each, and up to
// 32 packets that wait for one.
type Engine struct {
	// fixed at construction
	options Options
	log     *slog.Logger
	up      chan struct{} // closed by Run when Apply may be called
	down    chan struct{} // closed when Run returns
	asleep  func() time.Duration

	started atomic.Bool
	port    atomic.Uint32

	routes atomic.Pointer[routes] // never nil
	mtu    atomic.Int32
	table  *wg.Table // set by Run before workers start
	drops  drops

	handshakes chan handshake // from receivers to control
	poke       chan struct{}  // capacity 1: a worker has something for control to see
	requests   chan request   // Apply
	failed     chan error     // capacity 1: why a worker ended

	mu    sync.Mutex
	peers map[mesh.NodeID]*peer // guarded by mu; for Stats
}

// New builds an engine; it does nothing before [Engine.Run].
func New(o Options) *Engine {
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{
		options: o, log: log, up: make(chan struct{}), down: make(chan struct{}), asleep: asleep,
		handshakes: make(chan handshake, maxHandshakes), poke: make(chan struct{}, 1),
		requests: make(chan request), failed: make(chan error, 1), peers: map[mesh.NodeID]*peer{},
	}
	e.routes.Store(&routes{})
	return e
}

// Name implements the engine's part of the status document.
func (e *Engine) Name() string { return "native" }

// Port gives the UDP port in use; 0 before the engine is ready.
func (e *Engine) Port() uint16 { return uint16(e.port.Load()) }

// Ready is closed once the engine carries packets.
func (e *Engine) Ready() <-chan struct{} { return e.up }

// Run carries packets until ctx is done, and then returns nil. It fails with
// [ErrPortInUse] at the start, or when the TUN device was deleted, cannot be read
// any more or lost its name, to which all routes go. Sockets are opened in the
// network namespace of the calling thread, in which it must stay. It can be
// called once.
func (e *Engine) Run(ctx context.Context) (err error) {
	if e.started.Swap(true) {
		return errors.New("run tunnel engine: called twice")
	}
	defer close(e.down)
	machine, group, err := e.prepare()
	if err != nil {
		return errors.Join(err, e.options.TUN.Close())
	}
	var workers sync.WaitGroup
	stop, err := e.start(&workers, group)
	if err == nil {
		close(e.up)
		err = newControl(e, machine, group).run(ctx)
	}
	// A worker that waits is woken, and one that never has to finds its queue closed.
	stop()
	err = errors.Join(err, group.Close(), e.options.TUN.Close())
	workers.Wait()
	return err
}

// prepare makes all that workers and control need.
func (e *Engine) prepare() (*wg.Machine, *udp.Group, error) {
	if err := e.readMTU(); err != nil {
		return nil, nil, err
	}
	machine, err := wg.New(wg.Config{PrivateKey: e.options.PrivateKey, LastStamp: e.options.Stamp})
	if err != nil {
		return nil, nil, fmt.Errorf("configure tunnel engine: %w", err)
	}
	e.table = machine.Table()
	group, err := udp.Listen(e.options.Port, max(1, len(e.options.TUN.Queues())))
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, nil, fmt.Errorf("listen on UDP port %d: %w", e.options.Port, ErrPortInUse)
	} else if err != nil {
		return nil, nil, err
	}
	e.port.Store(uint32(group.Port()))
	return machine, group, nil
}

// start starts the workers. stop tells them to end, and does not wait.
func (e *Engine) start(workers *sync.WaitGroup, group *udp.Group) (stop func(), err error) {
	var all []*worker
	stop = func() {
		for _, w := range all {
			w.stop()
		}
	}
	for i, q := range e.options.TUN.Queues() {
		w, err := newWorker(e, q, group, i)
		if err != nil {
			return stop, err
		}
		all = append(all, w)
	}
	for _, w := range all {
		workers.Go(w.run)
	}
	return stop, nil
}

// WorkersPerQueue is how many goroutines wait in the kernel for each TUN queue.
const WorkersPerQueue = 1

// fail ends the engine.
func (e *Engine) fail(err error) {
	select {
	case e.failed <- err:
	default: // for another reason already
	}
}

// signal makes control look at what workers have noted.
func (e *Engine) signal() {
	select {
	case e.poke <- struct{}{}:
	default:
	}
}

// wake asks for a handshake with a peer.
func (e *Engine) wake(p *peer) {
	if !p.needsSession.Swap(true) {
		e.signal()
	}
}

// readMTU asks for the MTU, which somebody else sets. It fails with errTUNGone
// if the link is not to be found under its name: whoever sets it up, and routes
// to it, would not find it either.
func (e *Engine) readMTU() error {
	mtu, err := e.options.TUN.MTU()
	switch {
	case err == nil:
		e.mtu.Store(int32(mtu))
	case errors.Is(err, syscall.ENODEV):
		return fmt.Errorf("%w: %s was renamed or deleted: %w", errTUNGone, e.options.TUN.Name(), err)
	case e.mtu.Load() == 0:
		return err
	} // else no descriptor was left, or the like: ask again later
	return nil
}

// request is one Apply.
type request struct {
	want tunnel.Config
	done chan error
}

// Apply makes the engine do what the configuration says, and nothing else. It
// waits until Run has started. Sessions and learned endpoints of peers that
// stay are kept; peers that cannot be configured are left out and reported.
func (e *Engine) Apply(ctx context.Context, want tunnel.Config) error {
	r := request{want, make(chan error, 1)}
	err := func() error {
		select {
		case <-e.up:
		case <-e.down:
			return errNotRunning
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", errNotRunning, ctx.Err())
		}
		select {
		case e.requests <- r:
		case <-e.down:
			return errNotRunning
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case err := <-r.done:
			return err
		case <-ctx.Done():
			return ctx.Err() // it is carried out nevertheless
		}
	}()
	if err != nil {
		return fmt.Errorf("apply tunnel configuration: %w", err)
	}
	return nil
}

// Stats gives a snapshot of the counters. It is empty before the engine is
// ready.
func (e *Engine) Stats() tunnel.Stats {
	stats := tunnel.Stats{Peers: map[mesh.NodeID]tunnel.PeerStats{}, Drops: e.drops.snapshot()}
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, p := range e.peers {
		s := tunnel.PeerStats{Endpoint: p.endpoint(), Suite: *p.suite.Load(), RxBytes: p.rx.Load(), TxBytes: p.tx.Load()}
		if at := p.shaken.Load(); at != nil {
			s.LastHandshake = *at
		}
		stats.Peers[id] = s
	}
	return stats
}
