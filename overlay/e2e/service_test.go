//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/sandbox"
	"meshd/overlay/status"
)

// newServices makes a mesh of daemons without rights.
func newServices(t *testing.T, n int, extra ...string) *cluster.Cluster {
	t.Helper()
	c := hosts(t, n, extra...)
	for _, n := range c.Nodes {
		runAsService(t, c, n)
		forwardNothing(t, n)
	}
	must(t, c.Init(t.Context()))
	for _, n := range c.Nodes {
		preflightPasses(t, n)
	}
	must(t, c.Start())
	must(t, c.WaitAllPairs(bounded(t)))
	return c
}

// The real daemon as the unit starts it, after a preflight: whatever a daemon of
// root's does, this one does.
func TestService(t *testing.T) {
	t.Parallel()
	c := newServices(t, 3)
	alpha, beta, gamma := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	for _, n := range c.Nodes {
		confined(t, n)
		if log := n.Log(); strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") {
			t.Errorf("%s complains:\n%s", n.Name, log)
		}
		if d := document(t, n); len(d.Health) > 0 {
			t.Errorf("%s finds %+v", n.Name, d.Health)
		}
	}

	t.Run("files", func(t *testing.T) {
		for _, n := range c.Nodes {
			belongsToService(t, n.StateDir())
		}
		info, err := os.Stat(filepath.Join(alpha.Dir, "ca.key"))
		must(t, err)
		if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 0 || info.Mode().Perm() != 0o600 {
			t.Errorf("ca.key belongs to user %d with mode %v", uid, info.Mode())
		}
	})
	t.Run("socket", func(t *testing.T) { socketIsTheGroups(t, alpha) })
	t.Run("socket buffers", func(t *testing.T) {
		// Where net.core.rmem_max has its default, so much takes CAP_NET_ADMIN.
		if got, want := receiveBuffer(t, alpha, tunnelPort), 1<<20; got < want {
			t.Errorf("the tunnel's receive buffer has %d bytes, want %d", got, want)
		}
	})

	onLink := func(do func(netlink.Link) error) func() error {
		return func() error {
			l, err := netlink.LinkByName(meshLink)
			if err != nil {
				return err
			}
			return do(l)
		}
	}
	for _, damage := range []struct {
		name string
		do   func() error
	}{
		{"link deleted", onLink(netlink.LinkDel)},
		{"link bounced", onLink(func(l netlink.Link) error { return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetUp(l)) })},
		{"link down", onLink(netlink.LinkSetDown)},
		{"routes flushed", flushRoutes},
		{"IPv6 off on the link", func() error {
			return os.WriteFile("/proc/sys/net/ipv6/conf/"+meshLink+"/disable_ipv6", []byte("1"), 0)
		}},
	} {
		t.Run(damage.name, func(t *testing.T) {
			whole, pid := ourNetwork(t, alpha.Host), alpha.Process().Pid()
			must(t, alpha.Host.Do(damage.do))
			start := time.Now()
			must(t, cluster.Poll(bounded(t), func() (bool, error) {
				is := ourNetwork(t, alpha.Host)
				return slices.Equal(whole, is), fmt.Errorf("want %v, have %v", whole, is)
			}))
			must(t, c.WaitAllPairs(bounded(t)))
			t.Logf("repaired after %.2f s", time.Since(start).Seconds())
			if alpha.Process().Pid() != pid {
				t.Error("the daemon is another one")
			}
		})
	}

	t.Run("killed", func(t *testing.T) { killAndRestart(t, gamma, alpha, beta) })

	t.Run("leave", func(t *testing.T) {
		_, err := gamma.Meshctl(bounded(t), "leave")
		must(t, err)
		must(t, gamma.Process().Wait(bounded(t)))
		if left := leftovers(t, gamma); len(left) > 0 {
			t.Errorf("left on the host: %v", left)
		}
		belongsToService(t, gamma.StateDir())
		// And again, by root's hand in the service's directory.
		token, err := alpha.Token(t.Context())
		must(t, err)
		must(t, gamma.Join(t.Context(), token))
		belongsToService(t, gamma.StateDir())
		startAgain(t, c, gamma)
	})
	t.Run("down", func(t *testing.T) {
		_, err := beta.Meshctl(bounded(t), "down")
		must(t, err)
		must(t, beta.Process().Wait(bounded(t)))
		if left := leftovers(t, beta); len(left) > 0 {
			t.Errorf("left on the host: %v", left)
		}
	})
}

