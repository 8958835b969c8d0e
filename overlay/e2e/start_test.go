//go:build linux

package e2e

import (
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"meshd/mesh/trust"
	"meshd/overlay/e2e/cluster"
)

// A daemon that cannot start says why in one line, exits with the right code,
// and changes nothing on the host.
func TestBadStart(t *testing.T) {
	t.Parallel()
	c := hosts(t, 1)
	n := c.Nodes[0]
	daemon := func() *exec.Cmd { return n.DaemonCommand(bounded(t)) }

	checkNoStart(t, n, "no state", daemon, exNoInput, "meshctl join")
	_, err := n.Meshctl(t.Context(), "init", "--name", "lab")
	must(t, err)

	t.Run("configuration", func(t *testing.T) {
		must(t, os.Remove(n.ConfigFile()))
		checkNoStart(t, n, "missing", daemon, exNoInput, n.ConfigFile())
		must(t, n.Configure("colour: blue"))
		checkNoStart(t, n, "unknown key", daemon, exConfig, "colour")
		must(t, n.Configure("listen: {tunnel: 51880, gossip: everywhere}"))
		checkNoStart(t, n, "bad address", daemon, exConfig, "listen")
		must(t, n.Configure())
		checkNoStart(t, n, "unknown flag", func() *exec.Cmd { return n.DaemonCommand(bounded(t), "--fast") }, exUsage, "--fast")
	})
	t.Run("ports", func(t *testing.T) {
		for _, p := range []struct{ network, address, key string }{
			{"udp", "0.0.0.0:51880", "51880"}, {"udp", "0.0.0.0:51881", "51881"},
			{"tcp", "0.0.0.0:51881", "51881"}, {"tcp", "127.0.0.1:9740", "9740"},
		} {
			var stop func() error
			if p.network == "udp" {
				l, err := n.Host.ListenPacket(t.Context(), p.network, p.address)
				must(t, err)
				stop = l.Close
			} else {
				l, err := n.Host.Listen(t.Context(), p.network, p.address)
				must(t, err)
				stop = l.Close
			}
			checkNoStart(t, n, p.network+" "+p.key, daemon, exUnavailable, p.key)
			must(t, stop())
		}
	})
	t.Run("rights", func(t *testing.T) {
		openToAll(t, c.Dir)
		unprivileged := func() *exec.Cmd {
			cmd := daemon()
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
			return cmd
		}
		checkNoStart(t, n, "state of root", unprivileged, exNoPerm, "root")
		chownAll(t, n.Dir, nobody)
		checkNoStart(t, n, "own state", unprivileged, exNoPerm, "root")
		chownAll(t, n.Dir, 0)
	})
	t.Run("overlap", func(t *testing.T) {
		_, foreign, err := net.ParseCIDR("10.86.99.0/24")
		must(t, err)
		route := &netlink.Route{LinkIndex: loopback, Dst: foreign}
		must(t, n.Host.Do(func() error { return netlink.RouteAdd(route) }))
		checkNoStart(t, n, "a route of the host", daemon, exConfig, "10.86.99.0/24")
		must(t, n.Host.Do(func() error { return netlink.RouteDel(route) }))
	})
	t.Run("no tun", func(t *testing.T) {
		checkNoStart(t, n, "in a jail", func() *exec.Cmd { return jailed(t, n) }, exOSError, "/dev/net/tun")
	})
	t.Run("damaged state", func(t *testing.T) {
		for _, name := range []string{"keys", "mesh", "node"} {
			path := filepath.Join(n.StateDir(), name)
			whole, err := os.ReadFile(path)
			must(t, err)
			flipped := slices.Clone(whole)
			flipped[len(flipped)/2] ^= 1
			for how, content := range map[string][]byte{"cut": whole[:len(whole)/2], "empty": nil, "flipped": flipped} {
				must(t, os.WriteFile(path, content, 0o600))
				checkNoStart(t, n, name+" "+how, daemon, exBadData, name)
			}
			must(t, os.Remove(path))
			checkNoStart(t, n, name+" missing", daemon, exBadData, name)
			must(t, os.WriteFile(path, whole, 0o600))
		}
	})
	t.Run("second daemon", func(t *testing.T) {
		must(t, n.Start())
		must(t, n.WaitReady(bounded(t)))
		stranger := n.Command(bounded(t), "status")
		stranger.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		if out, code := runToEnd(t, n, stranger); code != exNoPerm || !strings.Contains(out, "group meshd") {
			t.Errorf("a user without rights asks for the status: exit code %d: %s", code, out)
		}
		checkNoStart(t, n, "same state", daemon, exUnavailable, "meshctl status")
		second, err := c.Another(n)
		must(t, err)
		_, err = second.Meshctl(t.Context(), "init", "--name", "other", "--ipv4", "10.200.0.0/16")
		must(t, err)
		checkNoStart(t, n, "own state", func() *exec.Cmd { return second.DaemonCommand(bounded(t)) }, exUnavailable, "")
		must(t, n.WaitReady(bounded(t)))
	})
}

