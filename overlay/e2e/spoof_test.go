//go:build linux

package e2e

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"meshd/mesh/statedir"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/tunnel"
)

// An inner source that is not the sender's is delivered nowhere, and what is not
// for a node is dropped: by the sender's daemon if it is honest, by the receiver's
// if the sender is not.
func TestSpoofedSource(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 3, "suite: chacha20poly1305") // the rogue's
	alpha, beta, gamma := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	to, third := addresses(t, beta)[0], addresses(t, gamma)[0]
	foreign := netip.MustParseAddr("10.99.9.9")
	must(t, addLoopback(alpha.Host, foreign))

	arrived := listenUDP(t, beta.Host, to)
	t.Run("honest sender", func(t *testing.T) {
		before := document(t, alpha).Engine.Drops[tunnel.DropSource]
		sendFrom(t, alpha.Host, foreign, arrived.at, "spoofed")
		sendFrom(t, alpha.Host, addresses(t, alpha)[0], arrived.at, "honest")
		arrived.want(t, "honest")
		// The kernel itself sends from link-local addresses now and then.
		if d := document(t, alpha).Engine.Drops; d[tunnel.DropSource] <= before {
			t.Errorf("drops %v, %d of them by source before", d, before)
		}
	})
	t.Run("sender without scruples", func(t *testing.T) {
		dir, err := statedir.Open(alpha.StateDir())
		must(t, err)
		own := addresses(t, alpha)[0]
		must(t, addLoopback(alpha.Host, third)) // as if it were gamma
		peer := asPeer(t, beta)
		elsewhere := netip.MustParseAddr("192.0.2.7") // behind beta, it believes
		peer.AllowedIPs = append(peer.AllowedIPs, netip.PrefixFrom(elsewhere, 32))
		must(t, alpha.Stop(bounded(t)))
		if out, code := runDaemon(t, alpha, "--cleanup"); code != 0 {
			t.Fatalf("meshd --cleanup exits %d: %s", code, out)
		}
		startRogue(t, alpha.Host, dir.Keys().Tunnel, netip.PrefixFrom(own, 32), peer)
		must(t, cluster.Poll(bounded(t), func() (bool, error) {
			_, err := alpha.Host.Ping(t.Context(), to)
			return err == nil, err
		}))
		before := document(t, beta).Engine.Drops[tunnel.DropDestination]
		sendFrom(t, alpha.Host, foreign, arrived.at, "spoofed")
		sendFrom(t, alpha.Host, third, arrived.at, "spoofed as another member")
		sendFrom(t, alpha.Host, own, netip.AddrPortFrom(elsewhere, 7), "not for you")
		sendFrom(t, alpha.Host, own, arrived.at, "honest again")
		arrived.want(t, "honest again")
		if d := document(t, beta).Engine.Drops; d[tunnel.DropDestination] != before+1 {
			t.Errorf("drops %v, %d of them by destination before", d, before)
		}
	})
}

func addLoopback(h *lab.Host, a netip.Addr) error {
	return h.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(lo, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, a.BitLen()))})
	})
}

// udpListener receives datagrams.
type udpListener struct {
	conn net.PacketConn
	at   netip.AddrPort
}

func listenUDP(t *testing.T, h *lab.Host, a netip.Addr) udpListener {
	t.Helper()
	c, err := h.ListenPacket(t.Context(), "udp", netip.AddrPortFrom(a, 0).String())
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return udpListener{c, netip.MustParseAddrPort(c.LocalAddr().String())}
}

// want receives a datagram and fails if that is not the expected one.
func (l udpListener) want(t *testing.T, text string) {
	t.Helper()
	must(t, l.conn.SetReadDeadline(time.Now().Add(5*time.Second)))
	buf := make([]byte, 1500)
	n, from, err := l.conn.ReadFrom(buf)
	must(t, err)
	if !bytes.Equal(buf[:n], []byte(text)) {
		t.Errorf("received %q from %s, want %q", buf[:n], from, text)
	}
	// And nothing after it.
	must(t, l.conn.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
	if n, from, err := l.conn.ReadFrom(buf); err == nil || !os.IsTimeout(err) {
		t.Errorf("received %q from %s, %v", buf[:n], from, err)
	}
}

// sendFrom sends a datagram with a source address of our choice.
func sendFrom(t *testing.T, h *lab.Host, from netip.Addr, to netip.AddrPort, text string) {
	t.Helper()
	c, err := h.ListenPacket(t.Context(), "udp", netip.AddrPortFrom(from, 0).String())
	must(t, err)
	defer c.Close()
	_, err = c.WriteTo([]byte(text), net.UDPAddrFromAddrPort(to))
	must(t, err)
}
