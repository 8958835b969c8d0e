package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/statedir"
	"meshd/mesh/trust"
	"meshd/overlay/config"
	"meshd/overlay/status"
)

// daemon is what meshctl talks to in these tests.
type daemon struct {
	mu    sync.Mutex // guards all below
	doc   status.Document
	lost  func(n int) bool // the n-th probe, from 0
	pings int
	calls []string
	fail  error

	inForce status.ConfigReply
	reload  status.ReloadReply
}

func (d *daemon) Status() status.Document {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.doc
}

func (d *daemon) Ping(context.Context, mesh.NodeID) (time.Duration, netip.Addr, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.pings
	d.pings++
	if d.lost != nil && d.lost(n) {
		return 0, netip.Addr{}, context.DeadlineExceeded
	}
	return time.Duration(n+1) * time.Millisecond, netip.MustParseAddr("fd00::2"), nil
}

func (d *daemon) Leave(context.Context) error { return d.called("leave") }
func (d *daemon) Down(context.Context) error  { return d.called("down") }
func (d *daemon) Version() string             { return "v9.9" }

func (d *daemon) Config() status.ConfigReply { return d.inForce }

func (d *daemon) Reload(context.Context) (status.ReloadReply, error) {
	return d.reload, d.called("reload")
}

func (d *daemon) called(what string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, what)
	return d.fail
}

func healthy() status.Document {
	return status.Document{
		Version: 1, State: mesh.Ready, Mesh: status.Mesh{ID: mesh.ID{9}, Name: "home"}, Node: status.Node{ID: mesh.NodeID{1}, Name: "alpha"},
		Peers: []status.Peer{{ID: mesh.NodeID{2}, Name: "beta", State: status.PeerUp, Path: status.PathDirect, RTTms: new(1.5)}},
	}
}

// serve runs the daemon and gives the path of its socket.
func serve(t *testing.T, d *daemon) string {
	t.Helper()
	return serveWith(t, status.Options{Daemon: d, Settings: d})
}

func serveWith(t *testing.T, opt status.Options) string {
	t.Helper()
	opt.Control = filepath.Join(t.TempDir(), "s")
	server := status.NewServer(opt)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("server: %v", err)
		}
	})
	select {
	case <-server.Ready():
	case err := <-done:
		t.Fatal(err)
	}
	return opt.Control
}

type result struct {
	code           int
	stdout, stderr string
}

func meshctl(ctx context.Context, args ...string) result {
	var stdout, stderr strings.Builder
	code := run(ctx, args, strings.NewReader(""), &stdout, &stderr)
	return result{code, stdout.String(), stderr.String()}
}

func TestStatusCodes(t *testing.T) {
	degraded, waiting, left := healthy(), healthy(), healthy()
	degraded.Peers[0].State = status.PeerDown
	waiting.State = mesh.WaitingForSeed
	left.Peers[0].State = status.PeerLeft
	for name, tt := range map[string]struct {
		doc  status.Document
		want int
	}{"healthy": {healthy(), 0}, "degraded": {degraded, 1}, "waiting": {waiting, 3}, "a peer left": {left, 0}} {
		t.Run(name, func(t *testing.T) {
			socket := serve(t, &daemon{doc: tt.doc})
			got := meshctl(t.Context(), "--socket", socket, "status")
			if got.code != tt.want || !strings.HasPrefix(got.stdout, "Mesh ") || !strings.Contains(got.stdout, "\nbeta ") || got.stderr != "" {
				t.Errorf("status: %+v, want code %d", got, tt.want)
			}
			if got := meshctl(t.Context(), "--socket", socket, "status", "--check", "healthy"); got != (result{code: tt.want}) {
				t.Errorf("status --check healthy: %+v, want code %d and silence", got, tt.want)
			}
			ready := tt.want
			if ready == 1 {
				ready = 0 // what is wrong elsewhere keeps nobody waiting
			}
			if got := meshctl(t.Context(), "--socket", socket, "status", "--check", "ready"); got != (result{code: ready}) {
				t.Errorf("status --check ready: %+v, want code %d and silence", got, ready)
			}
		})
	}
}

