package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/member"
	"meshd/mesh/meshtest"
	"meshd/mesh/trust"
	"meshd/overlay/status"
)

// operated is a daemon with a real member behind it, as far as signed objects go.
type operated struct {
	*daemon
	core *member.Member

	mu      sync.Mutex
	keys    []status.KeysReply // one answer after the other, then the last
	changed func()             // by what it is asked for; may be nil
}

func (o *operated) Objects(context.Context) ([][]byte, error)  { return o.core.Table(), nil }
func (o *operated) Submit(_ context.Context, raw []byte) error { return o.core.Submit(raw) }
func (o *operated) Forget(_ context.Context, id mesh.NodeID) error {
	return o.do("forget " + id.Short())
}
func (o *operated) Release(_ context.Context, network string) error {
	return o.do("release " + network)
}
func (o *operated) RotateTunnel(context.Context) error { return o.do("rotate tunnel") }
func (o *operated) RotateGossip(_ context.Context, now bool) error {
	return o.do(fmt.Sprint("rotate gossip ", now))
}
func (o *operated) Renumber(_ context.Context, n string, f bool) error {
	return o.do(fmt.Sprint("renumber ", n, " ", f))
}

func (o *operated) Keys(context.Context) (status.KeysReply, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	k := o.keys[0]
	if len(o.keys) > 1 {
		o.keys = o.keys[1:]
	}
	return k, nil
}

func (o *operated) do(what string) error {
	if err := o.called(what); err != nil {
		return err
	}
	if o.changed != nil {
		o.changed()
	}
	return nil
}

// operate serves a node alpha, which knows beta, and gives the command line that
// asks it.
func operate(t *testing.T) (*operated, func(args ...string) result) {
	t.Helper()
	m := meshtest.NewMesh(t)
	keys, membership := m.Founder(t, "alpha")
	beta, joined := m.Joined(t, "beta")
	now := time.Now()
	core := meshtest.Member(t, now, keys, membership, member.State{Epoch: 1}, [][]byte{joined.Certificate}, 1)
	other := meshtest.Member(t, now, beta, joined, member.State{Epoch: 1}, nil, 2)
	core.Step(now)
	for _, raw := range append(other.Step(now).Broadcast, core.Table()...) {
		_ = core.Receive(raw)
	}
	for range 50 { // until its lot to vouch for beta has come
		now = now.Add(time.Second)
		core.Step(now)
	}
	doc := healthy()
	doc.Node.ID = keys.ID()
	doc.Networks = []status.Network{status.NewNetwork(m.Charter.Networks[0]), {Name: "web"}}
	doc.Node.Leases = []status.Lease{leaseAt("10.86.17.0/24", now)}
	doc.Peers[0].ID, doc.Peers[0].Leases = beta.ID(), []status.Lease{leaseAt("10.86.80.0/24", now)}
	o := &operated{daemon: &daemon{doc: doc}, core: core}
	socket := serveWith(t, status.Options{Daemon: o, Objects: o, Leases: o, Keys: o})
	config := filepath.Join(t.TempDir(), "config.yaml")
	return o, func(args ...string) result {
		return meshctl(t.Context(), append([]string{"--config", config, "--socket", socket}, args...)...)
	}
}

func leaseAt(prefix string, now time.Time) status.Lease {
	l := status.NewLease(mesh.Lease{Network: "default", Prefixes: []netip.Prefix{netip.MustParsePrefix(prefix)}, State: mesh.Held, Since: now.Add(-time.Hour)})
	l.Renewed, l.Expires = new(time.Now().Add(-30*time.Minute)), new(time.Now().Add(23*time.Hour+45*time.Minute))
	return l
}

func (o *operated) change(change func(*status.Document)) {
	o.daemon.mu.Lock()
	defer o.daemon.mu.Unlock()
	change(&o.daemon.doc)
}

