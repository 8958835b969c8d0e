package tunneltest

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"meshd/mesh"
	"meshd/overlay/tunnel"
)

// Underlay carries datagrams between hosts; arrive is called for each copy that
// gets there.
type Underlay interface {
	Carry(from, to netip.AddrPort, arrive func())
}

// Machine is the host that an engine of a [Fabric] runs on.
type Machine interface {
	// Addresses are those that the host has on the underlay, best first.
	Addresses() []netip.Addr
	// Deliver takes a packet out of the TUN device. from is the key of the peer
	// that has sealed it.
	Deliver(from mesh.Key, p Inner)
}

// Inner is a packet inside the mesh.
type Inner struct {
	Src, Dst netip.AddrPort
	Payload  []byte
	Hops     int // how often it has crossed the mesh
}

// Fabric joins simulated engines over one underlay. They carry packets as a real
// engine does, by what was applied to them: who may open a packet is decided by
// keys, the inner addresses are checked on both ends, endpoints are learned from
// what could be opened, and a silent one gives way to the next. There are no
// handshakes: a tunnel costs no round trip, and its session never ends.
type Fabric struct {
	underlay Underlay // fixed at construction

	mu      sync.Mutex
	engines []*Simulated // that run
}

// NewFabric makes a fabric without engines.
func NewFabric(u Underlay) *Fabric { return &Fabric{underlay: u} }

// sealed is a datagram: only the owner of the key to can open it, and knows by
// that who has sent it.
type sealed struct {
	from, to mesh.Key
	inner    *Inner // nil: a keep-alive

	mu     sync.Mutex
	opened bool // by its addressee; a second copy is a replay
}

// arrive hands a datagram to whoever listens at its destination.
func (f *Fabric) arrive(from, to netip.AddrPort, d *sealed) {
	f.mu.Lock()
	i := slices.IndexFunc(f.engines, func(e *Simulated) bool {
		return e.port == to.Port() && slices.Contains(e.machine.Addresses(), to.Addr())
	})
	var e *Simulated
	if i >= 0 {
		e = f.engines[i]
	}
	f.mu.Unlock()
	if e != nil {
		e.receive(from, d)
	}
}

// patience is how long a peer may be silent before its next endpoint is tried.
const patience = 10 * time.Second

// keepAlive is how soon a peer that is listened to hears something in return.
const keepAlive = time.Second

// ErrNoTUN is why an engine ends whose device was taken away by [Simulated.Break].
var ErrNoTUN = errors.New("the TUN device is gone")

// Simulated is one engine of a Fabric. It has the methods of wggo.Engine.
type Simulated struct {
	fabric  *Fabric
	machine Machine
	key     mesh.Key
	port    uint16
	ready   chan struct{}
	broken  chan error // capacity 1

	mu     sync.Mutex // guards all below
	runs   bool
	config tunnel.Config
	peers  map[mesh.Key]*remote
	drops  map[string]uint64
}

// remote is a peer as its engine remembers it.
type remote struct {
	want     tunnel.Peer
	endpoint netip.AddrPort
	asked    time.Time // first packet sent that nothing has answered; zero: none
	sent     time.Time
	stats    tunnel.PeerStats
}

// Engine builds an engine with the given key, which listens at a port of all
// addresses of its machine while it runs.
func (f *Fabric) Engine(m Machine, key mesh.Key, port uint16) *Simulated {
	return &Simulated{
		fabric: f, machine: m, key: key, port: port, ready: make(chan struct{}), broken: make(chan error, 1),
		peers: map[mesh.Key]*remote{}, drops: map[string]uint64{},
	}
}

// Name is "fabric".
func (e *Simulated) Name() string { return "fabric" }

// Ready is closed once it runs.
func (e *Simulated) Ready() <-chan struct{} { return e.ready }

// Run carries packets until ctx is done or the engine was broken.
func (e *Simulated) Run(ctx context.Context) error {
	e.setRuns(true)
	defer e.setRuns(false)
	close(e.ready)
	select {
	case <-ctx.Done():
		return nil
	case err := <-e.broken:
		return err
	}
}

// Break takes the TUN device away: the engine ends at once.
func (e *Simulated) Break() {
	e.setRuns(false)
	select {
	case e.broken <- ErrNoTUN:
	default:
	}
}

func (e *Simulated) setRuns(runs bool) {
	e.mu.Lock()
	e.runs = runs
	e.mu.Unlock()
	e.fabric.mu.Lock()
	defer e.fabric.mu.Unlock()
	e.fabric.engines = slices.DeleteFunc(e.fabric.engines, func(o *Simulated) bool { return o == e })
	if runs {
		e.fabric.engines = append(e.fabric.engines, e)
	}
}

