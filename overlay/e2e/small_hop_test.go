//go:build linux

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/status"
)

// On the way between two hosts is a link of MTU 1280, of which neither knows. Large
// packets come in fragments; but where only IPv6 is there and nobody tells of what is
// too large, they get lost. There the daemons measure it, and senders heed that.
func TestSmallHop(t *testing.T) {
	t.Parallel()
	for _, path := range []struct {
		name       string
		v6         bool // of the underlay
		silent     bool // routers tell nobody
		config     string
		containers bool // talk as well
	}{
		{"IPv4 without ICMP", false, true, "", false},
		{"IPv6 with ICMP", true, false, "", false},
		{"IPv6 without ICMP", true, true, "", true},
		{"IPv6 without ICMP, wireguard-go", true, true, "engine: wireguard-go", true},
	} {
		t.Run(path.name, func(t *testing.T) {
			t.Parallel()
			bin := cluster.Programs(t)
			l, err := lab.Narrow(t.Context(), "alpha", "beta", 1280, path.silent)
			must(t, err)
			c, err := cluster.On(l, bin)
			must(t, err)
			c.CloseAfter(t)
			for _, h := range l.Hosts() { // only one family is left
				if path.v6 {
					must(t, h.RemoveAddress(netip.PrefixFrom(h.IPv4, 24)))
				} else {
					must(t, h.RemoveAddress(netip.PrefixFrom(h.IPv6, 64)))
				}
			}
			for _, n := range c.Nodes {
				must(t, n.Configure(path.config))
			}
			formMesh(t, c)
			alpha, beta := c.Nodes[0], c.Nodes[1]
			pourBothWays(t, end{alpha.Host, addresses(t, alpha)}, end{beta.Host, addresses(t, beta)})
			for _, n := range c.Nodes {
				want := 0 // path_mtu; 0: null
				if path.v6 && path.silent {
					want = 1200
				}
				// It may be measured just now.
				if err := n.WaitFor(bounded(t), fmt.Sprintf("to show path_mtu %d", want), func(d *status.Document) bool {
					got := 0
					if mtu := d.Peers[0].PathMTU; mtu != nil {
						got = *mtu
					}
					return got == want
				}); err != nil {
					t.Error(err)
				}
			}
			if path.containers {
				pourBothWays(t, contained(t, alpha), contained(t, beta))
			}
		})
	}
}

// end is where connections begin, or end at any of the addresses.
type end struct {
	*lab.Host
	addresses []netip.Addr
}

// contained makes a container.
func contained(t *testing.T, n *cluster.Node) end {
	t.Helper()
	c := contain(t, n, "in-"+n.Name, "")
	return end{c.Host, []netip.Addr{c.IPv4, c.IPv6}}
}

var pouring sync.Mutex

func pourBothWays(t *testing.T, a, b end) {
	t.Helper()
	const size, atMost = 8 << 20, 3 * time.Second
	pouring.Lock() // what others send at the same time is not to be measured
	defer pouring.Unlock()
	for _, pair := range [][2]end{{a, b}, {b, a}} {
		for _, to := range pair[1].addresses {
			stall, took, err := pour(t.Context(), pair[0].Host, pair[1].Host, to, size)
			if err != nil {
				t.Errorf("%s to %s: %v", pair[0].Name, to, err)
				continue
			}
			t.Logf("%s to %s: %d bytes in %.2f s, nothing came for %.2f s at most", pair[0].Name, to, size, took.Seconds(), stall.Seconds())
			if stall > atMost {
				t.Errorf("%s to %s: nothing came for %s, want %s at most", pair[0].Name, to, stall, atMost)
			}
		}
	}
}

// pour sends bytes by TCP from a host to another one's address, and tells for how
// long at most nothing came, and how long it took in all.
func pour(ctx context.Context, from, to *lab.Host, addr netip.Addr, size int) (stall, took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, cluster.Soon)
	defer cancel()
	l, err := to.Listen(ctx, "tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		return 0, 0, err
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	begin := time.Now()
	sent := make(chan error, 1)
	go func() {
		sent <- func() error {
			out, err := from.Dial(ctx, "tcp", l.Addr().String())
			if err != nil {
				return err
			}
			defer out.Close()
			defer context.AfterFunc(ctx, func() { _ = out.SetDeadline(time.Unix(1, 0)) })()
			_, err = out.Write(randomBytes(size))
			return err
		}()
	}()
	in, err := l.Accept()
	if err == nil {
		stall, err = drain(ctx, in, size)
	}
	if err != nil {
		cancel()
	}
	if sendErr := <-sent; err == nil {
		err = sendErr
	}
	return stall, time.Since(begin), err
}

// drain reads so many bytes and tells for how long at most nothing came.
func drain(ctx context.Context, in net.Conn, size int) (stall time.Duration, err error) {
	defer in.Close()
	defer context.AfterFunc(ctx, func() { _ = in.SetDeadline(time.Unix(1, 0)) })()
	buf := make([]byte, 1<<16)
	last := time.Now()
	for got := 0; got < size; {
		n, err := in.Read(buf)
		stall, last = max(stall, time.Since(last)), time.Now()
		got += n
		if err == io.EOF && got < size {
			err = io.ErrUnexpectedEOF
		}
		if err != nil && got < size {
			return stall, fmt.Errorf("after %d of %d bytes: %w", got, size, err)
		}
	}
	return stall, nil
}