// Who has spoilt the file can still ask the daemon, but not another one than meant.
func TestWithoutConfig(t *testing.T) {
	usual := config.Default().Control
	for _, path := range []string{config.DefaultPath, usual} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Skipf("this machine has a %s", path)
		}
	}
	for _, args := range [][]string{{"status"}, {"ping", "beta"}, {"leave"}, {"down"}} {
		got := meshctl(t.Context(), args...)
		for _, want := range []string{"Note: no config file " + config.DefaultPath, "--socket", "no daemon answers on " + usual} {
			if got.code != 3 || !strings.Contains(got.stderr, want) {
				t.Errorf("%s: %+v, want code 3 and %q", args, got, want)
			}
		}
		other := filepath.Join(t.TempDir(), "config.yaml")
		if got := meshctl(t.Context(), append(args, "--config", other)...); got.code != 66 || strings.Contains(got.stderr, usual) {
			t.Errorf("%s --config %s: %+v, want code 66, and nobody asked", args, other, got)
		}
	}
	for _, args := range [][]string{{"status", "--check", "ready"}, {"version"}} {
		if got := meshctl(t.Context(), args...); got.stderr != "" {
			t.Errorf("%s: %+v, want silence", args, got)
		}
	}
}

func TestStatusForms(t *testing.T) {
	socket := serve(t, &daemon{doc: healthy()})
	for form, want := range map[string]string{
		"json": `"state": "ready"`, "yaml": "\nstate: ready\n", "wide": mesh.NodeID{2}.String(), "table": "1.50ms",
	} {
		if got := meshctl(t.Context(), "--socket", socket, "status", "-o", form); got.code != 0 || !strings.Contains(got.stdout, want) {
			t.Errorf("-o %s: %+v, want %q", form, got, want)
		}
	}
	got := meshctl(t.Context(), "--socket", socket, "status", "-f", `{{range .peers}}{{.name}}={{.rtt_ms}} {{.rx_bytes}}{{end}}`)
	if want := "beta=1.5 <no value>\n"; got.stdout != want && got.stdout != "beta=1.5 <nil>\n" {
		t.Errorf("-f: %+v, want %q", got, want)
	}
	if got := meshctl(t.Context(), "--socket", socket, "status", "-f", "{{.colour}}"); got.code != 64 {
		t.Errorf("-f with an unknown name: %+v", got)
	}
}

// until gives a context that ends when enough was written.
type until struct {
	strings.Builder
	mark   string
	cancel func()
}

func (w *until) Write(p []byte) (int, error) {
	n, err := w.Builder.Write(p)
	if strings.Contains(w.String(), w.mark) {
		w.cancel()
	}
	return n, err
}

func TestStatusWatch(t *testing.T) {
	socket := serve(t, &daemon{doc: healthy()})
	ctx, cancel := context.WithCancel(t.Context())
	out := &until{mark: "\n", cancel: cancel}
	var stderr strings.Builder
	code := run(ctx, []string{"--socket", socket, "status", "--watch", "-o", "json"}, strings.NewReader(""), out, &stderr)
	if code != 0 || stderr.String() != "" || strings.Count(out.String(), "\n") != 1 || !strings.HasPrefix(out.String(), `{"version":1,`) {
		t.Errorf("code %d, %q, %q; want one document on one line", code, out, &stderr)
	}
}

