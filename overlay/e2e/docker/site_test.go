//go:build linux

package docker

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/overlay/attach"
	"meshd/overlay/e2e/cluster"
	"meshd/tun/netns"
)

func TestMain(m *testing.M) { cluster.Main(m) }

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

// newMesh starts daemons on hosts, each with more lines of configuration. The mesh
// has the networks default and web.
func newMesh(t *testing.T, names []string, extra func(n *cluster.Node) []string) *cluster.Cluster {
	t.Helper()
	needDocker(t)
	c := cluster.ForTest(t, names)
	for _, n := range c.Nodes {
		must(t, n.Configure(extra(n)...))
	}
	first, ctx := c.Nodes[0], cluster.Bounded(t)
	must(t, c.Init(ctx, "--ipv4", "10.86.0.0/16", "--ipv6", "fd00:86::/48"))
	_, err := first.Meshctl(ctx, "network", "create", "web", "--ipv4", "10.87.0.0/16", "--ipv6", "fd00:87::/48")
	must(t, err)
	must(t, c.Start())
	must(t, c.WaitAllPairs(cluster.Bounded(t)))
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// site is a host with a daemon and an engine, whose commands must succeed.
type site struct {
	*cluster.Node
	*Engine
	t    *testing.T // the one that runs
	dir  string
	opts Options
}

// newSites starts an engine beside each daemon.
func newSites(t *testing.T, c *cluster.Cluster, options func(n *cluster.Node) Options) []*site {
	t.Helper()
	all := make([]*site, len(c.Nodes))
	errs := make([]error, len(all))
	var starts sync.WaitGroup
	for i, n := range c.Nodes {
		s := &site{Node: n, t: t, dir: t.TempDir(), opts: options(n)}
		all[i] = s
		starts.Go(func() {
			if errs[i] = s.start(); errs[i] == nil {
				errs[i] = s.LoadImage(t.Context())
			}
		})
	}
	starts.Wait()
	for i, s := range all {
		t.Cleanup(s.end)
		must(t, errs[i])
	}
	return all
}

// start starts the engine.
func (s *site) start() (err error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	s.Engine, err = Start(ctx, s.Host, s.dir, s.opts)
	return err
}

// end stops the engine, when the test ends.
func (s *site) end() {
	if s.Engine == nil {
		return
	}
	if err := s.Engine.Stop(context.WithoutCancel(s.t.Context())); err != nil {
		s.t.Error(err)
	}
	if s.t.Failed() {
		s.t.Log(s.Engine.Log())
	}
}

// on lends the sites to a part of the test.
func on(t *testing.T, sites ...*site) {
	for _, s := range sites {
		before := s.t
		s.t = t
		t.Cleanup(func() { s.t = before })
	}
}

// run gives what docker printed, and fails the test if it failed.
func (s *site) run(args ...string) string {
	s.t.Helper()
	out, err := s.try(args...)
	must(s.t, err)
	return out
}

func (s *site) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 40*time.Second)
	defer cancel()
	return s.Docker(ctx, args...)
}

// refused runs what must fail and say why.
func (s *site) refused(want string, args ...string) {
	s.t.Helper()
	if out, err := s.try(args...); err == nil || !strings.Contains(err.Error(), want) {
		s.t.Errorf("docker %s: %q, %v; want an error with %q", strings.Join(args, " "), out, err, want)
	}
}

// create makes a network of our drivers.
func (s *site) create(name string, args ...string) {
	s.t.Helper()
	s.run(create(name, args...)...)
}

// create is the command for that.
func create(name string, args ...string) []string {
	return slices.Concat([]string{"network", "create", "-d", "meshd", "--ipam-driver", "meshd"}, args, []string{name})
}

// sleeper starts a container that does nothing.
func (s *site) sleeper(name string, args ...string) {
	s.t.Helper()
	s.run(slices.Concat([]string{"run", "--detach", "--init", "--name", name}, args, []string{Image, "sleep", "600"})...)
}

// server starts a container with a web server that says its name.
func (s *site) server(name string, args ...string) {
	s.t.Helper()
	s.run(slices.Concat([]string{"run", "--detach", "--init", "--name", name}, args, []string{Image,
		"sh", "-c", "echo I am " + name + " >/tmp/index.html; exec httpd -f -h /tmp"})...)
}

// endpoint is what docker inspect says of a container in a network.
type endpoint struct {
	IPv4, IPv6, Gateway, MAC, ID string
}

// in inspects a container in a network; the zero value: it is not there.
func (s *site) in(network, container string) (e endpoint) {
	s.t.Helper()
	format := `{{with index .NetworkSettings.Networks "` + network + `"}}{{.IPAddress}}/{{.IPPrefixLen}} {{.GlobalIPv6Address}}/{{.GlobalIPv6PrefixLen}} {{.Gateway}}. {{.MacAddress}} {{.EndpointID}}{{end}}`
	if out := s.run("inspect", "--format", format, container); out != "" {
		if _, err := fmt.Sscan(out, &e.IPv4, &e.IPv6, &e.Gateway, &e.MAC, &e.ID); err != nil {
			s.t.Fatalf("inspect %s: %q: %v", container, out, err)
		}
		e.Gateway = strings.TrimSuffix(e.Gateway, ".")
	}
	return e
}

// address is that of a container in a network.
func (s *site) address(network, container string) string {
	s.t.Helper()
	a, _, _ := strings.Cut(s.in(network, container).IPv4, "/")
	if _, err := netip.ParseAddr(a); err != nil {
		s.t.Fatalf("%s has no address in %s: %v", container, network, err)
	}
	return a
}

