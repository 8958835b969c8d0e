package overlay_test

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"meshd/mesh"
	"meshd/overlay"
	"meshd/overlay/attach"
	"meshd/overlay/attach/attachtest"
	"meshd/overlay/status"
)

var web = mesh.Network{Name: "web", IPv4: netip.MustParsePrefix("10.87.0.0/16"), IPv4Len: 24}

// withWeb is a view of a mesh that has the network web, in which nodes have leases.
func withWeb(holders ...mesh.Node) *mesh.View {
	var nodes []mesh.Node
	for _, n := range []mesh.Node{self, beta} {
		if slices.ContainsFunc(holders, func(h mesh.Node) bool { return h.ID == n.ID }) {
			n.Leases = append(slices.Clone(n.Leases), mesh.Lease{Network: "web", Prefixes: web.Slot(int(n.ID[0])), State: mesh.Held})
		}
		nodes = append(nodes, n)
	}
	v := view(nodes...)
	v.Networks = append(slices.Clone(v.Networks), web)
	return v
}

// The first container in a network makes the node lease there, and comes to life
// once the host carries the lease and checks what the container sends.
func TestContainerComesToLife(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.links.Before = func(method string) error {
			if method == "AddPort" && len(w.rules.Rules().Ports) != 1 {
				return errors.New("nothing checks what it sends")
			}
			return nil
		}
		got := make(chan attach.Attachment, 1)
		go func() {
			a, err := w.attach.Attach(t.Context(), attach.Ask{ID: "test/a", Network: "web"})
			if err != nil {
				t.Error(err)
			}
			got <- a
		}()
		settle()
		w.mesh.views <- withWeb()
		settle()
		if !slices.Equal(w.mesh.used, []string{"web"}) || len(w.mesh.inUse) > 0 || len(got) > 0 {
			t.Fatalf("uses %v, %v of it; want the lease waited for", w.mesh.used, w.mesh.inUse)
		}
		w.mesh.views <- withWeb(self, beta)
		settle()
		a := <-got
		if a.State != attach.Live || a.MTU != 1420 || !slices.Equal(w.mesh.inUse, []string{"web"}) {
			t.Errorf("got %+v, in use %v", a, w.mesh.inUse)
		}
		for _, want := range []string{"link set mbr-web type bridge up mtu 1420", "addr add 10.87.1.1/24 dev mbr-web"} {
			if !strings.Contains(w.kernel.String(), want) {
				t.Errorf("host has\n%s\nwant %s", w.kernel, want)
			}
		}
		if err := w.attach.Detach(t.Context(), "test/a"); err != nil {
			t.Fatal(err)
		}
		if len(w.mesh.used) > 0 || len(w.rules.Rules().Ports) > 0 || strings.Contains(w.kernel.String(), "mbr-") {
			t.Errorf("after the last one has gone: uses %v, rules\n%s\nhost has\n%s", w.mesh.used, w.rules.Rules(), w.kernel)
		}
	})
}

// A lease that was given back is away until a container wants one again.
func TestReleaseUntilUsedAgain(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		uses := func(want ...string) {
			t.Helper()
			settle()
			if !slices.Equal(w.mesh.used, want) {
				t.Fatalf("the mesh was told that %v are used, want %v", w.mesh.used, want)
			}
		}
		release := func(network string, want error) {
			t.Helper()
			if err := w.node.Release(t.Context(), network); !errors.Is(err, want) {
				t.Errorf("release of %s: %v, want %v", network, err, want)
			}
		}
		ask := func(do func() error) {
			go func() {
				if err := do(); err != nil {
					t.Error(err)
				}
			}()
		}
		attached := func() error {
			_, err := w.attach.Attach(t.Context(), attach.Ask{ID: "docker/a", Network: "web"})
			return err
		}
		w.mesh.views <- withWeb()
		settle()
		release("default", status.ErrNotAllowed)
		release("web", status.ErrNotNow)
		ask(func() error { _, err := w.attach.Use(t.Context(), "docker/net", "web"); return err })
		uses("web")
		release("web", status.ErrLeaseInUse) // soon
		w.mesh.views <- withWeb(self, beta)
		settle()
		for range 2 {
			release("web", nil)
			w.mesh.views <- withWeb(beta)
			uses()
			release("web", status.ErrNotNow)
			if err := w.node.ContainersChanged(t.Context()); err != nil { // for another reason
				t.Fatal(err)
			}
			uses()
			ask(attached)
			uses("web")
			w.mesh.views <- withWeb(self, beta)
			uses("web")
			release("web", status.ErrLeaseInUse)
			if err := w.attach.Detach(t.Context(), "docker/a"); err != nil {
				t.Fatal(err)
			}
			uses("web") // for the next one
		}
	})
}

