//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"meshd/mesh"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/status"
)

// A configuration is reloaded in every way, and no packet is lost meanwhile.
func TestReload(t *testing.T) {
	t.Parallel()
	c := hosts(t, 3)
	alpha, beta, gamma := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	for _, n := range c.Nodes {
		runAsService(t, c, n) // so that a file can be kept from the daemon
		forwardNothing(t, n)
	}
	_, err := alpha.Meshctl(t.Context(), "init", "--name", "lab")
	must(t, err)
	token, err := alpha.Token(t.Context())
	must(t, err)
	must(t, beta.Join(t.Context(), token))
	nowhere, err := alpha.Token(t.Context(), "--seed", "198.18.0.250:51881")
	must(t, err)
	must(t, gamma.Join(t.Context(), nowhere))
	systemd := listenNotify(t, alpha)
	for _, n := range c.Nodes {
		preflightPasses(t, n)
		must(t, n.Start())
	}
	must(t, cluster.WaitPairs(bounded(t), alpha, beta))
	systemd.next(t, "READY=1")

	flow, err := beta.Host.Pings(t.Context(), addresses(t, alpha)[0], 10*time.Millisecond)
	must(t, err)
	defer flow.Stop()

	t.Run("live keys", func(t *testing.T) { reloadLive(t, alpha, beta) })
	t.Run("keys for a restart", func(t *testing.T) { reloadRestart(t, alpha) })
	t.Run("bad files", func(t *testing.T) { reloadBad(t, alpha) })
	t.Run("address taken", func(t *testing.T) { reloadTaken(t, alpha) })
	t.Run("systemd", func(t *testing.T) {
		systemd.drain()
		hangup(t, alpha, "configuration reloaded")
		message := systemd.next(t, "RELOADING=1")
		if _, value, _ := strings.Cut(message, "MONOTONIC_USEC="); value == "" {
			t.Errorf("it says %q without the time", message)
		}
		systemd.next(t, "READY=1")
	})
	t.Run("many at once", func(t *testing.T) { reloadMany(t, alpha) })

	now := time.Now()
	_, err = flow.Flows(bounded(t), now)
	must(t, err)
	if lost, sent := flow.Lost(now); lost > 0 || sent < 10 {
		t.Errorf("%d of %d pings were lost", lost, sent)
	} else {
		t.Logf("%d pings, all answered", sent)
	}

	// A node that knows nobody, and so is not ready, is told of a seed.
	t.Run("seed for a lonely node", func(t *testing.T) {
		if d := document(t, gamma); d.State != mesh.WaitingForSeed {
			t.Fatalf("gamma is %s", d.State)
		}
		rewrite(t, gamma, fmt.Sprintf("seeds: ['%s']", alpha.Host.IPv4))
		start := time.Now()
		checkApplied(t, gamma, "seeds")
		must(t, gamma.WaitReady(bounded(t)))
		t.Logf("ready %.2f s after the reload", time.Since(start).Seconds())
		must(t, c.WaitAllPairs(bounded(t)))
	})
}

// rewrite replaces a node's configuration file, whatever it is.
func rewrite(t *testing.T, n *cluster.Node, lines ...string) {
	t.Helper()
	must(t, os.RemoveAll(n.ConfigFile()))
	must(t, n.Configure(lines...))
}

// runReload runs `meshctl config reload`. It names the socket, so that the daemon is
// asked although the file is bad.
func runReload(t *testing.T, n *cluster.Node) (answer status.ReloadReply, stderr string, code int) {
	t.Helper()
	cmd := n.Command(bounded(t), "--socket", n.Socket(), "config", "reload", "-o", "json")
	out, err := n.Host.Run(cmd)
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		code, stderr = e.ExitCode(), err.Error()
	} else {
		must(t, err)
	}
	if len(out) > 0 {
		must(t, json.Unmarshal(out, &answer))
	}
	return answer, stderr, code
}

// checkApplied reloads and checks which keys were applied.
func checkApplied(t *testing.T, n *cluster.Node, want ...string) {
	t.Helper()
	answer, stderr, code := runReload(t, n)
	var got []string
	for _, c := range answer.Applied {
		got = append(got, c.Key)
	}
	if code != 0 || !slices.Equal(got, want) || len(answer.Failed) > 0 {
		t.Errorf("reload of %s: exit code %d, %s, %+v; want %v applied", n.Name, code, stderr, answer, want)
	}
}

// hangup sends SIGHUP, and waits until the daemon has logged that about it.
func hangup(t *testing.T, n *cluster.Node, about string) {
	t.Helper()
	before := strings.Count(n.Log(), about)
	must(t, n.Process().Signal(syscall.SIGHUP))
	must(t, cluster.Poll(bounded(t), func() (bool, error) {
		return strings.Count(n.Log(), about) == before+1, fmt.Errorf("%s does not log %q", n.Name, about)
	}))
}

