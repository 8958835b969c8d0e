package gossip_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"meshd/mesh"
	"meshd/mesh/gossip"
	"meshd/mesh/member"
	"meshd/mesh/meshtest"
	"meshd/mesh/trust"
)

// core is a stand-in for a member: it believes every object but those that begin
// with "bad", and says its endpoints. "needs " and a hash asks for that object.
type core struct {
	self mesh.NodeID
	pad  int // size of what it says

	mu      sync.Mutex
	objects map[string]bool
	out     member.Output
	saves   bool // each saying needs a save
	synced  int
	left    bool

	slept, jumped time.Duration
}

func newCore(self mesh.NodeID) *core { return &core{self: self, objects: map[string]bool{}} }

func (c *core) Receive(raw []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if bytes.HasPrefix(raw, []byte("bad")) {
		return errors.New("bad object")
	}
	c.objects[string(raw)] = true
	return nil
}

func (c *core) Asked(uint64)                  {}
func (c *core) OtherKey(bool)                 {}
func (c *core) Use(time.Time, []string) error { return nil }
func (c *core) SetInUse([]string)             {}

func (c *core) Synced() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.synced++
}

func (c *core) SetEndpoints(endpoints []netip.AddrPort) {
	c.say(fmt.Sprintf("%s is at %s", c.self.Short(), endpoints))
}

func (c *core) Slept(_ time.Time, d time.Duration)  { c.slept += d }
func (c *core) Jumped(_ time.Time, d time.Duration) { c.jumped += d }

func (c *core) Leave(time.Time) {
	c.mu.Lock()
	c.left = true
	c.mu.Unlock()
	c.say(fmt.Sprintf("%s leaves", c.self.Short()))
}

func (c *core) say(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	text += strings.Repeat(".", max(0, c.pad-len(text)))
	c.objects[text] = true
	c.out.Broadcast = append(c.out.Broadcast, []byte(text))
	if c.saves {
		c.out.State = &member.State{Epoch: 1, Left: c.left}
	}
}

func (c *core) Step(time.Time) member.Output {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.out
	c.out = member.Output{}
	for text := range c.objects {
		needed, ok := strings.CutPrefix(text, "needs ")
		if ok && c.find(trust.Hash([]byte(needed))) == "" {
			out.Want = append(out.Want, trust.Hash([]byte(needed)))
		}
	}
	return out
}

func (c *core) Next() (time.Time, bool) { return time.Time{}, false }

// Table leaves out what is said to be fetched.
func (c *core) Table() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out [][]byte
	for _, text := range slices.Sorted(maps.Keys(c.objects)) {
		if !strings.HasPrefix(text, "fetched") {
			out = append(out, []byte(text))
		}
	}
	return out
}

func (c *core) Settled() (out []trust.Hash) {
	for _, o := range c.Table() {
		out = append(out, sha256.Sum256(o))
	}
	return out
}

func (c *core) Lookup(hashes ...trust.Hash) (out [][]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range hashes {
		if text := c.find(h); text != "" {
			out = append(out, []byte(text))
		}
	}
	return out
}

func (c *core) find(h trust.Hash) string {
	for text := range c.objects {
		if trust.Hash(sha256.Sum256([]byte(text))) == h {
			return text
		}
	}
	return ""
}

func (c *core) knows(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for o := range c.objects {
		if strings.HasPrefix(o, text) {
			return true
		}
	}
	return false
}

func (c *core) exchanges() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.synced
}

// node is one gossip with its stand-in.
type node struct {
	*gossip.Gossip
	core  *core
	store *meshtest.Store
	id    mesh.NodeID
	at    netip.AddrPort
	stop  func() // ends it, and waits
}

var testKey = bytes.Repeat([]byte{1}, 32)

func id(n int) (id mesh.NodeID) {
	id[0], id[19] = byte(n), byte(n)
	return id
}

func address(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 51881)
}

// start runs node n at its address until the test ends. change may be nil.
func start(t *testing.T, net *meshtest.Network, n int, change func(*gossip.Options, *core)) *node {
	t.Helper()
	return startAt(t, net, n, address(n), change)
}