// checkNoStart runs a daemon that cannot start.
func checkNoStart(t *testing.T, n *cluster.Node, name string, command func() *exec.Cmd, code int, about string) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		t.Helper()
		before, err := n.Host.Leftovers()
		must(t, err)
		out, got := runToEnd(t, n, command())
		if got != code {
			t.Errorf("exit code %d, want %d: %s", got, code, out)
		}
		checkLine(t, out, "meshd: ", about)
		after, err := n.Host.Leftovers()
		must(t, err)
		if !slices.Equal(before, after) {
			t.Errorf("on the host: %v before, %v after", before, after)
		}
	})
}

func chownAll(t *testing.T, dir string, uid int) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, uid)
	}))
}

// jailed is a daemon that sees nothing but its node's directory.
func jailed(t *testing.T, n *cluster.Node) *exec.Cmd {
	t.Helper()
	cmd := n.DaemonCommand(bounded(t))
	program, err := os.ReadFile(cmd.Path)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(n.Dir, "meshd"), program, 0o755))
	must(t, os.WriteFile(filepath.Join(n.Dir, "jail.yaml"),
		[]byte("state_dir: /state\ncontrol: /jail.sock\n"), 0o644))
	cmd.Path, cmd.Args = "/meshd", []string{"meshd", "--config", "/jail.yaml"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: n.Dir}
	cmd.Dir = "/"
	return cmd
}

// Whoever cannot join is told why, and nothing is changed.
func TestBadJoin(t *testing.T) {
	t.Parallel()
	c := hosts(t, 2)
	alpha, beta := c.Nodes[0], c.Nodes[1]
	_, err := alpha.Meshctl(t.Context(), "init", "--name", "lab")
	must(t, err)
	token, err := alpha.Token(t.Context())
	must(t, err)
	pinned, err := alpha.Token(t.Context(), "--name", "web-*")
	must(t, err)
	other, err := c.Another(alpha)
	must(t, err)
	_, err = other.Meshctl(t.Context(), "init", "--name", "other")
	must(t, err)
	foreign, err := other.Token(t.Context())
	must(t, err)

	join := func(name, token string, code int, about string, args ...string) {
		t.Run(name, func(t *testing.T) {
			before := hashFiles(t, beta.Dir)
			cmd := beta.Command(bounded(t), append([]string{"join", "-"}, args...)...)
			cmd.Stdin = strings.NewReader(token)
			out, got := runToEnd(t, beta, cmd)
			if got != code {
				t.Errorf("exit code %d, want %d: %s", got, code, out)
			}
			checkLine(t, out, "meshctl: ", about)
			if after := hashFiles(t, beta.Dir); !maps.Equal(before, after) {
				t.Errorf("files changed: %v before, %v after", before, after)
			}
		})
	}
	join("no token", "", exBadData, "token")
	join("something else", "correct horse battery staple", exBadData, "meshd1.")
	join("truncated", token[:len(token)/2], exBadData, "truncated")
	join("one letter off", strings.Replace(token, token[100:102], "zz", 1), exBadData, "damaged")
	join("expired", expiredToken(t, alpha, token), exBadData, "expired at")
	join("another name", pinned, exBadData, "web-*")
	join("not a name", token, exUsage, "--node", "--node", "Beta the second")
	must(t, beta.Join(t.Context(), token))
	join("twice", token, exBadData, "member already")
	join("a foreign mesh", foreign, exBadData, "member already")
}

// expiredToken gives a token of the same mesh that was valid until a second ago.
func expiredToken(t *testing.T, n *cluster.Node, like string) string {
	t.Helper()
	token, err := trust.ParseToken(like)
	must(t, err)
	return shortToken(t, n, token, -time.Second).String()
}