// configInForce is the daemon's configuration.
func configInForce(t *testing.T, n *cluster.Node) string {
	t.Helper()
	c, err := status.NewClient(n.Socket()).Config(bounded(t))
	must(t, err)
	return c.Config
}

// healthzAnswers asks for /healthz on the host itself.
func healthzAnswers(t *testing.T, n *cluster.Node, address string) bool {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return n.Host.Dial(ctx, network, address)
	}}}
	request, err := http.NewRequestWithContext(bounded(t), http.MethodGet, "http://"+address+"/healthz", nil)
	must(t, err)
	response, err := client.Do(request)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return err == nil && string(body) == "ok\n"
}

func reloadLive(t *testing.T, n, other *cluster.Node) {
	rewrite(t, n, "log: {level: debug}")
	hangup(t, n, "configuration reloaded")
	rewrite(t, n, "log: {level: debug, format: json}")
	checkApplied(t, n, "log.format")
	must(t, cluster.Poll(bounded(t), func() (bool, error) {
		lines := strings.Split(strings.TrimSpace(n.Log()), "\n")
		return strings.HasPrefix(lines[len(lines)-1], `{"time":`), fmt.Errorf("it logs %s", lines[len(lines)-1])
	}))

	rewrite(t, n, "log: {level: debug}", "node: {name: alpha, labels: {site: fra}}")
	checkApplied(t, n, "node.labels", "log.format")
	must(t, other.WaitFor(bounded(t), "to see the label", func(d *status.Document) bool {
		p, err := d.Find(n.Name)
		return err == nil && p.Labels["site"] == "fra"
	}))

	rewrite(t, n, "log: {level: debug}", "interface: {mtu: 1300}")
	checkApplied(t, n, "node.labels", "interface.mtu")
	awaitMTU(t, n, 1300)
	rewrite(t, n, "log: {level: debug}", "interface: {mtu: 1380}")
	checkApplied(t, n, "interface.mtu")
	awaitMTU(t, n, 1380)
	if d := document(t, n); d.Engine.MTU != 1380 {
		t.Errorf("status says MTU %d", d.Engine.MTU)
	}

	second := netip.MustParsePrefix("198.18.0.77/24")
	must(t, n.Host.AddAddress(second))
	rewrite(t, n, "log: {level: debug}", "advertise: ['"+second.Addr().String()+"']")
	checkApplied(t, n, "advertise", "interface.mtu")
	must(t, cluster.Poll(bounded(t), func() (bool, error) {
		return strings.Contains(n.Log(), "address="+second.Addr().String()+":51881"), errors.New("gossip does not move")
	}))

	rewrite(t, n, "http: 127.0.0.1:9741", "lease: {on_conflict: renumber}")
	hangup(t, n, "configuration reloaded")
	if !healthzAnswers(t, n, "127.0.0.1:9741") || healthzAnswers(t, n, "127.0.0.1:9740") {
		t.Error("HTTP has not moved")
	}
	if got := configInForce(t, n); !strings.Contains(got, "on_conflict: renumber") || !strings.Contains(got, "9741") {
		t.Errorf("in force is\n%s", got)
	}
	rewrite(t, n)
	checkApplied(t, n, "http", "lease.on_conflict")
	checkApplied(t, n)
}

func awaitMTU(t *testing.T, n *cluster.Node, want int) {
	t.Helper()
	must(t, cluster.Poll(bounded(t), func() (bool, error) {
		mtu := 0
		err := n.Host.Do(func() error {
			l, err := netlink.LinkByName(meshLink)
			if err == nil {
				mtu = l.Attrs().MTU
			}
			return err
		})
		return mtu == want, fmt.Errorf("the link's MTU is %d, want %d: %w", mtu, want, err)
	}))
}

func reloadRestart(t *testing.T, n *cluster.Node) {
	rewrite(t, n, "node: {name: omega}", "listen: {tunnel: ':4000'}", "interface: {name: mesh7}")
	for range 2 { // they are listed again
		answer, stderr, code := runReload(t, n)
		if code != 0 || len(answer.Applied)+len(answer.Failed) > 0 || len(answer.Rejoin) != 1 || len(answer.Restart) != 2 ||
			answer.Restart[0] != (status.Change{Key: "listen.tunnel", Old: `":51880"`, New: `":4000"`}) {
			t.Errorf("exit code %d, %s, %+v", code, stderr, answer)
		}
		d, code, err := n.Status(bounded(t))
		must(t, err)
		found := slices.ContainsFunc(d.Health, func(f status.Finding) bool {
			return f.Code == "restart_needed" && strings.HasSuffix(f.Message, ": listen.tunnel, interface.name")
		})
		if !found || code != 0 || d.Node.Name != n.Name {
			t.Errorf("status exits with %d, name %s, and finds %+v", code, d.Node.Name, d.Health)
		}
	}
	rewrite(t, n)
	hangup(t, n, "configuration reloaded")
	if d := document(t, n); len(d.Health) > 0 {
		t.Errorf("after taking it back: %+v", d.Health)
	}
}

