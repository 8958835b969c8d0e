package attach_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"meshd/mesh"
	"meshd/overlay/attach"
	"meshd/overlay/attach/attachtest"
	"meshd/tun"
)

// rig is a manager on a host that are fake.
type rig struct {
	*attach.Manager
	host  *attachtest.Host
	store *attachtest.Store
}

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// newRig makes one that holds slot 7 of default and slot 3 of web.
func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{host: new(attachtest.Host), store: new(attachtest.Store)}
	r.restart(t, attach.Options{})
	return r
}

// restart puts a new manager on what is there.
func (r *rig) restart(t *testing.T, opt attach.Options) {
	t.Helper()
	opt.Host, opt.Store = r.host, r.store
	r.Manager = attach.New(opt)
	if err := r.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.sync(attachtest.Lease("default", 7, mesh.Held), attachtest.Lease("web", 3, mesh.Held))
}

func (r *rig) sync(leases ...mesh.Lease) {
	r.Sync(attach.World{View: attachtest.View(leases...), MTU: 1420})
}

func (r *rig) attach(t *testing.T, ask attach.Ask) attach.Attachment {
	t.Helper()
	a, err := r.Attach(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	r.host.Move(a.Peer)
	return a
}

func (r *rig) detach(t *testing.T, id string) {
	t.Helper()
	if err := r.Detach(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) collect(t *testing.T, at time.Time) []string {
	t.Helper()
	ended, err := r.Collect(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, a := range ended {
		ids = append(ids, a.ID)
	}
	return ids
}

func (r *rig) wantHost(t *testing.T, want string) {
	t.Helper()
	if got := r.host.String(); got != want {
		t.Errorf("the host has\n%swant\n%s", got, want)
	}
}

func (r *rig) wantNetworks(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for _, n := range r.Networks() {
		got = append(got, fmt.Sprintf("%s in use: %t, bridge %q, %s %v, stale %v", n.Name, n.InUse, n.Bridge, n.Subnet.State, n.Subnet.Prefixes, n.Former))
	}
	if !slices.Equal(got, want) {
		t.Errorf("networks\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func addrs(all ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range all {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestAttachAndDetach(t *testing.T) {
	r := newRig(t)
	a := r.attach(t, attach.Ask{ID: "ctl/a", Container: "api"})
	want := `{
  "id": "ctl/a",
  "network": "default",
  "mode": "bridge",
  "container": "api",
  "addresses": [
    "10.86.7.2/24",
    "fd00:86:0:7::2/64"
  ],
  "gateways": [
    "10.86.7.1",
    "fd00:86:0:7::1"
  ],
  "routes": [
    "10.86.0.0/16",
    "fd00:86::/48"
  ],
  "host_link": "mv-` + a.HostLink[3:] + `",
  "peer": "mc-` + a.HostLink[3:] + `",
  "mac": "` + a.MAC + `",
  "mtu": 1420,
  "state": "live"
}`
	if got := asJSON(t, a); got != want {
		t.Errorf("attached as\n%s\nwant\n%s", got, want)
	}
	r.attach(t, attach.Ask{ID: "ctl/b", Network: "web"})
	r.wantHost(t, "[10.86.7.2 fd00:86:0:7::2] bridge on mbr-default mtu 1420\n[10.87.3.2] bridge on mbr-web mtu 1420\n")
	r.wantNetworks(t,
		`default in use: true, bridge "mbr-default", live [10.86.7.0/24 fd00:86:0:7::/64], stale []`,
		`web in use: true, bridge "mbr-web", live [10.87.3.0/24], stale []`)

	if again := r.attach(t, attach.Ask{ID: "ctl/a", Container: "api"}); asJSON(t, again) != want {
		t.Errorf("again it is\n%s", asJSON(t, again))
	}
	if got, err := r.Get("ctl/a"); err != nil || asJSON(t, got) != want {
		t.Errorf("it is got as\n%s, %v", asJSON(t, got), err)
	}
	r.host.Lose(a.HostLink)
	r.attach(t, attach.Ask{ID: "ctl/a"})
	if got := len(r.host.Addresses()); got != 3 {
		t.Errorf("a link that was lost is not made again: %d addresses", got)
	}
	r.restart(t, attach.Options{})
	if all := r.List(); len(all) != 2 || asJSON(t, all[0]) != want {
		t.Errorf("after a restart there is\n%s", asJSON(t, all))
	}

	r.detach(t, "ctl/a")
	r.detach(t, "ctl/a")
	r.detach(t, "ctl/b")
	r.wantHost(t, "")
	r.wantNetworks(t)
	if _, err := r.Get("ctl/a"); !errors.Is(err, attach.ErrUnknown) {
		t.Errorf("get what is detached: %v", err)
	}
	for i, between := range []func(){func() {}, func() { r.restart(t, attach.Options{}) }, func() {
		r.sync()
		r.sync(attachtest.Lease("default", 7, mesh.Held))
	}} {
		between()
		want := netip.MustParseAddr("10.86.7.3").As4()
		want[3] += byte(i)
		if a := r.attach(t, attach.Ask{ID: "ctl/c"}); a.Addresses[0].Addr() != netip.AddrFrom4(want) {
			t.Errorf("an address that was just freed is used again: %v", a.Addresses)
		}
		r.detach(t, "ctl/c")
	}
}

func TestModes(t *testing.T) {
	r := newRig(t)
	a := r.attach(t, attach.Ask{ID: "ctl/a", Network: "web", Mode: attach.PTP})
	if a.Addresses[0].String() != "10.87.3.2/32" || a.Gateways[0].String() != "10.87.3.1" {
		t.Errorf("ptp: %v by way of %v", a.Addresses, a.Gateways)
	}
	if n := r.Networks(); len(n) != 1 || n[0].Bridge != "" || len(n[0].Ports) != 1 || n[0].Ports[0].Name != a.HostLink {
		t.Errorf("ptp: networks %+v", n)
	}
	b := r.attach(t, attach.Ask{ID: "ctl/b", Network: "web", Mode: attach.MACVLAN, Parent: "eth0"})
	if b.HostLink != "" || b.Peer == "" || b.Addresses[0].String() != "10.87.3.3/24" {
		t.Errorf("macvlan: %+v", b)
	}
	r.wantHost(t, "[10.87.3.2] ptp mtu 1420\n[10.87.3.3] macvlan on eth0 mtu 1420\n")
	r.detach(t, "ctl/a")
	r.detach(t, "ctl/b")
	c := r.attach(t, attach.Ask{ID: "ctl/c", Network: "web", Mode: attach.IPVLAN, Parent: "eth0"})
	if b.MAC == "" || c.MAC != "" {
		t.Errorf("macvlan has the MAC address %q, ipvlan %q; want none for what has its parent's", b.MAC, c.MAC)
	}
	r.restart(t, attach.Options{}) // its document has a MAC address
	if again := r.attach(t, attach.Ask{ID: "ctl/c", Network: "web", Mode: attach.IPVLAN, Parent: "eth0"}); again.Addresses[0] != c.Addresses[0] {
		t.Errorf("after a restart ipvlan has %v, before %v", again.Addresses, c.Addresses)
	}
	r.detach(t, "ctl/c")
	r.wantHost(t, "")
}

func TestAsks(t *testing.T) {
	r := newRig(t)
	r.attach(t, attach.Ask{ID: "ctl/a", Network: "web", Addresses: addrs("10.87.3.9")})
	if _, err := r.Use(t.Context(), "docker/net", "web"); err != nil {
		t.Fatal(err)
	}
	before := r.host.String()
	for name, tt := range map[string]struct {
		ask  attach.Ask
		want error // nil: it is granted
	}{
		"the same":                  {attach.Ask{ID: "ctl/a", Network: "web", Addresses: addrs("10.87.3.9")}, nil},
		"the same, no wish":         {attach.Ask{ID: "ctl/a", Network: "web"}, nil},
		"the same, any":             {attach.Ask{ID: "ctl/a", Network: "web", Addresses: addrs("0.0.0.0")}, nil},
		"id in another network":     {attach.Ask{ID: "ctl/a"}, attach.ErrInUse},
		"id with another mode":      {attach.Ask{ID: "ctl/a", Network: "web", Mode: attach.PTP}, attach.ErrInUse},
		"id with another address":   {attach.Ask{ID: "ctl/a", Network: "web", Addresses: addrs("10.87.3.10")}, attach.ErrInUse},
		"id with another MAC":       {attach.Ask{ID: "ctl/a", Network: "web", MAC: "02:00:00:00:00:01"}, attach.ErrInUse},
		"id of a use":               {attach.Ask{ID: "docker/net", Network: "web"}, attach.ErrInUse},
		"unknown network":           {attach.Ask{ID: "ctl/b", Network: "nope"}, attach.ErrUnknownNetwork},
		"network that is no name":   {attach.Ask{ID: "ctl/b", Network: "../../etc"}, attach.ErrUnknownNetwork},
		"taken":                     {attach.Ask{ID: "ctl/b", Network: "web", Addresses: addrs("10.87.3.9")}, attach.ErrTaken},
		"the host's":                {attach.Ask{ID: "ctl/b", Network: "web", Addresses: addrs("10.87.3.1")}, attach.ErrTaken},
		"broadcast":                 {attach.Ask{ID: "ctl/b", Network: "web", Addresses: addrs("10.87.3.255")}, attach.ErrOutside},
		"another node's":            {attach.Ask{ID: "ctl/b", Network: "web", Addresses: addrs("10.87.4.2")}, attach.ErrOutside},
		"one good, one outside":     {attach.Ask{ID: "ctl/b", Addresses: addrs("10.86.7.9", "fd00::1")}, attach.ErrOutside},
		"a family that is not":      {attach.Ask{ID: "ctl/b", Network: "web", Addresses: addrs("::")}, attach.ErrOutside},
		"two of a family":           {attach.Ask{ID: "ctl/b", Addresses: addrs("10.86.7.9", "10.86.7.10")}, attach.ErrBadAsk},
		"4 in 6":                    {attach.Ask{ID: "ctl/b", Addresses: addrs("::ffff:10.86.7.9")}, attach.ErrBadAsk},
		"zone":                      {attach.Ask{ID: "ctl/b", Addresses: addrs("fd00:86:0:7::9%eth0")}, attach.ErrBadAsk},
		"no id":                     {attach.Ask{}, attach.ErrBadAsk},
		"id without a door":         {attach.Ask{ID: "b"}, attach.ErrBadAsk},
		"id with an empty door":     {attach.Ask{ID: "/b"}, attach.ErrBadAsk},
		"long id":                   {attach.Ask{ID: "ctl/" + strings.Repeat("b", 300)}, attach.ErrBadAsk},
		"id with a line break":      {attach.Ask{ID: "ctl/b\n"}, attach.ErrBadAsk},
		"unknown mode":              {attach.Ask{ID: "ctl/b", Mode: "host"}, attach.ErrBadAsk},
		"bridge with a parent":      {attach.Ask{ID: "ctl/b", Parent: "eth0"}, attach.ErrBadAsk},
		"macvlan without a parent":  {attach.Ask{ID: "ctl/b", Mode: attach.MACVLAN}, attach.ErrBadAsk},
		"parent that is a path":     {attach.Ask{ID: "ctl/b", Mode: attach.IPVLAN, Parent: "../x"}, attach.ErrBadAsk},
		"MAC of an ipvlan":          {attach.Ask{ID: "ctl/b", Mode: attach.IPVLAN, Parent: "eth0", MAC: "02:00:00:00:00:01"}, attach.ErrBadAsk},
		"MAC of a group":            {attach.Ask{ID: "ctl/b", MAC: "03:00:00:00:00:01"}, attach.ErrBadAsk},
		"MAC that is none":          {attach.Ask{ID: "ctl/b", MAC: "x"}, attach.ErrBadAsk},
		"container with an escape":  {attach.Ask{ID: "ctl/b", Container: "\x1b[2J"}, attach.ErrBadAsk},
		"a network that is default": {attach.Ask{ID: "ctl/a", Network: "default"}, attach.ErrInUse},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := r.Attach(t.Context(), tt.ask); !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
	r.wantHost(t, before)
	// And what was refused holds nothing.
	r.attach(t, attach.Ask{ID: "ctl/b", Addresses: addrs("10.86.7.9", "fd00:86:0:7::9")})
}

func TestExhausted(t *testing.T) {
	r := newRig(t)
	seen := map[netip.Addr]bool{}
	for i := range 253 {
		a := r.attach(t, attach.Ask{ID: fmt.Sprint("ctl/", i), Network: "web"}).Addresses[0].Addr()
		if seen[a] {
			t.Fatalf("%s is given twice", a)
		}
		seen[a] = true
	}
	if _, err := r.Attach(t.Context(), attach.Ask{ID: "ctl/more", Network: "web"}); !errors.Is(err, attach.ErrExhausted) {
		t.Fatalf("the subnet is full, and it says %v", err)
	}
	r.detach(t, "ctl/100")
	if a := r.attach(t, attach.Ask{ID: "ctl/more", Network: "web"}); a.Addresses[0].String() != "10.87.3.102/24" {
		t.Errorf("what was freed is %v", a.Addresses)
	}
}

func TestFirstUseWaitsForALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{host: new(attachtest.Host), store: new(attachtest.Store)}
		r.Manager = attach.New(attach.Options{Host: r.host, Store: r.store})
		waits := func(want string) {
			t.Helper()
			from := time.Now()
			_, err := r.Attach(t.Context(), attach.Ask{ID: "ctl/a", Network: "web"})
			if !errors.Is(err, attach.ErrNoLease) || !strings.Contains(err.Error(), want) {
				t.Errorf("attach: %v, want %q", err, want)
			}
			if waited := time.Since(from); waited != 20*time.Second {
				t.Errorf("it waits %v", waited)
			}
		}
		waits("the daemon starts")
		r.sync(attachtest.Lease("default", 7, mesh.Held))
		r.wantNetworks(t)
		waits("none was granted")
		r.wantNetworks(t)
		r.sync(attachtest.Lease("web", 3, mesh.Pending))
		waits("it has announced 10.87.3.0/24 and waits for objections")

		done := make(chan error)
		go func() {
			_, err := r.Attach(t.Context(), attach.Ask{ID: "ctl/a", Network: "web"})
			done <- err
		}()
		synctest.Wait()
		r.wantNetworks(t, `web in use: false, bridge "", local [], stale []`) // so a lease is asked for
		r.sync(attachtest.Lease("web", 3, mesh.Held))
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		r.wantHost(t, "[10.87.3.2] bridge on mbr-web mtu 1420\n")

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := r.Use(ctx, "ctl/x", "default"); !errors.Is(err, attach.ErrNoLease) {
			t.Errorf("use without a lease: %v", err)
		}
	})
}

func TestLeaseChanges(t *testing.T) {
	r := newRig(t)
	r.attach(t, attach.Ask{ID: "ctl/a", Network: "web"})
	state := func(want attach.State) {
		t.Helper()
		if a, err := r.Get("ctl/a"); err != nil || a.State != want {
			t.Errorf("it is %s, %v; want %s", a.State, err, want)
		}
	}
	state(attach.Live)

	r.sync(attachtest.Lease("web", 3, mesh.Quarantined))
	state(attach.Local)
	r.attach(t, attach.Ask{ID: "ctl/b", Network: "web"}) // local traffic goes on
	r.wantNetworks(t, `web in use: true, bridge "mbr-web", local [10.87.3.0/24], stale []`)

	r.sync()
	state(attach.Local)
	r.wantNetworks(t, `web in use: true, bridge "mbr-web", local [], stale [10.87.3.0/24]`)

	r.sync(attachtest.Lease("web", 5, mesh.Pending))
	state(attach.Stale)

	r.sync(attachtest.Lease("web", 5, mesh.Held))
	state(attach.Stale)
	c := r.attach(t, attach.Ask{ID: "ctl/c", Network: "web"})
	if c.Addresses[0].String() != "10.87.5.2/24" || c.State != attach.Live {
		t.Errorf("a new one gets %v, %s", c.Addresses, c.State)
	}
	r.wantNetworks(t, `web in use: true, bridge "mbr-web", live [10.87.5.0/24], stale [10.87.3.0/24]`)
	if f := r.Findings(); len(f) != 1 || f[0].Code != "attachments_stale" || !strings.HasPrefix(f[0].Message, "2 containers") {
		t.Errorf("findings %v", f)
	}
	if _, err := r.Attach(t.Context(), attach.Ask{ID: "ctl/d", Network: "web", Addresses: addrs("10.87.3.9")}); !errors.Is(err, attach.ErrOutside) {
		t.Errorf("an address of the subnet before: %v", err)
	}
	r.detach(t, "ctl/b")

	// The subnet comes back: who has an address there is not given away.
	r.sync(attachtest.Lease("web", 3, mesh.Held))
	state(attach.Live)
	for i := range 252 {
		if a := r.attach(t, attach.Ask{ID: fmt.Sprint("ctl/more", i), Network: "web"}); a.Addresses[0].String() == "10.87.3.2/24" {
			t.Fatal("the address is given twice")
		}
	}

	view := attachtest.View(attachtest.Lease("web", 3, mesh.Held))
	view.Networks = view.Networks[:1]
	r.Sync(attach.World{View: view, MTU: 1420})
	state(attach.Stale)
	if _, err := r.Attach(t.Context(), attach.Ask{ID: "ctl/z", Network: "web"}); !errors.Is(err, attach.ErrUnknownNetwork) {
		t.Errorf("the network was deleted: %v", err)
	}
	r.detach(t, "ctl/a")
}

func TestNoIPv6(t *testing.T) {
	r := newRig(t)
	r.Sync(attach.World{View: attachtest.View(attachtest.Lease("default", 7, mesh.Held)), MTU: 1420, NoIPv6: true})
	if a := r.attach(t, attach.Ask{ID: "ctl/a"}); len(a.Addresses) != 1 || len(a.Routes) != 1 || a.State != attach.Live {
		t.Errorf("on a host without IPv6 it is %+v", a)
	}
}

func TestReservations(t *testing.T) {
	r := newRig(t)
	reserve := func(w attach.Want) netip.Addr {
		t.Helper()
		a, err := r.Reserve(t.Context(), w)
		if err != nil || a.Bits() != 24 {
			t.Fatalf("%s, %v", a, err)
		}
		return a.Addr()
	}
	any := netip.IPv4Unspecified()
	a := reserve(attach.Want{Door: "docker", Network: "web", Address: any})
	kept := reserve(attach.Want{Door: "docker", Network: "web", Address: netip.MustParseAddr("10.87.3.77"), Keep: true})
	idle := reserve(attach.Want{Door: "docker", Network: "web", Address: any})
	for _, wish := range []netip.Addr{a, kept} {
		if _, err := r.Reserve(t.Context(), attach.Want{Door: "docker", Network: "web", Address: wish}); !errors.Is(err, attach.ErrTaken) {
			t.Errorf("reserve %s again: %v", wish, err)
		}
		if _, err := r.Attach(t.Context(), attach.Ask{ID: "cni/x", Network: "web", Addresses: []netip.Addr{wish}}); !errors.Is(err, attach.ErrTaken) {
			t.Errorf("another door attaches with %s: %v", wish, err)
		}
	}
	for _, w := range []attach.Want{{Network: "web", Address: any}, {Door: "docker", Network: "web"}, {Door: "a/b", Network: "web", Address: any}} {
		if _, err := r.Reserve(t.Context(), w); !errors.Is(err, attach.ErrBadAsk) {
			t.Errorf("reserve %+v: %v", w, err)
		}
	}
	r.attach(t, attach.Ask{ID: "docker/a", Network: "web", Addresses: []netip.Addr{a}})
	if _, err := r.Attach(t.Context(), attach.Ask{ID: "docker/b", Network: "web", Addresses: []netip.Addr{a}}); !errors.Is(err, attach.ErrTaken) {
		t.Errorf("attach twice with %s: %v", a, err)
	}
	r.restart(t, attach.Options{})
	r.collect(t, start)
	r.collect(t, start.Add(time.Hour))
	reserve(attach.Want{Door: "docker", Network: "web", Address: idle}) // was taken back
	if _, err := r.Reserve(t.Context(), attach.Want{Door: "ctl", Network: "web", Address: kept}); !errors.Is(err, attach.ErrTaken) {
		t.Errorf("%s is not kept: %v", kept, err)
	}
	release := func(door string, addr netip.Addr) {
		t.Helper()
		if err := r.Release(t.Context(), door, "web", addr); err != nil {
			t.Fatal(err)
		}
	}
	release("cni", kept) // it is not theirs
	release("docker", netip.MustParseAddr("10.87.3.200"))
	if _, err := r.Reserve(t.Context(), attach.Want{Door: "cni", Network: "web", Address: kept}); !errors.Is(err, attach.ErrTaken) {
		t.Errorf("%s was released by another door: %v", kept, err)
	}
	// Whichever goes first, the address is free when both have gone.
	r.detach(t, "docker/a")
	if _, err := r.Attach(t.Context(), attach.Ask{ID: "cni/x", Network: "web", Addresses: []netip.Addr{a}}); !errors.Is(err, attach.ErrTaken) {
		t.Errorf("%s is reserved yet: %v", a, err)
	}
	r.attach(t, attach.Ask{ID: "docker/b", Network: "web", Addresses: []netip.Addr{a}})
	release("docker", a)
	if _, err := r.Attach(t.Context(), attach.Ask{ID: "cni/x", Network: "web", Addresses: []netip.Addr{a}}); !errors.Is(err, attach.ErrTaken) {
		t.Errorf("%s is attached yet: %v", a, err)
	}
	r.detach(t, "docker/b")
	r.attach(t, attach.Ask{ID: "cni/x", Network: "web", Addresses: []netip.Addr{a}})
}

func TestUses(t *testing.T) {
	r := newRig(t)
	for range 2 {
		s, err := r.Use(t.Context(), "docker/n", "web")
		want := attach.Subnet{
			Network: "web", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.87.3.0/24")}, Gateways: addrs("10.87.3.1"),
			Routes: []netip.Prefix{netip.MustParsePrefix("10.87.0.0/16")}, MTU: 1420, State: attach.Live,
		}
		if err != nil || asJSON(t, s) != asJSON(t, want) {
			t.Fatalf("use: %+v, %v", s, err)
		}
	}
	if _, err := r.Use(t.Context(), "docker/n", "default"); !errors.Is(err, attach.ErrInUse) {
		t.Errorf("one id for two networks: %v", err)
	}
	r.restart(t, attach.Options{})
	r.wantNetworks(t, `web in use: false, bridge "", live [10.87.3.0/24], stale []`)
	for range 2 {
		if err := r.Unuse(t.Context(), "docker/n"); err != nil {
			t.Fatal(err)
		}
	}
	r.wantNetworks(t)
	r.restart(t, attach.Options{})
	r.wantNetworks(t)
}

func TestCollect(t *testing.T) {
	r := newRig(t)
	a := r.attach(t, attach.Ask{ID: "ctl/a", Network: "web"})
	r.attach(t, attach.Ask{ID: "ctl/b", Network: "web"})
	back := r.attach(t, attach.Ask{ID: "ctl/back", Network: "web"})
	r.attach(t, attach.Ask{ID: "ctl/macvlan", Network: "web", Mode: attach.MACVLAN, Parent: "eth0"})
	r.host.Lose(a.HostLink)
	r.host.Lose(back.HostLink)
	if _, err := r.Attach(t.Context(), attach.Ask{ID: "ctl/unmoved", Network: "web"}); err != nil {
		t.Fatal(err)
	}
	for i, tt := range []struct {
		at   time.Duration
		want []string
	}{{0, nil}, {59 * time.Second, nil}, {time.Minute, []string{"ctl/a", "ctl/unmoved"}}, {time.Hour, nil}} {
		if got := r.collect(t, start.Add(tt.at)); !slices.Equal(got, tt.want) {
			t.Errorf("after %v it ends %v, want %v", tt.at, got, tt.want)
		}
		if i == 0 {
			r.attach(t, attach.Ask{ID: "ctl/back", Network: "web"})
		}
	}
	if len(r.List()) != 3 {
		t.Errorf("left is %v", r.List())
	}
}

// What nobody knows any more has addresses that may be given to others.
func TestLinksOfALostDocumentGo(t *testing.T) {
	r := newRig(t)
	r.attach(t, attach.Ask{ID: "ctl/a", Network: "web"})
	r.store = new(attachtest.Store)
	r.restart(t, attach.Options{})
	r.wantHost(t, "")
}

func TestDamagedDocument(t *testing.T) {
	r := newRig(t)
	r.attach(t, attach.Ask{ID: "ctl/a", Network: "web"})
	r.attach(t, attach.Ask{ID: "ctl/b"})
	if err := r.store.SaveAttachments("web", []byte(`{"network":"web","attachments":[{}]}`)); err != nil {
		t.Fatal(err)
	}
	host := r.host.String()
	r.restart(t, attach.Options{})
	r.wantHost(t, host)
	if _, err := r.Attach(t.Context(), attach.Ask{ID: "ctl/a", Network: "web"}); !errors.Is(err, attach.ErrDamaged) {
		t.Errorf("attach: %v", err)
	}
	if f := r.Findings(); len(f) != 1 || f[0].Level != "error" || !strings.Contains(f[0].Message, "network web") {
		t.Errorf("findings %v", f)
	}
	r.attach(t, attach.Ask{ID: "ctl/c"})
	r.detach(t, "ctl/b")
	r.collect(t, start)
	r.wantHost(t, "[10.86.7.3 fd00:86:0:7::3] bridge on mbr-default mtu 1420\n[10.87.3.2] bridge on mbr-web mtu 1420\n")
	r.detach(t, "ctl/a")
	r.wantHost(t, "[10.86.7.3 fd00:86:0:7::3] bridge on mbr-default mtu 1420\n")
}

// One id in two documents is damage too.
func TestIDInTwoNetworks(t *testing.T) {
	r := newRig(t)
	r.attach(t, attach.Ask{ID: "ctl/a", Network: "web"})
	raw, err := r.store.LoadAttachments("web")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.store.SaveAttachments("default", []byte(strings.ReplaceAll(string(raw), `"web"`, `"default"`))); err != nil {
		t.Fatal(err)
	}
	r.restart(t, attach.Options{})
	if _, err := r.Attach(t.Context(), attach.Ask{ID: "ctl/b", Network: "web"}); !errors.Is(err, attach.ErrDamaged) {
		t.Errorf("attach: %v", err)
	}
}

func TestUnknownLinksGoBesideThoseWithoutAHostEnd(t *testing.T) {
	r := newRig(t)
	r.attach(t, attach.Ask{ID: "ctl/a", Network: "web", Mode: attach.MACVLAN, Parent: "eth0"})
	if err := r.host.AddPort(t.Context(), tun.Port{Kind: attach.MACVLAN, Peer: "mc-left"}); err != nil {
		t.Fatal(err)
	}
	if err := r.host.AddPort(t.Context(), tun.Port{Kind: attach.Bridge, Name: "mv-left", Peer: "mc-left2"}); err != nil {
		t.Fatal(err)
	}
	r.host.Move("mc-left2")
	r.collect(t, start)
	r.wantHost(t, "[10.87.3.2] macvlan on eth0 mtu 1420\n")
}

// What could not be undone at once is undone later, and nobody sees it meanwhile.
func TestUndoneLater(t *testing.T) {
	r := newRig(t)
	stuck := true
	r.host.Before = func(method string) error {
		if stuck && method == "DelPort" {
			return attachtest.ErrFailed
		}
		return nil
	}
	r.store.After = func() error {
		if stuck {
			return attachtest.ErrFailed
		}
		return nil
	}
	if _, err := r.Attach(t.Context(), attach.Ask{ID: "ctl/a", Network: "web"}); !errors.Is(err, attachtest.ErrFailed) {
		t.Fatalf("attach: %v", err)
	}
	if all := r.List(); len(all) > 0 {
		t.Errorf("it lists %v", all)
	}
	if _, err := r.Attach(t.Context(), attach.Ask{ID: "ctl/b", Network: "web", Addresses: addrs("10.87.3.2")}); !errors.Is(err, attach.ErrTaken) {
		t.Errorf("the link is there, and its address is given away: %v", err)
	}
	stuck = false
	r.collect(t, start)
	r.wantHost(t, "")
	r.restart(t, attach.Options{})
	if all := r.List(); len(all) > 0 {
		t.Errorf("after a restart it lists %v", all)
	}
}

// The host follows before a link is made, and nothing is attached if it cannot.
func TestRulesComeFirst(t *testing.T) {
	r := newRig(t)
	var story []string
	var fail error
	r.host.Before = func(method string) error { story = append(story, method); return nil }
	r.restart(t, attach.Options{Changed: func(context.Context) error {
		for _, n := range r.Networks() {
			story = append(story, fmt.Sprintf("rules for %s: %s, %d ports", n.Name, n.Bridge, len(n.Ports)))
		}
		story = append(story, "rules done")
		return fail
	}})
	want := func(lines ...string) {
		t.Helper()
		if !slices.Equal(story, lines) {
			t.Errorf("it went\n%s\nwant\n%s", strings.Join(story, "\n"), strings.Join(lines, "\n"))
		}
		story = nil
	}
	want("Ports")
	r.attach(t, attach.Ask{ID: "ctl/a", Network: "web"})
	want("rules for web: mbr-web, 1 ports", "rules done", "AddPort")
	r.attach(t, attach.Ask{ID: "ctl/b", Network: "web"})
	want("rules for web: mbr-web, 2 ports", "rules done", "AddPort")
	r.attach(t, attach.Ask{ID: "ctl/b", Network: "web"})
	want("AddPort")
	r.detach(t, "ctl/a")
	want("DelPort", "rules for web: mbr-web, 1 ports", "rules done")
	r.detach(t, "ctl/b")
	want("DelPort", "rules done")

	fail = errors.New("no rules")
	if _, err := r.Attach(t.Context(), attach.Ask{ID: "ctl/a", Network: "web"}); !errors.Is(err, fail) {
		t.Errorf("attach without rules: %v", err)
	}
	want("rules for web: mbr-web, 1 ports", "rules done", "DelPort", "rules done")
	fail = nil
	r.attach(t, attach.Ask{ID: "ctl/a", Network: "web"})
	want("rules for web: mbr-web, 1 ports", "rules done", "AddPort")
}

// Many at once: no address twice, and one write for several.
func TestParallel(t *testing.T) {
	r := newRig(t)
	r.store.Before = func() error { time.Sleep(5 * time.Millisecond); return nil } // as a disk does
	const n = 100
	each := func(do func(id string) error) {
		t.Helper()
		var tasks sync.WaitGroup
		errs := make([]error, n)
		for i := range n {
			tasks.Go(func() { errs[i] = do(fmt.Sprint("cni/", i, "/eth0")) })
		}
		tasks.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	each(func(id string) error {
		_, err := r.Attach(t.Context(), attach.Ask{ID: id})
		return err
	})
	got := r.host.Addresses()
	if all := len(got); all != 2*n || len(slices.Compact(got)) != all {
		t.Errorf("%d addresses: %v", all, got)
	}
	each(func(id string) error {
		_, err := r.Attach(t.Context(), attach.Ask{ID: id})
		return errors.Join(err, r.Detach(t.Context(), id))
	})
	r.wantHost(t, "")
	if saves := r.store.Saves(); saves > n {
		t.Errorf("%d saves of %d changes", saves, 3*n)
	}
	r.restart(t, attach.Options{})
	if left := r.List(); len(left) > 0 {
		t.Errorf("left is %v", left)
	}
}

// Asks with one id at once are one.
func TestSameAskInParallel(t *testing.T) {
	r := newRig(t)
	var tasks sync.WaitGroup
	answers := make([]string, 20)
	for i := range answers {
		tasks.Go(func() {
			a, err := r.Attach(t.Context(), attach.Ask{ID: "ctl/a"})
			answers[i] = fmt.Sprint(a, err)
		})
	}
	tasks.Wait()
	if len(slices.Compact(answers)) != 1 || len(r.List()) != 1 {
		t.Errorf("answers %v", answers)
	}
}

// What another ask has saved meanwhile does not make an attachment of one that is
// still being made: nothing would ever tell that its link was not.
func TestKilledBesideAnother(t *testing.T) {
	r := newRig(t)
	first := true
	r.host.Before = func(method string) error {
		if method != "AddPort" || !first {
			return nil
		}
		first = false
		r.attach(t, attach.Ask{ID: "ctl/other", Network: "web"})
		r.store.Before = func() error { return errKilled }
		return errKilled
	}
	if _, err := r.Attach(t.Context(), attach.Ask{ID: "ctl/a", Network: "web", Mode: attach.MACVLAN, Parent: "eth0"}); !errors.Is(err, errKilled) {
		t.Fatalf("attach: %v", err)
	}
	r.store.Before = nil
	r.restart(t, attach.Options{})
	if all := r.List(); len(all) != 1 || all[0].ID != "ctl/other" {
		t.Errorf("after a restart there is %v", all)
	}
}

var errKilled = errors.New("killed")

// The daemon is killed, in the middle of whatever it does, again and again. No
// address is ever given twice, what somebody was told of stays, and what nobody
// was told of goes.
func TestKilled(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := &rig{host: new(attachtest.Host), store: new(attachtest.Store)}
		life := 0 // changes until the end
		alive := func() error {
			if life--; life < 0 {
				return errKilled
			}
			return nil
		}
		r.host.Before = func(string) error { return alive() }
		r.store.Before, r.store.After = alive, alive
		told := map[string]string{}   // addresses by ID
		unsure := map[string]string{} // was being detached
		starts := func() {
			life = 1 << 30
			r.restart(t, attach.Options{})
			r.collect(t, start)
			r.collect(t, start.Add(time.Hour))
			got := r.host.Addresses()
			if all := len(got); len(slices.Compact(got)) != all {
				rt.Fatalf("an address is there twice: %v", got)
			}
			have := map[string]string{}
			for _, a := range r.List() {
				have[a.ID] = fmt.Sprint(a.Addresses)
			}
			for id, addresses := range told {
				if have[id] != addresses {
					rt.Fatalf("%s had %s and has %q", id, addresses, have[id])
				}
				delete(have, id)
			}
			for id, addresses := range have {
				if unsure[id] != addresses {
					rt.Fatalf("%s has %s, and nobody was told", id, addresses)
				}
				told[id] = addresses
			}
			clear(unsure)
			if want := 2 * len(told); len(got) != want {
				rt.Fatalf("%d addresses, want %d: %v", len(got), want, got)
			}
			life = rapid.IntRange(0, 30).Draw(rt, "life")
		}
		starts()
		id := rapid.Custom(func(t *rapid.T) string { return fmt.Sprint("ctl/", rapid.IntRange(0, 5).Draw(t, "id")) })
		rt.Repeat(map[string]func(*rapid.T){
			"attach": func(rt *rapid.T) {
				id := id.Draw(rt, "id")
				switch a, err := r.Attach(t.Context(), attach.Ask{ID: id}); {
				case err == nil:
					told[id] = fmt.Sprint(a.Addresses)
					r.host.Move(a.Peer)
				case !errors.Is(err, errKilled):
					rt.Fatal(err)
				}
			},
			"detach": func(rt *rapid.T) {
				id := id.Draw(rt, "id")
				err := r.Detach(t.Context(), id)
				if err != nil && !errors.Is(err, errKilled) {
					rt.Fatal(err)
				}
				if before := told[id]; before != "" && err != nil {
					unsure[id] = before
				}
				delete(told, id)
			},
			"kill": func(*rapid.T) { starts() },
		})
		starts()
	})
}

// Whose addresses others give out is in use, and no door gets one of them.
func TestDelegatedNetwork(t *testing.T) {
	r := newRig(t)
	r.attach(t, attach.Ask{ID: "ctl/before"})
	r.restart(t, attach.Options{Delegated: "default"})
	if f := r.Findings(); len(f) != 1 || f[0].Code != "addresses_given_twice" {
		t.Errorf("findings %+v", f)
	}
	r.detach(t, "ctl/before")
	if f := r.Findings(); len(f) > 0 {
		t.Errorf("findings %+v", f)
	}
	if n := r.Networks(); len(n) != 1 || n[0].Name != "default" || !n[0].InUse || !n[0].Delegated || len(n[0].Subnet.Prefixes) == 0 {
		t.Errorf("networks %+v, want the delegated one in use", n)
	}
	if _, err := r.Attach(t.Context(), attach.Ask{ID: "ctl/a"}); !errors.Is(err, attach.ErrDelegated) || !strings.Contains(err.Error(), "subnet_env") {
		t.Errorf("attach: %v", err)
	}
	if _, err := r.Use(t.Context(), "docker/network/a", "default"); !errors.Is(err, attach.ErrDelegated) {
		t.Errorf("use: %v", err)
	}
	r.attach(t, attach.Ask{ID: "ctl/a", Network: "web"})
}

// What hung on a bridge that somebody has removed hangs there again.
func TestStrayLinksAreMended(t *testing.T) {
	r := newRig(t)
	a := r.attach(t, attach.Ask{ID: "ctl/a"})
	r.host.Move(a.Peer)
	b := r.attach(t, attach.Ask{ID: "ctl/b", Mode: attach.PTP})
	r.host.Move(b.Peer)
	r.host.Stray(a.HostLink)
	r.collect(t, start)
	if all := r.host.Astray(); len(all) > 0 {
		t.Errorf("%s is on no bridge", all)
	}
}

// The host leads no packet to a container whose address may be another node's, and
// does again when the subnet is back.
func TestContainerWithoutBridgeIsCutOff(t *testing.T) {
	r := newRig(t)
	a := r.attach(t, attach.Ask{ID: "ctl/a", Mode: attach.PTP, Network: "web"})
	r.host.Move(a.Peer)
	for _, now := range []struct {
		leases []mesh.Lease
		want   int
	}{
		{[]mesh.Lease{attachtest.Lease("web", 3, mesh.Quarantined)}, 1},
		{nil, 0},
		{[]mesh.Lease{attachtest.Lease("web", 4, mesh.Held)}, 0},
		{[]mesh.Lease{attachtest.Lease("web", 3, mesh.Held)}, 1},
	} {
		r.sync(now.leases...)
		r.collect(t, start)
		if got := r.host.Addresses(); len(got) != now.want {
			t.Errorf("with %v the host leads to %v, want %d", now.leases, got, now.want)
		}
		if n := r.Networks(); len(n) != 1 || len(n[0].Ports) != 1 || len(n[0].Ports[0].Addresses) != now.want {
			t.Errorf("with %v the rules are for %+v", now.leases, n)
		}
	}
}
