package config_test

import (
	"bytes"
	"errors"
	"flag"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"meshd/overlay/config"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (rewrite with -update); got:\n%s\nwant:\n%s", file, got, want)
	}
}

func yamlFiles(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/" + dir + "/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in testdata/%s (%v)", dir, err)
	}
	return files
}

// Each bad file beside the errors that it gives.
func TestBadFiles(t *testing.T) {
	for _, file := range yamlFiles(t, "bad") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			c, err := config.Load(file)
			if err == nil || c != nil {
				t.Fatalf("Load = %+v, %v; want an error alone", c, err)
			}
			if _, ok := errors.AsType[*config.Error](err); !ok {
				t.Errorf("error is a %T, want *config.Error in it", err)
			}
			text := strings.ReplaceAll(err.Error(), filepath.ToSlash(file), filepath.Base(file))
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden", []byte(text+"\n"))
		})
	}
}

// checkWritten reads again what is written of a configuration.
func checkWritten(t *testing.T, c *config.Config) {
	t.Helper()
	for name, text := range map[string][]byte{"template": config.Template(c), "show": config.Show(c)} {
		again, err := config.Parse(name, text)
		if err != nil {
			t.Fatalf("what is written is refused: %v", err)
		}
		if !reflect.DeepEqual(c, again) {
			t.Errorf("what is written means\n%+v, want\n%+v; it is\n%s", again, c, text)
		}
	}
}

// Each good file beside the whole configuration that it gives, printed by the
// template.
func TestGoodFiles(t *testing.T) {
	for _, file := range yamlFiles(t, "ok") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			c, err := config.Load(file)
			if err != nil {
				t.Fatal(err)
			}
			checkWritten(t, c)
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden", config.Template(c))
		})
	}
}

func TestEmptyIsDefault(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing\n", "---\n", "{}", "listen:\nseeds:\n", "\ufeff{}"} {
		c, err := config.Parse("empty", []byte(text))
		if err != nil {
			t.Errorf("Parse(%q): %v", text, err)
			continue
		}
		if want := config.Default(); !reflect.DeepEqual(c, want) {
			t.Errorf("Parse(%q) = %+v, want %+v", text, c, want)
		}
	}
}

func TestTemplateMeansTheDefaults(t *testing.T) {
	text := config.Template(nil)
	c, err := config.Parse("template", text)
	if err != nil {
		t.Fatal(err)
	}
	if want := config.Default(); !reflect.DeepEqual(c, want) {
		t.Errorf("the template means %+v, want %+v", c, want)
	}
	golden(t, "testdata/template.golden", text)
}

func TestReference(t *testing.T) {
	golden(t, "../../docs/config.md", config.Reference())
}

