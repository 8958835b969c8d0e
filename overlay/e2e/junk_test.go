//go:build linux

package e2e

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// Junk on both ports changes nothing: traffic goes on, and the log does not grow
// with it.
func TestJunk(t *testing.T) {
	t.Parallel()
	c := hosts(t, 3)
	alpha, beta, stranger := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	_, err := alpha.Meshctl(t.Context(), "init", "--name", "lab")
	must(t, err)
	token, err := alpha.Token(t.Context())
	must(t, err)
	must(t, beta.Join(t.Context(), token))
	must(t, alpha.Start())
	must(t, beta.Start())
	c.Nodes = c.Nodes[:2] // the stranger is no node
	must(t, c.WaitAllPairs(bounded(t)))
	before, lines := document(t, alpha), len(strings.Split(alpha.Log(), "\n"))

	targets := []netip.Addr{alpha.Host.IPv4, alpha.Host.IPv6}
	lost, sent := 0, 0
	to := addresses(t, alpha)[0]
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end) || sent < 5; {
		for _, a := range targets {
			for range 50 {
				junk := randomBytes(1 + rand.IntN(1400))
				junk[0] = byte(rand.IntN(5)) // as a WireGuard message begins, or memberlist's
				for _, port := range []uint16{tunnelPort, gossipPort} {
					must(t, sendData(t.Context(), stranger.Host, "udp", netip.AddrPortFrom(a, port), junk))
				}
			}
			// Streams of junk; the other side may well end them.
			_ = sendData(t.Context(), stranger.Host, "tcp", netip.AddrPortFrom(a, gossipPort), randomBytes(1+rand.IntN(10000)))
		}
		sent++
		if _, err := beta.Host.Ping(t.Context(), to); err != nil {
			lost++
		}
	}
	t.Logf("%d rounds of junk, %d of the pings between them lost", sent, lost)
	if lost > sent/10 {
		t.Errorf("of %d pings, %d got lost", sent, lost)
	}
	after := document(t, alpha)
	if after.State != "ready" || leasesOf(after) != leasesOf(before) || len(after.Peers) != 1 || len(after.Health) > 0 {
		t.Errorf("was %+v, is %+v", before, after)
	}
	// At most one line a minute of each kind.
	more := strings.Split(alpha.Log(), "\n")[lines-1:]
	t.Logf("%d lines in the log:\n%s", len(more)-1, strings.Join(more, "\n"))
	if len(more)-1 > 3 {
		t.Error("that is too much")
	}
}
