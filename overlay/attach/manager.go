package attach

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"meshd/mesh"
)

// Options are the parts and settings. Those that do not say what their zero
// value means are required.
type Options struct {
	Host  Host
	Store Store
	// Changed is called when what Networks says has changed other than by Sync,
	// from any goroutine, by one at a time. It returns when the host follows that,
	// as far as this can be without a lease, so that no container sends before
	// the rules for it are in force. nil: nothing to do.
	Changed func(ctx context.Context) error
	// Boot tells one start of the host from the next, at which all links go.
	Boot string
	// Delegated names a network whose addresses others give out on this host: it is
	// in use, and nothing can be attached to it. Empty: there is none.
	Delegated string
	// Grace is how long what seems to be left over stays; 0: a minute.
	Grace time.Duration
	// Wait is how long an ask waits for a lease, if its context does not end
	// before; 0: 20 seconds. A claim takes about two, seven where proof is late.
	Wait time.Duration
}

// World is what a [Manager] is told of the mesh and of the host.
type World struct {
	View   *mesh.View
	MTU    int  // of links, in bytes: that of the TUN device
	NoIPv6 bool // the host has none: no such address is given
}

// Manager gives out the addresses of this node's leases and makes the links. Its
// methods may be called from any goroutine.
type Manager struct {
	opt  Options       // fixed at construction
	tell chan struct{} // full while Changed runs
	// What Changed has carried out, and whether it failed since, so that nobody
	// knows what the host follows; owned by whom tell lets in.
	told   []Network
	unsure bool
	// links is held for reading while links are made for an entry, for writing
	// while those without an entry are removed.
	links sync.RWMutex

	mu       sync.Mutex
	world    World                    // guarded by mu
	networks map[string]*network      // guarded by mu: of the charter, and those that have a document
	ids      map[string]*network      // guarded by mu: where an attachment or a use is
	busy     map[string]chan struct{} // guarded by mu: IDs that are worked on; closed when they no longer are
	moved    chan struct{}            // guarded by mu: closed at the next Sync
}

// New builds a manager that knows nothing; see [Manager.Load].
func New(opt Options) *Manager {
	opt.Grace = cmp.Or(opt.Grace, time.Minute)
	opt.Wait = cmp.Or(opt.Wait, 20*time.Second)
	if opt.Changed == nil {
		opt.Changed = func(context.Context) error { return nil }
	}
	m := &Manager{
		opt: opt, tell: make(chan struct{}, 1), networks: map[string]*network{}, ids: map[string]*network{},
		busy: map[string]chan struct{}{}, moved: make(chan struct{}),
	}
	if opt.Delegated != "" {
		m.networkLocked(opt.Delegated).delegated = true
	}
	return m
}

// Load reads what was stored and removes links that are not in it, as Collect will
// do again. A network whose document is damaged takes no asks, see Findings, and the
// others go on. An error says that it is not known what was stored: do not go on, for
// what is attached would be taken for nobody's.
func (m *Manager) Load(ctx context.Context) error {
	names, err := m.opt.Store.AttachmentNetworks()
	if err != nil {
		return fmt.Errorf("list attachments: %w", err)
	}
	m.mu.Lock()
	for _, name := range names {
		m.loadLocked(name)
	}
	m.mu.Unlock()
	if ports, err := m.opt.Host.Ports(ctx); err == nil {
		_ = m.sweep(ctx, ports)
	}
	return nil
}

func (m *Manager) loadLocked(name string) {
	n := m.networkLocked(name)
	raw, err := m.opt.Store.LoadAttachments(name)
	if err != nil {
		n.broken = fmt.Errorf("%w: %w", ErrDamaged, err)
		return
	}
	d, err := parseDocument(name, raw)
	if err == nil {
		for id := range d.ids() {
			if of := m.ids[id]; of != nil {
				err = fmt.Errorf("%s is in the network %s already", id, of.name)
			}
		}
	}
	if err != nil {
		n.broken = fmt.Errorf("%w: network %s: %w", ErrDamaged, name, err)
		return
	}
	for id := range d.ids() {
		m.ids[id] = n
	}
	n.fill(d)
}

