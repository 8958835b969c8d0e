//go:build linux

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
)

// On the way between two hosts is a link of MTU 1280, of which neither knows. Large
// packets come in fragments, but where only IPv6 is there and nobody tells of what
// is too large: there connections hang, as docs/testing.md says.
func TestSmallHop(t *testing.T) {
	t.Parallel()
	const size, atMost = 8 << 20, 3 * time.Second
	for _, path := range []struct {
		name   string
		v6     bool // of the underlay
		silent bool // routers tell nobody
	}{
		{"IPv4 without ICMP", false, true},
		{"IPv6 with ICMP", true, false},
		{"IPv6 without ICMP", true, true},
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
			formMesh(t, c)
			if path.v6 && path.silent {
				hung, cancel := context.WithTimeout(t.Context(), atMost)
				defer cancel()
				if _, took, err := pour(hung, c.Nodes[0].Host, c.Nodes[1].Host, addresses(t, c.Nodes[1])[0], size); err == nil {
					t.Errorf("%d bytes came within %s: docs/testing.md says that they do not", size, took)
				}
				must(t, c.WaitAllPairs(bounded(t))) // what is small passes
				return
			}
			for _, pair := range [][2]*cluster.Node{{c.Nodes[0], c.Nodes[1]}, {c.Nodes[1], c.Nodes[0]}} {
				for _, a := range addresses(t, pair[1]) {
					stall, took, err := pour(t.Context(), pair[0].Host, pair[1].Host, a, size)
					if err != nil {
						t.Errorf("%s to %s: %v", pair[0].Name, a, err)
						continue
					}
					t.Logf("%s to %s: %d bytes in %.2f s, nothing came for %.2f s at most", pair[0].Name, a, size, took.Seconds(), stall.Seconds())
					if stall > atMost {
						t.Errorf("%s to %s: nothing came for %s, want %s at most", pair[0].Name, a, stall, atMost)
					}
				}
			}
		})
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
