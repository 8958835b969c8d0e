//go:build linux

package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/status"
)

const (
	exchangePort = 51882 // TCP, inside the tunnels
	askPort      = 51883 // of daemons that ask there
	// newsBound is how soon all members know what one says, by the tunnels alone.
	newsBound = 10 * time.Second
)

// blockGossip lets nothing of gossip arrive anywhere.
func blockGossip(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	must(t, c.Filter(func(*cluster.Node) lab.Filter { return lab.Filter{Ports: []uint16{gossipPort}} }))
}

// allKnow waits until nodes know something new, and tells how long it took.
func allKnow(t *testing.T, nodes []*cluster.Node, what string, known func(*status.Document) bool) {
	t.Helper()
	begin := time.Now()
	for _, n := range nodes {
		must(t, n.WaitFor(bounded(t), "to know "+what, known))
	}
	took := time.Since(begin)
	if t.Logf("%s is known after %.2f s", what, took.Seconds()); took > newsBound {
		t.Errorf("%s is known after %s, want at most %s", what, took, newsBound)
	}
}

// relabel changes a node's label, as an operator does.
func relabel(t *testing.T, n *cluster.Node, value string) (known func(*status.Document) bool) {
	t.Helper()
	must(t, n.Configure(fmt.Sprintf("node: {name: %s, labels: {rack: %s}}", n.Name, value)))
	_, err := n.Meshctl(bounded(t), "config", "reload")
	must(t, err)
	return func(d *status.Document) bool {
		p := peerNamed(d, n.Name)
		return p != nil && p.Labels["rack"] == value
	}
}

// pingAll sends pings between all nodes, both ways, until the returned function is
// called, which wants all of them answered.
func pingAll(t *testing.T, nodes []*cluster.Node) (noneLost func()) {
	t.Helper()
	var flows []*lab.Pings
	for _, from := range nodes {
		for _, to := range nodes {
			if from != to {
				p, err := from.Host.Pings(t.Context(), addresses(t, to)[0], 50*time.Millisecond)
				must(t, err)
				t.Cleanup(p.Stop)
				flows = append(flows, p)
			}
		}
	}
	return func() {
		t.Helper()
		until, total := time.Now(), 0
		for _, p := range flows {
			_, err := p.Flows(bounded(t), until)
			must(t, err)
			lost, sent := p.Lost(until)
			if total += sent; lost > 0 {
				t.Errorf("%s: %d of %d lost", p, lost, sent)
			}
		}
		t.Logf("%d pings, all answered but for those above", total)
	}
}

// With gossip blocked everywhere no ping is lost, and all that anybody says still
// reaches everybody.
func TestNewsWithoutGossip(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 4)
	alpha, beta, gamma, delta := c.Nodes[0], c.Nodes[1], c.Nodes[2], c.Nodes[3]
	noneLost := pingAll(t, []*cluster.Node{alpha, beta, delta})
	blockGossip(t, c)
	pause(t.Context(), 30*time.Second) // until memberlist has given up everybody

	allKnow(t, []*cluster.Node{alpha, gamma, delta}, "beta's new label", relabel(t, beta, "r2"))

	new4 := netip.MustParsePrefix("198.18.0.103/24")
	must(t, gamma.Host.RemoveAddress(netip.PrefixFrom(gamma.Host.IPv6, 64)))
	must(t, gamma.Host.ReplaceAddress(netip.PrefixFrom(gamma.Host.IPv4, 24), new4))
	allKnow(t, []*cluster.Node{alpha, beta, delta}, "gamma's new address", func(d *status.Document) bool {
		p := peerNamed(d, "gamma")
		return p != nil && p.Endpoint != nil && p.Endpoint.Addr() == new4.Addr()
	})
	allKnow(t, []*cluster.Node{alpha, beta, delta}, "the label that gamma has from there on", relabel(t, gamma, "r3"))

	_, err := alpha.Meshctl(bounded(t), "network", "create", "web", "--ipv4", "10.87.0.0/16")
	must(t, err)
	allKnow(t, c.Nodes, "a new network", func(d *status.Document) bool { return networksOf(d) == "default web" })

	noneLost()
	_, err = delta.Meshctl(bounded(t), "leave")
	must(t, err)
	allKnow(t, c.Nodes[:3], "that delta has left", func(d *status.Document) bool {
		p := peerNamed(d, "delta")
		return p == nil || p.State == status.PeerLeft
	})

	// A restart comes up by what is on disk, and by the tunnels.
	took := killAndRestart(t, beta, alpha, gamma)
	if t.Logf("restarted: pings flow after %.2f s", took.Seconds()); took > 5*time.Second {
		t.Errorf("it took %s, want at most 5 s", took)
	}
	epoch := document(t, beta).Node.Epoch
	allKnow(t, []*cluster.Node{alpha, gamma}, "the label that beta has since", relabel(t, beta, "r4"))
	t.Logf("beta is in epoch %d", epoch)
}

