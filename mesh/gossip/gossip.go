// Package gossip runs a node's membership over memberlist: it carries signed
// objects between members, and it finds members again, for ever.
//
//	member ──Broadcast──► queue ──► packets to a few members, who relay once
//	member ◄──Receive──── inbox ◄── packets, answers to wants
//	       ◄──Synced───── inbox ◄── whole tables, on joining, by stream
//	       ◄──Synced───── calls ◄── what package exchange brings through tunnels
//
// It guarantees that nothing is said, and no subnet shown as held, before what that
// rests on is saved, and that a node which is alone goes on looking for others. It
// decides nothing: whom memberlist holds for dead is a hint, by which it chooses whom to
// try. A host without the key can fill little memory, and keeps no member out.
//
// The owner calls [Gossip.Run] once. All else may be called from anywhere.
package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"meshd/mesh"
	"meshd/mesh/exchange"
	"meshd/mesh/member"
	"meshd/mesh/trust"
)

// Core decides what is believed and what is said; member.Member is one. Run
// calls it from one goroutine at a time.
type Core interface {
	Receive(raw []byte) error
	Synced()
	OtherKey(seen bool)
	Asked(ask uint64)
	SetEndpoints(endpoints []netip.AddrPort)
	Use(now time.Time, networks []string) error
	SetInUse(networks []string)
	Leave(now time.Time)
	Slept(now time.Time, d time.Duration)
	Jumped(now time.Time, d time.Duration)
	Step(now time.Time) member.Output
	Next() (time.Time, bool)
	Table() [][]byte
	Settled() []trust.Hash
	Lookup(hashes ...trust.Hash) [][]byte
}

// Store keeps what must survive. statedir.Dir is one.
type Store interface {
	member.Disk
	SavePeers([]netip.AddrPort) error
	// Check tells whether the state could be saved now. It is cheap.
	Check() error
}

// Options are the parts and settings. Those that do not say what their zero
// value means are required.
type Options struct {
	Core    Core
	Store   Store
	Self    mesh.NodeID
	Keyring member.Keyring   // until the core gives another
	Bind    netip.AddrPort   // where to listen, TCP and UDP; port 0: a free one
	Seeds   []string         // host:port, until SetSeeds names others; ourselves may be among them
	Peers   []netip.AddrPort // known from the last run
	Log     *slog.Logger     // nil: none
	Clocks  func() Clocks    // nil: the host is never suspended, and its clock never set

	// Tunnels carry exchanges between members; nil: there are none, and members
	// exchange tables by gossip alone.
	Tunnels exchange.Network

	// Transport makes what a memberlist instance talks through; nil: sockets on
	// Bind. For tests and simulations.
	Transport func(advertise netip.AddrPort) (memberlist.Transport, error)
}

// Intervals.
const (
	// createAgain is the pause after an instance could not be made.
	createAgain = time.Second
	// leaveWait is how long Leave waits for memberlist's own goodbye.
	leaveWait = time.Second
)

const (
	// batch is how many messages are taken in before the core may act on them.
	batch = 64
	// stepEvery is how often it acts at most on messages alone. Objects come by the
	// hundred when a large mesh starts, and after each of them it may show a view, for
	// which the node plans anew. What is news is relayed at once.
	stepEvery = 50 * time.Millisecond
	// stepRest is how many times as long as what it has just done it rests, if that is
	// more, and longestRest the most: where the host is too slow for all that comes,
	// it decides on more at a time.
	stepRest    = 8
	longestRest = 500 * time.Millisecond
	// maxSpread is how many new objects of one exchange are relayed. A partition
	// that heals spreads by this within seconds on both sides.
	maxSpread = 256
	// sending bounds how many wants and answers are on their way at a time, to
	// members and to strangers each.
	sending = 8
	// maxHeld bounds what waits for the state to be saved. A full disk can last;
	// the table has everything, once it may be told.
	maxHeld = 64
	// saidAgain is how many of our last objects a new instance says again: they
	// may not have got out of the old one.
	saidAgain = 4
	// goodbyes is how many members are told of our leaving by stream, besides
	// the broadcast.
	goodbyes = 3
)

// rest is how long to leave off from what took so long: least, or more on a slow host.
func rest(least, took time.Duration) time.Duration {
	return max(least, min(stepRest*took, longestRest))
}

// Gossip is this node's part in the mesh's gossip.
type Gossip struct {
	// fixed at construction
	opt     Options
	say     *limiter
	seals   *sealer
	bounds  *bounds
	views   chan *mesh.View
	inbox   *inbox
	taken   taken         // what the core was given of late
	moved   chan struct{} // the live members changed; capacity 1
	poke    chan struct{} // wish changed; capacity 1
	leave   chan chan error
	calls   chan call
	stopped chan struct{}            // closed when Run returns
	told    atomic.Pointer[told]     // what others are told
	answers chan answer              // digests of others; capacity 1
	running atomic.Pointer[instance] // what Run's loop uses, for tests to see
	unsaved atomic.Pointer[error]    // why the state cannot be saved; nil: it can

	mu   sync.Mutex
	wish wish
}

