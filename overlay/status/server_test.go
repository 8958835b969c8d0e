package status_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"meshd/mesh"
	"meshd/overlay/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// daemon answers from what a test put into it.
type daemon struct {
	mu     sync.Mutex // guards all below
	doc    status.Document
	reload func() (status.ReloadReply, error)
	ping   func(context.Context, mesh.NodeID) (time.Duration, netip.Addr, error)
	change func(ctx context.Context, what string) error
}

func (d *daemon) Status() status.Document {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.doc
}

func (d *daemon) Ping(ctx context.Context, id mesh.NodeID) (time.Duration, netip.Addr, error) {
	return d.ping(ctx, id)
}
func (d *daemon) Leave(ctx context.Context) error { return d.change(ctx, "leave") }
func (d *daemon) Down(ctx context.Context) error  { return d.change(ctx, "down") }
func (d *daemon) Version() string                 { return "v1.2.3" }
func (d *daemon) Config() status.ConfigReply {
	return status.ConfigReply{File: "/etc/c.yaml", Config: "seeds: []\n"}
}
func (d *daemon) Reload(context.Context) (status.ReloadReply, error) { return d.reload() }

// serve runs a server for the test and waits until it listens.
func serve(t *testing.T, opt status.Options) (stop func() error) {
	t.Helper()
	s := status.NewServer(opt)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = stop() })
	select {
	case <-s.Ready():
	case err := <-done:
		done <- err
		t.Fatalf("Run: %v", err)
	}
	return stop
}

func start(t *testing.T, d *daemon) (*status.Client, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "meshd.sock")
	serve(t, status.Options{Control: path, Daemon: d, Settings: d})
	return status.NewClient(path), path
}

func TestStatusAndVersion(t *testing.T) {
	want := example()
	client, _ := start(t, &daemon{doc: *want})
	got, err := client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a, _ := json.Marshal(want)
	b, _ := json.Marshal(got)
	if !bytes.Equal(a, b) {
		t.Errorf("got %s\nwant %s", b, a)
	}
	if v, err := client.Version(t.Context()); v != "v1.2.3" || err != nil {
		t.Errorf("version %q, %v", v, err)
	}
}

