//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
)

// What is sent through the mesh is never seen on the underlay, the daemon alive
// or dead; and the capture would see it.
func TestNoClearText(t *testing.T) {
	c := mesh(t, 2)
	alpha, beta := c.Nodes[0], c.Nodes[1]
	marker := fmt.Appendf(nil, "<clear text %x>", random(12))
	text := bytes.Repeat(marker, 30)                  // fits into one packet
	much := bytes.Repeat(marker, 256<<10/len(marker)) // every segment has it

	t.Run("the capture can see", func(t *testing.T) {
		seen := capture(t, c, func() {
			must(t, exchange(t.Context(), alpha.Host, beta.Host, "udp", beta.Host.IPv4, text))
		})
		if !contains(seen, marker) {
			t.Fatal("what is sent outside of the mesh is not in the capture")
		}
	})
	targets := addresses(t, beta)
	t.Run("through the tunnel", func(t *testing.T) {
		seen := capture(t, c, func() {
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
		if contains(seen, marker) {
			t.Error("clear text on the underlay")
		}
	})
	t.Run("the daemon is dead", func(t *testing.T) {
		alpha.Kill()
		seen := capture(t, c, func() {
			for _, a := range targets {
				for _, network := range []string{"udp", "tcp"} {
					err := send(t.Context(), alpha.Host, network, netip.AddrPortFrom(a, 7), text)
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
		if !contains(seen, []byte("the end")) {
			t.Fatal("the capture ended too early")
		}
		if contains(seen, marker) {
			t.Error("clear text on the underlay")
		}
	})
}

func unreachable(err error) bool {
	return errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH)
}

// capture records what passes the ports of all hosts while do runs.
func capture(t *testing.T, c *cluster.Cluster, do func()) (frames [][]byte) {
	t.Helper()
	var all []*lab.Capture
	for _, n := range c.Nodes {
		one, err := n.Host.Capture()
		must(t, err)
		all = append(all, one)
	}
	do()
	for _, one := range all {
		if err := one.Stop(); err != nil {
			t.Error(err)
		}
		frames = append(frames, one.Frames()...)
	}
	return frames
}

func contains(frames [][]byte, marker []byte) bool {
	for _, f := range frames {
		if bytes.Contains(f, marker) {
			return true
		}
	}
	return false
}

// send sends data to an address and waits for no answer.
func send(ctx context.Context, from *lab.Host, network string, to netip.AddrPort, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c, err := from.Dial(ctx, network, to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write(data)
	return err
}

// sendICMP sends an echo request with data in it.
func sendICMP(ctx context.Context, from *lab.Host, to netip.Addr, data []byte) error {
	network, kind := "ip4:icmp", byte(8)
	if to.Is6() {
		network, kind = "ip6:ipv6-icmp", 128
	}
	c, err := from.ListenPacket(ctx, network, "")
	if err != nil {
		return err
	}
	defer c.Close()
	// The checksum stays zero: nobody needs to answer.
	_, err = c.WriteTo(append([]byte{kind, 0, 0, 0, 0, 1, 0, 1}, data...), ipAddr(to))
	return err
}
