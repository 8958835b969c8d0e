package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"meshd/mesh/statedir"
	"meshd/overlay/config"
	"meshd/overlay/status"
	"meshd/tun/netns"
)

func TestReloadOfWhatIsNotOursToRead(t *testing.T) {
	netns.RequireRoot(t)
	r := newReload(t, "")
	err := (statedir.Owner{UID: 64000, GID: 64000}).Do(func() error {
		_, err := r.Reload(t.Context())
		return err
	})
	if !errors.Is(err, status.ErrUnreadable) || errors.Is(err, status.ErrBadConfig) || !strings.Contains(err.Error(), "chmod a+r") {
		t.Errorf("error %v, want that it may not be read and what to do", err)
	}
}

// reload is a daemon's settings with parts that write down what they are told.
type reload struct {
	*settings
	file string
	told []string
	fail map[string]error // by key
	log  bytes.Buffer
}

func newReload(t *testing.T, text string) *reload {
	t.Helper()
	r := &reload{file: filepath.Join(t.TempDir(), "config.yaml"), fail: map[string]error{}}
	write(t, r.file, text)
	cfg, err := config.Load(r.file)
	if err != nil {
		t.Fatal(err)
	}
	r.settings = newSettings(r.file, cfg, slog.New(slog.NewTextHandler(&r.log, nil)))
	r.check = func(*config.Config) error { return nil }
	r.apply = map[string]func(context.Context, *config.Config) error{}
	for key := range new(parts).appliers(nil, nil) {
		r.apply[key] = func(context.Context, *config.Config) error {
			r.told = append(r.told, key)
			return r.fail[key]
		}
	}
	return r
}

// again writes the file and reloads it; it gives what was said and done.
func (r *reload) again(t *testing.T, text string) string {
	t.Helper()
	write(t, r.file, text)
	answer, err := r.Reload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	told := r.told
	r.told = nil
	if answer.File != r.file {
		t.Errorf("it was %s that was read", answer.File)
	}
	return fmt.Sprintf("applied %v restart %v rejoin %v failed %v told %v waiting %v", keysOf(answer.Applied), keysOf(answer.Restart),
		keysOf(answer.Rejoin), keysOf(answer.Failed), told, *r.waiting.Load())
}

func TestReload(t *testing.T) {
	r := newReload(t, "node: {name: alpha}\n")
	for _, step := range []struct{ name, text, want string }{
		{"nothing", "node: {name: alpha}\n", "applied [] restart [] rejoin [] failed [] told [] waiting []"},
		{"live keys", "node: {name: alpha}\nseeds: [beta]\nlog: {level: debug}\n",
			"applied [seeds log.level] restart [] rejoin [] failed [] told [seeds log.level] waiting []"},
		{"keys for a restart", "node: {name: beta}\nseeds: [beta]\nlog: {level: debug}\nlisten: {tunnel: ':4000'}\n",
			"applied [] restart [listen.tunnel] rejoin [node.name] failed [] told [] waiting [listen.tunnel]"},
		{"the same again", "node: {name: beta}\nseeds: [beta]\nlog: {level: debug}\nlisten: {tunnel: ':4000'}\n",
			"applied [] restart [listen.tunnel] rejoin [node.name] failed [] told [] waiting [listen.tunnel]"},
		{"back", "node: {name: alpha}\n", "applied [seeds log.level] restart [] rejoin [] failed [] told [seeds log.level] waiting []"},
	} {
		if got := r.again(t, step.text); got != step.want {
			t.Errorf("%s: %s\nwant %s", step.name, got, step.want)
		}
	}
}

// A key that could not be applied is neither in force nor forgotten.
func TestReloadThatFails(t *testing.T) {
	r := newReload(t, "node: {name: alpha}\nhttp: 127.0.0.1:9740\n")
	r.fail["http"] = errors.New("already in use")
	text := "node: {name: alpha}\nhttp: 127.0.0.1:9999\nlog: {format: json}\n"
	if got := r.again(t, text); got != "applied [log.format] restart [] rejoin [] failed [http] told [http log.format] waiting []" {
		t.Error(got)
	}
	if c := r.Config(); !strings.Contains(c.Config, "9740") || !strings.Contains(c.Config, "json") {
		t.Errorf("in force is\n%s", c.Config)
	}
	delete(r.fail, "http")
	if got := r.again(t, text); got != "applied [http] restart [] rejoin [] failed [] told [http] waiting []" {
		t.Error(got)
	}
	if c := r.Config(); !strings.Contains(c.Config, "9999") {
		t.Errorf("in force is\n%s", c.Config)
	}
}

