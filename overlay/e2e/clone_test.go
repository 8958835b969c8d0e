//go:build linux

package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"meshd/mesh/statedir"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/status"
)

// becomeMachine gives a host an ID of its own, after [ownMounts].
func becomeMachine(t *testing.T, n *cluster.Node, id string) {
	t.Helper()
	file := filepath.Join(n.Dir, "machine-id-"+id)
	must(t, os.WriteFile(file, []byte(id+"\n"), 0o444))
	must(t, n.Host.Do(func() error { return unix.Mount(file, "/etc/machine-id", "", unix.MS_BIND, "") }))
}

// copyState puts a copy of a state somewhere, as it is at the moment: its daemon
// may write it meanwhile.
func copyState(t *testing.T, to, from string) {
	t.Helper()
	must(t, cluster.Poll(bounded(t), func() (bool, error) {
		must(t, os.RemoveAll(to))
		err := os.CopyFS(to, os.DirFS(from))
		return err == nil, err
	}))
	must(t, os.Chmod(to, 0o700))
}

// clonedFor is for how long at most a node is cut off that was cloned, if its clone
// has tunnels until it hears of it: at the same addresses, or, as here, without a
// note of those. Elsewhere it has none.
const clonedFor = 5 * time.Second

// restoredFor is for how long at most a node is not reached that is what it was long
// ago: until others have heard which key it has again, and a handshake of theirs.
const restoredFor = 5 * time.Second

// Two hosts run with one state. The one that came later ends and says what to do;
// the other one stays what it was, and hardly notices.
func TestClone(t *testing.T) {
	t.Parallel()
	for name, other := range map[string]bool{"with the ID of its machine": false, "adopted": true, "that has tunnels": false, "that says it is there": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tunnels, there := name == "that has tunnels", name == "that says it is there"
			c := hosts(t, 4)
			alpha, beta, gamma, clone := c.Nodes[0], c.Nodes[1], c.Nodes[2], c.Nodes[3]
			says := []string{"node: {name: alpha}"}
			if there {
				says = append(says, fmt.Sprintf("advertise: [%q, %q]", alpha.Host.IPv4, alpha.Host.IPv6))
			}
			must(t, clone.Configure(says...))
			if other {
				ownMounts(t, clone.Host)
				becomeMachine(t, clone, "fedcba9876543210fedcba9876543210")
			}
			c.Nodes = c.Nodes[:3]
			formMesh(t, c)
			was := document(t, alpha)
			pid := pidOf(alpha)
			var flows []*lab.Pings
			for _, pair := range [][2]*cluster.Node{{beta, alpha}, {alpha, gamma}, {beta, gamma}} { // the last one without alpha
				p := pingSteadily(t, pair[0], pair[1])
				defer p.Stop()
				flows = append(flows, p)
			}
			pause(t.Context(), 3*time.Second) // so that alpha is the older one

			copyState(t, clone.StateDir(), alpha.StateDir())
			if other {
				checkRefuses(t, clone, exBadData, "copied from another machine", "meshctl adopt", "join anew")
				_, err := clone.Meshctl(t.Context(), "adopt")
				must(t, err)
			}
			if tunnels {
				d, err := statedir.Open(clone.StateDir())
				must(t, err)
				s, err := d.State()
				must(t, err)
				s.Addresses = nil
				must(t, d.SaveState(s))
			}
			begin := time.Now()
			must(t, clone.Start())
			if err := clone.Process().Wait(bounded(t)); exitCode(err) != exBadData {
				t.Fatalf("the clone ends with %v, want exit code %d", err, exBadData)
			}
			t.Logf("the clone ended after %.2f s", time.Since(begin).Seconds())
			last := lastLine(clone.Log())
			for _, s := range []string{"another daemon runs with this node's identity", "remove its state directory", "meshctl join", "stop the daemon on the other host"} {
				if !strings.Contains(last, s) {
					t.Errorf("the clone says %q, want %q in it", last, s)
				}
			}

			ended := time.Now()
			for _, p := range flows {
				_, err := p.Flows(bounded(t), ended)
				must(t, err)
			}
			pause(t.Context(), 7*time.Second) // until alpha knows that it is gone, and has made its tunnels anew
			for i, p := range flows {
				lost, sent := p.Between(begin, time.Now().Add(-time.Second))
				t.Logf("%s: %d of %d lost, nothing came for %.1f s", p, lost, sent, p.Gap().Seconds())
				switch {
				case i == len(flows)-1 && lost > 0:
					t.Errorf("%s: %d of %d lost, and neither was cloned", p, lost, sent)
				case !tunnels && !there && lost > 0:
					t.Errorf("%s: %d of %d lost, though the clone had no tunnels", p, lost, sent)
				case p.Gap() > clonedFor:
					t.Errorf("%s: nothing came for %s, want %s at most", p, p.Gap(), clonedFor)
				}
			}
			is := document(t, alpha)
			if is.Node.ID != was.Node.ID || leasesOf(is) != leasesOf(was) || pidOf(alpha) != pid {
				t.Errorf("alpha was %s with %s and is %s with %s", was.Node.ID, leasesOf(was), is.Node.ID, leasesOf(is))
			}
			for _, n := range []*cluster.Node{beta, gamma} {
				if p := peerNamed(document(t, n), "alpha"); p == nil || p.State != status.PeerUp {
					t.Errorf("%s sees %+v", n.Name, p)
				}
			}
			must(t, cluster.WaitPairs(bounded(t), c.Nodes...))
		})
	}
}