// confined checks that a daemon has the rights of the unit and no others.
func confined(t *testing.T, n *cluster.Node) {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.Process().Pid()))
	must(t, err)
	has := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		key, value, _ := strings.Cut(line, ":")
		has[key] = strings.Join(strings.Fields(value), " ")
	}
	const only = "0000000000001000" // bit 12, CAP_NET_ADMIN
	for key, want := range map[string]string{
		"Uid": "64000 64000 64000 64000", "Gid": "64001 64001 64001 64001", "Groups": "", "NoNewPrivs": "1",
		"CapEff": only, "CapPrm": only, "CapInh": only, "CapBnd": only, "CapAmb": only,
	} {
		if has[key] != want {
			t.Errorf("%s of the daemon of %s is %q, want %q", key, n.Name, has[key], want)
		}
	}
}

func belongsToService(t *testing.T, dir string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // replaced meanwhile
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if stat := info.Sys().(*syscall.Stat_t); stat.Uid != serviceUID || info.Mode().Perm() != want {
			t.Errorf("%s belongs to user %d with mode %v, want %d and %v", path, stat.Uid, info.Mode().Perm(), serviceUID, want)
		}
		return err
	}))
}

func socketIsTheGroups(t *testing.T, n *cluster.Node) {
	t.Helper()
	info, err := os.Stat(n.Socket())
	must(t, err)
	gid := serviceGID
	if g, err := user.LookupGroup("meshd"); err == nil {
		// The daemon would give it to that group, but is no member and may not.
		t.Logf("there is a group meshd with id %s", g.Gid)
	}
	if stat := info.Sys().(*syscall.Stat_t); stat.Uid != serviceUID || int(stat.Gid) != gid || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket belongs to %d:%d with mode %v", stat.Uid, stat.Gid, info.Mode().Perm())
	}
	for _, who := range []struct {
		gid, code int
	}{{gid, 0}, {gid + 1, exNoPerm}} {
		cmd := n.Command(bounded(t), "status")
		must(t, sandbox.Box{UID: serviceUID + 1, GID: who.gid, Writable: n.Dir}.Wrap(cmd))
		if out, code := runToEnd(t, n, cmd); code != who.code {
			t.Errorf("meshctl status of group %d exits %d, want %d: %s", who.gid, code, who.code, out)
		}
	}
}

// receiveBuffer gives the size of the largest receive buffer among a daemon's IPv4
// sockets of a port.
func receiveBuffer(t *testing.T, n *cluster.Node, port int) int {
	t.Helper()
	pid := n.Process().Pid()
	daemon, err := unix.PidfdOpen(pid, 0)
	must(t, err)
	defer unix.Close(daemon)
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	must(t, err)
	largest := 0
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		must(t, err)
		if fd, err = unix.PidfdGetfd(daemon, fd, 0); err != nil {
			continue // closed meanwhile
		}
		if at, err := unix.Getsockname(fd); err == nil {
			if at, ok := at.(*unix.SockaddrInet4); ok && at.Port == port {
				size, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
				must(t, err)
				largest = max(largest, size)
			}
		}
		unix.Close(fd)
	}
	return largest
}

// A daemon without rights is ready again as soon as one of root's.
func TestServiceRestart(t *testing.T) {
	c := newServices(t, 2)
	beta := c.Nodes[1]
	before := document(t, beta)
	systemd := listenNotify(t, beta)
	within(t, "the quickest of five restarts was ready", upWithin, func() time.Duration {
		var times []time.Duration
		for range 5 {
			must(t, beta.Stop(bounded(t)))
			start := time.Now()
			must(t, beta.Start())
			times = append(times, systemd.ready(t).Sub(start))
		}
		slices.Sort(times)
		t.Logf("from start to READY=1: median %d ms, at most %d ms", times[2].Milliseconds(), times[4].Milliseconds())
		return times[0]
	})
	if out := preflightPasses(t, beta); out != "nothing to change\n" {
		t.Errorf("a second preflight, while the daemon runs: %s", out)
	}
	if after := document(t, beta); leasesOf(after) != leasesOf(before) {
		t.Errorf("lease %s before, %s after", leasesOf(before), leasesOf(after))
	}
	must(t, c.WaitAllPairs(bounded(t)))
}