// startAt does so at another address; the zero one: it does not know it yet.
func startAt(t *testing.T, net *meshtest.Network, n int, at netip.AddrPort, change func(*gossip.Options, *core)) *node {
	t.Helper()
	x := &node{core: newCore(id(n)), store: &meshtest.Store{}, id: id(n), at: at}
	opt := gossip.Options{
		Core: x.core, Store: x.store, Self: x.id, Keyring: member.NewKeyring(testKey),
		Seeds: []string{address(1).String()}, Transport: net.Transport,
	}
	if change != nil {
		change(&opt, x.core)
	}
	var err error
	if x.Gossip, err = gossip.New(opt); err != nil {
		t.Fatal(err)
	}
	x.SetAddress(x.at)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- x.Run(ctx) }()
	x.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(x.stop)
	return x
}

// startAll runs nodes 1 to n.
func startAll(t *testing.T, net *meshtest.Network, n int) []*node {
	t.Helper()
	nodes := make([]*node, n)
	for i := range nodes {
		nodes[i] = start(t, net, i+1, nil)
	}
	return nodes
}

// within waits, in the bubble's time, until all conditions hold.
func within(t *testing.T, limit time.Duration, what string, conditions ...func() bool) {
	t.Helper()
	begin := time.Now()
	for _, ok := range conditions {
		for !ok() {
			if time.Since(begin) > limit {
				t.Fatalf("not within %s: %s", limit, what)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

func (x *node) sees(n int) func() bool { return func() bool { return len(x.Stats().Live) == n } }

func (x *node) knows(text string) func() bool { return func() bool { return x.core.knows(text) } }

func TestMembersFindEachOther(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		net := meshtest.NewNetwork(1)
		nodes := startAll(t, net, 3)
		for _, x := range nodes {
			within(t, 2*time.Second, "all see two others", x.sees(2))
		}
		nodes[2].SetEndpoints([]netip.AddrPort{netip.MustParseAddrPort("198.51.100.3:51880")})
		said := id(3).Short() + " is at [198.51.100.3:51880]"
		for _, x := range nodes {
			within(t, time.Second, "a broadcast reaches all", x.knows(said))
		}
	})
}

func TestBroadcastReachesAllThroughRelays(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		net := meshtest.NewNetwork(2)
		net.SetLatency(30 * time.Millisecond)
		net.SetLoss(0.1)
		nodes := startAll(t, net, 40)
		// Who was taken for dead, and whose word that he is not was lost, comes back
		// with memberlist's own exchange: every four minutes among so many.
		for _, x := range nodes {
			within(t, 10*time.Minute, "all see all", x.sees(39))
		}
		before := 0
		for _, x := range nodes {
			before += x.core.exchanges()
		}
		nodes[7].SetEndpoints(nil)
		for _, x := range nodes {
			within(t, 4*time.Second, "all know", x.knows(id(8).Short()+" is at []"))
		}
		after := 0
		for _, x := range nodes {
			after += x.core.exchanges()
		}
		if after-before > 20 {
			t.Errorf("%d exchanges went on meanwhile: it may not have been the broadcast", after-before)
		}
	})
}

// The largest object that may be broadcast must fit a packet with all framing,
// or it would sit in memberlist's queue for ever.
func TestLargestBroadcastFits(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		net := meshtest.NewNetwork(3)
		a := start(t, net, 1, func(_ *gossip.Options, c *core) { c.pad = trust.MaxBroadcast })
		b := start(t, net, 2, nil)
		within(t, 2*time.Second, "they meet", a.sees(1), b.sees(1))
		time.Sleep(5 * time.Second) // memberlist's own news goes first
		for n := range 5 {
			before := b.core.exchanges()
			a.SetEndpoints([]netip.AddrPort{address(n)})
			within(t, time.Second, "it arrives", b.knows(fmt.Sprintf("%s is at [%s]", id(1).Short(), address(n))))
			if b.core.exchanges() == before {
				return
			}
		}
		t.Error("it came with an exchange of tables, each time")
	})
}

