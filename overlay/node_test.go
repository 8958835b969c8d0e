package overlay_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"meshd/mesh"
	"meshd/overlay"
	"meshd/overlay/attach"
	"meshd/overlay/attach/attachtest"
	"meshd/overlay/status"
	"meshd/overlay/tunnel/tunneltest"
	"meshd/tun"
	"meshd/tun/tuntest"
)

// fakeMesh delivers the views that a test gives it.
type fakeMesh struct {
	views chan *mesh.View

	mu        sync.Mutex
	endpoints []netip.AddrPort
	address   netip.AddrPort
	left      bool
	used      []string // networks, and those in which there are containers
	inUse     []string
}

func (m *fakeMesh) Run(ctx context.Context) error   { <-ctx.Done(); return nil }
func (m *fakeMesh) Views() <-chan *mesh.View        { return m.views }
func (m *fakeMesh) SetAddress(a netip.AddrPort)     { m.mu.Lock(); m.address = a; m.mu.Unlock() }
func (m *fakeMesh) SetEndpoints(e []netip.AddrPort) { m.mu.Lock(); m.endpoints = e; m.mu.Unlock() }
func (m *fakeMesh) Findings() []mesh.Finding        { return nil }
func (m *fakeMesh) Use(_ context.Context, used, inUse []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used, m.inUse = used, inUse
	return nil
}
func (m *fakeMesh) Leave(context.Context) error {
	m.mu.Lock()
	m.left = true
	m.mu.Unlock()
	return nil
}

// mortal is an engine that a test can end.
type mortal struct {
	*tunneltest.Fake
	die chan error
}

func (e mortal) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-e.die:
		return err
	}
}

// world is a node with everything around it in memory.
type world struct {
	mesh     *fakeMesh
	kernel   *tuntest.Kernel
	rules    tuntest.Firewall
	links    attachtest.Host
	attach   *attach.Manager
	delegate overlay.Delegate
	noRules  bool        // the kernel has no packet filter
	blind    atomic.Bool // the kernel does not tell the underlay
	node     *overlay.Node
	mu       sync.Mutex
	engines  []mortal
	refuse   error // of the next engine
	done     chan error
	stop     context.CancelFunc
}

func (w *world) newEngine() (overlay.Engine, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refuse != nil {
		return nil, w.refuse
	}
	e := mortal{new(tunneltest.Fake), make(chan error, 1)}
	w.engines = append(w.engines, e)
	return e, nil
}

func (w *world) engine() mortal {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.engines[len(w.engines)-1]
}

// sight is a kernel that may be asked in vain for the underlay.
type sight struct {
	*tuntest.Kernel
	blind *atomic.Bool
}

func (s sight) Underlay(ctx context.Context, exclude ...netip.Prefix) (tun.Underlay, error) {
	if s.blind.Load() {
		return tun.Underlay{}, errors.New("interrupted")
	}
	return s.Kernel.Underlay(ctx, exclude...)
}

