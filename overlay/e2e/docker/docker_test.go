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
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
)

var recording = flag.String("record", "", "file for what Docker and the door of alpha say to each other in TestDocker")

// Two hosts with real daemons and real engines, for all that people do with
// networks.
func TestDocker(t *testing.T) {
	t.Parallel()
	c := newMesh(t, []string{"alpha", "beta"}, func(*cluster.Node) []string { return nil })
	var recorded func()
	sites := newSites(t, c, func(n *cluster.Node) Options {
		o := Options{Plugin: n.DockerSocket(), LiveRestore: true}
		if *recording != "" && n.Name == "alpha" {
			o.Plugin, recorded = record(t, n)
		}
		return o
	})
	alpha, beta := sites[0], sites[1]
	part := func(name string, do func(t *testing.T, alpha, beta *site)) {
		if t.Failed() {
			return // one mistake makes many
		}
		t.Run(name, func(t *testing.T) {
			on(t, sites...)
			do(t, alpha, beta)
		})
	}
	part("networks", testNetworks)
	part("ports", testPorts)
	part("modes", testModes)
	if recorded != nil { // what is the same each time
		recorded()
		return
	}
	part("at once", testAtOnce)
	part("strangers", testStrangers)
	part("daemon killed", testDaemonKilled)
	part("engine restarted", testEngineRestarted)
	part("host restarted", testHostRestarted)
	part("compose", testCompose)
	part("nothing left", func(_ *testing.T, alpha, beta *site) {
		alpha.nothingLeft()
		beta.nothingLeft()
	})
}

// Networks and containers, as the documentation has them.
func testNetworks(t *testing.T, alpha, beta *site) {
	// The second one takes a lease in web, the first one has it by then.
	alpha.run("network", "create", "-d", "meshd", "--ipam-driver", "meshd", "-o", "network=web", "web")
	beta.run("network", "create", "-d", "meshd", "--ipam-driver", "meshd", "-o", "network=web", "web")

	alpha.sleeper("one", "--network", "web")
	alpha.inspectsTrue("web", "one")
	alpha.sleeper("beside", "--network", "web")
	alpha.reaches("one", "beside", alpha.host("web")) // by name: Docker's own
	alpha.run("rm", "--force", "beside")

	// A fixed address. Docker wants a subnet by which it can see that it fits.
	fixed := alpha.nth("web", 77)
	alpha.refused("user configured subnets", "run", "--rm", "--network", "web", "--ip", fixed, Image, "true")
	alpha.create("static", "--subnet", "10.87.0.0/16")
	alpha.sleeper("two", "--network", "static", "--ip", fixed)
	if got := alpha.address("static", "two"); got != fixed {
		t.Errorf("asked for %s, got %s", fixed, got)
	}
	alpha.inspectsTrue("static", "two")
	alpha.reaches("one", fixed)

	// The other host.
	beta.server("far", "--network", "web")
	far := beta.address("web", "far")
	alpha.soon(func() error { return alpha.ping("one", far) })
	alpha.fetches("one", far, "I am far")
	beta.reaches("far", fixed, alpha.host("web"))

	// What cannot be is said, and leaves nothing.
	alpha.refused("taken", "run", "--rm", "--network", "static", "--ip", fixed, Image, "true")
	alpha.refused("not one for containers", "run", "--rm", "--network", "static", "--ip", far, Image, "true")
	alpha.refused("no such network", create("dmz", "-o", "network=dmz")...)
	alpha.refused("not in a network of the mesh", create("dmz", "--subnet", "192.0.2.0/24")...)
	alpha.refused("not of", create("dmz", "--subnet", "10.86.0.0/16", "-o", "network=web")...)
	alpha.refused("unknown option", create("dmz", "-o", "colour=red")...)
	alpha.refused("-o parent=LINK", create("dmz", "-o", "mode=macvlan")...)
	if got := alpha.attached(); len(got) != 2 {
		t.Errorf("%d attachments, want 2: %v", len(got), got)
	}

	// Another network, for one that runs. The two do not mix.
	alpha.create("plain")
	beta.create("plain")
	alpha.sleeper("three", "--network", "plain")
	alpha.inspectsTrue("plain", "three")
	beta.sleeper("afar", "--network", "plain")
	alpha.run("network", "connect", "plain", "one")
	three, afar := alpha.address("plain", "three"), beta.address("plain", "afar")
	alpha.reaches("one", three, afar, fixed, far)
	alpha.reaches("three", afar)
	alpha.reachesNot("two", three, afar, beta.host("default"))
	alpha.reachesNot("three", fixed, far)
	beta.reachesNot("far", three, afar, alpha.host("default"))
	alpha.run("network", "disconnect", "plain", "one")
	if got := alpha.in("plain", "one"); got != (endpoint{}) {
		t.Errorf("disconnected, and inspect says %+v", got)
	}
	alpha.reaches("one", fixed, far)
	alpha.reachesNot("one", three)

	// Both families.
	alpha.create("both", "--ipv6", "--subnet", "10.86.0.0/16", "--subnet", "fd00:86::/48")
	if got := alpha.run("network", "inspect", "--format", "{{range .IPAM.Config}}{{.Subnet}} {{end}}", "both"); got != "10.86.0.0/16 fd00:86::/48" {
		t.Errorf("inspect says of the subnets %q", got)
	}
	alpha.sleeper("four", "--network", "both")
	v6, err := netip.ParsePrefix(alpha.in("both", "four").IPv6)
	if subnet := alpha.lease("default")[1]; err != nil || v6.Masked() != subnet {
		t.Errorf("its address is %s, want one of %s", v6, subnet)
	}
	alpha.reaches("four", alpha.lease("default")[1].Addr().Next().String(), beta.lease("default")[1].Addr().Next().String())

	// No way out.
	alpha.create("inside", "--internal", "--ipam-opt", "network=web")
	alpha.sleeper("five", "--network", "inside", "--publish", "8081:80") // ignored, as by Docker's own drivers
	alpha.reaches("five", fixed, far)
	if routes := alpha.run("exec", "five", "ip", "route"); strings.Contains(routes, "default") {
		t.Errorf("a container of an internal network has a default route:\n%s", routes)
	}

	alpha.run("rm", "--force", "one", "two", "three", "four", "five")
	beta.run("rm", "--force", "far", "afar")
	if got := alpha.attached(); len(got) != 0 {
		t.Errorf("removed, and %v are left", got)
	}
	alpha.run("network", "rm", "web", "static", "plain", "both", "inside")
	beta.run("network", "rm", "web", "plain")
}