func TestRestartIsWelcomeAtOnce(t *testing.T) {
	for _, tt := range []struct {
		name string
		at   netip.AddrPort
	}{{"same address", address(3)}, {"new address", address(9)}} {
		t.Run(tt.name, func(t *testing.T) {
			meshtest.Bubble(t, func(t *testing.T) {
				net := meshtest.NewNetwork(4)
				nodes := startAll(t, net, 3)
				for _, x := range nodes {
					within(t, 2*time.Second, "they meet", x.sees(2))
				}
				nodes[2].stop() // as kill -9 does: nobody is told
				again := startAt(t, net, 3, tt.at, nil)
				within(t, 2*time.Second, "it sees the others", again.sees(2))
				again.SetEndpoints(nil)
				for _, x := range nodes[:2] {
					within(t, time.Second, "they hear it", x.knows(id(3).Short()+" is at []"))
				}
			})
		})
	}
}

func TestNewAddress(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		net := meshtest.NewNetwork(5)
		nodes := startAll(t, net, 3)
		for _, x := range nodes {
			within(t, 2*time.Second, "they meet", x.sees(2))
		}
		old := nodes[2].Stats()
		nodes[2].SetAddress(address(33))
		moved := func() bool { s := nodes[2].Stats(); return s.Address == address(33) && len(s.Live) == 2 }
		within(t, 2*time.Second, "it moves and meets them again", moved)
		if s := nodes[2].Stats(); s.Name == old.Name || !strings.HasPrefix(s.Name, id(3).String()+".") {
			t.Errorf("name after a move is %s, before %s", s.Name, old.Name)
		}
		nodes[0].SetEndpoints(nil)
		within(t, time.Second, "they reach it there", nodes[2].knows(id(1).Short()+" is at []"))
		name := nodes[2].Stats().Name
		nodes[2].SetAddress(address(33))
		synctest.Wait()
		if nodes[2].Stats().Name != name {
			t.Error("the same address again made a new instance")
		}
	})
}

// A node that does not know its address yet serves its core, and starts to speak
// when it does.
func TestNoAddressYet(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		net := meshtest.NewNetwork(6)
		a := start(t, net, 1, nil)
		b := startAt(t, net, 2, netip.AddrPort{}, nil)
		b.SetEndpoints(nil)
		time.Sleep(5 * time.Second)
		if b.Stats().Name != "" || a.core.knows(id(2).Short()) {
			t.Fatal("it spoke without an address")
		}
		b.SetAddress(address(2))
		within(t, 2*time.Second, "it is heard", a.knows(id(2).Short()+" is at []"))
	})
}

func TestPartitionHeals(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		net := meshtest.NewNetwork(7)
		nodes := startAll(t, net, 6)
		for _, x := range nodes {
			within(t, 3*time.Second, "they meet", x.sees(5))
		}
		net.Partition([]netip.AddrPort{nodes[3].at, nodes[4].at, nodes[5].at})
		for _, x := range nodes {
			within(t, 3*time.Minute, "each side sees itself", x.sees(2))
		}
		// Longer than memberlist remembers the dead.
		time.Sleep(10 * time.Minute)
		nodes[1].SetEndpoints(nil)
		nodes[4].SetEndpoints(nil)
		time.Sleep(time.Second)
		if nodes[5].core.knows(id(2).Short()) || nodes[2].core.knows(id(5).Short()) {
			t.Fatal("the partition leaks")
		}
		net.Partition()
		for _, x := range nodes {
			within(t, 15*time.Second, "it heals", x.sees(5), x.knows(id(2).Short()), x.knows(id(5).Short()))
		}
	})
}