// A bad file changes nothing, whatever is bad.
func TestReloadOfBadFile(t *testing.T) {
	r := newReload(t, "node: {name: alpha}\n")
	r.again(t, "node: {name: alpha}\nengine: wireguard-go\n")
	before, waiting := r.Config(), fmt.Sprint(*r.waiting.Load())
	begun, ended := 0, 0
	r.notify = func(reloading bool) {
		if reloading {
			begun++
		} else {
			ended++
		}
	}
	bad := map[string]struct {
		prepare func()
		says    string
	}{
		"syntax":       {func() { write(t, r.file, "seeds: [\n") }, "expected YAML"},
		"unknown key":  {func() { write(t, r.file, "log: {level: debug}\ncolour: blue\n") }, ":2: colour"},
		"two mistakes": {func() { write(t, r.file, "log: {level: loud}\nseeds: 3\n") }, ":2: seeds"},
		"seed inside": {func() {
			write(t, r.file, "seeds: [10.86.1.1]\n")
			r.check = func(*config.Config) error { return errors.New("it lies inside") }
		}, "it lies inside"},
		"missing":   {func() { remove(t, r.file) }, "no config file"},
		"directory": {func() { remove(t, r.file); _ = os.Mkdir(r.file, 0o755) }, "is a directory"},
	}
	for name, test := range bad {
		t.Run(name, func(t *testing.T) {
			remove(t, r.file)
			r.check = func(*config.Config) error { return nil }
			test.prepare()
			r.log.Reset()
			_, err := r.Reload(t.Context())
			if !errors.Is(err, status.ErrBadConfig) || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), r.file) {
				t.Errorf("error %v, want %s with %q", err, r.file, test.says)
			}
			if len(r.told) > 0 || r.Config() != before || fmt.Sprint(*r.waiting.Load()) != waiting {
				t.Errorf("told %v, in force is\n%s", r.told, r.Config().Config)
			}
			if lines := strings.Count(r.log.String(), "\n"); lines != 1 || !strings.Contains(r.log.String(), "nothing is changed") {
				t.Errorf("it logs %q, want one line", r.log.String())
			}
		})
	}
	if begun != len(bad) || ended != len(bad) {
		t.Errorf("%d reloads begun and %d ended, want %d", begun, ended, len(bad))
	}
}

// Every key that the configuration calls live has somebody to apply it, and
// nothing else has.
func TestEveryLiveKeyIsApplied(t *testing.T) {
	every := `
node: {name: other, labels: {site: fra}}
seeds: [beta]
listen: {tunnel: ":1", gossip: ":2"}
advertise: [203.0.113.1]
state_dir: /a
control: /b
http: ""
interface: {name: mesh9, mtu: 1400, offload: "off"}
engine: wireguard-go
suite: chacha20poly1305
lease: {ttl: 48h, on_conflict: renumber}
masquerade: false
subnet_env: /c
docker: {socket: ""}
log: {level: debug, format: json}
`
	file, err := config.Parse("every", []byte(every))
	if err != nil {
		t.Fatal(err)
	}
	var live []string
	changes := config.Changes(config.Default(), file)
	for _, c := range changes {
		if c.Live {
			live = append(live, c.Key)
		}
	}
	// The text must not miss a key: as many lines as a whole configuration has values.
	values := 0
	for line := range strings.Lines(string(config.Show(file))) {
		if !strings.HasSuffix(line, ":\n") {
			values++
		}
	}
	if len(changes) != values {
		t.Errorf("%d of %d keys differ: add the new one to this test", len(changes), values)
	}
	var applied []string
	for key := range new(parts).appliers(nil, nil) {
		applied = append(applied, key)
	}
	slices.Sort(live)
	slices.Sort(applied)
	if !slices.Equal(live, applied) {
		t.Errorf("live are %v\napplied are %v", live, applied)
	}
}

// Reloads come one after the other, whoever asks for them.
func TestReloadsAreSerialised(t *testing.T) {
	r := newReload(t, "node: {name: alpha}\n")
	write(t, r.file, "node: {name: alpha}\nlog: {level: debug}\n")
	inside, most := 0, 0
	var mu sync.Mutex
	r.notify = func(begins bool) {
		mu.Lock()
		defer mu.Unlock()
		if begins {
			inside++
		} else {
			inside--
		}
		most = max(most, inside)
	}
	var tasks sync.WaitGroup
	for range 8 {
		tasks.Go(func() {
			if _, err := r.Reload(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	tasks.Wait()
	if most != 1 || !slices.Equal(r.told, []string{"log.level"}) {
		t.Errorf("%d at a time, told %v; want one after the other, and one change", most, r.told)
	}
}

func TestSignalsReload(t *testing.T) {
	r := newReload(t, "node: {name: alpha}\n")
	done := make(chan struct{})
	reloaded := make(chan bool, 8)
	r.notify = func(begins bool) { reloaded <- begins }
	signals := make(chan os.Signal, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { r.obey(ctx, signals); close(done) }()
	for range 2 {
		signals <- os.Interrupt // any
		for _, want := range []bool{true, false} {
			select {
			case begins := <-reloaded:
				if begins != want {
					t.Errorf("begins %v, want %v", begins, want)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("no reload at the signal")
			}
		}
	}
	cancel()
	<-done
}