// told is what others are told: it is saved. It is immutable.
type told struct {
	table [][]byte
	set   *exchange.Set // of what is settled in the table
}

// wish is what callers have set, until Run takes it up.
type wish struct {
	address   netip.AddrPort
	endpoints []netip.AddrPort
	newPorts  bool // endpoints were set
	seeds     []string
	newSeeds  bool // seeds were set
}

// call is a function to run between two steps.
type call struct {
	do   func(now time.Time)
	done chan struct{} // closed when it has run
}

// New builds it; nothing happens before Run.
func New(opt Options) (*Gossip, error) {
	seals, err := newSealer(opt.Keyring)
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	opt.Keyring = member.Keyring{} // the sealer has made ciphers of it
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	g := &Gossip{
		opt: opt, say: newLimiter(opt.Log), seals: seals, bounds: newBounds(), views: make(chan *mesh.View, 1), inbox: newInbox(),
		moved: make(chan struct{}, 1), poke: make(chan struct{}, 1), leave: make(chan chan error), calls: make(chan call), answers: make(chan answer, 1), stopped: make(chan struct{}),
	}
	g.told.Store(&told{set: exchange.NewSet(nil)})
	return g, nil
}

// Views delivers what is known of the mesh, the newest only.
func (g *Gossip) Views() <-chan *mesh.View { return g.views }

// Findings tells what is wrong with how it runs.
func (g *Gossip) Findings() []mesh.Finding {
	why := g.unsaved.Load()
	if why == nil {
		return nil
	}
	return []mesh.Finding{{Level: "error", Code: "state_unsaved", Message: fmt.Sprintf(
		"the state cannot be saved, so this node can neither take another subnet nor leave: make room, or the file system writable: %v", *why)}}
}

// SetEndpoints says where peers can reach this node's tunnel, best first.
func (g *Gossip) SetEndpoints(endpoints []netip.AddrPort) {
	g.set(func(w *wish) { w.endpoints, w.newPorts = slices.Clone(endpoints), true })
}

// SetAddress says where members can reach this node's gossip; port 0: the bound
// one. Until then nobody is spoken to, unless Bind tells. A new address takes a new
// memberlist instance; members hear of it within seconds.
func (g *Gossip) SetAddress(address netip.AddrPort) {
	g.set(func(w *wish) { w.address = plain(address) })
}

// SetSeeds names other seeds. They are tried at once, and from then on instead of
// those before.
func (g *Gossip) SetSeeds(seeds []string) {
	g.set(func(w *wish) { w.seeds, w.newSeeds = slices.Clone(seeds), true })
}

// Use names the networks from which this node leases, and those of them in which
// something local has addresses. It fails, and changes nothing, if the core does.
func (g *Gossip) Use(ctx context.Context, networks, inUse []string) error {
	var err error
	missed := g.Do(ctx, func(now time.Time) {
		if err = g.opt.Core.Use(now, networks); err == nil {
			g.opt.Core.SetInUse(inUse)
		}
	})
	return errors.Join(missed, err)
}

// Do runs f once while nothing else calls the core, and lets the core act on what
// f has changed. It waits for Run to come to it.
func (g *Gossip) Do(ctx context.Context, f func(now time.Time)) error {
	c := call{f, make(chan struct{})}
	select {
	case g.calls <- c:
		<-c.done
		return nil
	case <-g.stopped:
		return errStopped
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Saved waits until Run has acted on everything that was done before, and fails
// if what follows from it could not be saved.
func (g *Gossip) Saved(ctx context.Context) error {
	if err := g.Do(ctx, func(time.Time) {}); err != nil { // the step before it has ended
		return err
	}
	if why := g.unsaved.Load(); why != nil {
		return fmt.Errorf("save state: %w", *why)
	}
	return nil
}

func (g *Gossip) set(change func(*wish)) {
	g.mu.Lock()
	change(&g.wish)
	g.mu.Unlock()
	select {
	case g.poke <- struct{}{}:
	default:
	}
}

// ErrClone says that a daemon with this node's identity runs elsewhere, and has run
// for longer.
var ErrClone = errors.New("another daemon runs with this node's identity, and for longer: this state is a copy")

// errStopped says that Run has returned.
var errStopped = errors.New("gossip has stopped")

// Leave gives up membership for good, saves that, and tells the others. It
// returns when some of them have been told, if anybody is there. Run goes on, to
// spread the news, until its owner ends it.
func (g *Gossip) Leave(ctx context.Context) error {
	done := make(chan error, 1)
	select {
	case g.leave <- done:
	case <-g.stopped:
		return fmt.Errorf("leave mesh: %w", errStopped)
	case <-ctx.Done():
		return fmt.Errorf("leave mesh: %w", ctx.Err())
	}
	select {
	case err := <-done:
		return err
	case <-g.stopped:
		return fmt.Errorf("leave mesh: %w", errStopped)
	case <-ctx.Done():
		return fmt.Errorf("leave mesh: %w", ctx.Err())
	}
}
