//go:build linux

package docker

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"meshd/overlay/attach/attachtest"
	"meshd/overlay/e2e/lab"
	"meshd/tun/netns"
)

var recording = flag.String("record", "", "file for what Docker and the door say to each other in TestDocker")

// needDocker skips where there is no engine; in CI that is a failure.
func needDocker(t *testing.T) {
	t.Helper()
	netns.RequireRoot(t)
	err := Possible()
	switch {
	case err == nil:
	case os.Getenv("MESHD_REQUIRE_ROOT") == "1":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}

func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	l, err := lab.New(t.Context(), "alpha")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// engine is an engine of the test, whose commands must succeed.
type engine struct {
	*Engine
	t *testing.T
}

func startEngine(t *testing.T, d *daemon, plugin string) engine {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	e, err := Start(ctx, d.host, d.dir, plugin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(e.Log())
		}
	})
	// As the daemon does when the firewall has changed.
	if err := d.follow(ctx); err != nil {
		t.Fatal(err)
	}
	return engine{e, t}
}

// run gives what docker printed, and fails the test if it failed.
func (e engine) run(args ...string) string {
	e.t.Helper()
	out, err := e.try(args...)
	if err != nil {
		e.t.Fatal(err)
	}
	return out
}

func (e engine) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(e.t.Context(), 40*time.Second)
	defer cancel()
	return e.Docker(ctx, args...)
}

// sleeper starts a container that does nothing.
func (e engine) sleeper(name string, args ...string) {
	e.t.Helper()
	e.run(slices.Concat([]string{"run", "--detach", "--init", "--name", name}, args, []string{Image, "sleep", "600"})...)
}

// want compares what docker inspect says.
func (e engine) want(want, format string, of ...string) {
	e.t.Helper()
	if got := e.run(append([]string{"inspect", "--format", format}, of...)...); got != want {
		e.t.Errorf("inspect %s of %s: %q, want %q", format, of, got, want)
	}
}

// await waits for what docker inspect says, each object in a line.
func (e engine) await(want, format string, of ...string) {
	e.t.Helper()
	end := time.Now().Add(20 * time.Second)
	for {
		got, err := e.try(append([]string{"inspect", "--format", format}, of...)...)
		if got = strings.Join(strings.Fields(got), " "); err == nil && got == want {
			return
		}
		if time.Now().After(end) {
			e.t.Fatalf("inspect %s of %s: %q, %v; want %q", format, of, got, err, want)
		}
		time.Sleep(100 * time.Millisecond) // the tool itself takes as long
	}
}

func (e engine) reaches(from, to string) {
	e.t.Helper()
	if out, err := e.try("exec", from, "ping", "-c", "1", "-W", "5", to); err != nil {
		e.t.Errorf("%s does not reach %s: %v\n%s", from, to, err, out)
	}
}

// refused runs what must fail and say why.
func (e engine) refused(want string, args ...string) {
	e.t.Helper()
	if out, err := e.try(args...); err == nil || !strings.Contains(err.Error(), want) {
		e.t.Errorf("docker %s: %q, %v; want an error with %q", strings.Join(args, " "), out, err, want)
	}
}