// inWorld runs a test in virtual time.
func inWorld(t *testing.T, prepare, test func(*testing.T, *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{mesh: &fakeMesh{views: make(chan *mesh.View, 1)}, kernel: new(tuntest.Kernel), done: make(chan error, 1)}
		w.kernel.SetUnderlay(tun.Underlay{Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.1")}, MTU: 1500})
		w.attach = attach.New(attach.Options{
			Host: &w.links, Store: new(attachtest.Store),
			Changed: func(ctx context.Context) error { return w.node.ContainersChanged(ctx) },
		})
		if prepare != nil {
			prepare(t, w)
		}
		opt := overlay.Options{
			Self: self.ID, Name: "alpha", Version: "test", Log: slog.New(slog.DiscardHandler),
			Mesh: w.mesh, Host: sight{w.kernel, &w.blind}, NewEngine: w.newEngine, Link: "mesh0", TunnelPort: 51880, GossipPort: 51881,
			Firewall: &w.rules, Containers: w.attach, Delegate: w.delegate,
		}
		if w.noRules {
			opt.Firewall = nil
		}
		w.node = overlay.New(opt)
		ctx, stop := context.WithCancel(t.Context())
		w.stop = stop
		go func() { w.done <- w.node.Run(ctx) }()
		synctest.Wait()
		test(t, w)
		stop()
		synctest.Wait()
		select {
		case err := <-w.done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		default: // the test has taken it
		}
	})
}

var (
	network = mesh.Network{Name: "default", IPv4: netip.MustParsePrefix("10.86.0.0/16"), IPv4Len: 24}
	self    = member(1, "alpha", 17)
	beta    = member(2, "beta", 80)
)

func member(n byte, name string, slot int) mesh.Node {
	id := mesh.NodeID{n}
	return mesh.Node{
		ID: id, Name: name, Key: mesh.Key{n}, Control: mesh.ControlAddr(mesh.ID{9}, id),
		Leases: []mesh.Lease{{Network: "default", Prefixes: network.Slot(slot), State: mesh.Held}},
	}
}

func view(nodes ...mesh.Node) *mesh.View {
	return &mesh.View{
		Mesh: mesh.ID{9}, MeshName: "home", Control: mesh.ControlRange(mesh.ID{9}),
		Networks: []mesh.Network{network}, Self: self.ID, Epoch: 3, State: mesh.Ready, Nodes: nodes,
	}
}

// settle lets timers of up to two seconds do their work.
func settle() {
	time.Sleep(2 * time.Second)
	synctest.Wait()
}

func isReady(n *overlay.Node) bool {
	select {
	case <-n.Ready():
		return true
	default:
		return false
	}
}

func TestReadyWhenTheHostIs(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		if doc := w.node.Status(); doc.State != mesh.WaitingForSeed || doc.ExitCode() != 3 {
			t.Errorf("state %s before any view", doc.State)
		}
		w.kernel.Fail(3)
		w.mesh.views <- view(self, beta)
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if isReady(w.node) || w.node.Status().State == mesh.Ready {
			t.Error("ready while the kernel refuses the routes")
		}
		if doc := w.node.Status(); len(doc.Health) != 1 || doc.Health[0].Code != "not_applied" {
			t.Errorf("health %+v, want the refusal", doc.Health)
		}
		settle()
		if !isReady(w.node) {
			t.Fatal("not ready although the kernel came round")
		}
		doc := w.node.Status()
		if doc.State != mesh.Ready || doc.Mesh.Name != "home" || doc.Node.Epoch != 3 || len(doc.Peers) != 1 || doc.Engine.MTU != 1420 {
			t.Errorf("status %+v", doc)
		}
		if got := w.engine().String(); !strings.Contains(got, "10.86.80.0/24") {
			t.Errorf("engine has\n%s\nwant beta's lease", got)
		}
	})
}

func TestDeadEngineIsRebuilt(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.mesh.views <- view(self, beta)
		settle()
		first := w.engine()
		before := w.kernel.Applied()
		first.die <- errors.New("TUN device is gone")
		settle()
		if second := w.engine(); second.Fake == first.Fake || second.String() != first.String() {
			t.Errorf("the new engine has\n%s", second.String())
		}
		if w.kernel.Applied() == before {
			t.Error("the host was not applied again: the new TUN has no address")
		}
	})
}

func TestFirstEngineMustStart(t *testing.T) {
	refused := errors.New("no TUN support")
	inWorld(t, func(_ *testing.T, w *world) { w.refuse = refused }, func(t *testing.T, w *world) {
		if err := <-w.done; !errors.Is(err, refused) {
			t.Errorf("Run: %v, want the engine's reason", err)
		}
	})
}

func TestStopLeavesWhatKeepsTrafficIn(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.mesh.views <- view(self, beta)
		settle()
		w.stop()
		if err := <-w.done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if !strings.Contains(w.kernel.String(), "unreachable 10.86.0.0/16") {
			t.Errorf("host has\n%s\nwant the unreachable routes to stay", w.kernel)
		}
	})
}

func TestDownAndLeaveClearTheHost(t *testing.T) {
	for name, end := range map[string]func(*overlay.Node, context.Context) error{
		"down":  (*overlay.Node).Down,
		"leave": (*overlay.Node).Leave,
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, nil, func(t *testing.T, w *world) {
				w.mesh.views <- view(self, beta)
				settle()
				if err := end(w.node, t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := w.kernel.String(); got != "" {
					t.Errorf("left behind:\n%s", got)
				}
				err := <-w.done
				if left := errors.Is(err, overlay.ErrLeft); left != (name == "leave") || left != w.mesh.left {
					t.Errorf("Run: %v, left %v", err, w.mesh.left)
				}
			})
		})
	}
}