// Nobody has a seed that answers; what was saved last time is enough.
func TestKnownPeersReplaceSeeds(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		net := meshtest.NewNetwork(8)
		nodes := startAll(t, net, 3)
		for _, x := range nodes {
			within(t, 2*time.Second, "they meet", x.sees(2))
		}
		for _, x := range nodes {
			x.stop()
		}
		_, _, peers := nodes[2].store.Saved()
		if !slices.Contains(peers, address(2)) {
			t.Fatalf("saved peers are %s", peers)
		}
		time.Sleep(time.Hour)
		a := start(t, net, 2, func(o *gossip.Options, _ *core) { o.Seeds = nil })
		time.Sleep(time.Minute) // others boot later
		b := start(t, net, 3, func(o *gossip.Options, _ *core) { o.Peers = peers })
		within(t, 2*time.Second, "they meet", a.sees(1), b.sees(1))
	})
}

func TestSeedThatComesBack(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		net := meshtest.NewNetwork(9)
		b := start(t, net, 2, nil)
		time.Sleep(time.Hour)
		a := start(t, net, 1, nil)
		within(t, 6*time.Second, "it is found", a.sees(1), b.sees(1))
	})
}

// A node that knows nobody is told of a seed.
func TestSetSeeds(t *testing.T) {
	dead := func(o *gossip.Options, _ *core) { o.Seeds = []string{address(99).String()} }
	for name, change := range map[string]func(*gossip.Options, *core){
		"none before": func(o *gossip.Options, _ *core) { o.Seeds = nil }, "a dead one before": dead,
	} {
		t.Run(name, func(t *testing.T) {
			meshtest.Bubble(t, func(t *testing.T) {
				net := meshtest.NewNetwork(12)
				a, b := start(t, net, 1, nil), start(t, net, 2, change)
				time.Sleep(time.Hour)
				if b.sees(1)() {
					t.Fatal("they have met")
				}
				b.SetSeeds([]string{address(1).String()})
				within(t, 200*time.Millisecond, "it is found", a.sees(1), b.sees(1))
			})
		})
	}
}

// Do comes between two steps, and the core acts on what it changes.
func TestDo(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		net := meshtest.NewNetwork(13)
		nodes := startAll(t, net, 2)
		within(t, 2*time.Second, "they meet", nodes[0].sees(1), nodes[1].sees(1))
		if err := nodes[0].Do(t.Context(), func(time.Time) { nodes[0].core.say("news") }); err != nil {
			t.Fatal(err)
		}
		within(t, time.Second, "it is said", nodes[1].knows("news"))
		nodes[0].stop()
		if err := nodes[0].Do(t.Context(), func(time.Time) { t.Error("it ran after the end") }); err == nil {
			t.Error("no error after the end")
		}
	})
}

func TestWantIsAnswered(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		net := meshtest.NewNetwork(10)
		net.SetLoss(0.2)
		nodes := startAll(t, net, 3)
		for _, x := range nodes {
			within(t, 5*time.Second, "they meet", x.sees(2))
		}
		large := "fetched " + strings.Repeat("x", trust.MaxObject-8) // not in tables, and too large to be broadcast
		hash := sha256.Sum256([]byte(large))
		if err := nodes[0].core.Receive([]byte(large)); err != nil {
			t.Fatal(err)
		}
		nodes[2].core.say("needs " + string(hash[:]))
		nodes[2].SetEndpoints(nil)
		for _, x := range nodes {
			within(t, 5*time.Second, "who needs it gets it", x.knows("fetched"))
		}
	})
}

func TestSaveComesFirst(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		net := meshtest.NewNetwork(11)
		a := start(t, net, 1, func(_ *gossip.Options, c *core) { c.saves = true })
		b := start(t, net, 2, nil)
		within(t, 2*time.Second, "they meet", a.sees(1), b.sees(1))
		a.store.Fail(true)
		a.SetEndpoints(nil)
		time.Sleep(5 * time.Minute) // ten exchanges of tables
		if b.core.knows(id(1).Short()) {
			t.Fatal("said before it was saved")
		}
		if found := a.Findings(); len(found) != 1 || found[0].Code != "state_unsaved" || !strings.Contains(found[0].Message, meshtest.ErrStore.Error()) {
			t.Errorf("findings are %+v", found)
		}
		b.SetEndpoints(nil)
		within(t, time.Second, "it goes on listening", a.knows(id(2).Short()))
		a.store.Fail(false)
		within(t, 3*time.Second, "then it is said", b.knows(id(1).Short()))
		if state, _, _ := a.store.Saved(); state.Epoch != 1 {
			t.Error("said, and not saved")
		}
		if found := a.Findings(); len(found) != 0 {
			t.Errorf("findings are still %+v", found)
		}
	})
}