// Published ports are reached from everywhere, and the mesh goes by the mesh.
func testPorts(t *testing.T, alpha, beta *site) {
	for _, s := range []*site{alpha, beta} {
		s.create("web", "-o", "network=web")
	}
	beta.server("far", "--network", "web")
	far := beta.address("web", "far")
	alpha.server("site", "--network", "web", "--publish", "8080:80")
	alpha.server("any", "--network", "web", "--expose", "80", "--publish-all")
	alpha.create("out", "--subnet", "10.87.0.0/16", "-o", "gateway=docker")
	alpha.server("out", "--network", "out", "--publish", "8082:80")
	_, port, _ := strings.Cut(alpha.run("port", "any", "80"), ":")
	port, _, _ = strings.Cut(port, "\n")

	for name, port := range map[string]string{"site": "8080", "any": port, "out": "8082"} {
		want := "I am " + name
		for _, from := range []*lab.Host{alpha.Host, beta.Host} {
			get(t, from, alpha.Host.IPv4.String()+":"+port, want) // outside of the mesh
			get(t, from, alpha.host("web")+":"+port, want)
			get(t, from, alpha.host("default")+":"+port, want)
		}
		get(t, alpha.Host, "127.0.0.1:"+port, want)
		beta.fetches("far", alpha.host("web")+":"+port, want)
		beta.fetches("far", alpha.address(map[bool]string{true: "out", false: "web"}[name == "out"], name), want)
		alpha.reaches(name, far)
		alpha.fetches(name, far, "I am far")
		if route := alpha.run("exec", name, "ip", "route", "get", far); !strings.Contains(route, "via "+alpha.host("web")) {
			t.Errorf("%s sends to the mesh by %s", name, route)
		}
		if route := alpha.run("exec", name, "ip", "route"); strings.Contains(route, "default via 10.87") {
			t.Errorf("the default route of %s does not go by Docker's bridge:\n%s", name, route)
		}
	}
	// From beside it, on the same host.
	alpha.fetches("any", alpha.host("web")+":8080", "I am site")

	// One that has ports comes into another network, and goes again.
	alpha.create("plain", "-o", "network=default")
	alpha.run("network", "connect", "plain", "site")
	get(t, beta.Host, alpha.address("plain", "site"), "I am site")
	get(t, beta.Host, alpha.Host.IPv4.String()+":8080", "I am site")
	alpha.run("network", "disconnect", "plain", "site")
	get(t, beta.Host, alpha.Host.IPv4.String()+":8080", "I am site")

	alpha.run("rm", "--force", "site", "any", "out")
	beta.run("rm", "--force", "far")
	alpha.run("network", "rm", "web", "out", "plain")
	beta.run("network", "rm", "web")
}

