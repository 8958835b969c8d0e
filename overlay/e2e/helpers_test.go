//go:build linux

package e2e

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/mesh/statedir"
	"meshd/mesh/trust"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/sandbox"
	"meshd/overlay/status"
)

const soon = cluster.Soon

// repairWithin is how soon our own part of a host's network is whole again.
const repairWithin = 2 * time.Second

// The exit codes (sysexits.h).
const (
	exUsage       = 64
	exBadData     = 65
	exNoInput     = 66
	exUnavailable = 69
	exOSError     = 71
	exNoPerm      = 77
	exConfig      = 78
)

// The user that the daemons of these tests run as, and its group.
const (
	serviceUID = 64000
	serviceGID = 64001
)

const (
	tunnelPort = 51880
	gossipPort = 51881
)

// nobody is a user without rights.
const nobody = 65534

// hostNames are as many names of hosts.
func hostNames(n int) []string {
	known := []string{"alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"}
	for i := len(known); i < n; i++ {
		known = append(known, fmt.Sprintf("host%d", i+1))
	}
	return known[:n]
}

// hosts makes a cluster that is no mesh yet, of n nodes with more lines in their
// configuration files.
func hosts(t *testing.T, n int, extra ...string) *cluster.Cluster {
	t.Helper()
	return cluster.ForTest(t, hostNames(n), extra...)
}

// newMesh makes a mesh of n nodes in which everybody reaches everybody.
func newMesh(t *testing.T, n int, extra ...string) *cluster.Cluster {
	t.Helper()
	c := hosts(t, n, extra...)
	formMesh(t, c)
	return c
}

// formMesh makes a mesh out of hosts and gives the time from the start of the
// daemons until everybody reaches everybody.
func formMesh(t *testing.T, c *cluster.Cluster, init ...string) time.Duration {
	t.Helper()
	must(t, c.Init(t.Context(), init...))
	start := time.Now()
	must(t, c.Start())
	must(t, c.WaitAllPairs(bounded(t)))
	return time.Since(start)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func bounded(t *testing.T) context.Context { return cluster.Bounded(t) }

// document asks a daemon how it is doing.
func document(t *testing.T, n *cluster.Node) *status.Document {
	t.Helper()
	d, err := n.Document(bounded(t))
	must(t, err)
	return d
}

// addresses are those of a node in its lease: IPv4, then IPv6.
func addresses(t *testing.T, n *cluster.Node) []netip.Addr {
	t.Helper()
	a, err := n.Addresses(bounded(t))
	must(t, err)
	return a
}

// leasesOf prints the leases of the node that says this.
func leasesOf(d *status.Document) string {
	var all []string
	for _, l := range d.Node.Leases {
		all = append(all, fmt.Sprint(l.Prefixes, " ", l.State))
	}
	return strings.Join(all, ", ")
}

func peerNamed(d *status.Document, name string) *status.Peer {
	if i := slices.IndexFunc(d.Peers, func(p status.Peer) bool { return p.Name == name }); i >= 0 {
		return &d.Peers[i]
	}
	return nil
}

// pidOf is the daemon's process ID, 0 if it has ended.
func pidOf(n *cluster.Node) int {
	select {
	case <-n.Process().Done():
		return 0
	default:
		return n.Process().Pid()
	}
}

// startAgain starts a daemon again and waits until all reach each other.
func startAgain(t *testing.T, c *cluster.Cluster, n *cluster.Node) {
	t.Helper()
	must(t, n.Start())
	must(t, c.WaitAllPairs(bounded(t)))
}

// killAndRestart kills a daemon, starts it again, and tells how long it took from
// there until others reach it.
func killAndRestart(t *testing.T, n *cluster.Node, others ...*cluster.Node) time.Duration {
	t.Helper()
	before := document(t, n)
	var own []netip.Addr
	for _, l := range before.Node.Leases {
		own = append(own, l.Addresses...)
	}
	n.Kill()
	start := time.Now()
	must(t, n.Start())
	for _, other := range others {
		for _, a := range own {
			_, err := other.Host.Await(bounded(t), a)
			must(t, err)
		}
	}
	took := time.Since(start)
	must(t, cluster.WaitPairs(bounded(t), append(others, n)...))
	after := document(t, n)
	if after.Node.ID != before.Node.ID || leasesOf(after) != leasesOf(before) {
		t.Errorf("%s was %s with %s and is %s with %s", n.Name, before.Node.ID, leasesOf(before), after.Node.ID, leasesOf(after))
	}
	if after.Node.Epoch != before.Node.Epoch+1 {
		t.Errorf("epoch %d after %d", after.Node.Epoch, before.Node.Epoch)
	}
	return took
}

// runDaemon runs meshd to its end and gives what it printed and its exit code.
func runDaemon(t *testing.T, n *cluster.Node, args ...string) (output string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	return runToEnd(t, n, n.DaemonCommand(ctx, args...))
}

// runToEnd runs a command on a node's host to its end.
func runToEnd(t *testing.T, n *cluster.Node, cmd *exec.Cmd) (output string, code int) {
	t.Helper()
	var b strings.Builder
	cmd.Stdout, cmd.Stderr = &b, &b
	p, err := n.Host.Start(cmd)
	must(t, err)
	<-p.Done()
	return b.String(), cmd.ProcessState.ExitCode()
}

func exitCode(err error) int {
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode()
	}
	return 0
}