func TestPing(t *testing.T) {
	d := &daemon{doc: *example()}
	beta := netip.MustParseAddr("10.86.80.1")
	var asked []mesh.NodeID
	d.ping = func(_ context.Context, id mesh.NodeID) (time.Duration, netip.Addr, error) {
		asked = append(asked, id)
		if len(asked) == 2 {
			return 0, netip.Addr{}, fmt.Errorf("wait for answer: %w", context.DeadlineExceeded)
		}
		return 1500 * time.Microsecond, beta, nil
	}
	client, _ := start(t, d)
	var got []string
	err := client.Ping(t.Context(), status.PingRequest{Node: "beta", Count: 3, IntervalMS: 10}, func(r status.PingReply) {
		raw, _ := json.Marshal(r)
		got = append(got, string(raw))
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`{"seq":0,"address":"10.86.80.1","rtt_ms":1.5}`,
		`{"seq":1,"address":null,"rtt_ms":null,"error":"no answer within 2s"}`,
		`{"seq":2,"address":"10.86.80.1","rtt_ms":1.5}`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if !slices.Equal(asked, []mesh.NodeID{{2}, {2}, {2}}) {
		t.Errorf("asked %v", asked)
	}
}

// A reply must come when it is there, not when the stream ends.
func TestPingStreams(t *testing.T) {
	d := &daemon{doc: *example()}
	d.ping = func(context.Context, mesh.NodeID) (time.Duration, netip.Addr, error) {
		return time.Millisecond, netip.Addr{}, nil
	}
	client, _ := start(t, d)
	ctx, cancel := context.WithCancel(t.Context())
	count := 0
	err := client.Ping(ctx, status.PingRequest{Node: "beta", Count: 0, IntervalMS: 10}, func(status.PingReply) {
		if count++; count == 3 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || count < 3 {
		t.Errorf("%d replies, then %v", count, err)
	}
}

func TestRefusals(t *testing.T) {
	d := &daemon{doc: *example()}
	d.change = func(_ context.Context, what string) error {
		return errors.New(what + " does not work:\x1b[2J disk full")
	}
	client, path := start(t, d)

	t.Run("unknown node", func(t *testing.T) {
		err := client.Ping(t.Context(), status.PingRequest{Node: "nobody", Count: 1}, func(status.PingReply) { t.Error("a reply") })
		if err == nil || !strings.Contains(err.Error(), "there are beta, delta") {
			t.Errorf("error %v, want the names that there are", err)
		}
	})
	t.Run("the daemon's error", func(t *testing.T) {
		for what, do := range map[string]func(context.Context) error{"leave": client.Leave, "down": client.Down} {
			if err := do(t.Context()); err == nil || err.Error() != what+` does not work:\x1b[2J disk full` {
				t.Errorf("%s: %v", what, err)
			}
		}
	})

	for _, tt := range []struct {
		method, path, body string
		want               int
	}{
		{"POST", "/v1/status", "", 405},
		{"GET", "/v1/leave", "", 405},
		{"GET", "/v1/down", "", 405},
		{"GET", "/v1/ping", "", 405},
		{"GET", "/v1/reload", "", 405},
		{"POST", "/v1/config", "", 405},
		{"GET", "/", "", 404},
		{"GET", "/v2/status", "", 404},
		{"POST", "/v1/ping", "", 400},
		{"POST", "/v1/ping", "{", 400},
		{"POST", "/v1/ping", `{"nodes":"beta"}`, 400},
		{"POST", "/v1/ping", `{"node":"beta","count":-1}`, 400},
		{"POST", "/v1/ping", `{"node":"beta","interval_ms":1}`, 400},
		{"POST", "/v1/ping", `{"node":"beta","interval_ms":9223372036854775807}`, 400},
		{"POST", "/v1/ping", `{"node":"` + strings.Repeat("x", 20<<10) + `"}`, 400},
		{"POST", "/v1/ping", `{"node":"nobody"}`, 404},
	} {
		t.Run(fmt.Sprintf("%s %s %.40s", tt.method, tt.path, tt.body), func(t *testing.T) {
			code, body := raw(t, path, tt.method, tt.path, tt.body)
			var e struct{ Error string }
			if err := json.Unmarshal(body, &e); err != nil || e.Error == "" || code != tt.want {
				t.Errorf("answer %d %q, want %d and an error in JSON", code, body, tt.want)
			}
		})
	}

	t.Run("ambiguous node", func(t *testing.T) {
		d.mu.Lock()
		twin := d.doc.Peers[0]
		twin.ID = mesh.NodeID{99}
		d.doc.Peers = append(slices.Clone(d.doc.Peers), twin)
		d.mu.Unlock()
		code, body := raw(t, path, "POST", "/v1/ping", `{"node":"beta"}`)
		if code != 409 || !bytes.Contains(body, []byte(twin.ID.String())) {
			t.Errorf("answer %d %s, want the IDs", code, body)
		}
	})
}

func TestReload(t *testing.T) {
	want := status.ReloadReply{
		File: "/etc/c.yaml", Applied: []status.Change{{Key: "log.level", Old: "info", New: "debug"}}, Restart: []status.Change{},
		Rejoin: []status.Change{}, Failed: []status.Change{{Key: "http", Old: `""`, New: `":80"`, Error: "in use"}},
	}
	d := &daemon{}
	client, path := start(t, d)

	d.reload = func() (status.ReloadReply, error) { return want, nil }
	if got, err := client.Reload(t.Context()); err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	d.reload = func() (status.ReloadReply, error) { return status.ReloadReply{}, nil }
	if _, body := raw(t, path, "POST", "/v1/reload", ""); string(body) != `{"file":"","applied":[],"restart":[],"rejoin":[],"failed":[]}`+"\n" {
		t.Errorf("nothing to do: %s", body)
	}
	d.reload = func() (status.ReloadReply, error) {
		return status.ReloadReply{}, fmt.Errorf("%w:\nc.yaml:1: a\nc.yaml:2: \x1b[2J", status.ErrBadConfig)
	}
	_, err := client.Reload(t.Context())
	if !errors.Is(err, status.ErrBadConfig) || err.Error() != "the configuration stays as it is:\nc.yaml:1: a\nc.yaml:2: \\x1b[2J" {
		t.Errorf("a bad file: %q", err)
	}
	d.reload = func() (status.ReloadReply, error) {
		return status.ReloadReply{}, fmt.Errorf("%w: open /f", status.ErrUnreadable)
	}
	if _, err := client.Reload(t.Context()); !errors.Is(err, status.ErrUnreadable) || err.Error() != "the daemon may not read its configuration: open /f" {
		t.Errorf("a file that may not be read: %q", err)
	}
	d.reload = func() (status.ReloadReply, error) { return status.ReloadReply{}, errors.New("the daemon is ending") }
	if _, err := client.Reload(t.Context()); err == nil || errors.Is(err, status.ErrBadConfig) {
		t.Errorf("another error: %v", err)
	}
	if c, err := client.Config(t.Context()); err != nil || c != d.Config() {
		t.Errorf("config %+v, %v", c, err)
	}
}

// raw sends one request without the client's help.
func raw(t *testing.T, socket, method, path, body string) (int, []byte) {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	request, err := http.NewRequestWithContext(t.Context(), method, "http://meshd"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, answer
}

// The client hears of success although the daemon ends because of the request,
// and a client that goes away does not stop it half-way.
func TestDownAnswersWhileTheServerStops(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meshd.sock")
	d := &daemon{}
	var stop func() error
	stopped := make(chan error, 1)
	d.change = func(ctx context.Context, _ string) error {
		go func() { stopped <- stop() }()
		for { // until the server listens no more
			conn, err := net.Dial("unix", path)
			if err != nil {
				return ctx.Err()
			}
			conn.Close()
		}
	}
	stop = serve(t, status.Options{Control: path, Daemon: d})
	if err := status.NewClient(path).Down(t.Context()); err != nil {
		t.Errorf("Down: %v", err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Run: %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestLeaveOutlivesItsClient(t *testing.T) {
	d := &daemon{}
	began, finished := make(chan bool), make(chan error, 1)
	d.change = func(ctx context.Context, _ string) error {
		close(began)
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
		finished <- ctx.Err()
		return nil
	}
	client, _ := start(t, d)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-began; cancel() }()
	if err := client.Leave(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Leave: %v", err)
	}
	if err := <-finished; err != nil {
		t.Errorf("the daemon was interrupted: %v", err)
	}
}

// A ping without end must not hold up the daemon's.
func TestStopEndsStreams(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meshd.sock")
	d := &daemon{doc: *example()}
	d.ping = func(context.Context, mesh.NodeID) (time.Duration, netip.Addr, error) {
		return time.Millisecond, netip.Addr{}, nil
	}
	stop := serve(t, status.Options{Control: path, Daemon: d})
	first := make(chan bool, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The stream is cut or ends, either is right.
		_ = status.NewClient(path).Ping(t.Context(), status.PingRequest{Node: "beta"}, func(status.PingReply) {
			select {
			case first <- true:
			default:
			}
		})
	}()
	<-first
	began := time.Now()
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if took := time.Since(began); took > 1500*time.Millisecond {
		t.Errorf("stopping took %s", took)
	}
	<-done
}

func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale.sock")
	leaveStale(t, stale)
	for name, path := range map[string]string{"missing": filepath.Join(dir, "missing.sock"), "stale": stale} {
		t.Run(name, func(t *testing.T) {
			_, err := status.NewClient(path).Status(t.Context())
			if !errors.Is(err, status.ErrNoDaemon) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, want ErrNoDaemon with the path", err)
			}
		})
	}
}

// A daemon that hangs is there: whoever asks must not take it for one that has ended.
func TestADaemonThatHangs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client := status.NewClient(path)
	for name, ask := range map[string]func(context.Context) error{
		"status": func(ctx context.Context) error { _, err := client.Status(ctx); return err },
		"down":   client.Down,
		"ping": func(ctx context.Context) error {
			return client.Ping(ctx, status.PingRequest{Node: "beta"}, func(status.PingReply) {})
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			err := ask(ctx)
			if !errors.Is(err, status.ErrHangs) || errors.Is(err, status.ErrNoDaemon) || !strings.Contains(err.Error(), "journalctl -u meshd") {
				t.Errorf("error %v, want ErrHangs with what to do", err)
			}
		})
	}
}

// leaveStale makes a socket on which nobody listens, as kill -9 leaves it.
func leaveStale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func TestSocket(t *testing.T) {
	t.Run("mode", func(t *testing.T) {
		_, path := start(t, &daemon{})
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o660 {
			t.Errorf("mode %v, %v; want 0660", info.Mode(), err)
		}
		if dir, err := os.Stat(filepath.Dir(path)); err != nil || dir.Mode().Perm() != 0o755 {
			t.Errorf("directory's mode %v, %v; want 0755", dir.Mode(), err)
		}
	})
	t.Run("stale one is replaced", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		leaveStale(t, path)
		serve(t, status.Options{Control: path, Daemon: &daemon{}})
		if _, err := status.NewClient(path).Version(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("live one is left alone", func(t *testing.T) {
		client, path := start(t, &daemon{})
		err := status.NewServer(status.Options{Control: path, Daemon: &daemon{}}).Run(t.Context())
		if !errors.Is(err, status.ErrInUse) || !strings.Contains(err.Error(), path) {
			t.Errorf("error %v, want ErrInUse with the path", err)
		}
		if _, err := client.Version(t.Context()); err != nil {
			t.Errorf("the first server is gone: %v", err)
		}
	})
	t.Run("what is no socket is left alone", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := status.NewServer(status.Options{Control: path, Daemon: &daemon{}}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "not a socket") {
			t.Errorf("error %v", err)
		}
		if raw, _ := os.ReadFile(path); string(raw) != "precious" {
			t.Errorf("file became %q", raw)
		}
	})
	t.Run("successor's is left alone", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		stop := serve(t, status.Options{Control: path, Daemon: &daemon{}})
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		serve(t, status.Options{Control: path, Daemon: &daemon{}})
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if _, err := status.NewClient(path).Version(t.Context()); err != nil {
			t.Errorf("the successor lost its socket: %v", err)
		}
	})
	t.Run("too long a path", func(t *testing.T) {
		path := "/tmp/" + strings.Repeat("x", 110)
		err := status.NewServer(status.Options{Control: path, Daemon: &daemon{}}).Run(t.Context())
		if err == nil || !strings.Contains(err.Error(), "at most 107") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("HTTP port in use", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		path := filepath.Join(t.TempDir(), "s")
		err = status.NewServer(status.Options{Control: path, HTTP: l.Addr().String(), Daemon: &daemon{}}).Run(t.Context())
		if !errors.Is(err, status.ErrInUse) || !strings.Contains(err.Error(), l.Addr().String()) {
			t.Errorf("error %v, want ErrInUse with the address", err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
}

func TestIdleConnectionsLockNobodyOut(t *testing.T) {
	client, path := start(t, &daemon{})
	var idle []net.Conn
	for range 500 {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		idle = append(idle, conn)
	}
	for range 3 {
		if _, err := client.Version(t.Context()); err != nil {
			t.Fatalf("after 500 idle connections: %v", err)
		}
	}
	// The oldest are closed long before their time is up.
	if err := idle[0].SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := idle[0].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("reading from the oldest connection: %v, want it closed", err)
	}
}

func TestJunkConnections(t *testing.T) {
	client, path := start(t, &daemon{})
	for _, junk := range []string{"\x00\x01\x02", "GET\n\n", "GET / HTTP/9.9\r\n\r\n", strings.Repeat("A", 64<<10), "\x16\x03\x01\x02\x00"} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, junk) // the server may have hung up already
		conn.Close()
	}
	if _, err := client.Version(t.Context()); err != nil {
		t.Error(err)
	}
}
