//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// Throughput sends over one TCP connection from the host to another one's
// address for the given time, and tells how many bits per second arrived.
func (h *Host) Throughput(ctx context.Context, to *Host, addr netip.Addr, d time.Duration) (float64, error) {
	fail := func(err error) (float64, error) {
		return 0, fmt.Errorf("measure throughput from %s to %s: %w", h.Name, addr, err)
	}
	l, err := to.Listen(ctx, "tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		return fail(err)
	}
	defer l.Close()
	// Ends the wait for a connection, should it never come.
	defer context.AfterFunc(ctx, func() { l.Close() })()

	type result struct {
		bytes int64
		took  time.Duration
		err   error
	}
	received := make(chan result, 1)
	go func() {
		in, err := l.Accept()
		if err != nil {
			received <- result{err: err}
			return
		}
		defer in.Close()
		defer context.AfterFunc(ctx, func() { in.Close() })()
		start := time.Now()
		n, err := io.Copy(io.Discard, in)
		received <- result{n, time.Since(start), err}
	}()

	out, err := h.Dial(ctx, "tcp", l.Addr().String())
	if err != nil {
		l.Close()
		<-received
		return fail(err)
	}
	err = send(ctx, out, d)
	out.Close()
	r := <-received
	if err := errors.Join(ctx.Err(), err, r.err); err != nil {
		return fail(err)
	}
	return float64(r.bytes) * 8 / r.took.Seconds(), nil
}

// send writes as fast as the connection takes it, for the given time.
func send(ctx context.Context, c net.Conn, d time.Duration) error {
	if err := c.SetWriteDeadline(time.Now().Add(d + 10*time.Second)); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	block := make([]byte, 256<<10)
	for end := time.Now().Add(d); time.Now().Before(end); {
		if _, err := c.Write(block); err != nil {
			return err
		}
	}
	return nil
}
