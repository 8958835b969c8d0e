package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"meshd/mesh"
	"meshd/overlay/attach"
	"meshd/overlay/attach/attachtest"
	"meshd/overlay/status"
	"meshd/tun/inside"
)

var update = flag.Bool("update", false, "rewrite golden files")

// rig is a plugin with a daemon on a fake host, and containers that exist only
// here.
type rig struct {
	plugin
	*attach.Manager
	host       *attachtest.Host
	containers *containers
	down       bool // the daemon
	document   status.Document
	out        bytes.Buffer
	ns         string // any path that is there
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{host: new(attachtest.Host), containers: &containers{links: map[string]inside.Link{}}, ns: t.TempDir()}
	r.Manager = attach.New(attach.Options{Host: r.host, Store: new(attachtest.Store), Wait: 10 * time.Millisecond})
	if err := r.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.sync(attachtest.Lease("default", 7, mesh.Held), attachtest.Lease("web", 3, mesh.Held))
	r.containers.host = r.host
	r.plugin = plugin{stdout: &r.out, daemon: func(string) daemon { return door{r} }, namespaces: r.containers}
	return r
}

func (r *rig) sync(leases ...mesh.Lease) {
	view := attachtest.View(leases...)
	r.Sync(attach.World{View: view, MTU: 1420})
	r.document = status.Document{State: view.State}
	for _, n := range view.Networks {
		r.document.Networks = append(r.document.Networks, status.NewNetwork(n))
	}
}

// door is what the control socket is else.
type door struct{ *rig }

func (d door) up() error {
	if d.down {
		return fmt.Errorf("%w on /run/meshd/meshd.sock", status.ErrNoDaemon)
	}
	return nil
}

func (d door) Attach(ctx context.Context, ask attach.Ask) (attach.Attachment, error) {
	if err := d.up(); err != nil {
		return attach.Attachment{}, err
	}
	return d.Manager.Attach(ctx, ask)
}

func (d door) Detach(ctx context.Context, id string) error {
	if err := d.up(); err != nil {
		return err
	}
	return d.Manager.Detach(ctx, id)
}

func (d door) Attachment(_ context.Context, id string) (attach.Attachment, error) {
	if err := d.up(); err != nil {
		return attach.Attachment{}, err
	}
	return d.Get(id)
}

func (d door) Attachments(context.Context) ([]attach.Attachment, error) {
	return d.List(), d.up()
}

func (d door) Status(context.Context) (*status.Document, error) { return &d.document, d.up() }

// containers remember their links, by namespace and name.
type containers struct {
	host *attachtest.Host
	fail error // from Put

	mu    sync.Mutex
	links map[string]inside.Link // guarded by mu
}

func (c *containers) Put(_ context.Context, ns string, want inside.Link) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail != nil {
		return c.fail
	}
	if have, ok := c.links[ns+" "+want.Name]; ok && have.Peer != want.Peer {
		return inside.ErrTaken
	}
	c.links[ns+" "+want.Name] = want
	c.host.Move(want.Peer)
	return nil
}

func (c *containers) Check(_ context.Context, ns string, want inside.Link) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	have, ok := c.links[ns+" "+want.Name]
	switch {
	case !ok || have.Peer != want.Peer:
		return inside.ErrNoLink
	case !slices.Equal(have.Addresses, want.Addresses) || have.MAC != want.MAC:
		return fmt.Errorf("it has %v and %s", have.Addresses, have.MAC)
	case want.Default && !have.Default || slices.ContainsFunc(want.Routes, func(r netip.Prefix) bool { return !slices.Contains(have.Routes, r) }):
		return errors.New("it lacks a route")
	}
	return nil
}

func (c *containers) Remove(_ context.Context, ns, peer string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, l := range c.links {
		if strings.HasPrefix(key, ns+" ") && l.Peer == peer {
			delete(c.links, key)
		}
	}
	return nil
}

// args are those of a container named c1, and a configuration with more in it.
func (r *rig) args(more string) *skel.CmdArgs {
	conf := `{"cniVersion": "1.0.0", "name": "mesh", "type": "mesh-cni"`
	if more != "" {
		conf += ", " + more
	}
	return &skel.CmdArgs{ContainerID: "c1", Netns: r.ns, IfName: "eth0", StdinData: []byte(conf + "}")}
}