func (o *operated) asked() string {
	o.daemon.mu.Lock()
	defer o.daemon.mu.Unlock()
	return strings.Join(o.daemon.calls, "; ")
}

// want fails unless a command ends with a code and says all of some words.
func want(t *testing.T, got result, code int, words ...string) {
	t.Helper()
	for _, w := range words {
		if got.code != code || !strings.Contains(got.stdout+got.stderr, w) {
			t.Errorf("%+v, want code %d and %q", got, code, w)
		}
	}
}

func TestLeasesOfADaemon(t *testing.T) {
	o, run := operate(t)
	want(t, run("lease", "list"), 0, "default  10.86.17.0/24  alpha  held", "default  10.86.80.0/24  beta   held", "30m ago  23h")
	o.change(func(d *status.Document) { d.Peers[0].Expired = mesh.NotHeard })
	want(t, run("lease", "list", "-f", "{{range .}}{{.node}} {{.state}};{{end}}"), 0, "alpha held;beta expired;")
	want(t, run("lease", "list"), 0, "Z  30m ago  -\n") // what is void does not end
	want(t, run("lease", "list", "-o", "wide"), 0, "ID\n", o.doc.Peers[0].ID.String()+"\n")
	want(t, run("lease", "list", "-f", "{{(index . 1).id}} {{(index . 1).ends}}"), 0, o.doc.Peers[0].ID.String()+" <no value>")

	o.changed = func() {
		o.change(func(d *status.Document) { d.Node.Leases = []status.Lease{leaseAt("10.86.18.0/24", time.Now())} })
	}
	want(t, run("lease", "renumber", "nowhere"), 65, "the mesh has no network nowhere", "network list")
	want(t, run("lease", "renumber"), 0, "in network default: 10.86.18.0/24, before 10.86.17.0/24")
	o.changed = func() {
		o.change(func(d *status.Document) { d.Node.Leases = nil })
	}
	want(t, run("lease", "release", "web"), 0, "has given its subnet back")
	if got := o.asked(); got != "renumber default false; release web" {
		t.Errorf("the daemon was asked for %s", got)
	}
	o.fail = fmt.Errorf("renumber: %w: by two", status.ErrLeaseInUse)
	want(t, run("lease", "renumber"), 1, "in use: by two: detach the containers, or use --force")
	want(t, run("lease", "release", "web"), 1, "detach the containers (", "attach list")
}

// Who was revoked is told so, whatever it wants.
func TestARevokedNodeIsToldSo(t *testing.T) {
	o, run := operate(t)
	o.change(func(d *status.Document) { d.State = mesh.Revoked })
	for _, command := range [][]string{{"cert", "renew", "--request"}, {"lease", "renumber"}, {"lease", "release", "web"}, {"keys", "rotate", "tunnel"}} {
		want(t, run(command...), 65, "this node was revoked")
	}
	if got := o.asked(); got != "" {
		t.Errorf("the daemon was asked for %s", got)
	}
}

// A node that is not there, or there twice, is a wrong word and no failure of the
// mesh, whichever command is told it.
func TestNodesThatAreNotThere(t *testing.T) {
	o, run := operate(t)
	for _, command := range [][]string{{"ping"}, {"cert", "show"}, {"cert", "renew"}, {"forget"}, {"revoke"}} {
		want(t, run(append(command, "nobody")...), 65, "no such node: nobody: there are")
	}
	o.change(func(d *status.Document) {
		d.Peers = append(d.Peers, status.Peer{ID: mesh.NodeID{7}, Name: "beta", State: status.PeerUp})
	})
	want(t, run("ping", "beta"), 65, "several nodes match beta: name one by its ID: ", "beta "+o.doc.Peers[0].ID.String()+" 10.86.80.0/24", "beta "+mesh.NodeID{7}.String())
}

