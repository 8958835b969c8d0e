// Package overlay is the assembled node: decisions come in from the mesh as
// views, become a plan, and the plan is made true on this host.
//
//	Mesh ──View──► plan.Build ──Plan──► reconcile ──┬──► data plane ──► Engine
//	  ▲              ▲             ▲                └──► Firewall, Host (kernel)
//	  ├── networks ──┴─ Containers │                       │
//	  └── endpoints ── Host.Underlay, Host.Watch ──────────┘
//
// A [Node] is built from parts that its owner chooses; it knows no file, no flag
// and no concrete adapter.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"meshd/mesh"
	"meshd/overlay/attach"
	"meshd/overlay/probe"
	"meshd/overlay/reconcile"
	"meshd/overlay/status"
	"meshd/overlay/tunnel"
	"meshd/tun"
)

// Mesh is this node's membership, as an adapter runs it.
type Mesh interface {
	// Run blocks until ctx is done or membership cannot go on.
	Run(ctx context.Context) error
	// Views delivers what is known, the newest only.
	Views() <-chan *mesh.View
	// SetEndpoints says where peers can reach this node's tunnel.
	SetEndpoints([]netip.AddrPort)
	// SetAddress says where members can reach this node's gossip.
	SetAddress(netip.AddrPort)
	// Use names the networks besides the default one from which this node leases,
	// and those in which something local has addresses.
	Use(ctx context.Context, networks, inUse []string) error
	// Leave gives up membership for good and tells the others.
	Leave(ctx context.Context) error
	// Findings tells what is wrong with how it runs.
	Findings() []mesh.Finding
}

// Host is this host's kernel.
type Host interface {
	reconcile.Host
	Network
	// Watch signals whenever links, addresses or routes have changed, until ctx
	// is done. It never blocks on the channel, so give it a buffer of one.
	Watch(ctx context.Context, changed chan<- struct{}) error
	// Underlay tells what can carry the tunnels, leaving out the given ranges.
	Underlay(ctx context.Context, exclude ...netip.Prefix) (tun.Underlay, error)
}

// Firewall is this host's packet filter.
type Firewall interface {
	reconcile.Firewall
	// Watch signals whenever tables, chains or rules have changed, as that of a
	// Host does.
	Watch(ctx context.Context, changed chan<- struct{}) error
	// Obstacles tells, for people, what else on this host drops packets of
	// containers.
	Obstacles(ctx context.Context) ([]string, error)
}

// Engine carries packets; see package tunnel for what it must do.
type Engine interface {
	reconcile.Tunnel
	Name() string
	// Run blocks until ctx is done or the engine cannot go on.
	Run(ctx context.Context) error
	// Ready is closed once Apply may be called.
	Ready() <-chan struct{}
	Stats() tunnel.Stats
}

// Options are the parts and settings of a node. All are required but for those
// that say what their zero value means.
type Options struct {
	Self mesh.NodeID
	Name string // of this node, until a view tells it

	Mesh      Mesh
	Host      Host
	NewEngine func() (Engine, error) // with a TUN device of its own
	Firewall  Firewall               // nil: there can be no containers
	// Containers are those of this host; nil: it has none. Their owner calls
	// ContainersChanged.
	Containers Containers
	Delegate   Delegate // of the network that Containers calls delegated; nil: there is none
	// NoMasquerade: what containers send out of the mesh keeps their addresses.
	NoMasquerade bool

	Link       string           // name of the TUN device
	MTU        int              // until SetMTU; 0: from the underlay
	TunnelPort uint16           // where the engine listens
	GossipPort uint16           // where gossip listens
	Advertise  []netip.AddrPort // until SetAdvertise: where peers reach the tunnel; empty: found on the interfaces. Port 0: TunnelPort
	Version    string
	Log        *slog.Logger

	// ListenProbe opens the prober's socket; nil: one of the kernel.
	ListenProbe probe.Listen
}

