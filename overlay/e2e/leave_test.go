//go:build linux

package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/status"
)

func TestLeave(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 3)
	alpha, beta, gamma := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	own := addresses(t, gamma)
	_, err := gamma.Meshctl(bounded(t), "leave")
	must(t, err)
	must(t, gamma.Process().Wait(bounded(t))) // with exit code 0
	if left := leftovers(t, gamma); len(left) > 0 {
		t.Errorf("left on the host: %v", left)
	}
	for _, n := range []*cluster.Node{alpha, beta} {
		must(t, n.WaitFor(bounded(t), "to know that gamma has left", func(d *status.Document) bool {
			p, err := d.Find("gamma")
			return err != nil || p.State == status.PeerLeft && !hasHeld(p)
		}))
		for _, a := range own {
			if _, err := n.Host.Ping(t.Context(), a); err == nil {
				t.Errorf("%s is still reached", a)
			}
		}
		if d, code, err := n.Status(t.Context()); err != nil || code != 0 {
			t.Errorf("one has left, and status of %s exits %d: %v %v", n.Name, code, err, d)
		}
	}
	out, code := runDaemon(t, gamma)
	if code != 65 || !strings.Contains(out, "meshctl join") {
		t.Errorf("a node that has left starts: exit code %d: %s", code, out)
	}
	// It may come back with a new token.
	token, err := alpha.Token(t.Context())
	must(t, err)
	must(t, gamma.Join(t.Context(), token))
	must(t, gamma.Start())
	must(t, c.WaitAllPairs(bounded(t)))
}

func hasHeld(p *status.Peer) bool {
	for _, l := range p.Leases {
		if l.State == "held" {
			return true
		}
	}
	return false
}

// What stays on the host after each way to end the daemon.
func TestEnd(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 2)
	alpha, beta := c.Nodes[0], c.Nodes[1]

	t.Run("down", func(t *testing.T) {
		_, err := beta.Meshctl(bounded(t), "down")
		must(t, err)
		must(t, beta.Process().Wait(bounded(t)))
		if left := leftovers(t, beta); len(left) > 0 {
			t.Errorf("left on the host: %v", left)
		}
		startAgain(t, c, beta)
	})
	for name, end := range map[string]func() error{
		"SIGTERM": func() error { return beta.Stop(bounded(t)) },
		"SIGKILL": func() error { beta.Kill(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			target := addresses(t, alpha)[0]
			must(t, end())
			left := leftovers(t, beta)
			if len(left) == 0 {
				t.Error("no unreachable route is left: packets for the mesh would leave in clear text")
			}
			if !slices.Contains(left, "table meshd") {
				t.Error("the rules are gone: containers of different networks would reach each other")
			}
			for _, l := range left {
				if !strings.HasPrefix(l, "route ") && !strings.HasPrefix(l, "table ") {
					t.Errorf("left on the host: %s", l)
				}
			}
			if _, err := beta.Host.Ping(t.Context(), target); !unreachable(err) {
				t.Errorf("ping %s without a daemon: %v, want unreachable", target, err)
			}
			for range 2 { // the second one finds nothing to do
				if out, code := runDaemon(t, beta, "--cleanup"); code != 0 {
					t.Errorf("meshd --cleanup exits %d: %s", code, out)
				}
				if left := leftovers(t, beta); len(left) > 0 {
					t.Errorf("left after --cleanup: %v", left)
				}
			}
			startAgain(t, c, beta)
		})
	}
	t.Run("cleanup of a daemon that runs with another configuration", func(t *testing.T) {
		before := leftovers(t, beta)
		other := filepath.Join(t.TempDir(), "config.yaml")
		must(t, os.WriteFile(other, []byte("control: "+filepath.Join(t.TempDir(), "meshd.sock")+"\n"), 0o644))
		if out, code := runDaemon(t, beta, "--cleanup", "--config", other); code != 69 || !strings.Contains(out, "a daemon runs") {
			t.Errorf("meshd --cleanup exits %d: %s; want 69 and that a daemon runs", code, out)
		}
		if after := leftovers(t, beta); !slices.Equal(before, after) {
			t.Errorf("the daemon had %v, and has %v", before, after)
		}
		if _, err := beta.Host.Ping(t.Context(), addresses(t, alpha)[0]); err != nil {
			t.Error(err)
		}
	})
	t.Run("cleanup of a daemon that runs", func(t *testing.T) {
		if out, code := runDaemon(t, beta, "--cleanup"); code != 0 {
			t.Errorf("meshd --cleanup exits %d: %s", code, out)
		}
		must(t, beta.Process().Wait(bounded(t)))
		if left := leftovers(t, beta); len(left) > 0 {
			t.Errorf("left on the host: %v", left)
		}
		startAgain(t, c, beta)
	})
	t.Run("without a daemon", func(t *testing.T) {
		must(t, beta.Stop(bounded(t)))
		for _, verb := range []string{"leave", "down", "status"} {
			cmd := beta.Command(t.Context(), verb)
			if out, code := runToEnd(t, beta, cmd); code != 3 || strings.TrimSpace(out) == "" {
				t.Errorf("meshctl %s exits %d: %s", verb, code, out)
			}
		}
	})
}