func TestPing(t *testing.T) {
	ping := func(t *testing.T, lost func(int) bool, args ...string) result {
		t.Helper()
		socket := serve(t, &daemon{doc: healthy(), lost: lost})
		return meshctl(t.Context(), append([]string{"--socket", socket, "ping", "-i", "10ms"}, args...)...)
	}
	t.Run("some are lost", func(t *testing.T) {
		got := ping(t, func(n int) bool { return n == 1 }, "beta", "-c", "3")
		want := result{stdout: `beta (fd00::2): seq=0 time=1.00 ms
beta: seq=1 no answer within 2s
beta (fd00::2): seq=2 time=3.00 ms
--- beta: 3 sent, 2 answered, 33% lost, min/avg/max 1.00/2.00/3.00 ms
`}
		if got != want {
			t.Errorf("got %+v\nwant %+v", got, want)
		}
	})
	t.Run("all are lost", func(t *testing.T) {
		got := ping(t, func(int) bool { return true }, "beta", "-c", "2")
		if got.code != 1 || !strings.Contains(got.stdout, "2 sent, 0 answered, 100% lost\n") || !strings.Contains(got.stderr, "nothing came back") {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("unknown", func(t *testing.T) {
		got := ping(t, nil, "nobody")
		if got.code != 65 || got.stderr != "meshctl: no such node: nobody: there are beta\n" {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		socket := serve(t, &daemon{doc: healthy()})
		ctx, cancel := context.WithCancel(t.Context())
		out := &until{mark: "seq=2", cancel: cancel}
		var stderr strings.Builder
		code := run(ctx, []string{"--socket", socket, "ping", "beta", "-c", "0", "-i", "10ms"}, strings.NewReader(""), out, &stderr)
		if code != 0 || !strings.Contains(out.String(), "0% lost") || stderr.String() != "" {
			t.Errorf("code %d, %q, %q; want a summary", code, out, &stderr)
		}
	})
}

func TestLeaveAndDown(t *testing.T) {
	for _, what := range []string{"leave", "down"} {
		t.Run(what, func(t *testing.T) {
			d := &daemon{doc: healthy()}
			socket := serve(t, d)
			got := meshctl(t.Context(), "--socket", socket, what)
			if got.code != 0 || !strings.Contains(got.stdout, "the daemon is stopping") || got.stderr != "" || len(d.calls) != 1 || d.calls[0] != what {
				t.Errorf("got %+v, daemon was asked %v", got, d.calls)
			}
			d.fail = errors.New("clear host network: device busy")
			if got := meshctl(t.Context(), "--socket", socket, what); got != (result{code: 1, stderr: "meshctl: clear host network: device busy\n"}) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// daemonFile writes the config file of the daemon d and gives its path.
func daemonFile(t *testing.T, d *daemon, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	text := strings.Join(append(lines, "control: "+serve(t, d), ""), "\n")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfigReload(t *testing.T) {
	d := &daemon{}
	file := daemonFile(t, d)
	other := status.ReloadReply{File: "/etc/other.yaml"}
	all := status.ReloadReply{
		File:    file,
		Applied: []status.Change{{Key: "log.level", Old: "info", New: "debug"}, {Key: "seeds", Old: "[]", New: `["a:1"]`}},
		Restart: []status.Change{{Key: "listen.tunnel", Old: `":51880"`, New: `":4000"`}},
		Rejoin:  []status.Change{{Key: "node.name", Old: `"alpha"`, New: `"beta"`}},
	}
	failed := status.ReloadReply{
		File: file, Applied: []status.Change{{Key: "log.level", Old: "info", New: "debug"}},
		Failed: []status.Change{{Key: "http", Old: `""`, New: `":80"`, Error: "listen for HTTP on :80: already in use"}},
	}
	for name, tt := range map[string]struct {
		answer status.ReloadReply
		err    error
		want   result
	}{
		"nothing": {status.ReloadReply{File: file}, nil, result{stdout: "Nothing to change: the daemon has in force what " + file + " says.\n"}},
		"all": {all, nil, result{stdout: `Applied:
  log.level: info -> debug
  seeds: [] -> ["a:1"]
Counts when the daemon is restarted:
  listen.tunnel: ":51880" -> ":4000"
Counts when this host joins a mesh anew:
  node.name: "alpha" -> "beta"
`}},
		"failed": {failed, nil, result{
			code: 1, stdout: "Applied:\n  log.level: info -> debug\n",
			stderr: "meshctl: http stays \"\": listen for HTTP on :80: already in use\n",
		}},
		"bad file": {status.ReloadReply{}, fmt.Errorf("%w:\n/f:1: a\n/f:2: b", status.ErrBadConfig), result{
			code: 78, stderr: "meshctl: the configuration stays as it is:\n/f:1: a\n/f:2: b\n",
		}},
		"unreadable": {status.ReloadReply{}, fmt.Errorf("%w: open /f", status.ErrUnreadable), result{
			code: 77, stderr: "meshctl: the daemon may not read its configuration: open /f\n",
		}},
		"another file": {other, nil, result{
			stdout: "Nothing to change: the daemon has in force what /etc/other.yaml says.\n",
			stderr: "Note: the running daemon reads /etc/other.yaml, not " + file + "\n",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			d.reload, d.fail = tt.answer, tt.err
			if got := meshctl(t.Context(), "--config", file, "config", "reload"); got != tt.want {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
	d.reload, d.fail = all, nil
	if got := meshctl(t.Context(), "--config", file, "config", "reload", "-f", "{{range .restart}}{{.key}}{{end}}"); got != (result{stdout: "listen.tunnel\n"}) {
		t.Errorf("-f: %+v", got)
	}
	d.calls = nil
	if err := os.WriteFile(file, []byte("colour: blue\nseeds: 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := meshctl(t.Context(), "--config", file, "config", "reload")
	if got.code != 78 || len(d.calls) > 0 || !strings.Contains(got.stderr, "was not asked") ||
		!strings.Contains(got.stderr, file+":1: colour") || !strings.Contains(got.stderr, file+":2: seeds") {
		t.Errorf("a file that names no socket: %+v, asked %v", got, d.calls)
	}
}

func TestConfigShowComparesWithTheDaemon(t *testing.T) {
	d := &daemon{}
	file := daemonFile(t, d, "node: {name: beta}", "log: {level: debug}", "listen: {tunnel: ':4000'}")
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	show := func() result {
		t.Helper()
		got := meshctl(t.Context(), "--config", file, "config", "show")
		if got.code != 0 || got.stdout != string(config.Show(cfg)) {
			t.Errorf("code %d, shows\n%s", got.code, got.stdout)
		}
		return got
	}
	d.inForce = status.ConfigReply{File: file, Config: string(config.Show(cfg))}
	if got := show(); got.stderr != "" {
		t.Errorf("the same: %s", got.stderr)
	}
	old := config.Default()
	old.Node.Name, old.Control, old.Log.Level = "alpha", cfg.Control, 0
	d.inForce.Config = string(config.Show(old))
	want := `Note: the running daemon has node.name: "alpha"; it counts when this host joins a mesh anew
Note: the running daemon has listen.tunnel: ":51880"; restart the daemon to change it
Note: the running daemon has log.level: info; ` + "`meshctl --config " + file + " config reload` changes it\n"
	if got := show(); got.stderr != want {
		t.Errorf("says\n%s\nwant\n%s", got.stderr, want)
	}
	d.inForce.Config = "colour: blue\n" // of a later version
	if got := show(); !strings.HasPrefix(got.stderr, "Note: not compared with the running daemon: ") {
		t.Errorf("says %s", got.stderr)
	}
}

func TestVersion(t *testing.T) {
	socket := serve(t, &daemon{})
	if got := meshctl(t.Context(), "--socket", socket, "version"); got != (result{stdout: "meshctl  unknown\nmeshd    v9.9\n"}) {
		t.Errorf("got %+v", got)
	}
	if got := meshctl(t.Context(), "--socket", socket, "version", "-f", "{{.daemon}}"); got.stdout != "v9.9\n" {
		t.Errorf("got %+v", got)
	}
}

func TestCompletionOffersNodes(t *testing.T) {
	socket := serve(t, &daemon{doc: healthy()})
	if got := meshctl(t.Context(), "__complete", "--socket", socket, "ping", ""); !strings.HasPrefix(got.stdout, "beta\n") {
		t.Errorf("got %+v", got)
	}
}

// A daemon that gives no version is not none.
func TestVersionSaysWhy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Minute}
	t.Cleanup(func() { _ = server.Close() })
	go func() { _ = server.Serve(l) }()
	want(t, meshctl(t.Context(), "--socket", path, "version"), 0, "it answers 404")
	want(t, meshctl(t.Context(), "--socket", path+"none", "version"), 0, "no daemon answers")
}

func TestNoPermission(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may use every socket; overlay/e2e tries it as another user")
	}
	socket := serve(t, &daemon{doc: healthy()})
	if err := os.Chmod(socket, 0); err != nil {
		t.Fatal(err)
	}
	got := meshctl(t.Context(), "--socket", socket, "status")
	if got.code != 77 || !strings.Contains(got.stderr, "as root, or as a member of the group meshd") {
		t.Errorf("got %+v", got)
	}
}

// charters is what a daemon believes: a charter.
type charters struct {
	mu   sync.Mutex // guards all below
	raw  []byte
	fail error
}

func (c *charters) Objects(context.Context) ([][]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return [][]byte{c.raw}, nil
}

func (c *charters) Submit(_ context.Context, raw []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail != nil {
		return c.fail
	}
	c.raw = raw
	return nil
}

func TestNetworkOfADaemon(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca.key")
	key, err := statedir.CreateCAKey(ca)
	if err != nil {
		t.Fatal(err)
	}
	home := mesh.Network{Name: "default", IPv4: netip.MustParsePrefix("10.186.0.0/16"), IPv4Len: 24}
	first := trust.Charter{Name: "home", Version: 1, Networks: []mesh.Network{home}, Created: time.Now()}
	raw, err := first.Sign(key)
	if err != nil {
		t.Fatal(err)
	}
	d, kept := &daemon{doc: healthy()}, &charters{raw: raw}
	d.doc.Networks = []status.Network{status.NewNetwork(home), {Name: "web"}}
	endpoint := netip.MustParseAddrPort("10.188.3.3:51880")
	d.doc.Peers[0].Endpoint = &endpoint
	d.doc.Peers[0].Leases = []status.Lease{{Network: "web", State: "held", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.187.1.0/24")}}}
	socket := serveWith(t, status.Options{Daemon: d, Settings: d, Objects: kept})
	networks := func() string {
		c, err := trust.ParseCharter(kept.raw, mesh.ID{})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, n := range c.Networks {
			names = append(names, n.Name)
		}
		return fmt.Sprint(c.Version, names)
	}
	for _, step := range []struct {
		name   string
		args   []string
		fail   error
		code   int
		says   string // on either stream
		become string
	}{
		{"over a member", []string{"create", "lan", "--ipv4", "10.188.0.0/16"}, nil, 78, "overlaps the node beta at 10.188.3.3:51880", "1 [default]"},
		{"meanwhile another", []string{"create", "web", "--ipv4", "10.187.0.0/16"}, fmt.Errorf("%w: another came", status.ErrNotNext), 1, "another came: run this again", "1 [default]"},
		{"made", []string{"create", "web", "--ipv4", "10.187.0.0/16"}, nil, 0, "hear of it within seconds", "2 [default web]"},
		{"in use", []string{"delete", "web"}, nil, 1, "the network web has subnets on beta: disconnect what is attached to it there and remove Docker's networks of it,", "2 [default web]"},
		{"by force", []string{"delete", "web", "--force"}, nil, 0, "Deleted the network web", "3 [default]"},
	} {
		kept.mu.Lock()
		kept.fail = step.fail
		kept.mu.Unlock()
		args := append([]string{"--socket", socket, "--config", filepath.Join(t.TempDir(), "none"), "network"}, step.args...)
		got := meshctl(t.Context(), append(args, "--ca", ca)...)
		if got.code != step.code || !strings.Contains(got.stdout+got.stderr, step.says) || networks() != step.become {
			t.Errorf("%s: %+v, networks %s; want code %d, %q, %s", step.name, got, networks(), step.code, step.says, step.become)
		}
	}
	list := meshctl(t.Context(), "--socket", socket, "network", "list", "-f", `{{range .}}{{.name}}={{.nodes}} {{end}}`)
	if list.code != 0 || list.stdout != "default=0 web=1 \n" {
		t.Errorf("network list: %+v", list)
	}
}