// A real engine uses the door for all that people do with networks.
func TestDocker(t *testing.T) {
	needDocker(t)
	l := newLab(t)
	dir, store := t.TempDir(), new(attachtest.Store)
	d := startDaemon(t, l.Host("alpha"), dir, store)
	plugin := d.socket
	if *recording != "" {
		plugin = record(t, d, *recording)
	}
	e := startEngine(t, d, plugin)
	if err := e.LoadImage(t.Context()); err != nil {
		t.Fatal(err)
	}
	create := func(name string, args ...string) []string {
		return slices.Concat([]string{"network", "create", "-d", "meshd", "--ipam-driver", "meshd"}, args, []string{name})
	}

	e.run(create("web", "--subnet", "10.87.0.0/16", "-o", "network=web")...)
	e.want("10.87.0.0/16", "{{range .IPAM.Config}}{{.Subnet}}{{end}}", "web")
	address := func(network string) string {
		return fmt.Sprintf("{{with index .NetworkSettings.Networks %q}}{{.IPAddress}}/{{.IPPrefixLen}} by {{.Gateway}}{{end}}", network)
	}

	e.sleeper("one", "--network", "web")
	e.want("10.87.3.2/24 by 10.87.3.1", address("web"), "one")
	e.sleeper("two", "--network", "web", "--ip", "10.87.3.77")
	e.want("10.87.3.77/24 by 10.87.3.1", address("web"), "two")
	e.reaches("one", "10.87.3.1")
	e.reaches("one", "10.87.3.77")
	e.reaches("two", "one") // by name: Docker's own
	if got := e.run("exec", "one", "cat", "/sys/class/net/eth0/mtu"); got != "1420" {
		t.Errorf("the MTU in a container is %s, want 1420", got)
	}
	a, err := d.core.Get("docker/" + e.run("inspect", "--format", `{{.NetworkSettings.Networks.web.EndpointID}}`, "one"))
	if err != nil {
		t.Fatal(err)
	}
	e.want(a.MAC, `{{.NetworkSettings.Networks.web.MacAddress}}`, "one")
	routes := e.run("exec", "one", "ip", "route")
	for _, want := range []string{"default via 10.87.3.1", "10.87.0.0/16 via 10.87.3.1", "10.87.3.0/24 dev eth0"} {
		if !strings.Contains(routes, want) {
			t.Errorf("no route %s in:\n%s", want, routes)
		}
	}

	// What cannot be is said, and leaves nothing.
	e.refused("taken", "run", "--rm", "--network", "web", "--ip", "10.87.3.77", Image, "true")
	e.refused("not one for containers", "run", "--rm", "--network", "web", "--ip", "10.87.9.9", Image, "true")
	e.refused("-o gateway=docker", "run", "--rm", "--network", "web", "-p", "8080:80", Image, "true")
	e.refused("no such network", create("dmz", "-o", "network=dmz")...)
	e.refused("not in a network of the mesh", create("dmz", "--subnet", "192.0.2.0/24")...)
	e.refused("not of", create("dmz", "--subnet", "10.86.0.0/16", "-o", "network=web")...)
	e.refused("unknown option", create("dmz", "-o", "colour=red")...)
	if got := len(d.core.List()); got != 2 {
		t.Errorf("%d attachments, want 2: %v", got, d.core.List())
	}

	// Another network, for one that runs. The network has no --subnet, and no word
	// of the mesh but -o.
	e.run(create("plain", "-o", "network=default")...)
	e.sleeper("three", "--network", "plain")
	e.want("10.86.3.2/24 by 10.86.3.1", address("plain"), "three")
	e.run("network", "connect", "plain", "one")
	e.want("10.86.3.3/24 by 10.86.3.1", address("plain"), "one")
	e.reaches("one", "10.86.3.2")
	e.reaches("one", "10.87.3.77")
	if out, err := e.try("exec", "two", "ping", "-c", "1", "-W", "1", "10.86.3.2"); err == nil {
		t.Errorf("a container of one network reaches one of another:\n%s", out)
	}
	e.run("network", "disconnect", "plain", "one")
	e.want("", address("plain"), "one")
	e.reaches("one", "10.87.3.77")

	// Both families.
	e.run(create("both", "--ipv6", "--subnet", "10.86.0.0/16", "--subnet", "fd00:86::/48")...)
	e.sleeper("four", "--network", "both")
	e.want("fd00:86:0:3::2/64", `{{with .NetworkSettings.Networks.both}}{{.GlobalIPv6Address}}/{{.GlobalIPv6PrefixLen}}{{end}}`, "four")
	e.reaches("four", "fd00:86:0:3::1")

	// No way out.
	e.run(create("inside", "--internal", "--ipam-opt", "network=web")...)
	e.sleeper("five", "--network", "inside")
	e.reaches("five", "10.87.3.77")
	if routes := e.run("exec", "five", "ip", "route"); strings.Contains(routes, "default") {
		t.Errorf("a container of an internal network has a default route:\n%s", routes)
	}

	// Docker's own way out, by which ports can be published.
	e.run(create("out", "--subnet", "10.87.0.0/16", "-o", "gateway=docker")...)
	e.run("run", "--detach", "--init", "--name", "site", "--network", "out", "--publish", "8080:80", Image,
		"sh", "-c", "echo hello >/tmp/index.html; exec httpd -f -h /tmp")
	e.reaches("site", "10.87.3.77")
	if got := get(t, l.Host("alpha"), l.Host("alpha").IPv4.String()+":8080"); got != "hello\n" {
		t.Errorf("the published port says %q", got)
	}
	if routes := e.run("exec", "site", "ip", "route"); strings.Contains(routes, "default via 10.87") {
		t.Errorf("the default route does not go by Docker's bridge:\n%s", routes)
	}

	if *recording == "" { // what is the same each time
		testParallel(t, e, d, create)

		// Our side starts again while containers run.
		d.stop()
		d = startDaemon(t, l.Host("alpha"), dir, store)
		e.reaches("one", "10.87.3.77")
		e.run("restart", "--time", "0", "one")
		e.reaches("one", "10.87.3.77")
		e.sleeper("six", "--network", "web")
		e.reaches("six", "10.87.3.77")
		e.run("rm", "--force", "six")
	}

	e.run("rm", "--force", "one", "two", "three", "four", "five", "site")
	e.run("network", "rm", "web", "plain", "both", "inside", "out")
	nothingLeft(t, d)
}