func reloadBad(t *testing.T, n *cluster.Node) {
	before, file := configInForce(t, n), n.ConfigFile()
	for name, bad := range map[string]struct {
		make func()
		says string
	}{
		"syntax":          {func() { rewrite(t, n, "seeds: [") }, file + ":"},
		"unknown key":     {func() { rewrite(t, n, "log: {level: debug}", "colour: blue") }, file + ":4: colour"},
		"several":         {func() { rewrite(t, n, "log: {level: loud}", "interface: {mtu: 3}") }, file + ":4: interface.mtu"},
		"seed inside":     {func() { rewrite(t, n, "seeds: ['10.86.1.1']") }, "10.86.0.0/16"},
		"missing":         {func() { must(t, os.Remove(file)) }, file},
		"no permission":   {func() { rewrite(t, n, "log: {level: debug}"); must(t, os.Chmod(file, 0o600)) }, "permission denied"},
		"a directory":     {func() { must(t, os.Remove(file)); must(t, os.Mkdir(file, 0o755)) }, "is a directory"},
		"a named pipe":    {func() { must(t, os.Remove(file)); must(t, syscall.Mkfifo(file, 0o644)) }, "is a named pipe"},
		"one that is big": {func() { must(t, os.Truncate(file, 2<<20)) }, file},
	} {
		t.Run(name, func(t *testing.T) {
			rewrite(t, n)
			bad.make()
			hangup(t, n, "configuration not reloaded, nothing is changed")
			answer, stderr, code := runReload(t, n)
			want := exConfig
			if name == "no permission" {
				want = exNoPerm
			}
			if code != want || !strings.Contains(stderr, bad.says) || answer.File != "" {
				t.Errorf("exit code %d, %s, %+v; want %d about %q", code, stderr, answer, want, bad.says)
			}
			if after := configInForce(t, n); after != before {
				t.Errorf("in force was\n%s\nand is\n%s", before, after)
			}
			if d := document(t, n); len(d.Health) > 0 || d.State != mesh.Ready {
				t.Errorf("it is %s and finds %+v", d.State, d.Health)
			}
		})
	}
	rewrite(t, n)
}

func reloadTaken(t *testing.T, n *cluster.Node) {
	taken, err := n.Host.Listen(t.Context(), "tcp", "127.0.0.1:9742")
	must(t, err)
	rewrite(t, n, "http: 127.0.0.1:9742", "log: {level: warn}")
	for i := range 2 { // it is not forgotten
		answer, stderr, code := runReload(t, n)
		if code != 1 || len(answer.Failed) != 1 || answer.Failed[0].Key != "http" || len(answer.Applied) != 1-i || !strings.Contains(stderr, "127.0.0.1:9742") {
			t.Errorf("exit code %d, %s, %+v", code, stderr, answer)
		}
		if !healthzAnswers(t, n, "127.0.0.1:9740") {
			t.Error("the old listener is lost")
		}
	}
	must(t, taken.Close())
	checkApplied(t, n, "http")
	if !healthzAnswers(t, n, "127.0.0.1:9742") {
		t.Error("no answer at the new address")
	}
	rewrite(t, n, "http: ':9742'") // the same port, but everywhere
	checkApplied(t, n, "http", "log.level")
	if !healthzAnswers(t, n, "127.0.0.1:9742") || !healthzAnswers(t, n, n.Host.IPv4.String()+":9742") {
		t.Error("no answer on all addresses")
	}
	rewrite(t, n)
	checkApplied(t, n, "http")
}

// reloadMany lets the file change while many ask for reloads: the last one counts.
func reloadMany(t *testing.T, n *cluster.Node) {
	client := status.NewClient(n.Socket())
	for i := range 5 {
		rewrite(t, n, fmt.Sprintf("interface: {mtu: %d}", 1300+i))
		var tasks sync.WaitGroup
		for range 10 {
			tasks.Go(func() {
				if _, err := client.Reload(bounded(t)); err != nil {
					t.Error(err)
				}
			})
			must(t, n.Process().Signal(syscall.SIGHUP))
		}
		tasks.Wait()
		awaitMTU(t, n, 1300+i)
	}
}
