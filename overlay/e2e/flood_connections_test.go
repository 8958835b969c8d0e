//go:build linux

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"meshd/overlay/config"
	"meshd/overlay/status"
)

// More connections than anybody needs.
func TestFloodOfConnections(t *testing.T) {
	s := besieged(t)
	const connections = 1000
	gossip := netip.AddrPortFrom(s.alpha.Host.IPv4, gossipPort).String()
	web := fmt.Sprintf("127.0.0.1:%d", config.DefaultHTTPPort)
	for name, target := range map[string]struct {
		dial func(ctx context.Context) (net.Conn, error)
		half []byte // the beginning of what belongs there
	}{
		"control socket": {func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", s.alpha.Socket())
		}, []byte("GET /v1/status HTTP/1.1\r\nHost: x\r\n")},
		"HTTP": {func(ctx context.Context) (net.Conn, error) {
			return s.alpha.Host.Dial(ctx, "tcp", web)
		}, []byte("GET /metrics HTTP/1.1\r\nHost: x\r\n")},
		"gossip": {func(ctx context.Context) (net.Conn, error) {
			return s.stranger.Dial(ctx, "tcp", gossip)
		}, append([]byte{10, 0, 0x20, 0, 0}, randomBytes(1000)...)},
	} {
		for manner, use := range map[string]func(ctx context.Context, conn net.Conn){
			"held open": func(context.Context, net.Conn) {},
			"half sent": func(_ context.Context, conn net.Conn) { _, _ = conn.Write(target.half) },
			"slow": func(ctx context.Context, conn net.Conn) {
				for n := 0; n < len(target.half) && ctx.Err() == nil; n++ {
					if _, err := conn.Write(target.half[n : n+1]); err != nil {
						return
					}
					pause(ctx, 100*time.Millisecond)
				}
			},
		} {
			t.Run(name+" "+manner, func(t *testing.T) {
				s.attack(t, 0, func(ctx context.Context) {
					ctx, cancel := context.WithCancel(ctx)
					var users sync.WaitGroup
					defer users.Wait()
					defer cancel()
					refused := 0
					for range connections {
						one, stop := context.WithTimeout(ctx, 2*time.Second)
						conn, err := target.dial(one)
						stop()
						if err != nil {
							refused++ // so much the better
							continue
						}
						defer conn.Close()
						users.Go(func() { use(ctx, conn) })
					}
					pause(t.Context(), time.Second)
					t.Logf("%d connections, %d refused", connections, refused)
					if u, err := s.alpha.Usage(); err != nil || u.Descriptors > 500 {
						t.Errorf("alpha holds %d descriptors, %v", u.Descriptors, err)
					}
				})
			})
		}
	}
}

// A daemon that may open no more files forwards on, and is well when it may.
func TestOutOfDescriptors(t *testing.T) {
	t.Parallel()
	s := besieged(t)
	pid := s.alpha.Process().Pid()
	u, err := s.alpha.Usage()
	must(t, err)
	var old unix.Rlimit
	must(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &old))
	s.attack(t, 0, func(ctx context.Context) {
		// Descriptors have the lowest free numbers, so these are all.
		must(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(u.Descriptors), Max: old.Max}, nil))
		defer func() { must(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &old, nil)) }()
		var held []net.Conn
		defer func() {
			for _, c := range held {
				c.Close()
			}
		}()
		for range 50 {
			if c, err := s.stranger.Dial(ctx, "tcp", netip.AddrPortFrom(s.alpha.Host.IPv4, gossipPort).String()); err == nil {
				held = append(held, c)
			}
			if c, err := new(net.Dialer).DialContext(ctx, "unix", s.alpha.Socket()); err == nil {
				held = append(held, c)
			}
		}
		pause(t.Context(), 4*time.Second)
	})
	if now := s.alpha.Process().Pid(); now != pid {
		t.Errorf("it was %d and is %d", pid, now)
	}
	must(t, s.alpha.WaitFor(bounded(t), "to be well", func(d *status.Document) bool { return len(d.Health) == 0 }))
	must(t, s.alpha.Stop(bounded(t)))
	must(t, s.alpha.Start())
	must(t, s.alpha.WaitReady(bounded(t)))
}
