//go:build linux

// Package e2e tests the real programs: meshes on a lab of network namespaces.
//
// MESHD_BIN names a directory with meshd and meshctl; without it they are built.
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
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/e2e/sandbox"
	"meshd/overlay/status"
	"meshd/tun/netns"
)

// soon bounds whatever the mesh does by itself. What it really takes is logged,
// and far below.
const soon = 20 * time.Second

// built is where programs are built, once for all tests; TestMain removes it.
var built struct {
	once sync.Once
	dir  string
	bin  cluster.Binaries
	err  error
}

func TestMain(m *testing.M) {
	if err := sandbox.Main(); err != nil {
		panic(err)
	}
	m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
}

// programs gives meshd and meshctl, built if need be.
func programs(t *testing.T) cluster.Binaries {
	t.Helper()
	built.once.Do(func() {
		if dir := os.Getenv("MESHD_BIN"); dir != "" {
			built.bin, built.err = cluster.Find(dir)
			return
		}
		built.dir, built.err = os.MkdirTemp("", "meshd-bin-") //nolint:usetesting // outlives the test
		if built.err == nil {
			built.bin, built.err = cluster.Build(t.Context(), built.dir, false)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.bin
}

// requirements skips the test, or fails it if MESHD_REQUIRE_ROOT=1, where no
// daemon can run.
func requirements(t *testing.T) {
	t.Helper()
	netns.RequireRoot(t)
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		if os.Getenv("MESHD_REQUIRE_ROOT") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
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
// configuration files. It is checked for leftovers when the test ends.
func hosts(t *testing.T, n int, extra ...string) *cluster.Cluster {
	t.Helper()
	requirements(t)
	return hostsWith(t, programs(t), n, extra...)
}

func hostsWith(t *testing.T, bin cluster.Binaries, n int, extra ...string) *cluster.Cluster {
	t.Helper()
	c, err := cluster.New(t.Context(), bin, names(n), extra...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, n := range c.Nodes {
			log := n.Log()
			for _, bad := range []string{"DATA RACE", "panic:", "fatal error:", "SIGSEGV"} {
				if strings.Contains(log, bad) {
					t.Errorf("%s logged: %s", n.Name, bad)
				}
			}
		}
		if t.Failed() {
			t.Log(c.Logs(max(5, 600/len(c.Nodes))))
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(c.Dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", c.Dir, err)
		}
	})
	return c
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

// bounded gives a context that ends soon.
func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	t.Cleanup(cancel)
	return ctx
}

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