// mustAdd gives the result of an ADD.
func (r *rig) mustAdd(t *testing.T, args *skel.CmdArgs) string {
	t.Helper()
	r.out.Reset()
	if err := r.add(t.Context(), args); err != nil {
		t.Fatalf("ADD: %v", err)
	}
	return r.out.String()
}

// again gives the same arguments with the result of an ADD, as runtimes do for
// CHECK and DEL.
func again(t *testing.T, args *skel.CmdArgs, result string) *skel.CmdArgs {
	t.Helper()
	var conf map[string]any
	if err := json.Unmarshal(args.StdinData, &conf); err != nil {
		t.Fatal(err)
	}
	conf["prevResult"] = json.RawMessage(result)
	raw, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	next := *args
	next.StdinData = raw
	return &next
}

// wantCode compares an error with what CNI's form of it should be.
func wantCode(t *testing.T, what string, err error, code uint, text string) {
	t.Helper()
	e, ok := errors.AsType[*types.Error](err)
	if !ok || e.Code != code || !strings.Contains(e.Error(), text) {
		t.Errorf("%s: %#v; want the code %d and %q", what, err, code, text)
	}
}

// wantNothing looks for what a container should have left behind nowhere.
func (r *rig) wantNothing(t *testing.T, what string) {
	t.Helper()
	if all := r.List(); len(all) > 0 {
		t.Errorf("%s: there is still %v", what, all)
	}
	if ports := r.host.String(); ports != "" {
		t.Errorf("%s: the host still has %s", what, ports)
	}
}

// What ADD prints, by the version and the mode that a configuration asks for.
func TestResults(t *testing.T) {
	for _, tt := range []struct{ name, conf, args string }{
		{"bridge", ``, ""},
		{"bridge-0.3.1", `"cniVersion": "0.3.1"`, ""},
		{"bridge-1.1.0", `"cniVersion": "1.1.0"`, ""},
		{"ptp", `"mode": "ptp"`, ""},
		{"macvlan", `"mode": "macvlan", "parent": "ens3"`, ""},
		{"ipvlan", `"mode": "ipvlan", "parent": "ens3"`, ""},
		{"second-network", `"network": "web", "defaultRoute": false`, ""},
		{"dns", `"ipam": {}, "dns": {"nameservers": ["10.86.0.53"], "search": ["mesh"]}`, ""},
		{"wishes", `"runtimeConfig": {"ips": ["10.86.7.40/24", "fd00:86:0:7::40"], "mac": "02:00:00:00:00:40"}, "cni.dev/attachments": []`, ""},
		{"args", ``, "IgnoreUnknown=1;IP=10.86.7.41,::;MAC=02:00:00:00:00:41;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			args := r.args(tt.conf)
			args.Args = tt.args
			got := strings.ReplaceAll(r.mustAdd(t, args), r.ns, "/run/netns/c1") + "\n"
			golden := filepath.Join("testdata", "result", tt.name+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s\nwant %s", got, want)
			}

			if version := "0.3.1"; !strings.Contains(tt.conf, version) { // which has no CHECK
				if err := r.check(t.Context(), again(t, args, r.out.String())); err != nil {
					t.Errorf("CHECK: %v", err)
				}
			}
			if err := r.del(t.Context(), args); err != nil {
				t.Errorf("DEL: %v", err)
			}
			if len(r.containers.links) > 0 {
				t.Errorf("after DEL the container has %v", r.containers.links)
			}
			r.wantNothing(t, "after DEL")
		})
	}
}