// A node goes on from a backup of what it was some runs, and a tunnel key, ago: as
// the same one, with the same subnet, and nobody else notices more than a restart.
func TestRestoredBackup(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 3)
	alpha, beta, gamma := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	backup := filepath.Join(c.Dir, "backup")
	copyState(t, backup, beta.StateDir())
	for range 3 {
		killAndRestart(t, beta, alpha, gamma)
	}
	_, err := beta.Meshctl(bounded(t), "keys", "rotate", "tunnel")
	must(t, err)
	timeGossip(t, beta, gamma)
	was, others := document(t, beta), leasesByName(t, alpha, gamma)
	past := pingSteadily(t, alpha, gamma)
	defer past.Stop()

	epoch := uint64(0) // of its last run
	// The run before has shown stamps that the backup does not know of. Others take
	// none before these, and make the tunnels anew themselves when they see such a one.
	within(t, "reached again", restoredFor, func() time.Duration {
		epoch = document(t, beta).Node.Epoch
		must(t, beta.Stop(bounded(t)))
		copyState(t, beta.StateDir(), backup)
		begin := time.Now()
		must(t, beta.Start())
		for _, n := range []*cluster.Node{alpha, gamma} {
			for _, l := range was.Node.Leases {
				for _, a := range l.Addresses {
					_, err := n.Host.Await(bounded(t), a)
					must(t, err)
				}
			}
		}
		return time.Since(begin)
	})
	must(t, cluster.WaitPairs(bounded(t), c.Nodes...))
	pause(t.Context(), 5*time.Second) // a fight would be seen
	is := document(t, beta)
	if is.Node.ID != was.Node.ID || leasesOf(is) != leasesOf(was) {
		t.Errorf("it was %s with %s and is %s with %s", was.Node.ID, leasesOf(was), is.Node.ID, leasesOf(is))
	}
	if is.Node.Epoch != epoch+1 {
		t.Errorf("epoch %d after %d: it should have gone on above its past, once", is.Node.Epoch, epoch)
	}
	if now := leasesByName(t, alpha, gamma); !maps.Equal(now, others) {
		t.Errorf("the others had %v and have %v", others, now)
	}
	if lost, sent := past.Lost(time.Now().Add(-time.Second)); lost > 0 || sent < 100 {
		t.Errorf("%d of %d pings between the others lost", lost, sent)
	}
	within(t, "what it says now is heard", healWithin, func() time.Duration { return timeGossip(t, beta, alpha) })
	if d := document(t, beta); slices.ContainsFunc(d.Peers, func(p status.Peer) bool { return p.State != status.PeerUp }) {
		t.Errorf("it sees %+v", d.Peers)
	}
}

func leasesByName(t *testing.T, nodes ...*cluster.Node) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, n := range nodes {
		all[n.Name] = leasesOf(document(t, n))
	}
	return all
}
