//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
)

// What is sent through the mesh is never seen on the underlay, the daemon alive
// or dead; and the capture would see it.
func TestNoClearText(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 2)
	alpha, beta := c.Nodes[0], c.Nodes[1]
	marker := fmt.Appendf(nil, "<clear text %x>", randomBytes(12))
	text := bytes.Repeat(marker, 30)                  // fits into one packet
	much := bytes.Repeat(marker, 256<<10/len(marker)) // every segment has it

	t.Run("the capture can see", func(t *testing.T) {
		seen := capture(t, c.Nodes, func() {
			must(t, exchange(t.Context(), alpha.Host, beta.Host, "udp", beta.Host.IPv4, text))
		})
		if !framesContain(seen, marker) {
			t.Fatal("what is sent outside of the mesh is not in the capture")
		}
	})
	targets := addresses(t, beta)
	t.Run("through the tunnel", func(t *testing.T) {
		seen := capture(t, c.Nodes, func() {
			for _, a := range targets {
				must(t, exchange(t.Context(), alpha.Host, beta.Host, "tcp", a, much))
				must(t, exchange(t.Context(), alpha.Host, beta.Host, "udp", a, text))
				must(t, sendICMP(t.Context(), alpha.Host, a, text))
			}
			must(t, c.WaitAllPairs(bounded(t))) // the last packets have arrived
		})
		size := 0
		for _, f := range seen {
			size += len(f)
		}
		if size < 4*len(much) { // two families, both ways
			t.Errorf("the capture has only %d bytes: where did %d go?", size, 4*len(much))
		}
		if framesContain(seen, marker) {
			t.Error("clear text on the underlay")
		}
	})
	t.Run("the daemon is dead", func(t *testing.T) {
		alpha.Kill()
		seen := capture(t, c.Nodes, func() {
			for _, a := range targets {
				for _, network := range []string{"udp", "tcp"} {
					err := sendData(t.Context(), alpha.Host, network, netip.AddrPortFrom(a, 7), text)
					if !unreachable(err) {
						t.Errorf("send to %s by %s: %v, want unreachable", a, network, err)
					}
				}
				if err := sendICMP(t.Context(), alpha.Host, a, text); !unreachable(err) {
					t.Errorf("send to %s by ICMP: %v, want unreachable", a, err)
				}
			}
			// What is sent now comes after everything that might have leaked.
			must(t, exchange(t.Context(), alpha.Host, beta.Host, "udp", beta.Host.IPv4, []byte("the end")))
		})
		if !framesContain(seen, []byte("the end")) {
			t.Fatal("the capture ended too early")
		}
		if framesContain(seen, marker) {
			t.Error("clear text on the underlay")
		}
	})
}