// Reasons for which Run ends by itself.
var (
	ErrLeft    = errors.New("this node has left the mesh")
	ErrOverlap = errors.New("the mesh and this host's network overlap")
	errDown    = errors.New("asked to go down")
)

// Node is one member of the mesh on one host.
type Node struct {
	// fixed at construction
	opt    Options
	loop   *reconcile.Loop
	data   *dataPlane
	prober *probe.Prober
	ready  chan struct{} // closed when the node was ready for the first time

	changed   chan struct{}      // a setting was; capacity 1
	waiting   chan chan struct{} // closed when there is a plan by the newest view
	mtuSet    atomic.Int64
	advertise atomic.Pointer[[]netip.AddrPort]

	quit     chan error    // why to end, from Down and Leave; capacity 1
	stopped  chan struct{} // closed when Run is about to return
	cleared  error         // what clearing the host came to; set before stopped is closed
	underlay atomic.Pointer[tun.Underlay]
	uses     atomic.Pointer[[]tun.Use] // in the ranges of the mesh; nil until the first view
	view     atomic.Pointer[mesh.View]

	planMu  sync.Mutex              // one plan after the other; guards the next three
	planned bool                    // once
	carried map[string]mesh.Network // those of the last plan
	subnets []attach.Subnet         // of containers, then
	health  atomic.Pointer[[]mesh.Finding]

	useMu       sync.Mutex               // one word to the mesh about networks after the other; guards the next three
	used, inUse []string                 // networks, as the mesh was told
	released    map[string]bool          // networks whose lease was given back, though containers may come
	obstacles   atomic.Pointer[[]string] // to packets of containers
	moved       chan struct{}            // their subnets are others; capacity 1
}

// New builds a node; it does nothing before Run.
func New(opt Options) *Node {
	n := &Node{
		opt: opt, ready: make(chan struct{}), changed: make(chan struct{}, 1), waiting: make(chan chan struct{}),
		quit: make(chan error, 1), stopped: make(chan struct{}), moved: make(chan struct{}, 1), released: map[string]bool{},
	}
	n.mtuSet.Store(int64(opt.MTU))
	n.advertise.Store(&opt.Advertise)
	n.data = newDataPlane(opt.NewEngine, opt.Log)
	n.loop = reconcile.New(n.data, opt.Host, opt.Firewall, opt.Log)
	n.data.changed = n.loop.Kick
	n.prober = probe.New(opt.Log, opt.ListenProbe, n.change)
	return n
}

// Ready is closed when the lease is held and the host carries its traffic, for
// the first time.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// SetMTU says the MTU of the TUN device; 0: from the underlay.
func (n *Node) SetMTU(mtu int) {
	n.mtuSet.Store(int64(mtu))
	n.change()
}

// SetTunnelKey gives the tunnel another private key, without a restart: sessions
// go on. Peers must hear of it from the mesh within seconds.
func (n *Node) SetTunnelKey(key [32]byte) {
	n.data.setKey(key)
	n.loop.Kick()
}

// SetAdvertise says where peers reach the tunnel, as Options.Advertise does.
func (n *Node) SetAdvertise(addresses []netip.AddrPort) {
	n.advertise.Store(&addresses)
	n.change()
}