// Nothing hangs on a host that cannot keep networks apart.
func TestContainerNeedsItsRules(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.mesh.views <- view(self, beta)
		settle()
		broken := errors.New("the kernel says no")
		w.rules.Fail(broken)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := w.attach.Attach(ctx, attach.Ask{ID: "test/a"}); !errors.Is(err, broken) {
			t.Errorf("attach: %v", err)
		}
		w.rules.Fail(nil)
		if _, err := w.attach.Attach(ctx, attach.Ask{ID: "test/a"}); err != nil {
			t.Errorf("attach again: %v", err)
		}
	})
}

// Where nothing can keep networks apart, nothing is attached, and a node is on the mesh
// all the same. What a run with a firewall has left is a finding, and can be detached.
func TestNoContainersWithoutFirewall(t *testing.T) {
	var store attachtest.Store
	prepare := func(t *testing.T, w *world) {
		before := attach.New(attach.Options{Host: &w.links, Store: &store})
		if err := before.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		before.Sync(attach.World{View: view(self, beta), MTU: 1420})
		if _, err := before.Attach(t.Context(), attach.Ask{ID: "test/old"}); err != nil {
			t.Fatal(err)
		}
		w.noRules = true
		w.attach = attach.New(attach.Options{
			Host: &w.links, Store: &store, Changed: func(ctx context.Context) error { return w.node.ContainersChanged(ctx) },
		})
		if err := w.attach.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	inWorld(t, prepare, func(t *testing.T, w *world) {
		found := func() bool {
			return slices.ContainsFunc(w.node.Status().Health, func(f status.Finding) bool { return f.Code == "no_firewall" && f.Level == "error" })
		}
		w.mesh.views <- withWeb()
		settle()
		if !found() {
			t.Errorf("health %+v", w.node.Status().Health)
		}
		for _, network := range []string{"default", "web"} {
			if _, err := w.attach.Attach(t.Context(), attach.Ask{ID: "test/new", Network: network}); !errors.Is(err, overlay.ErrNoFirewall) {
				t.Errorf("attach to %s: %v", network, err)
			}
			if _, err := w.attach.Use(t.Context(), "test/use", network); !errors.Is(err, overlay.ErrNoFirewall) {
				t.Errorf("use %s: %v", network, err)
			}
			if err := w.attach.Unuse(t.Context(), "test/use"); err != nil {
				t.Error(err)
			}
		}
		if all := w.attach.List(); len(all) != 1 || len(w.mesh.used) > 0 {
			t.Errorf("attached %+v, uses %v", all, w.mesh.used)
		}
		if err := w.attach.Detach(t.Context(), "test/old"); err != nil {
			t.Fatal(err)
		}
		if found() || !isReady(w.node) {
			t.Errorf("without containers: ready %t, health %+v", isReady(w.node), w.node.Status().Health)
		}
	})
}

func TestContainersThatHaveGone(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.mesh.views <- view(self, beta)
		settle()
		a, err := w.attach.Attach(t.Context(), attach.Ask{ID: "test/a"})
		if err != nil {
			t.Fatal(err)
		}
		w.rules.SetObstacles("somebody's chain drops all")
		w.links.Lose(a.HostLink)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if all := w.attach.List(); len(all) > 0 || len(w.rules.Rules().Ports) > 0 || len(w.mesh.inUse) > 0 {
			t.Errorf("still there: %+v, rules\n%s", all, w.rules.Rules())
		}
	})
}