// testParallel does what a compose file does: networks and containers at once.
func testParallel(t *testing.T, e engine, d *daemon, create func(name string, args ...string) []string) {
	t.Helper()
	before := len(d.core.List())
	all := func(n int, args func(i int) []string) {
		t.Helper()
		var errs [8]error
		var wait sync.WaitGroup
		for i := range n {
			wait.Go(func() { _, errs[i] = e.try(args(i)...) })
		}
		wait.Wait()
		if err := errors.Join(errs[:]...); err != nil {
			t.Fatal(err)
		}
	}
	networks := []string{"default", "web", "web"}
	network := func(i int) string { return fmt.Sprint("p", i%3) }
	container := func(i int) string { return fmt.Sprint("c", i) }
	all(3, func(i int) []string { return create(network(i), "-o", "network="+networks[i]) })
	all(8, func(i int) []string {
		return []string{"run", "--detach", "--init", "--name", container(i), "--network", network(i), Image, "sleep", "600"}
	})
	seen := map[netip.Addr]bool{}
	for _, a := range d.core.List() {
		for _, p := range a.Addresses {
			if seen[p.Addr()] {
				t.Errorf("two containers have %s", p.Addr())
			}
			seen[p.Addr()] = true
		}
	}
	for i := range 3 {
		e.want(fmt.Sprint("10.", map[string]int{"default": 86, "web": 87}[networks[i]], ".3.1"), "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}", container(i))
	}
	all(8, func(i int) []string { return []string{"rm", "--force", container(i)} })
	all(3, func(i int) []string { return []string{"network", "rm", network(i)} })
	if got := len(d.core.List()); got != before {
		t.Errorf("%d attachments, want %d as before: %v", got, before, d.core.List())
	}
}

// nothingLeft looks whether our side has forgotten everything.
func nothingLeft(t *testing.T, d *daemon) {
	t.Helper()
	if got := d.core.List(); len(got) != 0 {
		t.Errorf("attachments are left: %v", got)
	}
	if got := d.core.Networks(); len(got) != 0 {
		t.Errorf("networks are left in use: %v", got)
	}
	state, err := os.ReadFile(filepath.Join(d.dir, "docker.json"))
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"version":1,"networks":{},"pools":{}}`; strings.Join(strings.Fields(string(state)), "") != want {
		t.Errorf("the state is not empty:\n%s", state)
	}
	ports, err := d.ports()
	if err != nil || len(ports) != 0 {
		t.Errorf("links are left: %v, %v", ports, err)
	}
}

// get asks a web server once it is there.
func get(t *testing.T, from *lab.Host, address string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: from.Dial}}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := client.Do(r)
		if err == nil {
			defer answer.Body.Close()
			text, err := io.ReadAll(answer.Body)
			if err != nil {
				t.Error(err)
			}
			return string(text)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal(err)
		}
	}
}

// Containers come back with their networks and addresses when the host does: the
// engine was stopped, or the power failed.
func TestHostRestarts(t *testing.T) {
	needDocker(t)
	l := newLab(t)
	dir, store := t.TempDir(), new(attachtest.Store)
	d := startDaemon(t, l.Host("alpha"), dir, store)
	e := startEngine(t, d, d.socket)
	if err := e.LoadImage(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.run("network", "create", "-d", "meshd", "--ipam-driver", "meshd", "--subnet", "10.87.0.0/16", "web")
	e.sleeper("one", "--network", "web", "--ip", "10.87.3.77", "--restart", "always")
	e.sleeper("two", "--network", "web", "--restart", "always")

	for name, end := range map[string]func() error{
		"stopped": func() error { return e.Stop(t.Context()) },
		"killed":  func() error { return errors.Join(e.Kill(), e.Stop(t.Context())) },
	} {
		if err := end(); err != nil {
			t.Fatal(err)
		}
		d.stop()
		d = startDaemon(t, l.Host("alpha"), dir, store)
		e = startEngine(t, d, d.socket)
		e.await("true true", "{{.State.Running}}", "one", "two")
		if out, err := e.try("exec", "two", "ping", "-c", "1", "-W", "5", "10.87.3.77"); err != nil {
			t.Errorf("%s: two does not reach one: %v\n%s", name, err, out)
		}
		if got := d.core.List(); len(got) != 2 {
			t.Errorf("%s: %d attachments, want 2: %v", name, len(got), got)
		}
	}
	e.run("rm", "--force", "one", "two")
	e.run("network", "rm", "web")
	nothingLeft(t, d)
}
