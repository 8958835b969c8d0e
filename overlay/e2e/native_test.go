//go:build linux

package e2e

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/tunnel"
	"meshd/overlay/tunnel/native"
)

// Nodes of both engines in one mesh: each pair speaks the best that both have.
func TestEnginesInOneMesh(t *testing.T) {
	t.Parallel()
	c := hosts(t, 3)
	alpha, beta, gamma := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	must(t, beta.Configure("engine: wireguard-go"))
	formMesh(t, c)
	for _, x := range []struct {
		node, peer    *cluster.Node
		engine, suite string
	}{
		{alpha, gamma, "native", native.Suites()[0]},
		{gamma, alpha, "native", native.Suites()[0]},
		{alpha, beta, "native", tunnel.ChaCha20Poly1305},
		{beta, gamma, "wireguard-go", tunnel.ChaCha20Poly1305},
	} {
		d := document(t, x.node)
		if p := peerNamed(d, x.peer.Name); d.Engine.Name != x.engine || p == nil || p.Suite != x.suite {
			t.Errorf("%s with engine %s speaks with %s: %+v; want %s, %s", x.node.Name, d.Engine.Name, x.peer.Name, p, x.engine, x.suite)
		}
	}
	for _, from := range c.Nodes {
		for _, to := range c.Nodes {
			if from == to {
				continue
			}
			for _, a := range addresses(t, to) {
				must(t, exchange(t.Context(), from.Host, to.Host, "tcp", a, randomBytes(1<<20)))
				must(t, exchange(t.Context(), from.Host, to.Host, "udp", a, randomBytes(3000)))
			}
		}
	}

	// Of no node: the sender is told at once, and need not wait.
	slots := map[byte]bool{}
	var unowned [4]byte
	for _, n := range c.Nodes {
		unowned = addresses(t, n)[0].As4()
		slots[unowned[2]] = true
	}
	for unowned[2] = 1; slots[unowned[2]]; unowned[2]++ {
	}
	conn, err := alpha.Host.Dial(t.Context(), "udp", netip.AddrPortFrom(netip.AddrFrom4(unowned), 9).String())
	must(t, err)
	defer conn.Close()
	raw, err := conn.(*net.UDPConn).SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1) }))
	must(t, err)
	_, err = conn.Write([]byte("who?"))
	must(t, err)
	must(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("sending to %s, which nobody has: %v, want %v", netip.AddrFrom4(unowned), err, unix.ENETUNREACH)
	}
}
