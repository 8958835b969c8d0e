package sim

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"meshd/mesh"
	"meshd/mesh/gossip"
	"meshd/mesh/meshtest"
	"meshd/mesh/statedir"
	"meshd/overlay"
	"meshd/overlay/tunnel"
	"meshd/overlay/tunnel/tunneltest"
	"meshd/tun"
	"meshd/tun/tuntest"
)

// host is a machine: its disk, its kernel, and a daemon that may run on it.
type host struct {
	// fixed at construction
	w        *world
	number   int
	name     string
	id       mesh.NodeID
	admitted admission
	keys     statedir.Keys
	tunnel   mesh.Key // of keys: to derive it takes a while
	kernel   *tuntest.Kernel

	// owned by the test's goroutine
	disk    *meshtest.Store
	member  *statedir.Membership // nil: not joined yet
	life    *life                // the daemon; nil: none
	wanted  bool                 // the daemon should run
	startAt time.Time            // not before
	left    bool
	revoked bool
	moves   int // how often its address has changed
	starts  uint64

	mu       sync.Mutex // guards all below
	address  netip.Addr
	clock    clock
	engine   *tunneltest.Simulated // with the TUN device; nil: there is none
	sockets  map[netip.AddrPort]*socket
	guarded  bool      // the mesh's ranges are routed
	hurt     time.Time // when its routes were last damaged
	repairBy time.Time // when they must be back; zero: no hurry
}

func newHost(w *world, number int, plan hostPlan) *host {
	h := &host{
		w: w, number: number, name: fmt.Sprintf("n%d", number), admitted: plan.Admitted, clock: clock{skew: plan.Skew}, kernel: new(tuntest.Kernel),
		keys: statedir.NewKeys(), disk: new(meshtest.Store), sockets: map[netip.AddrPort]*socket{},
	}
	h.keys.Identity = ed25519.NewKeyFromSeed(plan.Identity[:])
	h.id, h.tunnel = idOf(h.keys.Identity), h.keys.Tunnel.Public()
	h.setAddress(address(number, 0))
	return h
}

// String is the host's name.
func (h *host) String() string { return h.name }

// Addresses implements [tunneltest.Machine].
func (h *host) Addresses() []netip.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	return []netip.Addr{h.address}
}

func (h *host) setAddress(a netip.Addr) {
	h.mu.Lock()
	h.address = a
	h.mu.Unlock()
	h.kernel.SetUnderlay(tun.Underlay{Addresses: []netip.Addr{a}, MTU: 1500})
}

// join makes the certificate, as `meshctl init` and `join` do.
func (h *host) join() {
	var m statedir.Membership
	switch h.admitted {
	case byCA:
		m = h.w.mesh.Found(h.w.t, h.keys, h.name)
	case byNobody:
		m = h.w.mesh.Join(h.w.t, h.w.tokens[byNobody], h.keys, h.name, time.Now().Add(-2*time.Hour))
	case byToken, byAnother, byPin:
		m = h.w.mesh.Join(h.w.t, h.w.tokens[h.admitted], h.keys, h.name, h.shown().now(time.Now()))
	}
	h.member = &m
	h.w.truth.join(h, m.Certificate)
}

// life is one run of the daemon.
type life struct {
	h     *host
	node  *overlay.Node
	stop  context.CancelFunc
	done  chan error
	dead  atomic.Bool // killed: what it does from now on has no effect
	clock clock       // as its daemon sees it; owned by the goroutine that runs its machine
	// submit hands in what the CA has signed.
	submit func(raw []byte) error

	mu         sync.Mutex
	transports []memberlist.Transport
}

// boot starts the daemon. If it cannot start, the service manager comes again.
func (h *host) boot() {
	state, table, peers := h.disk.Saved()
	state.Epoch++
	h.starts++
	l := &life{h: h, done: make(chan error, 1)}
	disk := disk{h.disk, l}
	if err := disk.SaveState(state); err != nil {
		h.w.say(h.name, "does not start: %v", err)
		h.startAt = time.Now().Add(time.Second)
		return
	}
	log := storyLog{l}.logger()
	nonce := uint64(h.number)<<32 | h.starts
	membership := *h.member
	if charter := disk.Charter(); charter != nil {
		membership.Charter = charter
	}
	l.look()
	now := l.clock.now(time.Now())
	h.w.truth.boots(h, now.Sub(state.Renewed))
	core := meshtest.Member(h.w.t, now, h.keys, membership, state, table, nonce)
	var seeds []string
	for _, s := range h.w.hosts[:min(2, len(h.w.hosts))] {
		if s != h {
			seeds = append(seeds, netip.AddrPortFrom(address(s.number, 0), gossipPort).String())
		}
	}
	g, err := gossip.New(gossip.Options{
		Core: tap{core, l}, Store: disk, Self: h.id, Keyring: h.member.Keyring, Seeds: seeds, Peers: peers, Log: log,
		Transport: l.transport, Clocks: l.look, Tunnels: &streams{l: l, answers: map[uint64]chan struct{}{}},
	})
	if err != nil {
		h.w.t.Fatal(err)
	}
	l.submit = func(raw []byte) (err error) {
		if doErr := g.Do(h.w.t.Context(), func(time.Time) { err = core.Submit(raw) }); doErr != nil {
			return doErr
		}
		return err
	}
	l.node = overlay.New(overlay.Options{
		Self: h.id, Name: h.name, Version: "sim", Log: log, Mesh: g, Host: hostNet{h.kernel, l}, NewEngine: l.newEngine,
		Link: "mesh0", TunnelPort: tunnelPort, GossipPort: gossipPort, ListenProbe: l.listen,
	})
	ctx, stop := context.WithCancel(h.w.t.Context())
	l.stop = stop
	h.life = l
	go func() { l.done <- l.node.Run(ctx) }()
}

