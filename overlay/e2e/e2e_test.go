//go:build linux

// Package e2e tests the real programs: meshes on a lab of network namespaces.
//
// [cluster.Programs] says where these come from.
// The bounds on time are generous, since the machine may be busy; the figures
// are in the log (go test -v).
package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/e2e/sandbox"
	"meshd/overlay/status"
)

const soon = cluster.Soon

func TestMain(m *testing.M) {
	if err := sandbox.Main(); err != nil {
		panic(err)
	}
	cluster.Main(m)
}

// names are as many names of hosts.
func names(n int) []string {
	known := []string{"alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"}
	for i := len(known); i < n; i++ {
		known = append(known, fmt.Sprintf("host%d", i+1))
	}
	return known[:n]
}

// hosts makes a cluster that is no mesh yet, of n nodes with more lines in their
// configuration files.
func hosts(t *testing.T, n int, extra ...string) *cluster.Cluster {
	t.Helper()
	return cluster.ForTest(t, names(n), extra...)
}

// mesh makes a mesh of n nodes in which everybody reaches everybody.
func mesh(t *testing.T, n int, extra ...string) *cluster.Cluster {
	t.Helper()
	c := hosts(t, n, extra...)
	form(t, c)
	return c
}

// form makes a mesh out of hosts and gives the time from the start of the
// daemons until everybody reaches everybody.
func form(t *testing.T, c *cluster.Cluster, init ...string) time.Duration {
	t.Helper()
	must(t, c.Init(t.Context(), init...))
	start := time.Now()
	must(t, c.Start())
	must(t, c.WaitAllPairs(bounded(t)))
	return time.Since(start)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func bounded(t *testing.T) context.Context { return cluster.Bounded(t) }

// document asks a daemon how it is doing.
func document(t *testing.T, n *cluster.Node) *status.Document {
	t.Helper()
	d, err := n.Document(bounded(t))
	must(t, err)
	return d
}

// addresses are those of a node in its lease: IPv4, then IPv6.
func addresses(t *testing.T, n *cluster.Node) []netip.Addr {
	t.Helper()
	a, err := n.Addresses(bounded(t))
	must(t, err)
	return a
}

// lease prints a node's lease.
func lease(d *status.Document) string {
	var all []string
	for _, l := range d.Node.Leases {
		all = append(all, fmt.Sprint(l.Prefixes, " ", l.State))
	}
	return strings.Join(all, ", ")
}

// exchange sends data from a host to an address of another by TCP or UDP, and
// wants it back.
func exchange(ctx context.Context, from, to *lab.Host, network string, addr netip.Addr, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	target, stop, err := echo(ctx, to, network, addr)
	if err != nil {
		return err
	}
	defer stop()
	c, err := from.Dial(ctx, network, target)
	if err != nil {
		return fmt.Errorf("from %s: %w", from.Name, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	written := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		written <- err
	}()
	got := make([]byte, len(data))
	_, err = io.ReadFull(c, got)
	if err := errors.Join(err, <-written); err != nil {
		return fmt.Errorf("exchange by %s, %s to %s: %w", network, from.Name, target, err)
	}
	if !bytes.Equal(got, data) {
		return fmt.Errorf("exchange by %s, %s to %s: other data came back", network, from.Name, target)
	}
	return nil
}

// echo serves what comes back, on any port of the address.
func echo(ctx context.Context, h *lab.Host, network string, addr netip.Addr) (target string, stop func(), err error) {
	at := netip.AddrPortFrom(addr, 0).String()
	if network == "udp" {
		c, err := h.ListenPacket(ctx, network, at)
		if err != nil {
			return "", nil, err
		}
		go func() {
			buf := make([]byte, 1<<16)
			for {
				n, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = c.WriteTo(buf[:n], from)
			}
		}()
		return c.LocalAddr().String(), func() { c.Close() }, nil
	}
	l, err := h.Listen(ctx, network, at)
	if err != nil {
		return "", nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	return l.Addr().String(), func() { l.Close() }, nil
}

// random gives bytes that nobody can have seen before.
func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// ipAddr is an address to which a raw socket can send.
func ipAddr(a netip.Addr) net.Addr { return &net.IPAddr{IP: a.AsSlice()} }