func (n *Node) change() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// Run joins the mesh and carries traffic until ctx is done; then it returns nil
// and leaves the unreachable routes behind, so that nothing leaks while the
// daemon is away. After [Node.Down] and [Node.Leave] it removes everything that
// is ours from the host, and fails if it cannot; after Leave it returns [ErrLeft].
func (n *Node) Run(ctx context.Context) error {
	defer close(n.stopped)
	run, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	if err := n.lookAtUnderlay(run); err != nil {
		return err
	}
	events := make(chan struct{}, 1)
	var tasks sync.WaitGroup
	start := func(task func(context.Context) error) {
		tasks.Go(func() {
			if err := task(run); err != nil {
				stop(err)
			}
		})
	}
	ended := func(otherwise <-chan struct{}) bool { // waits for either
		select {
		case <-otherwise:
			return false
		case <-run.Done():
		case cause := <-n.quit:
			stop(cause)
		}
		return true
	}
	// The engine goes first: if it cannot be started at all, nobody heard of this
	// node and its host was not touched.
	start(n.data.Run)
	if !ended(n.data.up) {
		start(n.opt.Mesh.Run)
		start(n.loop.Run)
		start(n.prober.Run)
		start(n.follow)
		start(func(ctx context.Context) error { return n.opt.Host.Watch(ctx, events) })
		if f := n.opt.Firewall; f != nil {
			start(func(ctx context.Context) error { return f.Watch(ctx, events) })
		}
		start(func(ctx context.Context) error { return n.watch(ctx, events) })
		if n.opt.Containers != nil {
			start(n.tend)
		}
		start(n.awaitReady)
		ended(nil)
	}
	tasks.Wait()

	switch cause := context.Cause(run); cause {
	case errDown:
		n.cleared = n.clear()
		return n.cleared
	case ErrLeft:
		if n.cleared = n.clear(); n.cleared != nil {
			return n.cleared // worth more than a word that all went well
		}
		return ErrLeft
	case context.Cause(ctx):
		return nil
	default:
		return cause
	}
}

// clear removes what is ours from the host.
func (n *Node) clear() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var errs []error
	if err := n.opt.Host.Apply(ctx, tun.HostState{}); err != nil {
		errs = append(errs, fmt.Errorf("clear host network: %w", err))
	}
	if f := n.opt.Firewall; f != nil {
		if err := f.Apply(ctx, tun.Rules{}); err != nil {
			errs = append(errs, fmt.Errorf("clear firewall: %w", err))
		}
	}
	if d := n.opt.Delegate; d != nil {
		errs = append(errs, d.Apply(attach.Subnet{}))
	}
	return errors.Join(errs...)
}

// Down removes everything that is ours from the host and ends Run. It returns
// when that is done.
func (n *Node) Down(ctx context.Context) error { return n.end(ctx, errDown) }

// Leave gives up membership for good, then does what Down does.
func (n *Node) Leave(ctx context.Context) error {
	if err := n.opt.Mesh.Leave(ctx); err != nil {
		return err
	}
	return n.end(ctx, ErrLeft)
}

func (n *Node) end(ctx context.Context, cause error) error {
	select {
	case n.quit <- cause:
	default: // somebody else has asked already
	}
	select {
	case <-n.stopped:
		return n.cleared
	case <-ctx.Done():
		return ctx.Err()
	}
}

// awaitReady notices when the node is ready for the first time.
func (n *Node) awaitReady(ctx context.Context) error {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if n.state(n.view.Load()) == mesh.Ready {
			close(n.ready)
			return nil
		}
	}
}

// state is the node's state with the host taken into account: ready means that
// routes and tunnels are in.
func (n *Node) state(view *mesh.View) mesh.State {
	switch {
	case view == nil:
		return mesh.WaitingForSeed
	case view.State == mesh.Ready && !n.loop.Settled():
		// The lease is held, and the host does not carry it yet.
		return mesh.Probing
	}
	return view.State
}

// Ping sends one probe through the tunnel to a node and waits for its answer.
func (n *Node) Ping(ctx context.Context, id mesh.NodeID) (time.Duration, netip.Addr, error) {
	view := n.view.Load()
	if view == nil {
		return 0, netip.Addr{}, status.ErrUnknownNode
	}
	node, ok := view.Node(id)
	if !ok || node.Left {
		return 0, netip.Addr{}, status.ErrUnknownNode
	}
	rtt, err := n.prober.Ping(ctx, node.Control)
	return rtt, node.Control, err
}

// Version is that of the program.
func (n *Node) Version() string { return n.opt.Version }