// kill is kill -9: nothing is saved or said any more.
func (h *host) kill() {
	l := h.life
	if l == nil {
		return
	}
	h.life = nil
	h.excuse()
	l.dead.Store(true)
	l.stop()
	l.mu.Lock()
	for _, t := range l.transports {
		_ = t.Shutdown()
	}
	l.mu.Unlock()
	h.removeTUN()
	h.mu.Lock()
	clear(h.sockets)
	h.mu.Unlock()
}

// stopWait is how long a daemon may take to stop: systemd would wait longer.
const stopWait = 15 * time.Second

// stop is SIGTERM: the daemon saves what it knows.
func (h *host) stop() {
	l := h.life
	if l == nil {
		return
	}
	h.excuse()
	l.stop()
	h.await(l, nil)
}

// leave gives membership up for good.
func (h *host) leave() {
	l := h.life
	if l == nil {
		return
	}
	h.wanted = false
	ctx, cancel := context.WithTimeout(h.w.t.Context(), stopWait)
	defer cancel()
	if err := l.node.Leave(ctx); err != nil {
		h.w.violate("I6", "%s cannot leave: %v", h, err)
	}
	h.await(l, overlay.ErrLeft)
	h.left = true
	if rest := h.kernel.String(); rest != "" {
		h.w.violate("I6", "%s has left and its kernel still has\n%s", h, rest)
	}
}

// await waits for the end of a daemon that was told to end.
func (h *host) await(l *life, want error) {
	timeout := time.NewTimer(stopWait)
	defer timeout.Stop()
	select {
	case err := <-l.done:
		if !errors.Is(err, want) {
			h.w.violate("I6", "%s ended with %v, not %v", h, err, want)
		}
	case <-timeout.C:
		h.w.violate("I6", "%s does not stop within %s", h, stopWait)
	}
	h.life = nil
	h.removeTUN()
}

// supervise does what a service manager does: it starts what should run.
func (h *host) supervise(now time.Time) {
	if l := h.life; l != nil {
		select {
		case err := <-l.done:
			h.life = nil
			h.w.violate("I6", "%s ended by itself: %v", h, err)
		default:
		}
	}
	if h.wanted && h.life == nil && !now.Before(h.startAt) {
		h.boot()
	}
}

// removeTUN takes the TUN device away, as the kernel does at the end of the
// process, or as somebody may do by hand.
func (h *host) removeTUN() {
	h.mu.Lock()
	e := h.engine
	h.engine = nil
	h.mu.Unlock()
	if e != nil {
		e.Break()
	}
	h.kernel.RemoveLink()
}

// hurtRoutes says that the routes are gone. A daemon that is ready must put them
// back.
func (h *host) hurtRoutes() {
	ready := h.ready()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.guarded, h.hurt = false, time.Now()
	if ready {
		h.repairBy = h.hurt.Add(repairIn)
	}
}

// excuse lifts the limit of a repair: something else is in the way.
func (h *host) excuse() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.repairBy = time.Time{}
}

func (h *host) ready() bool {
	return h.life != nil && h.life.node.Status().State == mesh.Ready
}

// newEngine opens a TUN device and builds an engine on it.
func (l *life) newEngine() (overlay.Engine, error) {
	if l.dead.Load() {
		return nil, errDead
	}
	e := l.h.w.fabric.Engine(l.h, l.h.tunnel, tunnelPort)
	l.h.mu.Lock()
	l.h.engine = e
	l.h.mu.Unlock()
	return checked{e, l}, nil
}

// checked is an engine whose configurations are looked at.
type checked struct {
	*tunneltest.Simulated
	l *life
}

func (e checked) Apply(ctx context.Context, want tunnel.Config) error {
	if e.l.dead.Load() {
		return errDead
	}
	e.l.h.w.truth.applied(e.l.h, want)
	if e.l.h.admitted == byNobody {
		want = everything(want, e.l.h)
	}
	return e.Simulated.Apply(ctx, want)
}

// errDead is what a killed daemon hears from the world.
var errDead = errors.New("killed")

// transport is the gossip's socket.
func (l *life) transport(at netip.AddrPort) (memberlist.Transport, error) {
	if l.dead.Load() {
		return nil, errDead
	}
	t, err := l.h.w.net.Transport(at)
	if err == nil {
		l.mu.Lock()
		l.transports = append(l.transports, t)
		l.mu.Unlock()
	}
	return t, err
}