func TestEveryKey(t *testing.T) {
	c, err := config.Load("testdata/ok/all.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := &config.Config{
		Node: config.Node{Name: "alpha", Labels: map[string]string{"site": "fra", "rack.row": "7"}},
		Seeds: []string{
			"203.0.113.7:51881", "[2001:db8::7]:51881", "seed.example.com:4000", "seed.example.com:51881", "[2001:db8::8]:51881",
		},
		Listen: config.Listen{
			Tunnel: netip.AddrPortFrom(netip.Addr{}, 51980),
			Gossip: netip.AddrPortFrom(netip.Addr{}, 51981),
		},
		Advertise: []netip.AddrPort{
			netip.MustParseAddrPort("203.0.113.9:51980"),
			netip.MustParseAddrPort("203.0.113.10:4500"),
			netip.MustParseAddrPort("[2001:db8::9]:51980"),
			netip.MustParseAddrPort("[2001:db8::a]:4500"),
		},
		StateDir:  "/srv/mesh",
		Control:   "/run/mesh.sock",
		Interface: config.Interface{Name: "mesh1", MTU: 1380, Offload: config.OffloadOff},
		Engine:    config.EngineWireGuardGo,
		Suite:     config.SuiteChaCha20Poly1305,
		Lease:     config.Lease{TTL: 36 * time.Hour, OnConflict: config.OnConflictQuarantine},
		SubnetEnv: "/run/flannel/subnet.env",
		Log:       config.Log{Level: slog.LevelDebug, Format: config.LogJSON},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

func TestLoadWithoutRegularFile(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	large := filepath.Join(dir, "large")
	if err := os.WriteFile(large, bytes.Repeat([]byte("#"), 1<<20+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ path, want string }{
		{dir, dir + ": is a directory; expected a regular file"},
		{fifo, fifo + ": is a named pipe; expected a regular file"},
		{"/dev/null", "/dev/null: is a device; expected a regular file"},
		{large, large + ": is larger than 1 MiB; expected a configuration file"},
	} {
		_, err := config.Load(tt.path)
		if e, ok := errors.AsType[*config.Error](err); !ok || e.Error() != tt.want {
			t.Errorf("Load = %v, want %s", err, tt.want)
		}
	}
	_, err := config.Load(filepath.Join(dir, "none"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of a missing file = %v, want fs.ErrNotExist", err)
	}
}

func TestErrorsAreInOrderAndComplete(t *testing.T) {
	_, err := config.Parse("f", []byte("log: {level: loud}\nengine: kernel\nnope: 1\n"))
	got := strings.Split(err.Error(), "\n")
	for i, prefix := range []string{"f:1: log.level: ", "f:2: engine: ", "f:3: nope: "} {
		if len(got) != 3 || !strings.HasPrefix(got[i], prefix) {
			t.Fatalf("got %q", got)
		}
	}
}

func TestLogHandler(t *testing.T) {
	var b strings.Builder
	log := slog.New(config.Log{Level: slog.LevelWarn, Format: config.LogJSON}.Handler(&b))
	log.Info("quiet")
	log.Warn("loud")
	if got := b.String(); strings.Contains(got, "quiet") || !strings.Contains(got, `"msg":"loud"`) {
		t.Errorf("logged %q", got)
	}
	b.Reset()
	slog.New(config.Log{Format: config.LogText}.Handler(&b)).Info("loud")
	if got := b.String(); !strings.Contains(got, "msg=loud") {
		t.Errorf("logged %q", got)
	}
}

func TestAddress(t *testing.T) {
	for want, a := range map[string]netip.AddrPort{
		"":             {},
		":51880":       netip.AddrPortFrom(netip.Addr{}, 51880),
		"192.0.2.1:80": netip.MustParseAddrPort("192.0.2.1:80"),
		"[::]:80":      netip.MustParseAddrPort("[::]:80"),
		"0.0.0.0:80":   netip.MustParseAddrPort("0.0.0.0:80"),
	} {
		if got := config.Address(a); got != want {
			t.Errorf("Address(%v) = %q, want %q", a, got, want)
		}
	}
}

// Only a socket that somebody chose is one without which there is no daemon.
func TestDockerRequired(t *testing.T) {
	for text, want := range map[string]bool{
		"": false, `{docker: {socket: ""}}`: false, "{docker: {socket: /run/meshd/docker.sock}}": false, "{docker: {socket: /srv/docker.sock}}": true,
	} {
		c, err := config.Parse("f", []byte(text))
		if err != nil || c.Docker.Required() != want {
			t.Errorf("%q: %v, %v; want %t", text, c, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, dir := range []string{"ok", "bad"} {
		files, err := filepath.Glob("testdata/" + dir + "/*.yaml")
		if err != nil || len(files) == 0 {
			f.Fatal("no seeds", err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(text)
		}
	}
	for path, edge := range edges {
		for _, value := range slices.Concat(edge.good, edge.bad) {
			f.Add(file(path, value))
		}
	}
	for _, text := range []string{"a: &a [*a]", "---\n---", "\xff\xfe", "{", "<<: {a: b}", "!x y", "? [a]\n: b", "a: |\n b"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := config.Parse("fuzz", text)
		if err != nil {
			e, ok := errors.AsType[*config.Error](err)
			if !ok || e.Message == "" || c != nil {
				t.Fatalf("Parse = %+v, %#v", c, err)
			}
			return
		}
		checkWritten(t, c)
		checkReload(t, config.Default(), c)
		checkReload(t, c, config.Default())
	})
}
