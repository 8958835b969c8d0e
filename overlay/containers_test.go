package overlay_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"meshd/mesh"
	"meshd/overlay/attach"
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