// Without the CA key, a member asks its daemon, which may say that it is too early.
func TestForgetByAMember(t *testing.T) {
	o, run := operate(t)
	want(t, run("forget", "beta", "--yes"), 0, "Warning: beta answers", "Forgot beta (")
	if got, want := o.asked(), "forget "+o.doc.Peers[0].ID.Short(); got != want {
		t.Errorf("the daemon was asked for %s, want %s", got, want)
	}
	o.fail = fmt.Errorf("forget: %w: heard of 3 s ago", status.ErrNotNow)
	want(t, run("forget", "beta", "--yes"), 1, "not now: heard of 3 s ago")
	want(t, run("forget", "beta", "--yes", "--ca", "/nowhere"), 66, "/nowhere")
	want(t, run("revoke", "beta", "--yes"), 66, "ca.key")
}

func TestKeysOfADaemon(t *testing.T) {
	o, run := operate(t)
	o.keys = []status.KeysReply{{Tunnel: "pub", Gossip: []status.GossipKey{
		{Generation: 2, ID: "aabb", Made: new(time.Now())}, {Generation: 1, ID: "ccdd", Sends: true},
	}}}
	o.change(func(d *status.Document) { d.Peers[0].GossipKey = &status.Generations{Newest: 1, Sends: 1} })
	want(t, run("keys", "list"), 0, "Tunnel    pub", "1 of 2   0 of 2        beta", "ccdd", "from the start  yes")
	want(t, run("keys", "list", "-f", "{{range .gossip}}{{.generation}} {{.have}} {{.use}} {{.lack}};{{end}}"), 0, "2 1 0 [beta];1 2 2 [];")
	want(t, run("keys", "rotate", "tunnel"), 0, "is now pub")
	want(t, run("keys", "rotate", "gossip", "--now", "--no-wait"), 0, "on its way")
	if got := o.asked(); got != "rotate tunnel; rotate gossip true" {
		t.Errorf("the daemon was asked for %s", got)
	}
	o.fail = fmt.Errorf("rotate: %w", status.ErrNotAllowed)
	want(t, run("keys", "rotate", "gossip"), 1, "may not do that", "cert renew NODE --rotate")
}

// A token of whose gossip key nothing is left opens no door any more; one whose key has
// not come here yet may.
func TestTokensOfADroppedKey(t *testing.T) {
	o, run := operate(t)
	now := time.Now()
	charter, err := trust.ParseCharter(o.core.Table()[0], mesh.ID{})
	if err != nil {
		t.Fatal(err)
	}
	note := func(n byte, key string, generation uint64) tokenNote {
		return tokenNote{charter.ID(), tokenRow{
			ID: strings.Repeat(fmt.Sprintf("%02x", n), len(trust.Serial{})), NotBefore: new(now), NotAfter: new(now.Add(time.Hour)), Uses: 1, Key: key, Generation: generation,
		}}
	}
	var lines []byte
	for _, n := range []tokenNote{note(1, "aaaa", 0), note(2, "bbbb", 1), note(3, "cccc", 2), note(4, "dddd", 3), note(5, "", 0)} {
		line, err := json.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(append(lines, line...), '\n')
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, notesName), lines, 0o600); err != nil {
		t.Fatal(err)
	}
	o.keys = []status.KeysReply{{Gossip: []status.GossipKey{{Generation: 2, ID: "cccc", Sends: true}, {Generation: 1, ID: "bbbb"}}}}
	want(t, run("token", "list", "--ca", filepath.Join(dir, "ca.key"), "-f", "{{range .}}{{slice .id 0 2}} {{.state}};{{end}}"), 0,
		"01 outdated;", "02 open;", "03 open;", "04 open;", "05 open;")
	const unknown = "tokens that nobody used are not known"
	want(t, run("token", "list"), 0, "tokens.jsonl: no such file or directory: "+unknown)
	if got := run("token", "list", "--ca", filepath.Join(dir, "ca.key")); strings.Contains(got.stderr, unknown) {
		t.Errorf("it has read the notes, and says %s", got.stderr)
	}
}