func TestObstaclesAreFindings(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.mesh.views <- view(self, beta)
		settle()
		w.rules.SetObstacles("somebody's chain drops all")
		has := func() bool {
			time.Sleep(10 * time.Second)
			synctest.Wait()
			return slices.ContainsFunc(w.node.Status().Health, func(f status.Finding) bool { return f.Code == "packets_dropped" })
		}
		if has() {
			t.Error("told on a host without containers")
		}
		if _, err := w.attach.Attach(t.Context(), attach.Ask{ID: "test/a"}); err != nil {
			t.Fatal(err)
		}
		if !has() {
			t.Errorf("health %+v", w.node.Status().Health)
		}
	})
}

// told is what programs hear that give out addresses of ours.
type told struct {
	subnet attach.Subnet
	err    error
}

func (d *told) Apply(s attach.Subnet) error {
	d.subnet = s
	return d.err
}

// A subnet whose addresses others give out is told to them while this node holds
// it, and only then.
func TestDelegatedSubnet(t *testing.T) {
	var d told
	prepare := func(_ *testing.T, w *world) {
		w.attach = attach.New(attach.Options{Host: &w.links, Store: new(attachtest.Store), Delegated: "default"})
		w.delegate = &d
	}
	inWorld(t, prepare, func(t *testing.T, w *world) {
		w.mesh.views <- view(self, beta)
		settle()
		want := attach.Subnet{
			Network: "default", Prefixes: network.Slot(17), Gateways: []netip.Addr{netip.MustParseAddr("10.86.17.1")},
			Routes: network.Ranges(), MTU: 1420, State: attach.Live,
		}
		if !reflect.DeepEqual(d.subnet, want) {
			t.Errorf("told %+v, want %+v", d.subnet, want)
		}
		if rules := w.rules.Rules(); !rules.HasLinks() {
			t.Errorf("the rules know of no containers:\n%s", rules)
		}

		d.err = errors.New("no such folder")
		quarantined := self
		quarantined.Leases = slices.Clone(self.Leases)
		quarantined.Leases[0].State = mesh.Quarantined
		w.mesh.views <- view(quarantined, beta)
		settle()
		if d.subnet.State == attach.Live {
			t.Errorf("told %+v of a quarantined subnet", d.subnet)
		}
		if !slices.ContainsFunc(w.node.Status().Health, func(f status.Finding) bool { return f.Code == "subnet_not_told" }) {
			t.Errorf("health %+v", w.node.Status().Health)
		}
		d.err = nil
		w.mesh.views <- view(self, beta)
		settle()
		if d.subnet.State != attach.Live {
			t.Errorf("told %+v", d.subnet)
		}
		if err := w.node.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d.subnet.Network != "" {
			t.Errorf("the host is clear, and %+v is still told", d.subnet)
		}
	})
}

// Where the node has another subnet, the host leads to no container by an address of
// the one before, from that moment on.
func TestContainersFollowTheSubnet(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.mesh.views <- view(self, beta)
		settle()
		if _, err := w.attach.Attach(t.Context(), attach.Ask{ID: "test/a", Mode: attach.PTP}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second) // so that the next look is some seconds away
		synctest.Wait()
		if got := len(w.links.Addresses()); got != 1 {
			t.Fatalf("the host leads to %d addresses", got)
		}
		w.mesh.views <- view(member(1, "alpha", 18), beta)
		synctest.Wait()
		if got := w.links.Addresses(); len(got) > 0 {
			t.Errorf("the host leads to %v still", got)
		}
	})
}