// What runtimes really say, as TestContainerd and TestCnitool in overlay/e2e/cni have
// recorded it, and what is attached after each call.
func TestRecorded(t *testing.T) {
	for _, tt := range []struct {
		name string
		slot int // of the host that it was recorded on
		want string
	}{
		{"containerd-1.6.20", 54, `
ADD: default-web [10.86.54.2/24 fd00:86:0:36::2/64]
ADD: default-once [10.86.54.3/24 fd00:86:0:36::3/64], default-web [10.86.54.2/24 fd00:86:0:36::2/64]
DEL: default-web [10.86.54.2/24 fd00:86:0:36::2/64]
`},
		{"cnitool-1.3.1", 182, `
STATUS:
ADD: cnitool-6d99e056d18e558f63ec [10.86.182.2/24 fd00:86:0:b6::2/64]
CHECK: cnitool-6d99e056d18e558f63ec [10.86.182.2/24 fd00:86:0:b6::2/64]
DEL:
DEL:
GC:
`},
		{"cnitool-1.3.1-wishes", 100, `
ADD: cnitool-a210a645f33690a6393b [10.86.100.77/24]
CHECK: cnitool-a210a645f33690a6393b [10.86.100.77/24]
DEL:
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.sync(attachtest.Lease("default", tt.slot, mesh.Held))
			raw, err := os.ReadFile(filepath.Join("testdata", "recorded", tt.name+".txt"))
			if err != nil {
				t.Fatal(err)
			}
			got := "\n"
			env := map[string]string{}
			for line := range strings.Lines(string(raw)) {
				line = strings.TrimSpace(line)
				if key, value, ok := strings.Cut(line, "="); ok && line[0] != '{' {
					env[key] = value
				}
				if !strings.HasPrefix(line, "{") {
					continue
				}
				command := env["CNI_COMMAND"]
				if err := r.call(t, env, line); err != nil {
					t.Errorf("%s: %v", command, err)
				}
				var all []string
				for _, a := range r.List() {
					all = append(all, fmt.Sprintf("%s %v", a.Container, a.Addresses))
				}
				got += strings.TrimSpace(command+": "+strings.Join(all, ", ")) + "\n"
			}
			if got != tt.want {
				t.Errorf("attached was%swant%s", got, tt.want)
			}
		})
	}
}

// call carries a recorded call out. Each container has a namespace here.
func (r *rig) call(t *testing.T, env map[string]string, stdin string) error {
	t.Helper()
	args := &skel.CmdArgs{ContainerID: env["CNI_CONTAINERID"], IfName: env["CNI_IFNAME"], Args: env["CNI_ARGS"], StdinData: []byte(stdin)}
	if env["CNI_NETNS"] != "" {
		args.Netns = filepath.Join(r.ns, args.ContainerID)
		if err := os.MkdirAll(args.Netns, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return map[string]func(context.Context, *skel.CmdArgs) error{
		"ADD": r.add, "DEL": r.del, "CHECK": r.check, "GC": r.gc, "STATUS": r.status,
	}[env["CNI_COMMAND"]](t.Context(), args)
}

func TestContainersName(t *testing.T) {
	r := newRig(t)
	args := r.args("")
	args.Args = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=" + strings.Repeat("cart", 80)
	r.mustAdd(t, args)
	if all := r.List(); len(all) != 1 || all[0].ID != "cni/mesh/c1/eth0" || !strings.HasPrefix(all[0].Container, "shop/cartcart") {
		t.Errorf("attached is %+v", all)
	}
}

func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		conf, args string
		code       uint
		text       string
	}{
		{`"network": "nope"`, "", 7, "no such network"},
		{`"network": "../default"`, "", 7, "no such network"},
		{`"mode": "vxlan"`, "", 7, `mode "vxlan"`},
		{`"mode": "macvlan"`, "", 7, "parent"},
		{`"mode": "macvlan", "parent": "../eth0"`, "", 7, "no name of a network link"},
		{`"networks": "web"`, "", 2, `"networks": "web"`},
		{`"Network": "web"`, "", 2, `"Network"`},
		{`"bridge": "cni0"`, "", 2, `"bridge": "cni0"; mesh-cni has network, mode, parent, socket, defaultRoute`},
		{`"isGateway": true`, "", 2, `"isGateway": true`},
		{`"ipam": {"type": "host-local", "subnet": "10.1.0.0/24"}`, "", 2, "meshd gives the addresses"},
		{`"ipam": {"type": "meshd", "subnet": "10.1.0.0/24"}`, "", 2, "meshd gives the addresses"},
		{`"ipam": "host-local"`, "", 6, "ipam"},
		{`"prevResult": {"cniVersion": "1.0.0"}`, "", 7, "not the first plugin"},
		{`"prevResult": {"cniVersion": "1.0.0", "ips": 7}`, "", 6, "prevResult"},
		{`"runtimeConfig": {"ips": ["10.86.7.999"]}`, "", 7, "bad address"},
		{`"runtimeConfig": {"ips": ["10.86.7.8", "10.86.7.9"]}`, "", 7, "two addresses"},
		{`"runtimeConfig": {"ips": ["10.86.8.8"]}`, "", codeOutside, "10.86.8.8"},
		{`"runtimeConfig": {"ips": ["10.86.7.1"]}`, "", codeTaken, "this host's own"},
		{`"runtimeConfig": {"ips": ["10.86.7.200"]}`, "", codeTaken, "10.86.7.200"},
		{`"runtimeConfig": {"mac": "01:00:00:00:00:01"}`, "", 7, "no MAC address of a host"},
		{`"runtimeConfig": {"mac": "02:00:00:00:00:01"}`, "MAC=02:00:00:00:00:02", 7, "bad MAC address"},
		{``, "IP=here", 7, "bad address"},
		{``, "IP", 4, "CNI_ARGS"},
		{``, "FOO=bar", 4, "FOO=bar"},
		{``, "CommonArgs=bar", 4, "CommonArgs"},
	} {
		t.Run(tt.conf+tt.args, func(t *testing.T) {
			r := newRig(t)
			other := r.args(`"runtimeConfig": {"ips": ["10.86.7.200"]}`)
			other.ContainerID = "c0"
			r.mustAdd(t, other)
			before := r.host.String()
			args := r.args(tt.conf)
			args.Args = tt.args
			wantCode(t, "ADD", r.add(t.Context(), args), tt.code, tt.text)
			if got := r.host.String(); got != before {
				t.Errorf("the host has %s; want it as it was: %s", got, before)
			}
			if len(r.List()) != 1 {
				t.Errorf("attached is %v", r.List())
			}
		})
	}
}

func TestExhausted(t *testing.T) {
	r := newRig(t)
	for i := range 253 {
		args := r.args(`"network": "web"`)
		args.ContainerID, args.IfName = fmt.Sprintf("c%d", i), fmt.Sprintf("eth%d", i)
		r.mustAdd(t, args)
	}
	args := r.args(`"network": "web"`)
	args.ContainerID = "last"
	wantCode(t, "ADD", r.add(t.Context(), args), codeExhausted, "no address is free")
}

// A lease may come: the runtime is to try again.
func TestNoLease(t *testing.T) {
	r := newRig(t)
	r.sync()
	wantCode(t, "ADD", r.add(t.Context(), r.args("")), types.ErrTryAgainLater, "holds no subnet")
	r.wantNothing(t, "after a failed ADD")
}

func TestFailedAddLeavesNothing(t *testing.T) {
	t.Run("interface", func(t *testing.T) {
		r := newRig(t)
		r.containers.fail = errors.New("told to fail")
		wantCode(t, "ADD", r.add(t.Context(), r.args("")), types.ErrInternal, "told to fail")
		r.wantNothing(t, "after a failed ADD")
	})
	t.Run("cancelled", func(t *testing.T) {
		r := newRig(t)
		ctx, cancel := context.WithCancel(t.Context())
		r.containers.fail = context.Canceled
		r.host.Before = func(method string) error {
			if method == "AddPort" {
				cancel()
			}
			return nil
		}
		wantCode(t, "ADD", r.add(ctx, r.args("")), types.ErrTryAgainLater, "cancel")
		r.wantNothing(t, "after a cancelled ADD")
	})
	t.Run("name taken", func(t *testing.T) {
		r := newRig(t)
		theirs := inside.Link{Peer: "theirs", Name: "eth0"}
		r.containers.links[r.ns+" eth0"] = theirs
		wantCode(t, "ADD", r.add(t.Context(), r.args("")), codeInUse, "taken")
		r.wantNothing(t, "after a failed ADD")
		// The runtime's DEL must not take what was in the way.
		if err := r.del(t.Context(), r.args("")); err != nil {
			t.Errorf("DEL: %v", err)
		}
		if got := r.containers.links[r.ns+" eth0"]; got.Peer != theirs.Peer {
			t.Error("DEL removed an interface that ADD had not made")
		}
	})
	t.Run("output closed", func(t *testing.T) {
		r := newRig(t)
		r.stdout = closed{}
		wantCode(t, "ADD", r.add(t.Context(), r.args("")), types.ErrIOFailure, "closed")
		r.wantNothing(t, "after a failed ADD")
	})
}

type closed struct{}

func (closed) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestRepeated(t *testing.T) {
	r := newRig(t)
	first := r.mustAdd(t, r.args(""))
	if second := r.mustAdd(t, r.args("")); second != first {
		t.Errorf("the same ADD again gives %s, and gave %s", second, first)
	}
	wantCode(t, "another ADD", r.add(t.Context(), r.args(`"mode": "ptp"`)), codeInUse, "attached already, in another way")
	if err := r.check(t.Context(), again(t, r.args(""), first)); err != nil {
		t.Errorf("CHECK after that: %v", err)
	}
	for range 3 {
		if err := r.del(t.Context(), r.args("")); err != nil {
			t.Errorf("DEL: %v", err)
		}
	}
	r.wantNothing(t, "after DEL")
	r.mustAdd(t, r.args(`"mode": "ptp"`))
}

// An ADD that fails where another one has succeeded takes nothing from the container
// that runs.
func TestFailedRepetitionDetachesNothing(t *testing.T) {
	r := newRig(t)
	first := r.mustAdd(t, r.args(""))
	r.containers.fail = errors.New("told to fail")
	wantCode(t, "ADD again", r.add(t.Context(), r.args("")), types.ErrInternal, "told to fail")
	r.containers.fail, r.stdout = nil, closed{}
	wantCode(t, "ADD again", r.add(t.Context(), r.args("")), types.ErrIOFailure, "closed")
	if all := r.List(); len(all) != 1 || r.host.String() == "" {
		t.Errorf("attached is %v, the host has %q", all, r.host.String())
	}
	if err := r.check(t.Context(), again(t, r.args(""), first)); err != nil {
		t.Errorf("CHECK after that: %v", err)
	}
}

func TestDelWithoutDaemon(t *testing.T) {
	t.Run("bridge", func(t *testing.T) {
		r := newRig(t)
		r.mustAdd(t, r.args(""))
		r.down = true
		if err := r.del(t.Context(), r.args("")); err != nil {
			t.Errorf("DEL: %v", err)
		}
		if len(r.containers.links) > 0 {
			t.Errorf("DEL left %v", r.containers.links)
		}
	})
	t.Run("macvlan", func(t *testing.T) { // whose end the daemon cannot miss
		r := newRig(t)
		args := r.args(`"mode": "macvlan", "parent": "ens3"`)
		r.mustAdd(t, args)
		r.down = true
		wantCode(t, "DEL", r.del(t.Context(), args), types.ErrTryAgainLater, "no daemon")
		if len(r.containers.links) > 0 {
			t.Errorf("DEL left %v", r.containers.links)
		}
		r.down = false
		if err := r.del(t.Context(), args); err != nil {
			t.Errorf("DEL again: %v", err)
		}
		r.wantNothing(t, "after DEL")
	})
}

func TestDelReportsWhatTheDaemonCannot(t *testing.T) {
	r := newRig(t)
	r.mustAdd(t, r.args(""))
	r.host.Before = func(string) error { return attachtest.ErrFailed }
	wantCode(t, "DEL", r.del(t.Context(), r.args("")), types.ErrInternal, "told to fail")
	r.host.Before = nil
	if err := r.del(t.Context(), r.args("")); err != nil {
		t.Errorf("DEL again: %v", err)
	}
	r.wantNothing(t, "after DEL")
}

// What nothing can have been attached by is detached.
func TestDelOfAnIDThatIsTooLong(t *testing.T) {
	r := newRig(t)
	args := r.args("")
	args.ContainerID = strings.Repeat("c", 300)
	wantCode(t, "ADD", r.add(t.Context(), args), types.ErrInvalidNetworkConfig, "id")
	if err := r.del(t.Context(), args); err != nil {
		t.Errorf("DEL: %v", err)
	}
}

func TestCheck(t *testing.T) {
	const conf = `"dns": {"domain": "mesh"}`
	for _, tt := range []struct {
		name   string
		change func(r *rig, result string) string
		code   uint
		text   string
	}{
		{"no interface inside", func(r *rig, s string) string { clear(r.containers.links); return s }, codeChanged, "no such link"},
		{"another address inside", func(r *rig, s string) string {
			r.containers.mend(func(l *inside.Link) { l.Addresses = l.Addresses[1:] })
			return s
		}, codeChanged, "it has ["},
		{"no default route inside", func(r *rig, s string) string {
			r.containers.mend(func(l *inside.Link) { l.Default = false })
			return s
		}, codeChanged, "lacks a route"},
		{"another address in the result", func(r *rig, s string) string {
			return strings.Replace(s, "10.86.7.2/24", "10.86.7.9/24", 1)
		}, codeChanged, "eth0 has not got 10.86.7.2/24"},
		{"another interface in the result", func(r *rig, s string) string {
			return strings.Replace(s, `"eth0"`, `"eth7"`, 1)
		}, codeChanged, "no interface eth0"},
		{"another MAC address in the result", func(r *rig, s string) string {
			return strings.Replace(s, `"mac": "02:`, `"mac": "0a:`, 1)
		}, codeChanged, "MAC address 0a:"},
		{"null in the result", func(r *rig, s string) string {
			return `{"cniVersion": "1.0.0", "interfaces": [null], "ips": [null], "routes": [null]}`
		}, codeChanged, "no interface eth0"},
		{"not attached", func(r *rig, s string) string { _ = r.Detach(t.Context(), "cni/mesh/c1/eth0"); return s }, codeNotThere, "nothing is attached"},
		{"another subnet", func(r *rig, s string) string { r.sync(attachtest.Lease("default", 9, mesh.Held)); return s }, codeChanged, "anew"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			result := tt.change(r, r.mustAdd(t, r.args(conf)))
			wantCode(t, "CHECK", r.check(t.Context(), again(t, r.args(conf), result)), tt.code, tt.text)
		})
	}
	t.Run("a route taken away by a later plugin", func(t *testing.T) {
		r := newRig(t)
		result := r.mustAdd(t, r.args(conf))
		var parsed map[string]any
		if err := json.Unmarshal([]byte(result), &parsed); err != nil {
			t.Fatal(err)
		}
		parsed["routes"] = []any{}
		raw, _ := json.Marshal(parsed)
		r.containers.mend(func(l *inside.Link) { l.Default, l.Routes = false, nil })
		if err := r.check(t.Context(), again(t, r.args(conf), string(raw))); err != nil {
			t.Errorf("CHECK: %v", err)
		}
	})
	t.Run("quarantined", func(t *testing.T) { // to make the container anew would not help
		r := newRig(t)
		result := r.mustAdd(t, r.args(conf))
		r.sync(attachtest.Lease("default", 7, mesh.Quarantined))
		if err := r.check(t.Context(), again(t, r.args(conf), result)); err != nil {
			t.Errorf("CHECK: %v", err)
		}
	})
}

// mend changes every link.
func (c *containers) mend(change func(*inside.Link)) {
	for key, l := range c.links {
		change(&l)
		c.links[key] = l
	}
}

// GC ends what the runtime has forgotten, and nothing of others.
func TestGC(t *testing.T) {
	r := newRig(t)
	add := func(name, id, ifname string) {
		args := r.args("")
		args.StdinData = []byte(strings.Replace(string(args.StdinData), `"mesh"`, `"`+name+`"`, 1))
		args.ContainerID, args.IfName, args.Netns = id, ifname, t.TempDir()
		r.mustAdd(t, args)
	}
	add("mesh", "c1", "eth0")
	add("mesh", "c2", "eth0")
	add("mesh", "c2", "eth1")
	add("mesh2", "c1", "eth0")
	add("mes", "h", "eth0")
	if _, err := r.Manager.Attach(t.Context(), attach.Ask{ID: "docker/mesh/c1/eth0"}); err != nil {
		t.Fatal(err)
	}
	attached := func() string {
		var ids []string
		for _, a := range r.List() {
			ids = append(ids, a.ID)
		}
		return strings.Join(ids, " ")
	}
	gc := func(more string) {
		t.Helper()
		if err := r.gc(t.Context(), r.args(more)); err != nil {
			t.Errorf("GC: %v", err)
		}
	}
	const others = "cni/mes/h/eth0 "
	gc(`"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c2", "ifname": "eth1"}, {"containerID": "c9", "ifname": "eth0"}]`)
	if got, want := attached(), others+"cni/mesh/c1/eth0 cni/mesh/c2/eth1 cni/mesh2/c1/eth0 docker/mesh/c1/eth0"; got != want {
		t.Errorf("after GC there is %s; want %s", got, want)
	}
	gc("")
	if got, want := attached(), others+"cni/mesh2/c1/eth0 docker/mesh/c1/eth0"; got != want {
		t.Errorf("after GC of all there is %s; want %s", got, want)
	}
}

// One that cannot be ended is no reason to leave the others.
func TestGCGoesOn(t *testing.T) {
	r := newRig(t)
	for _, id := range []string{"c1", "c2", "c3"} {
		args := r.args("")
		args.ContainerID, args.Netns = id, t.TempDir()
		r.mustAdd(t, args)
	}
	failures := 0
	r.host.Before = func(string) error {
		if failures++; failures == 1 {
			return attachtest.ErrFailed
		}
		return nil
	}
	wantCode(t, "GC", r.gc(t.Context(), r.args("")), types.ErrInternal, "told to fail")
	if left := r.List(); len(left) != 1 {
		t.Errorf("GC left %v; want the one that failed", left)
	}
}

func TestStatus(t *testing.T) {
	r := newRig(t)
	if err := r.status(t.Context(), r.args("")); err != nil {
		t.Errorf("STATUS: %v", err)
	}
	wantCode(t, "STATUS", r.status(t.Context(), r.args(`"network": "nope"`)), types.ErrPluginNotAvailable, "no network nope")
	wantCode(t, "STATUS", r.status(t.Context(), r.args(`"mtu": 9000`)), types.ErrUnsupportedField, "9000")
	r.document.State = mesh.Quarantine
	wantCode(t, "STATUS", r.status(t.Context(), r.args("")), types.ErrLimitedConnectivity, "quarantined")
	r.document.State = mesh.Probing
	wantCode(t, "STATUS", r.status(t.Context(), r.args("")), types.ErrPluginNotAvailable, "probing")
	r.down = true
	wantCode(t, "STATUS", r.status(t.Context(), r.args("")), types.ErrPluginNotAvailable, "no daemon")
}

// A hundred containers at once get a hundred addresses and give them back.
func TestParallel(t *testing.T) {
	r := newRig(t)
	each := func(do func(p plugin, args *skel.CmdArgs) error) {
		t.Helper()
		var tasks sync.WaitGroup
		for i := range 100 {
			tasks.Go(func() {
				p := r.plugin
				p.stdout = new(bytes.Buffer)
				args := r.args("")
				args.ContainerID, args.IfName = fmt.Sprintf("c%d", i), fmt.Sprintf("eth%d", i)
				if err := do(p, args); err != nil {
					t.Error(err)
				}
			})
		}
		tasks.Wait()
	}
	each(func(p plugin, args *skel.CmdArgs) error { return p.add(t.Context(), args) })
	all := r.host.Addresses()
	if n := len(all); n != 200 || len(slices.Compact(all)) != n {
		t.Errorf("%d addresses are given, %d different ones; want 200", n, len(slices.Compact(all)))
	}
	each(func(p plugin, args *skel.CmdArgs) error { return p.del(t.Context(), args) })
	r.wantNothing(t, "in the end")
}

// What the daemon refuses for a reason of its own is never said to be a fault of the
// plugin.
func TestReasonsHaveCodes(t *testing.T) {
	for _, reason := range []error{
		attach.ErrUnknownNetwork, attach.ErrNoLease, attach.ErrTaken, attach.ErrOutside, attach.ErrExhausted,
		attach.ErrInUse, attach.ErrUnknown, attach.ErrBadAsk, attach.ErrDelegated, attach.ErrDamaged,
	} {
		err, ok := errors.AsType[*types.Error](failed("attach", fmt.Errorf("attach: %w", reason)))
		if !ok || err.Code == types.ErrInternal {
			t.Errorf("%v: %v", reason, err)
		}
	}
}
