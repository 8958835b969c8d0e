package config_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"meshd/overlay/config"
)

// What operations and the tests of the daemon rely on.
var live = []string{"node.labels", "seeds", "advertise", "http", "interface.mtu", "lease.on_conflict", "log.level", "log.format"}

func parse(t *testing.T, text string) *config.Config {
	t.Helper()
	c, err := config.Parse("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// checkReload checks what holds of any two configurations.
func checkReload(t *testing.T, old, new *config.Config) {
	t.Helper()
	before := string(config.Show(old))
	now := config.Reloaded(old, new)
	if got := string(config.Show(old)); got != before {
		t.Fatalf("Reloaded changed its argument to\n%s\nfrom\n%s", got, before)
	}
	changes := config.Changes(old, new)
	waiting := slices.DeleteFunc(slices.Clone(changes), func(c config.Change) bool { return c.Live })
	if got := config.Changes(now, new); !slices.EqualFunc(got, waiting, func(a, b config.Change) bool { return a.Key == b.Key && !a.Live }) {
		t.Errorf("after a reload wait %+v, want %+v", got, waiting)
	}
	for _, c := range config.Changes(old, now) {
		if !c.Live {
			t.Errorf("a reload changed %+v", c)
		}
	}
	if again := config.Reloaded(now, new); !reflect.DeepEqual(again, now) {
		t.Errorf("a second reload gives\n%+v, after\n%+v", again, now)
	}
	if len(config.Changes(new, new)) > 0 {
		t.Errorf("a configuration differs from itself: %+v", config.Changes(new, new))
	}
}

// Every key alone is one change, shown as the file has it, and taken over if it
// is live.
func TestChangeOfEveryKey(t *testing.T) {
	old := config.Default()
	for path, isSection := range config.EachKey {
		if isSection {
			continue
		}
		t.Run(path, func(t *testing.T) {
			good := edges[path].good
			if len(good) == 0 {
				t.Fatal("edges has no value of it")
			}
			new := parse(t, string(file(path, good[0])))
			changes := config.Changes(old, new)
			if len(changes) != 1 || changes[0].Key != path {
				t.Fatalf("Changes = %+v, want one of %s", changes, path)
			}
			c := changes[0]
			if !reflect.DeepEqual(parse(t, string(file(path, c.Old))), old) || !reflect.DeepEqual(parse(t, string(file(path, c.New))), new) {
				t.Errorf("the file with %+v is another one", c)
			}
			if want := slices.Contains(live, path); c.Live != want {
				t.Errorf("Live = %v, want %v", c.Live, want)
			}
			if taken := reflect.DeepEqual(config.Reloaded(old, new), new); taken != c.Live {
				t.Errorf("taken over: %v, want %v", taken, c.Live)
			}
			checkReload(t, old, new)
			checkReload(t, new, old)
		})
	}
}

func TestChangesAreInOrder(t *testing.T) {
	old := parse(t, `{log: {level: warn}, engine: auto, node: {labels: {a: "1", b: "2"}}}`)
	new := parse(t, `{log: {level: debug}, engine: wireguard-go, node: {labels: {b: "3"}}}`)
	want := []config.Change{
		{Key: "node.labels", Old: `{"a": "1", "b": "2"}`, New: `{"b": "3"}`, Live: true},
		{Key: "engine", Old: "auto", New: "wireguard-go"},
		{Key: "log.level", Old: "warn", New: "debug", Live: true},
	}
	if got := config.Changes(old, new); !slices.Equal(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// An advertised address without a port means the port in use, which only a
// restart changes.
func TestAdvertisedPortFollowsTheTunnel(t *testing.T) {
	for _, tt := range []struct{ old, new, changed, now string }{
		{
			`{advertise: [192.0.2.1]}`, `{advertise: [192.0.2.1], listen: {tunnel: ":4000"}}`,
			"listen.tunnel", "192.0.2.1:51880",
		},
		{
			`{advertise: []}`, `{advertise: [192.0.2.1], listen: {tunnel: ":4000"}}`,
			"listen.tunnel advertise", "192.0.2.1:51880",
		},
		{
			`{advertise: [192.0.2.1]}`, `{advertise: ["192.0.2.1:51880"], listen: {tunnel: ":4000"}}`,
			"listen.tunnel", "192.0.2.1:51880",
		},
		{
			`{advertise: ["192.0.2.1:4500"]}`, `{advertise: ["192.0.2.1:4500"], listen: {tunnel: ":4000"}}`,
			"listen.tunnel", "192.0.2.1:4500",
		},
		{
			`{advertise: ["192.0.2.1:4500"]}`, `{advertise: ["192.0.2.1:4500"], listen: {tunnel: ":4500"}}`,
			"listen.tunnel advertise", "192.0.2.1:51880",
		},
	} {
		old, new := parse(t, tt.old), parse(t, tt.new)
		var changed []string
		for _, c := range config.Changes(old, new) {
			changed = append(changed, c.Key)
		}
		if got := strings.Join(changed, " "); got != tt.changed {
			t.Errorf("%s to %s: changes %q, want %q", tt.old, tt.new, got, tt.changed)
		}
		if got := config.Reloaded(old, new).Advertise; len(got) != 1 || got[0].String() != tt.now {
			t.Errorf("%s to %s: advertises %v, want %s", tt.old, tt.new, got, tt.now)
		}
		checkReload(t, old, new)
	}
}

func TestReloadedExcept(t *testing.T) {
	old, file := config.Default(), config.Default()
	file.Log.Format, file.Interface.MTU = config.LogJSON, 1400
	now := config.Reloaded(old, file, "interface.mtu")
	if now.Interface.MTU != 0 || now.Log.Format != config.LogJSON {
		t.Errorf("got %+v", now)
	}
	if c := config.Changes(now, file); len(c) != 1 || c[0].Key != "interface.mtu" {
		t.Errorf("still different: %+v", c)
	}
}