// get asks a web server once it is there.
func get(t *testing.T, from *lab.Host, address, want string) {
	t.Helper()
	if !strings.Contains(address, ":") {
		address += ":80"
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: from.Dial}}
	var got string
	err := cluster.Poll(ctx, func() (bool, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address, nil)
		if err != nil {
			return false, err
		}
		answer, err := client.Do(r)
		if err != nil {
			return false, err
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		got = strings.TrimSpace(string(text))
		return true, err
	})
	if err != nil || got != want {
		t.Errorf("%s asks %s: %q, %v; want %q", from.Name, address, got, err, want)
	}
}

// Containers with a link of their own, on a bridge, and with one below the host's
// card, in one network.
func testModes(t *testing.T, alpha, beta *site) {
	beta.create("web", "-o", "network=web")
	beta.sleeper("far", "--network", "web")
	far := beta.address("web", "far")
	alpha.create("ptp", "-o", "network=web", "-o", "mode=ptp")
	alpha.create("web", "-o", "network=web")
	alpha.create("lan", "-o", "network=web", "-o", "mode=macvlan", "-o", "parent=eth0")
	all := map[string]string{}
	for name, network := range map[string]string{"one": "ptp", "two": "ptp", "three": "web", "four": "lan", "five": "lan"} {
		alpha.sleeper(name, "--network", network)
		all[name] = alpha.address(network, name)
	}
	alpha.soon(func() error { return alpha.ping("one", far) })
	host := alpha.host("web")
	for from, to := range map[string][]string{
		"one": {"two", "three", "four"}, "two": {"one"}, "three": {"one", "four"}, "four": {"one", "three", "five"}, "five": nil,
	} {
		addresses := []string{host, far}
		for _, name := range to {
			addresses = append(addresses, all[name])
		}
		alpha.reaches(from, addresses...)
	}
	beta.reaches("far", all["one"], all["three"], all["four"])
	if _, err := beta.Host.Await(cluster.Bounded(t), netip.MustParseAddr(all["four"])); err != nil {
		t.Errorf("beta does not reach a container on alpha's card: %v", err)
	}
	alpha.run("rm", "--force", "one", "two", "three", "four", "five")
	beta.run("rm", "--force", "far")
	alpha.run("network", "rm", "ptp", "web", "lan")
	beta.run("network", "rm", "web")
}

// What a compose file does: networks and containers at once.
func testAtOnce(t *testing.T, alpha, _ *site) {
	all := func(n int, args func(i int) []string) {
		t.Helper()
		var errs [8]error
		var wait sync.WaitGroup
		for i := range n {
			wait.Go(func() { _, errs[i] = alpha.try(args(i)...) })
		}
		wait.Wait()
		must(t, errors.Join(errs[:]...))
	}
	networks := []string{"default", "web", "web"}
	network := func(i int) string { return fmt.Sprint("p", i%3) }
	container := func(i int) string { return fmt.Sprint("c", i) }
	all(3, func(i int) []string { return create(network(i), "-o", "network="+networks[i]) })
	all(8, func(i int) []string {
		return []string{"run", "--detach", "--init", "--name", container(i), "--network", network(i), Image, "sleep", "600"}
	})
	seen := map[netip.Addr]bool{}
	for _, a := range alpha.attached() {
		for _, p := range a.Addresses {
			if seen[p.Addr()] {
				t.Errorf("two containers have %s", p.Addr())
			}
			seen[p.Addr()] = true
		}
	}
	for i := range 3 {
		if got, want := alpha.in(network(i), container(i)).Gateway, alpha.host(networks[i]); got != want {
			t.Errorf("the gateway of %s is %s, want %s", network(i), got, want)
		}
	}
	all(8, func(i int) []string { return []string{"rm", "--force", container(i)} })
	all(3, func(i int) []string { return []string{"network", "rm", network(i)} })
	if got := alpha.attached(); len(got) != 0 {
		t.Errorf("removed, and %v are left", got)
	}
}

// Containers of other networks of Docker's have no part in the mesh, and those in
// the host's network have the host's.
func testStrangers(_ *testing.T, alpha, beta *site) {
	alpha.create("web", "-o", "network=web")
	alpha.sleeper("one", "--network", "web")
	alpha.create("plain")
	alpha.sleeper("two", "--network", "plain")
	alpha.run("network", "create", "other")
	alpha.sleeper("stranger", "--network", "other")
	one, two := alpha.address("web", "one"), alpha.address("plain", "two")
	alpha.reachesNot("stranger", one, two, beta.host("default"))

	alpha.sleeper("guest", "--network", "host")
	alpha.reaches("guest", one, two, beta.host("default"), beta.Host.IPv4.String())

	alpha.run("rm", "--force", "one", "two", "stranger", "guest")
	alpha.run("network", "rm", "web", "plain", "other")
}