// What preflight does, and what it refuses.
func TestPreflight(t *testing.T) {
	c := hosts(t, 1)
	n := c.Nodes[0]
	openToAll(t, c.Dir)
	_, err := n.Meshctl(t.Context(), "init", "--name", "lab")
	must(t, err)
	forwardNothing(t, n)

	refused := func(name string, box sandbox.Box, code int, about string) {
		t.Run(name, func(t *testing.T) {
			before := hashFiles(t, n.Dir)
			out, got, _ := preflight(t, n, box)
			if got != code {
				t.Errorf("exit code %d, want %d: %s", got, code, out)
			}
			checkLine(t, out, "meshd: ", about)
			if after := hashFiles(t, n.Dir); fmt.Sprint(before) != fmt.Sprint(after) || sysctl(t, n, "net/ipv4/ip_forward") != "0" {
				t.Error("it changed something all the same")
			}
		})
	}
	refused("not root", sandbox.Box{UID: serviceUID, GID: serviceGID, Writable: n.Dir}, exNoPerm, "run it as root")

	// As after an init by root and a chown of the directory alone.
	for _, dir := range []string{n.StateDir(), n.Dir} {
		must(t, os.Chown(dir, serviceUID, serviceGID))
	}
	t.Run("all that is missing", func(t *testing.T) {
		must(t, n.Host.Do(func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/eth0/accept_ra", []byte("1"), 0) }))
		out := preflightPasses(t, n)
		for _, change := range []string{
			"chown 64000:64001 " + filepath.Join(n.StateDir(), "keys"),
			"sysctl -w net/ipv4/ip_forward=1", "sysctl -w net/ipv6/conf/all/forwarding=1",
			"sysctl -w net/ipv6/conf/eth0/accept_ra=2 (",
		} {
			if !strings.Contains(out, change) {
				t.Errorf("it does not say %q", change)
			}
		}
		for key, want := range map[string]string{
			"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1", "net/ipv6/conf/eth0/accept_ra": "2",
		} {
			if got := sysctl(t, n, key); got != want {
				t.Errorf("%s is %s, want %s", key, got, want)
			}
		}
		belongsToService(t, n.StateDir())
		if out := preflightPasses(t, n); out != "nothing to change\n" {
			t.Errorf("a second time it says: %s", out)
		}
	})
	t.Run("quickly", func(t *testing.T) {
		var times []time.Duration
		for range 5 {
			_, _, took := preflight(t, n, sandbox.Box{})
			times = append(times, took)
		}
		slices.Sort(times)
		t.Logf("preflight: median %d ms, at most %d ms", times[2].Milliseconds(), times[4].Milliseconds())
		if times[0] > 500*time.Millisecond {
			t.Errorf("not even one of five takes less than 500 ms: %v", times)
		}
	})
	forwardNothing(t, n)
	refused("TUN device of root's", sandbox.Box{TUN: 0o600}, exNoPerm, "chmod 0666 /dev/net/tun")
	route := &netlink.Route{LinkIndex: loopback, Dst: ipNet(netip.MustParsePrefix("10.86.64.0/24")), Scope: netlink.SCOPE_LINK}
	must(t, n.Host.Do(func() error { return netlink.RouteAdd(route) }))
	refused("overlap", sandbox.Box{}, exConfig, "10.86.64.0/24")
	must(t, n.Host.Do(func() error { return netlink.RouteDel(route) }))
	must(t, os.Chmod(n.ConfigFile(), 0o600))
	refused("configuration of root's", sandbox.Box{}, exNoPerm, "config.yaml")
	must(t, os.Chmod(n.ConfigFile(), 0o644))
	must(t, n.Configure("colour: blue"))
	refused("bad configuration", sandbox.Box{}, exConfig, "colour")
	must(t, n.Configure())
	must(t, os.Remove(filepath.Join(n.StateDir(), "mesh")))
	refused("damaged state", sandbox.Box{}, exBadData, "mesh")
}

func sysctl(t *testing.T, n *cluster.Node, key string) (value string) {
	t.Helper()
	must(t, n.Host.Do(func() error {
		raw, err := os.ReadFile("/proc/sys/" + key)
		value = strings.TrimSpace(string(raw))
		return err
	}))
	return value
}

// A daemon that may not switch forwarding on goes on without, and says so; with
// IPv6 off by default it turns it on for its own link.
func TestServiceWithoutPreflight(t *testing.T) {
	t.Parallel()
	c := hosts(t, 2)
	for _, n := range c.Nodes {
		runAsService(t, c, n)
		must(t, n.Host.DisableIPv6())
		forwardNothing(t, n)
	}
	must(t, c.Init(t.Context()))
	for _, n := range c.Nodes {
		chownAll(t, n.StateDir(), serviceUID)
	}
	must(t, c.Start())
	must(t, c.WaitAllPairs(bounded(t)))
	for _, n := range c.Nodes {
		d, code, err := n.Status(t.Context())
		must(t, err)
		if code != 0 || len(d.Health) != 1 || d.Health[0].Code != "no_forwarding" || d.Health[0].Level != "info" {
			t.Errorf("status of %s exits %d with %+v, want 0 and no_forwarding alone", n.Name, code, d.Health)
		}
		if got := sysctl(t, n, "net/ipv4/ip_forward"); got != "0" {
			t.Errorf("ip_forward is %s", got)
		}
	}
	preflightPasses(t, c.Nodes[0])
	must(t, c.Nodes[0].WaitFor(bounded(t), "to find nothing any more", func(d *status.Document) bool { return len(d.Health) == 0 }))
}