// A revocation is on disk before anything is said that may rest on it, and a gossip key
// before anything is sealed with it: a crash must bring neither back to before.
func TestTableAndKeyringAreSavedFirst(t *testing.T) {
	meet := func(t *testing.T, seed uint64) (a, b *node) {
		net := meshtest.NewNetwork(seed)
		a, b = start(t, net, 1, nil), start(t, net, 2, nil)
		within(t, 2*time.Second, "they meet", a.sees(1), b.sees(1))
		a.store.Fail(true)
		return a, b
	}
	t.Run("table", func(t *testing.T) {
		meshtest.Bubble(t, func(t *testing.T) {
			a, b := meet(t, 15)
			a.core.mu.Lock()
			a.core.out.Table = true
			a.core.mu.Unlock()
			a.SetEndpoints(nil)
			time.Sleep(5 * time.Minute)
			if b.core.knows(id(1).Short()) {
				t.Fatal("said before the table was saved")
			}
			a.store.Fail(false)
			within(t, 3*time.Second, "then it is said", b.knows(id(1).Short()))
			if _, table, _ := a.store.Saved(); len(table) == 0 {
				t.Error("said, and no table is saved")
			}
		})
	})
	t.Run("keyring", func(t *testing.T) {
		meshtest.Bubble(t, func(t *testing.T) {
			a, b := meet(t, 16)
			a.core.mu.Lock()
			a.core.out.Keyring = &member.Keyring{Keys: []member.GossipKey{{Generation: 1, Key: bytes.Repeat([]byte{9}, trust.GossipKeySize)}}, Send: 1}
			a.core.mu.Unlock()
			a.SetEndpoints(nil)
			time.Sleep(time.Minute)
			if n := b.Refused(); n > 0 {
				t.Fatalf("%d messages came with a key that is not saved", n)
			}
			a.store.Fail(false)
			within(t, 10*time.Second, "then it is used", func() bool { return b.Refused() > 0 })
			if k := a.store.Keyring(); k.Send != 1 {
				t.Error("used, and not saved")
			}
		})
	})
}

// Where the state cannot be saved a subnet that was claimed since the start is not this
// node's yet, for its host neither: a crash now would leave nothing of the claim. All
// else counts at once: what was held before, and who is thrown out.
func TestSaveComesBeforeTheView(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		a := start(t, meshtest.NewNetwork(14), 1, nil)
		since := time.Now()
		lease := func(network, prefix string, epoch uint64) mesh.Lease {
			return mesh.Lease{Network: network, Prefixes: []netip.Prefix{netip.MustParsePrefix(prefix)}, State: mesh.Held, Since: since, ClaimEpoch: epoch}
		}
		step := func(save bool, others int, leases ...mesh.Lease) *mesh.View {
			v := &mesh.View{Self: id(1), Epoch: 9, State: mesh.Ready, Nodes: []mesh.Node{{ID: id(1), Leases: leases}}}
			for n := range others {
				v.Nodes = append(v.Nodes, mesh.Node{ID: id(n + 2)})
			}
			a.core.mu.Lock()
			a.core.out.View = v
			if save {
				a.core.out.State = &member.State{Epoch: 9, Leases: leases}
			}
			a.core.mu.Unlock()
			a.SetEndpoints(nil)
			synctest.Wait()
			select {
			case v := <-a.Views():
				return v
			default:
				t.Fatal("no view is shown")
				return nil
			}
		}
		check := func(what string, v *mesh.View, state mesh.State, others int, leases ...mesh.LeaseState) {
			t.Helper()
			self, _ := v.Node(id(1))
			var are []mesh.LeaseState
			for _, l := range self.Leases {
				are = append(are, l.State)
			}
			if v.State != state || len(v.Nodes) != others+1 || !slices.Equal(are, leases) {
				t.Errorf("%s: %s with leases %v and %d others, want %s, %v and %d", what, v.State, are, len(v.Nodes)-1, state, leases, others)
			}
		}
		home, web := lease("default", "10.86.1.0/24", 9), lease("web", "10.87.1.0/24", 9)
		old := home
		old.ClaimEpoch = 8
		a.store.Fail(true)
		check("claimed, not saved", step(true, 3, home), mesh.Probing, 3, mesh.Pending)
		check("thrown out meanwhile", step(false, 2, home), mesh.Probing, 2, mesh.Pending)
		check("held by the daemon before", step(false, 2, old), mesh.Ready, 2, mesh.Held)
		check("dated anew", step(true, 2, home), mesh.Ready, 2, mesh.Held)
		check("another besides", step(true, 1, home, web), mesh.Ready, 1, mesh.Held, mesh.Pending)
		a.store.Fail(false)
		time.Sleep(2 * time.Second)
		select {
		case v := <-a.Views():
			check("saved", v, mesh.Ready, 1, mesh.Held, mesh.Held)
			if state, _, _ := a.store.Saved(); len(state.Leases) != 2 {
				t.Errorf("saved are %+v", state)
			}
		default:
			t.Error("saved: no view is shown")
		}
	})
}

