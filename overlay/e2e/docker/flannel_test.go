//go:build linux

package docker

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"meshd/overlay/e2e/cluster"
)

// Engines that know nothing of meshd take their default bridge from flannel's file,
// as the scripts made for flannel have them.
func TestFlannel(t *testing.T) {
	t.Parallel()
	file := func(n *cluster.Node) string { return filepath.Join(n.Dir, "flannel", "subnet.env") }
	c := newMesh(t, []string{"gamma", "delta"}, func(n *cluster.Node) []string { return []string{"subnet_env: " + file(n)} })
	sites := newSites(t, c, func(n *cluster.Node) Options {
		env := readEnv(t, file(n))
		if env["FLANNEL_NETWORK"] != "10.86.0.0/16" || env["FLANNEL_IPV6_NETWORK"] != "fd00:86::/48" {
			t.Errorf("%s: networks of %v", n.Name, env)
		}
		masq := map[string]string{"true": "false", "false": "true"}[env["FLANNEL_IPMASQ"]]
		return Options{Plugin: n.DockerSocket(), Bridge: Bridge{BIP: env["FLANNEL_SUBNET"], MTU: env["FLANNEL_MTU"], Masq: masq}}
	})
	gamma, delta := sites[0], sites[1]
	gamma.sleeper("near")
	gamma.server("beside", "--publish", "8080:80")
	delta.server("far")
	address := func(s *site, name string) string {
		return s.run("inspect", "--format", "{{.NetworkSettings.IPAddress}}", name)
	}

	got, err := netip.ParseAddr(address(gamma, "near"))
	if subnet := gamma.lease("default")[0]; err != nil || !subnet.Contains(got) {
		t.Errorf("a container has %s, which is not of %s", got, subnet)
	}
	gamma.reaches("near", address(gamma, "beside"), address(delta, "far"), delta.host("default"))
	gamma.fetches("near", address(delta, "far"), "I am far")
	delta.reaches("far", address(gamma, "near"))
	get(t, delta.Host, gamma.host("default")+":8080", "I am beside")
	get(t, delta.Host, gamma.Host.IPv4.String()+":8080", "I am beside")
	get(t, delta.Host, address(gamma, "beside"), "I am beside")

	// Outside of the mesh they have the host's address, by which answers come back.
	gamma.reaches("near", delta.Host.IPv4.String())

	// Two programs would give out one address, so ours does not.
	gamma.refused("subnet_env", create("mine")...)

	// Without the lease there is no file.
	_, err = delta.Meshctl(cluster.Bounded(t), "leave")
	must(t, err)
	if _, err := os.Stat(file(delta.Node)); !os.IsNotExist(err) {
		t.Errorf("delta has left, and its file is there: %v", err)
	}
}

// readEnv reads a file as a shell would.
func readEnv(t *testing.T, path string) map[string]string {
	t.Helper()
	raw, err := os.ReadFile(path)
	must(t, err)
	all := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		all[key] = value
	}
	return all
}
