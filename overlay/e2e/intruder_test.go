//go:build linux

package e2e

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/mesh/statedir"
	"meshd/mesh/trust"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/status"
	"meshd/overlay/tunnel"
)

// The gossip key alone, as from a token of long ago, gives an intruder no route,
// no tunnel and no byte.
func TestIntruder(t *testing.T) {
	t.Parallel()
	c := hosts(t, 3)
	alpha, beta, evil := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	_, err := alpha.Meshctl(t.Context(), "init", "--name", "lab")
	must(t, err)
	text, err := alpha.Token(t.Context())
	must(t, err)
	must(t, beta.Join(t.Context(), text))
	must(t, alpha.Start())
	must(t, beta.Start())
	must(t, cluster.WaitPairs(bounded(t), alpha, beta))
	token, err := trust.ParseToken(text)
	must(t, err)

	t.Run("own CA", func(t *testing.T) {
		_, err := evil.Meshctl(t.Context(), "init", "--name", "lab")
		must(t, err)
		dir, err := statedir.Open(evil.StateDir())
		must(t, err)
		m := dir.Membership()
		m.Keyring, m.Seeds = statedir.NewKeyring(token.GossipKey), token.Seeds
		must(t, dir.SaveMembership(m))
		checkKeptOut(t, alpha, beta, evil, func() {
			must(t, evil.Start())
			must(t, evil.WaitFor(bounded(t), "to answer", func(*status.Document) bool { return true }))
			pause(t.Context(), 3*time.Second)
			evil.Kill()
		})
	})

	t.Run("own key", func(t *testing.T) {
		frames := checkKeptOut(t, alpha, beta, evil, func() {
			var peers []tunnel.Peer
			for _, n := range []*cluster.Node{alpha, beta} {
				peers = append(peers, asPeer(t, n))
			}
			own := netip.MustParsePrefix("10.86.77.1/32")
			startRogue(t, evil.Host, statedir.NewKeys().Tunnel, own, peers...)
			for _, p := range peers {
				for _, a := range p.AllowedIPs {
					if a.Addr().Is4() {
						err := sendData(t.Context(), evil.Host, "udp", netip.AddrPortFrom(a.Addr(), 7), []byte("let me in"))
						must(t, err)
					}
				}
			}
			pause(t.Context(), 3*time.Second)
		})
		if n := udpFrames(frames, tunnelPort, evil.Host.IPv4, netip.Addr{}); n == 0 {
			t.Error("the intruder sent nothing: there was nothing to keep out")
		}
	})

	t.Run("token that expired before a member saw it", func(t *testing.T) {
		late := shortToken(t, alpha, token, 2*time.Second)
		kept := joinAs(t, c, evil, late.String())
		<-time.After(time.Until(late.Credential.NotAfter.Add(1500 * time.Millisecond)))
		checkNotAdmitted(t, alpha, beta, kept)
	})
	t.Run("token that is used up", func(t *testing.T) {
		kept := joinAs(t, c, evil, text) // beta has used it
		checkNotAdmitted(t, alpha, beta, kept)
	})
}

// joinAs joins with a token on the host of a node, in a directory of its own.
func joinAs(t *testing.T, c *cluster.Cluster, on *cluster.Node, token string) *cluster.Node {
	t.Helper()
	n, err := c.Another(on)
	must(t, err)
	must(t, n.Join(t.Context(), token))
	return n
}

// checkKeptOut looks that two members are not impressed by what an intruder
// does. It gives what passed the intruder's port.
func checkKeptOut(t *testing.T, alpha, beta, evil *cluster.Node, act func()) [][]byte {
	t.Helper()
	before := map[*cluster.Node]int{}
	for _, n := range []*cluster.Node{alpha, beta} {
		before[n] = len(strings.Split(n.Log(), "\n"))
	}
	frames := capture(t, []*cluster.Node{evil}, act)
	for _, n := range []*cluster.Node{alpha, beta} {
		if d := document(t, n); len(d.Peers) != 1 || d.State != "ready" {
			t.Errorf("%s is %s and has the peers %+v", n.Name, d.State, d.Peers)
		}
		for _, from := range []netip.Addr{n.Host.IPv4, n.Host.IPv6} {
			if sent := udpFrames(frames, tunnelPort, from, netip.Addr{}); sent > 0 {
				t.Errorf("%s sent %d tunnel packets to the intruder", n.Name, sent)
			}
		}
		if lines := len(strings.Split(n.Log(), "\n")) - before[n]; lines > 3 {
			t.Errorf("%s logged %d lines about it", n.Name, lines)
		}
	}
	must(t, cluster.WaitPairs(bounded(t), alpha, beta))
	return frames
}

// checkNotAdmitted starts a node whose token is worth nothing any more, and
// looks that it comes to nothing and says so.
func checkNotAdmitted(t *testing.T, alpha, beta, kept *cluster.Node) {
	t.Helper()
	checkKeptOut(t, alpha, beta, kept, func() {
		must(t, kept.Start())
		must(t, kept.WaitFor(bounded(t), "to complain", func(d *status.Document) bool {
			return slices.ContainsFunc(d.Health, func(f status.Finding) bool { return f.Code == "no_admission" })
		}))
	})
	d, code, err := kept.Status(t.Context())
	must(t, err)
	if code != 3 || d.State != "waiting_for_seed" || len(d.Node.Leases) > 0 {
		t.Errorf("status exits %d, says %s, leases %v", code, d.State, d.Node.Leases)
	}
	if _, err := kept.Host.Ping(t.Context(), addresses(t, alpha)[0]); err == nil {
		t.Error("it reaches a member")
	}
	_, err = kept.Meshctl(bounded(t), "down")
	must(t, err)
}

// udpFrames counts UDP packets with a port as source or destination, between two
// addresses; an invalid one stands for all.
func udpFrames(frames [][]byte, port uint16, from, to netip.Addr) (count int) {
	for _, f := range frames {
		if len(f) < 14 {
			continue
		}
		var src, dst netip.Addr
		var udp []byte
		switch p := f[14:]; {
		case binary.BigEndian.Uint16(f[12:]) == 0x0800 && len(p) >= 20 && p[9] == 17:
			src, _ = netip.AddrFromSlice(p[12:16])
			dst, _ = netip.AddrFromSlice(p[16:20])
			udp = p[min(len(p), int(p[0]&15)*4):]
		case binary.BigEndian.Uint16(f[12:]) == 0x86dd && len(p) >= 40 && p[6] == 17:
			src, _ = netip.AddrFromSlice(p[8:24])
			dst, _ = netip.AddrFromSlice(p[24:40])
			udp = p[40:]
		}
		if len(udp) < 8 || from.IsValid() && src != from || to.IsValid() && dst != to {
			continue
		}
		if binary.BigEndian.Uint16(udp) == port || binary.BigEndian.Uint16(udp[2:]) == port {
			count++
		}
	}
	return count
}