// That nothing could be saved is told before anything must be.
func TestStoreIsChecked(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		a := start(t, meshtest.NewNetwork(13), 1, nil)
		time.Sleep(time.Minute)
		if found := a.Findings(); len(found) != 0 {
			t.Errorf("findings are %+v", found)
		}
		a.store.Fail(true)
		within(t, 15*time.Second, "it is noticed", func() bool { return len(a.Findings()) == 1 })
		a.store.Fail(false)
		within(t, 2*time.Second, "and that it is over", func() bool { return len(a.Findings()) == 0 })
	})
}

func TestLeave(t *testing.T) {
	t.Run("others hear it", func(t *testing.T) {
		meshtest.Bubble(t, func(t *testing.T) {
			net := meshtest.NewNetwork(12)
			nodes := startAll(t, net, 3)
			for _, x := range nodes {
				within(t, 2*time.Second, "they meet", x.sees(2))
			}
			begin := time.Now()
			if err := nodes[2].Leave(t.Context()); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begin); took > 3*time.Second {
				t.Errorf("leaving took %s", took)
			}
			nodes[2].stop()
			for _, x := range nodes[:2] {
				within(t, time.Second, "they know", x.knows(id(3).Short()+" leaves"), x.sees(1))
			}
		})
	})
	t.Run("alone", func(t *testing.T) {
		meshtest.Bubble(t, func(t *testing.T) {
			a := start(t, meshtest.NewNetwork(13), 1, func(_ *gossip.Options, c *core) { c.saves = true })
			if err := a.Leave(t.Context()); err != nil {
				t.Fatal(err)
			}
			if state, _, _ := a.store.Saved(); !state.Left {
				t.Error("not saved")
			}
		})
	})
	t.Run("not where it cannot be saved", func(t *testing.T) {
		meshtest.Bubble(t, func(t *testing.T) {
			a := start(t, meshtest.NewNetwork(14), 1, func(_ *gossip.Options, c *core) { c.saves = true })
			a.store.Fail(true)
			if err := a.Leave(t.Context()); !errors.Is(err, meshtest.ErrStore) {
				t.Errorf("Leave: %v", err)
			}
			a.store.Fail(false)
			time.Sleep(time.Minute)
			if state, _, _ := a.store.Saved(); state.Left {
				t.Error("it left later")
			}
			if err := a.Leave(t.Context()); err != nil {
				t.Errorf("Leave, when it can be saved: %v", err)
			}
		})
	})
	t.Run("not before it is saved", func(t *testing.T) {
		meshtest.Bubble(t, func(t *testing.T) {
			a := start(t, meshtest.NewNetwork(14), 1, func(o *gossip.Options, c *core) { o.Store, c.saves = hopeful{o.Store}, true })
			a.store.Fail(true)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if err := a.Leave(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Leave: %v", err)
			}
		})
	})
	t.Run("after the end", func(t *testing.T) {
		meshtest.Bubble(t, func(t *testing.T) {
			a := start(t, meshtest.NewNetwork(15), 1, nil)
			a.stop()
			if err := a.Leave(t.Context()); err == nil {
				t.Error("Leave succeeds")
			}
		})
	})
}

