//go:build linux

package e2e

import (
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"meshd/overlay/e2e/cluster"
)

func TestPlainDriver(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 2, "interface: {offload: off}")
	for _, a := range addresses(t, c.Nodes[1]) {
		must(t, exchange(t.Context(), c.Nodes[0].Host, c.Nodes[1].Host, "tcp", a, randomBytes(1<<20)))
	}
	bits, err := c.Nodes[0].Host.Throughput(t.Context(), c.Nodes[1].Host, addresses(t, c.Nodes[1])[0], soon/20)
	must(t, err)
	t.Logf("plain driver: %.0f Mbit/s", bits/1e6)
}

func TestIPv4Only(t *testing.T) {
	t.Parallel()
	c := hosts(t, 2)
	formMesh(t, c, "--ipv6", "none", "--ipv4", "10.99.0.0/16", "--ipv4-subnet-len", "26")
	for _, n := range c.Nodes {
		all := addresses(t, n)
		if len(all) != 1 || !netip.MustParsePrefix("10.99.0.0/16").Contains(all[0]) {
			t.Errorf("%s has %v", n.Name, all)
		}
		if p := document(t, n).Node.Leases[0].Prefixes[0]; p.Bits() != 26 {
			t.Errorf("%s has leased %s", n.Name, p)
		}
	}
}

func TestIPv6Only(t *testing.T) {
	t.Parallel()
	c := hosts(t, 2)
	formMesh(t, c, "--ipv4", "none", "--ipv6", "fd11:2233:4455::/48")
	must(t, exchange(t.Context(), c.Nodes[0].Host, c.Nodes[1].Host, "tcp", addresses(t, c.Nodes[1])[0], randomBytes(1<<20)))
}

// The mesh has IPv6 where the network below it has none.
func TestHostWithoutIPv6(t *testing.T) {
	t.Parallel()
	c := hosts(t, 2)
	must(t, c.Nodes[1].Host.DisableIPv6())
	formMesh(t, c)
	for _, n := range c.Nodes {
		if all := addresses(t, n); len(all) != 2 || !all[1].Is6() {
			t.Errorf("%s has %v", n.Name, all)
		}
		if d, code, err := n.Status(t.Context()); err != nil || code != 0 {
			t.Errorf("status of %s exits %d: %v, %v", n.Name, code, err, d.Health)
		}
	}
}

// A token for one subnet gives exactly that.
func TestPinnedSubnet(t *testing.T) {
	t.Parallel()
	c := hosts(t, 3)
	alpha, beta, gamma := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	_, err := alpha.Meshctl(t.Context(), "init", "--name", "lab", "--ipv4", "10.99.0.0/16")
	must(t, err)
	for n, subnet := range map[*cluster.Node]string{beta: "10.99.17.0/24", gamma: "10.99.255.0/24"} {
		token, err := alpha.Token(t.Context(), "--subnet", subnet)
		must(t, err)
		must(t, n.Join(t.Context(), token))
	}
	must(t, c.Start())
	must(t, c.WaitAllPairs(bounded(t)))
	for n, want := range map[*cluster.Node]string{beta: "10.99.17.1", gamma: "10.99.255.1"} {
		if got := addresses(t, n)[0].String(); got != want {
			t.Errorf("%s has %s, want %s", n.Name, got, want)
		}
	}
}

// Daemons that look for data races find none.
func TestRaces(t *testing.T) {
	t.Parallel()
	cluster.Programs(t) // or skip
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("the race detector needs gcc: ", err)
	}
	bin, err := cluster.Build(t.Context(), t.TempDir(), true)
	must(t, err)
	c := bin.ForTest(t, hostNames(3))
	t.Logf("3 nodes that look for races: all pairs after %.2f s", formMesh(t, c).Seconds())
	must(t, exchange(t.Context(), c.Nodes[0].Host, c.Nodes[1].Host, "tcp", addresses(t, c.Nodes[1])[0], randomBytes(1<<20)))
	for _, n := range c.Nodes {
		if _, _, err := n.Status(t.Context()); err != nil {
			t.Error(err)
		}
	}
	killAndRestart(t, c.Nodes[0], c.Nodes[1:]...)
	_, err = c.Nodes[2].Meshctl(bounded(t), "leave")
	must(t, err)
	for _, n := range c.Nodes[:2] {
		must(t, n.Stop(bounded(t)))
	}
}

// When a mesh is closed, nothing of it is left on this machine.
func TestNoLeftovers(t *testing.T) { // alone: numbers of namespaces are used again
	c, err := cluster.New(t.Context(), cluster.Programs(t), hostNames(3))
	must(t, err)
	closed := false
	defer func() {
		if !closed {
			c.Close()
		}
	}()
	formMesh(t, c)
	var pids []int
	namespaces := map[string]bool{}
	for _, n := range c.Nodes {
		pids = append(pids, n.Process().Pid())
		ns, err := os.Readlink(n.Host.Path())
		must(t, err)
		namespaces[ns] = true
	}
	closed = true
	must(t, c.Close())
	for _, pid := range pids {
		if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err == nil {
			t.Errorf("process %d is still there", pid)
		}
	}
	if _, err := os.Stat(c.Dir); err == nil {
		t.Errorf("%s is still there", c.Dir)
	}
	all, err := os.ReadDir("/proc")
	must(t, err)
	for _, e := range all {
		threads, _ := os.ReadDir("/proc/" + e.Name() + "/task")
		for _, thread := range threads {
			ns, err := os.Readlink("/proc/" + e.Name() + "/task/" + thread.Name() + "/ns/net")
			if err == nil && namespaces[ns] {
				name, _ := os.ReadFile("/proc/" + e.Name() + "/comm")
				t.Errorf("process %s (%s) is in a namespace of the mesh", e.Name(), strings.TrimSpace(string(name)))
			}
		}
	}
}