// pair starts two containers on alpha and one on beta, all in web, and gives the
// addresses of the first, which is a fixed one, and the last.
func pair(alpha, beta *site, args ...string) (one, far string) {
	for _, s := range []*site{alpha, beta} {
		s.create("web", "--subnet", "10.87.0.0/16")
	}
	one = alpha.nth("web", 77)
	alpha.sleeper("one", append(args, "--network", "web", "--ip", one)...)
	alpha.sleeper("two", append(args, "--network", "web")...)
	beta.sleeper("far", "--network", "web")
	far = beta.address("web", "far")
	alpha.soon(func() error { return alpha.ping("two", far) })
	return one, far
}

func unpair(alpha, beta *site) {
	alpha.run("rm", "--force", "one", "two")
	beta.run("rm", "--force", "far")
	alpha.run("network", "rm", "web")
	beta.run("network", "rm", "web")
}

// Containers keep their addresses and each other while there is no daemon, and the
// others when there is one again.
func testDaemonKilled(t *testing.T, alpha, beta *site) {
	one, far := pair(alpha, beta)
	before := alpha.in("web", "two")
	alpha.Node.Kill()
	alpha.reaches("two", one)
	started := make(chan error, 1)
	go func() { // in the meantime, and so it waits
		_, err := alpha.try("run", "--detach", "--init", "--name", "three", "--network", "web", Image, "sleep", "600")
		started <- err
	}()
	must(t, alpha.Node.Start())
	must(t, alpha.WaitReady(cluster.Bounded(t)))
	alpha.soon(func() error { return alpha.ping("two", far) })
	if got := alpha.in("web", "two"); got != before {
		t.Errorf("two was %+v and is %+v", before, got)
	}
	alpha.inspectsTrue("web", "two")
	must(t, <-started)
	if got := alpha.attached(); len(got) != 3 {
		t.Errorf("%d attachments, want 3: %v", len(got), got)
	}
	alpha.run("restart", "--time", "0", "one")
	alpha.reaches("one", alpha.address("web", "two"), far)
	alpha.reaches("three", one, far)
	alpha.run("rm", "--force", "three")
	unpair(alpha, beta)
}

// Containers go on while there is no engine, and belong to the next one.
func testEngineRestarted(t *testing.T, alpha, beta *site) {
	one, far := pair(alpha, beta)
	alpha.server("site", "--network", "web", "--publish", "8080:80")
	for name, killed := range map[string]bool{"in order": false, "killed": true} {
		before := alpha.in("web", "one")
		must(t, alpha.Restart(cluster.Bounded(t), killed))
		alpha.await("true true true", "{{.State.Running}}", "one", "two", "site")
		if got := alpha.in("web", "one"); got != before {
			t.Errorf("%s: one was %+v and is %+v", name, before, got)
		}
		alpha.reaches("two", one, far)
		get(t, beta.Host, alpha.Host.IPv4.String()+":8080", "I am site")
		if got := alpha.attached(); len(got) != 3 {
			t.Errorf("%s: %d attachments, want 3: %v", name, len(got), got)
		}
		alpha.sleeper("three", "--network", "web")
		alpha.reaches("three", far)
		alpha.run("rm", "--force", "three")
	}
	alpha.run("network", "disconnect", "web", "two")
	alpha.run("network", "connect", "web", "two")
	alpha.reaches("two", far)
	alpha.run("rm", "--force", "site")
	unpair(alpha, beta)
}

// Containers come back with their networks and addresses when the host does: it
// went down in order, or the power failed.
func testHostRestarted(t *testing.T, alpha, beta *site) {
	one, far := pair(alpha, beta, "--restart", "always")
	for name, down := range map[string]func() error{
		"in order": func() error { return errors.Join(alpha.Engine.Stop(t.Context()), alpha.Node.Stop(t.Context())) },
		"power failed": func() error {
			err := alpha.Engine.Kill()
			alpha.Node.Kill()
			return errors.Join(err, alpha.Engine.Stop(t.Context()))
		},
	} {
		must(t, down())
		must(t, forget(alpha.Host))
		must(t, alpha.Node.Start())
		must(t, alpha.start())
		alpha.await("true true", "{{.State.Running}}", "one", "two")
		alpha.soon(func() error { return alpha.ping("two", far) })
		if err := alpha.ping("two", one); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := alpha.attached(); len(got) != 2 {
			t.Errorf("%s: %d attachments, want 2: %v", name, len(got), got)
		}
	}
	unpair(alpha, beta)
}

// forget removes what a kernel has no longer when it starts anew.
func forget(h *lab.Host) error {
	return h.Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if name := l.Attrs().Name; name == "lo" || name == "eth0" {
				continue
			}
			if gone := netlink.LinkDel(l); !errors.Is(gone, unix.ENODEV) { // with its container, just now
				err = errors.Join(err, gone)
			}
		}
		c := new(nftables.Conn)
		c.FlushRuleset()
		return errors.Join(err, c.Flush())
	})
}