// networkLocked gives what is known of a network, from now on.
func (m *Manager) networkLocked(name string) *network {
	n := m.networks[name]
	if n == nil {
		n = newNetwork(name)
		m.networks[name] = n
	}
	return n
}

// Sync takes the mesh as it is now. The caller looks at Networks afterwards;
// Changed is not called.
func (m *Manager) Sync(w World) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.world = w
	known := map[string]bool{}
	self, _ := w.View.Node(w.View.Self)
	for _, net := range w.View.Networks {
		known[net.Name] = true
		var own mesh.Lease
		for _, l := range self.Leases {
			if l.Network == net.Name {
				own = l
			}
		}
		if w.NoIPv6 {
			own.Prefixes = slices.DeleteFunc(slices.Clone(own.Prefixes), func(p netip.Prefix) bool { return p.Addr().Is6() })
		}
		m.networkLocked(net.Name).setLease(own, net.Ranges())
	}
	for name, n := range m.networks {
		if !known[name] {
			n.setLease(mesh.Lease{}, nil)
		}
	}
	close(m.moved)
	m.moved = make(chan struct{})
}

// find gives the attachment of an ID with its network, if there is one, and tells
// whether the ID is a use's.
func (m *Manager) find(id string) (n *network, e *entry, used bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n = m.ids[id]; n == nil {
		return nil, nil, false
	}
	return n, n.entries[id], n.uses[id]
}

// Get gives what is attached by an ID, or fails with [ErrUnknown].
func (m *Manager) Get(id string) (Attachment, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.ids[id]; n != nil && n.entries[id] != nil && !n.entries[id].making {
		return n.attachment(n.entries[id]), nil
	}
	return Attachment{}, fmt.Errorf("%w: %.70q", ErrUnknown, id)
}

// List gives what is attached, by ID.
func (m *Manager) List() []Attachment {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Attachment
	for _, n := range m.networks {
		for _, e := range n.entries {
			if !e.making {
				all = append(all, n.attachment(e))
			}
		}
	}
	slices.SortFunc(all, func(a, b Attachment) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// Networks gives those that containers use or want to use, by name: the ones in
// which this node needs a lease, and what the host should look like for them.
func (m *Manager) Networks() []Network {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Network
	for _, name := range slices.Sorted(maps.Keys(m.networks)) {
		if n := m.networks[name]; !n.empty() || n.waiting > 0 || n.delegated {
			all = append(all, n.summary(m.world.MTU))
		}
	}
	return all
}

// Findings tells what an operator should know.
func (m *Manager) Findings() []mesh.Finding {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []mesh.Finding
	for _, name := range slices.Sorted(maps.Keys(m.networks)) {
		n := m.networks[name]
		if n.broken != nil {
			all = append(all, mesh.Finding{Level: "error", Code: "attachments_damaged", Message: fmt.Sprintf(
				"%v; until the daemon starts again no container can be attached to the network %s, and what is attached keeps its link and may be cut off", n.broken, name)})
		}
		if n.delegated && len(n.entries) > 0 {
			all = append(all, mesh.Finding{Level: "error", Code: "addresses_given_twice", Message: fmt.Sprintf(
				"%d containers have addresses of the network %s, which others give out on this host as well, see subnet_env in the config file: detach them", len(n.entries), name)})
		}
		stale := 0
		for _, e := range n.entries {
			if n.stateOf(e) == Stale {
				stale++
			}
		}
		if stale > 0 {
			all = append(all, mesh.Finding{Level: "warning", Code: "attachments_stale", Message: fmt.Sprintf(
				"%d containers have addresses of a subnet of the network %s that this node no longer has: start them again, or attach them anew", stale, name)})
		}
	}
	return all
}