// With the only seed dead for good, members find each other after restarts, also
// when gossip is blocked besides.
func TestNewsWithoutSeeds(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 4)
	alpha, rest := c.Nodes[0], c.Nodes[1:]
	beta, gamma, delta := rest[0], rest[1], rest[2]
	alpha.Kill()
	allKnow(t, []*cluster.Node{gamma, delta}, "beta's label", relabel(t, beta, "r1"))
	took := killAndRestart(t, gamma, beta, delta)
	if t.Logf("restarted: pings flow after %.2f s", took.Seconds()); took > 5*time.Second {
		t.Errorf("it took %s, want at most 5 s", took)
	}
	blockGossip(t, c)
	took = killAndRestart(t, delta, beta, gamma)
	if t.Logf("the same with gossip blocked: pings flow after %.2f s", took.Seconds()); took > 5*time.Second {
		t.Errorf("it took %s, want at most 5 s", took)
	}
	allKnow(t, []*cluster.Node{beta, gamma}, "delta's label", relabel(t, delta, "r2"))
}

// asker tries, from a host, what a daemon does there, as somebody else.
func asker(ctx context.Context, from *lab.Host, source, to netip.AddrPort) (heard []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var conn net.Conn
	var dialer net.Dialer
	if source.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(source)
	}
	err = from.Do(func() (err error) {
		conn, err = dialer.DialContext(ctx, "tcp", to.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = conn.Write(binary.BigEndian.AppendUint64([]byte("mshX\x01"), 1))
	heard, _ = io.ReadAll(conn)
	return heard, nil
}

// Nobody but a member's daemon gets a byte out of the exchange: not programs of this
// host, nor those of another member's, whatever port they use, nor containers.
func TestExchangeIsForDaemons(t *testing.T) {
	t.Parallel()
	c := newMesh(t, 2)
	alpha, beta := c.Nodes[0], c.Nodes[1]
	d := document(t, alpha)
	control := map[*cluster.Node]netip.Addr{beta: *peerNamed(d, "beta").Control, alpha: *peerNamed(document(t, beta), "alpha").Control}
	to := netip.AddrPortFrom(control[alpha], exchangePort)
	for name, try := range map[string]struct {
		from   *lab.Host
		source netip.AddrPort
	}{
		"a program of its own host":                          {alpha.Host, netip.AddrPort{}},
		"one of another member's host":                       {beta.Host, netip.AddrPort{}},
		"one there with the host's own address":              {beta.Host, netip.AddrPortFrom(control[beta], 0)},
		"a container of its own host":                        {contain(t, alpha, "near", "default").Host, netip.AddrPort{}},
		"one of another member's host, by the daemons' port": {contain(t, beta, "far", "default").Host, netip.AddrPortFrom(netip.IPv6Unspecified(), askPort)},
	} {
		heard, err := asker(t.Context(), try.from, try.source, to)
		if t.Logf("%s: %d bytes, error %v", name, len(heard), err); len(heard) > 0 {
			t.Errorf("%s hears %x", name, heard)
		}
	}
	// The daemon's port for asking is its own, for as long as it runs.
	at := netip.AddrPortFrom(control[beta], askPort)
	if err := bindAs(beta.Host, 0, at); err != nil {
		t.Errorf("the daemon's own user cannot share its port for asking, so nothing is shown: %v", err)
	}
	if err := bindAs(beta.Host, nobody, at); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("another user's program binds the daemon's port for asking: %v", err)
	}
}

// bindAs binds a TCP port on a host, as a user's program that shares it with whom it
// can.
func bindAs(h *lab.Host, uid int, at netip.AddrPort) error {
	return h.Do(func() error { // on a thread of its own
		if err := unix.Setfsuid(uid); err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err := errors.Join(err, unix.Setfsuid(0)); err != nil {
			return err
		}
		defer unix.Close(fd)
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
			unix.Bind(fd, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}))
	})
}