// await waits for what docker inspect says, each object in a line.
func (s *site) await(want, format string, of ...string) {
	s.t.Helper()
	s.soon(func() error {
		got, err := s.try(append([]string{"inspect", "--format", format}, of...)...)
		if got = strings.Join(strings.Fields(got), " "); err != nil || got != want {
			return fmt.Errorf("inspect %s of %s: %q, %w; want %q", format, of, got, err, want)
		}
		return nil
	})
}

// soon tries until it goes well.
func (s *site) soon(try func() error) {
	s.t.Helper()
	var last error
	ctx := cluster.Bounded(s.t)
	if err := cluster.Poll(ctx, func() (bool, error) { last = try(); return last == nil, last }); err != nil {
		s.t.Fatal(last)
	}
}

// ping tries to reach an address or a name from within a container.
func (s *site) ping(from, to string) error {
	out, err := s.try("exec", from, "ping", "-c", "1", "-W", "5", to)
	if err != nil {
		return fmt.Errorf("%s does not reach %s: %w\n%s", from, to, err, out)
	}
	return nil
}

func (s *site) reaches(from string, to ...string) {
	s.t.Helper()
	const each = `for a; do ping -c 1 -W 5 "$a" >/dev/null || echo "$a"; done`
	if out := s.run(append([]string{"exec", from, "sh", "-c", each, "sh"}, to...)...); out != "" {
		s.t.Errorf("%s does not reach %s", from, strings.Fields(out))
	}
}

// reachesNot looks whether anybody answers; all are asked at once.
func (s *site) reachesNot(from string, to ...string) {
	s.t.Helper()
	const each = `for a; do (ping -c 1 -W 1 "$a" >/dev/null && echo "$a") & done; wait`
	if out := s.run(append([]string{"exec", from, "sh", "-c", each, "sh"}, to...)...); out != "" {
		s.t.Errorf("%s reaches %s", from, strings.Fields(out))
	}
}

// fetches has a container ask a web server. Debian's static wget crashes as soon as
// it looks something up.
func (s *site) fetches(from, address, want string) {
	s.t.Helper()
	host, port, found := strings.Cut(address, ":")
	if !found {
		port = "80"
	}
	ask := fmt.Sprintf(`printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 %s %s`, host, port)
	out, err := s.try("exec", from, "sh", "-c", ask)
	if err != nil || !strings.HasSuffix(out, "\n"+want) {
		s.t.Errorf("%s asks %s: %q, %v; want %q", from, address, out, err, want)
	}
}

// lease gives this host's subnets in a network, IPv4 first.
func (s *site) lease(network string) []netip.Prefix {
	s.t.Helper()
	d, err := s.Document(s.t.Context())
	must(s.t, err)
	for _, l := range d.Node.Leases {
		if l.Network == network && l.State == mesh.Held.String() {
			return l.Prefixes
		}
	}
	return nil
}

// host gives this host's own IPv4 address in a network.
func (s *site) host(network string) string {
	s.t.Helper()
	subnets := s.lease(network)
	if len(subnets) == 0 {
		s.t.Fatalf("%s has no subnet in %s", s.Name, network)
	}
	return mesh.FirstHost(subnets[0]).String()
}

// nth gives an address of this host's subnet in a network.
func (s *site) nth(network string, n byte) string {
	s.t.Helper()
	a := netip.MustParseAddr(s.host(network)).As4()
	a[3] = n
	return netip.AddrFrom4(a).String()
}

// attached lists what the daemon knows of.
func (s *site) attached() []attach.Attachment {
	s.t.Helper()
	all, err := s.Client().Attachments(s.t.Context())
	must(s.t, err)
	return all
}

// inspectsTrue compares what docker inspect says of a container with what the daemon
// knows, and with what there is in the container.
func (s *site) inspectsTrue(network, container string) {
	s.t.Helper()
	e := s.in(network, container)
	a, err := s.Client().Attachment(s.t.Context(), "docker/"+e.ID)
	must(s.t, err)
	if len(a.Addresses) == 0 || a.Addresses[0].String() != e.IPv4 || a.MAC != e.MAC || a.Gateways[0].String() != e.Gateway || a.State != attach.Live {
		s.t.Errorf("docker inspect of %s says %+v; attached is %+v", container, e, a)
	}
	inside := s.run("exec", container, "sh", "-c", "ip addr; ip route")
	for _, want := range []string{"inet " + e.IPv4, "link/ether " + e.MAC, fmt.Sprint("mtu ", a.MTU), "default via " + e.Gateway, a.Routes[0].String() + " via " + e.Gateway} {
		if !strings.Contains(inside, want) {
			s.t.Errorf("docker inspect of %s says %+v; %q is not inside:\n%s", container, e, want, inside)
		}
	}
	if out := s.run("network", "inspect", "--format", "{{range .Containers}}{{.IPv4Address}} {{end}}", network); !strings.Contains(out, e.IPv4) {
		s.t.Errorf("docker network inspect %s has %q, not %s", network, out, e.IPv4)
	}
}

// nothingLeft looks whether our side has forgotten everything.
func (s *site) nothingLeft() {
	s.t.Helper()
	if got := s.attached(); len(got) != 0 {
		s.t.Errorf("%s: attachments are left: %v", s.Name, got)
	}
	file, err := os.ReadFile(filepath.Join(s.StateDir(), "docker"))
	must(s.t, err)
	_, state, _ := strings.Cut(string(file), "\n")
	if want := `{"version":1,"networks":{},"pools":{}}`; strings.Join(strings.Fields(state), "") != want {
		s.t.Errorf("%s: the state is not empty:\n%s", s.Name, state)
	}
	s.soon(func() error {
		if got := s.lease("web"); got != nil {
			return fmt.Errorf("%s still has %s in web", s.Name, got)
		}
		return nil
	})
}