func TestFollowsTheUnderlay(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.mesh.views <- view(self, beta)
		settle()
		w.kernel.SetUnderlay(tun.Underlay{Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.7")}, MTU: 1400})
		settle()
		w.mesh.mu.Lock()
		endpoints, address := w.mesh.endpoints, w.mesh.address
		w.mesh.mu.Unlock()
		if len(endpoints) != 1 || endpoints[0].String() != "198.51.100.7:51880" || address.String() != "198.51.100.7:51881" {
			t.Errorf("endpoints %v, gossip %v", endpoints, address)
		}
		if !strings.Contains(w.kernel.String(), "mtu 1320") {
			t.Errorf("host has\n%s\nwant the MTU to follow", w.kernel)
		}
		w.kernel.SetUnderlay(tun.Underlay{})
		settle()
		if h := w.node.Status().Health; len(h) != 1 || h[0].Code != "no_underlay" {
			t.Errorf("health %+v, want no_underlay", h)
		}
	})
}

// An event comes once: what went wrong with it is made up for soon.
func TestLooksAgainAtTheUnderlay(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.mesh.views <- view(self, beta)
		settle()
		w.blind.Store(true)
		w.kernel.SetUnderlay(tun.Underlay{Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.7")}, MTU: 1400})
		settle()
		w.blind.Store(false)
		time.Sleep(1500 * time.Millisecond)
		w.mesh.mu.Lock()
		defer w.mesh.mu.Unlock()
		if e := w.mesh.endpoints; len(e) != 1 || e[0].String() != "198.51.100.7:51880" {
			t.Errorf("endpoints %v", e)
		}
	})
}

func TestSettingsThatChange(t *testing.T) {
	early := func(_ *testing.T, w *world) {
		w.mesh.views <- view(self, beta)
	}
	inWorld(t, early, func(t *testing.T, w *world) {
		check := func(endpoint, gossip, mtu string) {
			t.Helper()
			settle()
			w.mesh.mu.Lock()
			endpoints, address := w.mesh.endpoints, w.mesh.address
			w.mesh.mu.Unlock()
			if len(endpoints) != 1 || endpoints[0].String() != endpoint || address.String() != gossip {
				t.Errorf("endpoints %v, gossip %v; want %s and %s", endpoints, address, endpoint, gossip)
			}
			if !strings.Contains(w.kernel.String(), "mtu "+mtu+"\n") {
				t.Errorf("host has\n%s\nwant the MTU %s", w.kernel, mtu)
			}
		}
		check("203.0.113.1:51880", "203.0.113.1:51881", "1420")
		w.node.SetAdvertise([]netip.AddrPort{netip.MustParseAddrPort("198.51.100.7:4000")})
		check("198.51.100.7:4000", "198.51.100.7:51881", "1420")
		w.node.SetMTU(1300)
		check("198.51.100.7:4000", "198.51.100.7:51881", "1300")
		w.node.SetAdvertise(nil)
		w.node.SetMTU(0)
		check("203.0.113.1:51880", "203.0.113.1:51881", "1420")
		if !isReady(w.node) {
			t.Error("not ready")
		}
	})
}

func TestPeerThatLeft(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		gone := beta
		gone.Left, gone.Leases = true, nil
		w.mesh.views <- view(self, gone)
		settle()
		doc := w.node.Status()
		if doc.Peers[0].State != status.PeerLeft || doc.ExitCode() != 0 {
			t.Errorf("peer %s, exit code %d: one that left is no fault", doc.Peers[0].State, doc.ExitCode())
		}
		if _, _, err := w.node.Ping(t.Context(), gone.ID); !errors.Is(err, status.ErrUnknownNode) {
			t.Errorf("ping: %v", err)
		}
	})
}

func TestRefusesToStartOverHostRoutes(t *testing.T) {
	overlap := func(_ *testing.T, w *world) {
		w.kernel.SetUses(tun.Use{Prefix: netip.MustParsePrefix("10.86.80.0/24"), What: "the route to 10.86.80.0/24"})
	}
	inWorld(t, overlap, func(t *testing.T, w *world) {
		w.mesh.views <- view(self, beta)
		if err := <-w.done; !errors.Is(err, overlay.ErrOverlap) || !strings.Contains(err.Error(), "10.86.80.0/24") {
			t.Errorf("Run: %v", err)
		}
		if got := w.kernel.String(); got != "" {
			t.Errorf("the host was touched:\n%s", got)
		}
	})
}