// leftovers are what a daemon has left on its host.
func leftovers(t *testing.T, n *cluster.Node) []string {
	t.Helper()
	left, err := n.Host.Leftovers()
	must(t, err)
	return left
}

// checkLine looks for one line with the reason, below the log.
func checkLine(t *testing.T, out, prefix, about string) {
	t.Helper()
	var reasons []string
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "time=") {
			reasons = append(reasons, line)
		}
	}
	if len(reasons) != 1 || !strings.HasPrefix(reasons[0], prefix) || !strings.Contains(reasons[0], about) {
		t.Errorf("it says %q, want one line with %q about %q", reasons, prefix, about)
	} else {
		t.Log(strings.TrimSpace(reasons[0]))
	}
}

// shortToken makes another token, with a node's CA key, as `meshctl token create`
// does but for a time that this refuses.
func shortToken(t *testing.T, n *cluster.Node, like *trust.Token, ttl time.Duration) *trust.Token {
	t.Helper()
	ca, err := statedir.LoadCAKey(filepath.Join(n.Dir, "ca.key"))
	must(t, err)
	public, key, err := ed25519.GenerateKey(nil)
	must(t, err)
	now := time.Now()
	credential := trust.Credential{
		Serial: trust.NewSerial(), Key: public, Uses: 1,
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(ttl), MaxCertLife: time.Hour,
	}
	raw, err := credential.Sign(ca)
	must(t, err)
	parsed, err := trust.ParseCredential(raw, like.Charter.CA)
	must(t, err)
	return &trust.Token{Charter: like.Charter, Credential: parsed, Key: key, GossipKey: like.GossipKey, Seeds: like.Seeds}
}

// within measures how long something takes. The machine may be busy: only who is
// late a second time fails.
func within(t *testing.T, what string, bound time.Duration, measure func() time.Duration) {
	t.Helper()
	took := measure()
	t.Logf("%s after %.2f s", what, took.Seconds())
	if took <= bound {
		return
	}
	if again := measure(); again > bound {
		t.Errorf("%s after %s, and the second time after %s; want %s", what, took, again, bound)
	}
}

// pause passes time.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// hashFiles gives types and contents of all files below a directory, but for what
// a mere look leaves: the state's directory, and a lock in it.
func hashFiles(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir || d.Name() == "state" || d.Name() == "lock" {
			return err
		}
		all[path] = d.Type().String()
		if !d.Type().IsRegular() {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Size() > 1<<20 {
			all[path] = fmt.Sprint(info.Size(), " bytes")
			return nil
		}
		raw, err := os.ReadFile(path)
		all[path] = fmt.Sprintf("%x", sha256.Sum256(raw))
		return err
	}))
	return all
}

// openToAll lets everybody into a directory.
func openToAll(t *testing.T, dir string) {
	t.Helper()
	must(t, os.Chmod(dir, 0o755))
}

// runAsService has a node's daemon run as the systemd unit does, in directories as
// systemd makes them.
func runAsService(t *testing.T, c *cluster.Cluster, n *cluster.Node) {
	t.Helper()
	openToAll(t, c.Dir)
	must(t, os.Mkdir(n.StateDir(), 0o700))
	for _, dir := range []string{n.Dir, n.StateDir()} {
		must(t, os.Chown(dir, serviceUID, serviceGID))
	}
	n.Wrap = sandbox.Box{UID: serviceUID, GID: serviceGID, Writable: n.Dir}.Wrap
}

// preflightPasses runs a preflight that must work, and gives what it printed.
func preflightPasses(t *testing.T, n *cluster.Node) string {
	t.Helper()
	out, code, took := preflight(t, n, sandbox.Box{})
	if code != 0 {
		t.Fatalf("meshd --preflight on %s exits %d: %s", n.Name, code, out)
	}
	t.Logf("preflight of %s took %d ms: %q", n.Name, took.Milliseconds(), out)
	return out
}

// preflight runs meshd --preflight for a node, as the box says.
func preflight(t *testing.T, n *cluster.Node, box sandbox.Box) (output string, code int, took time.Duration) {
	t.Helper()
	cmd := n.DaemonCommand(bounded(t), "--preflight")
	must(t, box.Wrap(cmd))
	start := time.Now()
	output, code = runToEnd(t, n, cmd)
	return output, code, time.Since(start)
}

func forwardNothing(t *testing.T, n *cluster.Node) {
	t.Helper()
	must(t, n.Host.Do(func() error {
		return errors.Join(
			os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0),
			os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("0"), 0))
	}))
}

// randomBytes gives bytes that nobody can have seen before.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}