// A rotation is watched until all that can be reached send with the new key.
func TestWatchRotation(t *testing.T) {
	o, run := operate(t)
	gossip := func(sends bool) status.KeysReply {
		return status.KeysReply{Gossip: []status.GossipKey{{Generation: 1, ID: "aabb", Sends: sends}}}
	}
	o.keys = []status.KeysReply{gossip(false), gossip(false), gossip(true)}
	o.change(func(d *status.Document) {
		d.Peers[0].GossipKey = &status.Generations{Newest: 1, Sends: 1}
		d.Peers = append(d.Peers, status.Peer{ID: mesh.NodeID{3}, Name: "gamma", State: status.PeerDown, GossipKey: &status.Generations{}})
	})
	want(t, run("keys", "rotate", "gossip"), 0,
		"Key aabb of generation 1: 2 of 3 members have it, 1 send with it.\nKey aabb of generation 1: 2 of 3 members have it, 2 send with it.\nDone",
		"Those that are down get it through their tunnels when they are back: gamma (down).", "kept for a day")
}

// A node that died between getting the new key and sending with it is not waited for.
func TestWatchRotationOfOneThatDiedWithTheKey(t *testing.T) {
	o, run := operate(t)
	o.keys = []status.KeysReply{{Gossip: []status.GossipKey{{Generation: 1, ID: "aabb", Sends: true}}}}
	o.change(func(d *status.Document) {
		d.Peers[0].GossipKey = &status.Generations{Newest: 1, Sends: 1}
		d.Peers = append(d.Peers, status.Peer{ID: mesh.NodeID{3}, Name: "gamma", State: status.PeerDown, GossipKey: &status.Generations{Newest: 1}})
	})
	got := run("keys", "rotate", "gossip")
	want(t, got, 0, "3 of 3 members have it, 2 send with it.\nDone")
	if strings.Contains(got.stdout, "when they are back") {
		t.Errorf("gamma has the key, and it says %q", got.stdout)
	}
}

// With --now a rotation is done when the key before is gone, and not sooner.
func TestWatchRotationNow(t *testing.T) {
	o, run := operate(t)
	gossip := []status.GossipKey{{Generation: 1, ID: "aabb", Sends: true}, {Generation: 0, ID: "ccdd", DropsBy: new(time.Date(2030, 1, 2, 12, 4, 5, 0, time.UTC))}}
	o.keys = []status.KeysReply{{Gossip: gossip}, {Gossip: gossip}, {Gossip: gossip[:1]}}
	o.change(func(d *status.Document) {
		d.Peers[0].GossipKey = &status.Generations{Newest: 1, Sends: 1}
		d.Peers = append(d.Peers, status.Peer{ID: mesh.NodeID{3}, Name: "gamma", State: status.PeerDown, GossipKey: &status.Generations{}})
	})
	got := run("keys", "rotate", "gossip", "--now")
	want(t, got, 0, "send with it.\nThe key before is still read, for gamma (down), which may still send with it, until 2030-01-02", "at the latest.\nDone", "reads no key of before")
	if strings.Contains(got.stdout, "for a day") || strings.Count(got.stdout, "still read") != 1 {
		t.Errorf("it says %q", got.stdout)
	}
}

// What a command prints is in each form that it offers.
func TestFormsOfADaemon(t *testing.T) {
	o, run := operate(t)
	o.keys = []status.KeysReply{{Tunnel: "pub"}}
	for _, command := range [][]string{{"lease", "list"}, {"cert", "show"}, {"token", "list"}, {"keys", "list"}} {
		for _, form := range formats {
			if got := run(append(command, "-o", form)...); got.code != 0 || got.stdout == "" {
				t.Errorf("%s -o %s: %+v", command, form, got)
			}
		}
		want(t, run(append(command, "-o", "xml")...), 64, "-o xml")
	}
}