func TestLaterOverlapIsAFinding(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.mesh.views <- view(self, beta)
		settle()
		before := w.kernel.String()
		w.kernel.SetUses(tun.Use{Prefix: netip.MustParsePrefix("10.86.80.0/24"), What: "the route to 10.86.80.0/24"})
		settle()
		if doc := w.node.Status(); len(doc.Health) != 1 || doc.Health[0].Code != "overlap" || doc.ExitCode() != 1 {
			t.Errorf("health %+v, exit code %d", doc.Health, doc.ExitCode())
		}
		if after := w.kernel.String(); after != before {
			t.Errorf("something was torn down:\n%s", after)
		}
		w.kernel.SetUses()
		settle()
		if h := w.node.Status().Health; len(h) != 0 {
			t.Errorf("health %+v after the route has gone", h)
		}
	})
}

// A network that is made later, over what this host uses, is left out here: nothing
// is taken from the host, at a restart neither, and all else goes on.
func TestNetworkOverHostRoutesIsLeftOut(t *testing.T) {
	web := mesh.Network{Name: "web", IPv4: netip.MustParsePrefix("10.87.0.0/16"), IPv4Len: 24}
	both := func(n mesh.Node) mesh.Node {
		n.Leases = append(slices.Clone(n.Leases), mesh.Lease{Network: "web", Prefixes: web.Slot(int(n.ID[0])), State: mesh.Held})
		return n
	}
	withWeb := view(both(self), both(beta))
	withWeb.Networks = append(slices.Clone(withWeb.Networks), web)
	use := tun.Use{Prefix: netip.MustParsePrefix("10.87.80.0/24"), What: "the route to 10.87.80.0/24"}
	for name, first := range map[string]*mesh.View{"made later": view(self, beta), "there at the start": withWeb} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(_ *testing.T, w *world) { w.kernel.SetUses(use) }, func(t *testing.T, w *world) {
				w.mesh.views <- first
				settle()
				w.mesh.views <- withWeb
				settle()
				if h := w.node.Status().Health; len(h) != 1 || h[0].Code != "network_left_out" || !strings.Contains(h[0].Message, use.What) {
					t.Errorf("health %+v", h)
				}
				if !isReady(w.node) || strings.Contains(w.kernel.String(), "10.87.") || strings.Contains(w.engine().String(), "10.87.") {
					t.Errorf("host has\n%s\nengine has\n%s", w.kernel, w.engine())
				}
				w.kernel.SetUses()
				time.Sleep(15 * time.Second)
				synctest.Wait()
				if !strings.Contains(w.kernel.String(), "10.87.0.0/16") || !strings.Contains(w.engine().String(), "10.87.2.0/24") {
					t.Errorf("host has\n%s\nengine has\n%s", w.kernel, w.engine())
				}
				w.kernel.SetUses(use)
				settle()
				if h := w.node.Status().Health; len(h) != 1 || h[0].Code != "overlap" || !strings.Contains(w.kernel.String(), "10.87.0.0/16") {
					t.Errorf("health %+v; host has\n%s\nwant nothing torn down", h, w.kernel)
				}
			})
		})
	}
}

func TestFailureToClearIsTold(t *testing.T) {
	for name, end := range map[string]func(*overlay.Node, context.Context) error{
		"down":  (*overlay.Node).Down,
		"leave": (*overlay.Node).Leave,
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, nil, func(t *testing.T, w *world) {
				w.mesh.views <- view(self, beta)
				settle()
				w.kernel.Fail(1 << 30)
				if err := end(w.node, t.Context()); !errors.Is(err, tuntest.ErrFailed) {
					t.Errorf("%s: %v", name, err)
				}
				if err := <-w.done; !errors.Is(err, tuntest.ErrFailed) || errors.Is(err, overlay.ErrLeft) {
					t.Errorf("Run: %v", err)
				}
			})
		})
	}
}

func TestDownBeforeRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kernel := new(tuntest.Kernel)
		n := overlay.New(overlay.Options{
			Self: self.ID, Log: slog.New(slog.DiscardHandler), Mesh: &fakeMesh{views: make(chan *mesh.View)}, Host: kernel, Link: "mesh0",
			NewEngine: func() (overlay.Engine, error) { return mortal{new(tunneltest.Fake), nil}, nil },
		})
		down := make(chan error)
		go func() { down <- n.Down(t.Context()) }()
		synctest.Wait()
		if err := n.Run(t.Context()); err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := <-down; err != nil {
			t.Errorf("Down: %v", err)
		}
	})
}