// hopeful is a store that fails only when it comes to it.
type hopeful struct{ gossip.Store }

func (hopeful) Check() error { return nil }

func TestForeignKeyIsShutOut(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		net := meshtest.NewNetwork(16)
		a := start(t, net, 1, nil)
		b := start(t, net, 2, func(o *gossip.Options, _ *core) { o.Keyring = member.NewKeyring(bytes.Repeat([]byte{2}, 32)) })
		b.SetEndpoints(nil)
		time.Sleep(time.Minute)
		if len(a.Stats().Live)+len(b.Stats().Live) > 0 || a.core.knows(id(2).Short()) || a.core.exchanges() > 0 {
			t.Error("a host with another key got in")
		}
		// During a rotation the other side still accepts the older key.
		c := start(t, net, 3, func(o *gossip.Options, _ *core) { o.Keyring = member.NewKeyring(testKey, bytes.Repeat([]byte{2}, 32)) })
		within(t, 2*time.Second, "a second key on the ring does no harm", c.sees(1), a.sees(1))
	})
}

// A slow reader of views gets the newest.
func TestViewsKeepTheNewest(t *testing.T) {
	meshtest.Bubble(t, func(t *testing.T) {
		a := start(t, meshtest.NewNetwork(17), 1, nil)
		for epoch := range uint64(5) {
			a.core.mu.Lock()
			a.core.out.View = &mesh.View{Epoch: epoch + 1}
			a.core.mu.Unlock()
			a.SetEndpoints(nil)
			synctest.Wait()
		}
		if v := <-a.Views(); v.Epoch != 5 {
			t.Errorf("view %d, want the fifth", v.Epoch)
		}
	})
}

// A partition too short for anybody to be taken for dead heals as well: what was
// said meanwhile is missed by comparing digests.
func TestShortPartitionHeals(t *testing.T) {
	for seed := range uint64(5) {
		meshtest.Bubble(t, func(t *testing.T) {
			net := meshtest.NewNetwork(100 + seed)
			nodes := startAll(t, net, 6)
			for _, x := range nodes {
				within(t, 3*time.Second, "they meet", x.sees(5))
			}
			time.Sleep(10 * time.Second)
			net.Partition([]netip.AddrPort{nodes[5].at})
			nodes[1].SetEndpoints(nil)
			time.Sleep(3 * time.Second)
			net.Partition()
			within(t, 10*time.Second, "it heals", nodes[5].knows(id(2).Short()+" is at []"))
		})
	}
}

// Whoever could not be heard for a while is, soon after it can, with what it has
// said meanwhile. The others know many addresses that nobody is at any more, so
// they do not find it by trying.
func TestMutedNodeIsHeardAgain(t *testing.T) {
	for seed := range uint64(5) {
		meshtest.Bubble(t, func(t *testing.T) {
			net := meshtest.NewNetwork(200 + seed)
			var nodes []*node
			for n := range 6 {
				nodes = append(nodes, start(t, net, n+1, func(o *gossip.Options, _ *core) {
					for stale := range 30 {
						o.Peers = append(o.Peers, address(100+stale))
					}
				}))
			}
			for _, x := range nodes {
				within(t, 10*time.Second, "they meet", x.sees(5))
			}
			muted := nodes[5]
			net.Block(func(from, _ netip.AddrPort) bool { return from == muted.at })
			time.Sleep(25 * time.Second)
			muted.SetEndpoints(nil)
			time.Sleep(5 * time.Second)
			net.Block(func(_, _ netip.AddrPort) bool { return false })
			for _, x := range nodes {
				within(t, 10*time.Second, "it is heard", x.knows(id(6).Short()+" is at []"))
			}
		})
	}
}
