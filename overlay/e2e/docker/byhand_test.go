//go:build linux

package docker

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"meshd/overlay/e2e/cluster"
)

// byHand runs meshctl beside a site's engine, where processes have the numbers that
// it says.
func (s *site) byHand(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), cluster.Soon)
	defer cancel()
	meshctl := s.Command(ctx, args...)
	first, _ := s.first()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", strconv.Itoa(first), "--mount", "--pid", "--"}, meshctl.Args...)...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+s.socket())
	out, err := s.Host.Run(cmd)
	return strings.TrimSpace(string(out)), err
}

// attachByHand attaches a container and gives its address in the mesh.
func (s *site) attachByHand(container string, args ...string) string {
	s.t.Helper()
	out, err := s.byHand(append([]string{"attach", container, "-f", "{{index .addresses 0}}"}, args...)...)
	must(s.t, err)
	address, _, _ := strings.Cut(out, "/")
	return address
}

// Containers that run on Docker's own bridge, and were told nothing of any mesh,
// are put on one while they run.
func TestAttachByHand(t *testing.T) {
	t.Parallel()
	c := newMesh(t, []string{"epsilon"}, func(*cluster.Node) []string { return nil })
	s := newSites(t, c, func(n *cluster.Node) Options {
		return Options{Plugin: n.DockerSocket(), Bridge: Bridge{BIP: "172.31.7.1/24", MTU: "1500", Masq: "true"}}
	})[0]
	s.sleeper("web1")
	s.server("web2")
	s.sleeper("hosts", "--network", "host")
	routes := func(container string) string { return s.run("exec", container, "ip", "route") }
	before := routes("web1")

	s.attachByHand("web1", "-n", "web")
	id := s.run("inspect", "--format", "{{.Id}}", "web2")
	second := s.attachByHand(id[:7], "-n", "web", "--ip", s.nth("web", 40))
	s.fetches("web1", second, "I am web2")
	s.reaches("web1", "172.31.7.1", s.host("web")) // its former network is as it was
	for line := range strings.Lines(before) {
		if !strings.Contains(routes("web1"), line) {
			t.Errorf("the route %q has gone:\n%s", line, routes("web1"))
		}
	}
	if again := s.attachByHand("web2", "-n", "web"); again != second {
		t.Errorf("attached again at %s, before at %s", again, second)
	}
	if _, err := s.byHand("attach", "hosts"); err == nil || !strings.Contains(err.Error(), "has the host's network") {
		t.Errorf("a container with the host's network: %v", err)
	}

	// Docker's restart makes a new network for it.
	s.run("restart", "--time", "1", "web2")
	if again := s.attachByHand("web2", "-n", "web"); again != second {
		t.Errorf("started anew it is at %s, before at %s", again, second)
	}
	s.fetches("web1", second, "I am web2")

	_, err := s.byHand("detach", "web1")
	must(t, err)
	if after := routes("web1"); after != before {
		t.Errorf("detached it has the routes\n%s\nbefore\n%s", after, before)
	}
	s.run("rm", "--force", "web2")
	_, err = s.byHand("detach", "web2")
	must(t, err)
	if got := s.attached(); len(got) > 0 {
		t.Errorf("attached are %v", got)
	}

	// What Docker attaches is listed by the name that only Docker knows.
	s.create("web", "-o", "network=web")
	s.sleeper("web3", "--network", "web")
	list, err := s.byHand("attach", "list")
	must(t, err)
	if !strings.Contains(list, "\nweb      web3 ") {
		t.Errorf("the list does not name web3:\n%s", list)
	}
}
