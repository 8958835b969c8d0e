//go:build linux

package e2e

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// 100 000 packets of junk a second, as far as this machine gets, to each port.
func TestFloodOfPackets(t *testing.T) {
	s := besieged(t)
	const seconds, perSecond = 3, 100_000
	for name, target := range map[string]struct {
		port  uint16
		first func() byte // of each packet
	}{
		"tunnel": {tunnelPort, func() byte { return randomBytes(1)[0]%4 + 1 }},
		"gossip": {gossipPort, func() byte { return 1 }},
	} {
		t.Run(name, func(t *testing.T) {
			var sent atomic.Int64
			s.attack(t, 0.3, func(ctx context.Context) {
				ctx, cancel := context.WithTimeout(ctx, seconds*time.Second)
				defer cancel()
				var senders sync.WaitGroup
				for range 2 {
					conn, err := s.stranger.Dial(ctx, "udp", netip.AddrPortFrom(s.alpha.Host.IPv4, target.port).String())
					must(t, err)
					senders.Go(func() {
						defer conn.Close()
						junk := randomBytes(148) // a handshake's size
						junk[0], junk[1], junk[2], junk[3] = target.first(), 0, 0, 0
						begin := time.Now()
						for n := 0; ctx.Err() == nil; n++ {
							if n%64 == 0 { // half of the rate each
								pause(ctx, time.Until(begin.Add(time.Duration(n)*time.Second*2/perSecond)))
							}
							if _, err := conn.Write(junk); err == nil {
								sent.Add(1)
							}
						}
					})
				}
				senders.Wait()
			})
			t.Logf("%d packets a second", sent.Load()/seconds)
		})
	}
}