// Apply configures the engine. What was learned of peers that stay is kept.
func (e *Simulated) Apply(_ context.Context, want tunnel.Config) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.runs {
		return ErrNoTUN
	}
	old := e.peers
	e.config, e.peers = want, make(map[mesh.Key]*remote, len(want.Peers))
	for _, p := range want.Peers {
		p.Endpoints = slices.DeleteFunc(slices.Clone(p.Endpoints), func(a netip.AddrPort) bool { return contain(want.Inside, a.Addr()) })
		r := old[p.PublicKey]
		if r == nil {
			r = &remote{}
		}
		if !slices.Equal(r.want.Endpoints, p.Endpoints) {
			r.asked = time.Time{}
			if len(p.Endpoints) > 0 && !slices.Contains(p.Endpoints, r.endpoint) {
				r.endpoint = p.Endpoints[0]
			}
		}
		r.want = p
		e.peers[p.PublicKey] = r
	}
	return nil
}

// Stats gives the counters. The last packet that came stands for the handshake.
func (e *Simulated) Stats() tunnel.Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := tunnel.Stats{Peers: map[mesh.NodeID]tunnel.PeerStats{}, Drops: maps.Clone(e.drops)}
	for _, r := range e.peers {
		s.Peers[r.want.ID] = r.stats
	}
	return s
}

// Send takes a packet that the kernel has routed to the TUN device.
func (e *Simulated) Send(p Inner) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.runs {
		return
	}
	if !contain(e.config.Own, p.Src.Addr()) {
		e.drops[tunnel.DropSource]++
		return
	}
	for _, r := range e.peers {
		if contain(r.want.AllowedIPs, p.Dst.Addr()) {
			e.sealLocked(r, &p)
		}
	}
}

// Forge sends a packet to the peer with the given key and asks nothing, as the
// engine of a host would that is not ours to trust.
func (e *Simulated) Forge(to mesh.Key, at netip.AddrPort, p Inner) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.runs {
		e.sealLocked(&remote{want: tunnel.Peer{PublicKey: to}, endpoint: at}, &p)
	}
}

// sealLocked sends a packet, or a keep-alive, to a peer.
func (e *Simulated) sealLocked(r *remote, p *Inner) {
	now := time.Now()
	if r.asked.IsZero() {
		r.asked = now
	} else if n := len(r.want.Endpoints); n > 0 && now.Sub(r.asked) >= patience {
		r.endpoint = r.want.Endpoints[(slices.Index(r.want.Endpoints, r.endpoint)+1)%n]
		r.asked = now
	}
	own := e.machine.Addresses()
	if !r.endpoint.IsValid() || len(own) == 0 {
		return
	}
	d := &sealed{from: e.key, to: r.want.PublicKey}
	if p != nil {
		inner := *p
		inner.Hops++
		d.inner = &inner
		r.stats.TxBytes += uint64(len(p.Payload))
	}
	r.sent, r.stats.Endpoint = now, r.endpoint
	from, to := netip.AddrPortFrom(own[0], e.port), r.endpoint
	e.fabric.underlay.Carry(from, to, func() { e.fabric.arrive(from, to, d) })
}

// receive opens a datagram, and delivers what passes all checks.
func (e *Simulated) receive(from netip.AddrPort, d *sealed) {
	if e.open(from, d) {
		e.machine.Deliver(d.from, *d.inner)
	}
}

func (e *Simulated) open(from netip.AddrPort, d *sealed) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := e.peers[d.from]
	switch {
	case !e.runs || d.to != e.key || r == nil || !d.first():
		return false
	case contain(e.config.Inside, from.Addr()):
		e.drops[tunnel.DropEndpoint]++
		return false
	}
	now := time.Now()
	r.endpoint, r.stats.Endpoint, r.stats.LastHandshake, r.asked = from, from, now, time.Time{}
	if d.inner == nil {
		return false
	}
	r.stats.RxBytes += uint64(len(d.inner.Payload))
	if now.Sub(r.sent) >= keepAlive {
		e.sealLocked(r, nil)
		r.asked = time.Time{} // it asks for no answer
	}
	switch {
	case !contain(r.want.AllowedIPs, d.inner.Src.Addr()):
		return false // wireguard-go does not count it either
	case !contain(e.config.Own, d.inner.Dst.Addr()):
		e.drops[tunnel.DropDestination]++
		return false
	}
	return true
}

// first tells whether nobody has opened it before.
func (d *sealed) first() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.opened
	d.opened = true
	return !was
}

func contain(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}
