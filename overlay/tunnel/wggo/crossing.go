package wggo

import (
	"bytes"
	"encoding/binary"
	"maps"
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
// And while one of the peer waits for the device to answer it, ours stays back,
// whoever goes first. Nothing is believed of any packet: a forged one can delay a
// handshake by asideFor, not keep it from being made.
type crossings struct {
	late func(packet []byte, from netip.AddrPort) // fixed at construction: takes in what was put aside

	mu   sync.Mutex                     // guards all below
	open map[netip.AddrPort]*crossing   // where an initiation of ours is not answered
	held map[netip.AddrPort]*time.Timer // where one of ours stays back
	came map[netip.AddrPort]time.Time   // where one of the peer is not answered
}

func newCrossings(late func([]byte, netip.AddrPort)) *crossings {
	return &crossings{
		late: late, open: map[netip.AddrPort]*crossing{}, held: map[netip.AddrPort]*time.Timer{}, came: map[netip.AddrPort]time.Time{},
	}
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
	maps.DeleteFunc(c.open, func(_ netip.AddrPort, x *crossing) bool { return now.Sub(x.sent) > asideFor })
	c.open[to] = &crossing{sent: now}
}

// arrived notes an initiation of a peer that the device gets.
func (c *crossings) arrived(from netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.came[from] = time.Now()
}

// wait is how long an initiation has to stay back for the peer's.
func (c *crossings) wait(to netip.AddrPort) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(c.came, func(_ netip.AddrPort, at time.Time) bool { return now.Sub(at) >= asideFor })
	if at, ok := c.came[to]; ok {
		return asideFor - now.Sub(at)
	}
	return 0
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
	delete(c.came, to)
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
