package wggo

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// asideFor is how long an initiation of ours may wait for its response before
// the peer's own counts instead: long enough for hosts which are so busy that
// they take hundreds of milliseconds, as all are when a large mesh starts.
const asideFor = time.Second

// crossings settles what bind's yielding could not prevent: both ends of a tunnel
// have initiated, and the peer's initiation arrives before its response to ours.
//
//	greater key ──initiation──►   ◄──initiation── smaller key
//	            put aside ◄───       ───► answered, its own is forgotten
//	            ◄──────────── response ──────────
//
// Where we go first, the peer's is put aside. If ours is not answered within
// asideFor (it was lost, or the peer has restarted), the peer's is taken in then.
// Nothing is believed of either packet: a forged one costs what it would without
// this.
type crossings struct {
	late func(packet []byte, from netip.AddrPort) // fixed at construction: takes in what was put aside

	mu   sync.Mutex                     // guards all below
	open map[netip.AddrPort]*crossing   // where an initiation of ours is not answered
	held map[netip.AddrPort]*time.Timer // where one waits, since the peer goes first
}

// crossing is an initiation of ours.
type crossing struct {
	sent  time.Time
	aside bool // one of the peer is
}

// sent notes an initiation that has gone out.
func (c *crossings) sent(to netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for ep, x := range c.open {
		if now.Sub(x.sent) > asideFor {
			delete(c.open, ep)
		}
	}
	c.open[to] = &crossing{sent: now}
}

// hold sends an initiation later, unless we answer one of the peer's until then.
func (c *crossings) hold(to netip.AddrPort, d time.Duration, send func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.held[to]; old != nil {
		old.Stop()
	}
	var timer *time.Timer
	timer = time.AfterFunc(d, func() {
		c.mu.Lock()
		due := c.held[to] == timer
		if due {
			delete(c.held, to)
		}
		c.mu.Unlock()
		if due {
			send()
		}
	})
	c.held[to] = timer
}

// drop forgets what is held: the device has, too, when it answered the peer.
func (c *crossings) drop(to netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if timer := c.held[to]; timer != nil {
		timer.Stop()
		delete(c.held, to)
	}
}

// answered notes a response.
func (c *crossings) answered(from netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, from)
}

// putAside tells whether an initiation has to wait for the fate of ours.
func (c *crossings) putAside(packet []byte, from netip.AddrPort) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.open[from]
	if x == nil || x.aside {
		return false
	}
	left := asideFor - time.Since(x.sent)
	if left <= 0 {
		return false
	}
	x.aside = true
	packet = bytes.Clone(packet)
	time.AfterFunc(left, func() {
		c.mu.Lock()
		unanswered := c.open[from] == x
		if unanswered {
			delete(c.open, from)
		}
		c.mu.Unlock()
		if unanswered {
			c.late(packet, from)
		}
	})
	return true
}

// takeIn does with an initiation that was put aside what the device does with
// one that arrives, but for its timers, which the session starts anyway.
func (e *Engine) takeIn(packet []byte, from netip.AddrPort) {
	var msg device.MessageInitiation
	if binary.Read(bytes.NewReader(packet), binary.LittleEndian, &msg) != nil {
		return
	}
	if p := e.device.ConsumeMessageInitiation(&msg); p != nil {
		p.SetEndpointFromPacket(&conn.StdNetEndpoint{AddrPort: from})
		_ = p.SendHandshakeResponse() // the device logs, and the peer tries again
	}
}
