package sim

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"meshd/mesh"
	"meshd/overlay/tunnel"
	"meshd/overlay/tunnel/tunneltest"
)

// echo is the port of the packets that the world itself sends.
const echo = 7

// trip is a packet that should arrive.
type trip struct {
	from, to *host
	dst      netip.Addr
	arrived  bool
}

// repairIn is how soon flushed routes must be back.
const repairIn = 2 * time.Second

// route sends a packet as the kernel of the host does. Without a source it takes
// the one of the route.
func (h *host) route(p tunneltest.Inner) {
	r, ours := h.kernel.Route(p.Dst.Addr())
	h.mu.Lock()
	e, exposed := h.engine, h.guarded && time.Since(h.hurt) > repairIn
	h.mu.Unlock()
	if !ours && exposed && h.w.inMesh(p.Dst.Addr()) {
		h.w.violate("I3", "%s sends a packet for %s to its default route", h, p.Dst.Addr())
	}
	if !ours || r.Unreachable || e == nil {
		return
	}
	if !p.Src.IsValid() {
		if !r.Src.IsValid() || !h.kernel.Local(r.Src) {
			return
		}
		p.Src = netip.AddrPortFrom(r.Src, echo)
	}
	e.Send(p)
}

func (w *world) inMesh(a netip.Addr) bool {
	return slices.ContainsFunc(w.mesh.Charter.Ranges(), func(p netip.Prefix) bool { return p.Contains(a) })
}

// Deliver implements [tunneltest.Machine]: a packet came out of the TUN device.
// This is where invariants are judged: by what arrives where.
func (h *host) Deliver(from mesh.Key, p tunneltest.Inner) {
	sender := h.w.truth.holder(from)
	src, dst := p.Src.Addr(), p.Dst.Addr()
	if sender.admitted == byNobody || h.admitted == byNobody {
		h.w.violate("I8", "a packet from %s to %s arrived from %s at %s, one of which was never admitted", src, dst, sender, h)
		return
	}
	if h.w.calm.Load() && sender.revoked != h.revoked { // two that are may have heard nothing
		h.w.violate("I8", "all have heard who is revoked, and a packet from %s to %s arrived from %s at %s", src, dst, sender, h)
	}
	if _, ever := h.w.truth.owns(sender, src); !ever {
		h.w.violate("I4", "%s got a packet from %s, which was never %s's who sent it", h, src, sender)
	}
	if now, _ := h.w.truth.owns(h, dst); !now {
		h.w.violate("I2", "a packet for %s from %s reached %s, who does not own it", dst, sender, h)
	}
	if p.Hops > 1 {
		h.w.violate("I7", "a packet from %s to %s has crossed the mesh %d times", src, dst, p.Hops)
	}
	if !h.kernel.Local(dst) {
		h.route(p) // the kernel forwards
		return
	}
	if p.Dst.Port() == echo && len(p.Payload) == 8 {
		h.w.arrived(h, binary.BigEndian.Uint64(p.Payload))
		return
	}
	h.mu.Lock()
	s := h.sockets[p.Dst]
	h.mu.Unlock()
	if s == nil {
		return
	}
	select {
	case s.in <- datagram{p.Src, p.Payload}:
	default:
	}
}

func (w *world) arrived(at *host, id uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t := w.trips[id]; t != nil && t.to == at {
		t.arrived = true
	}
}

// send sends a packet that counts as arrived when it is at its host.
func (w *world) send(t *trip) {
	w.mu.Lock()
	w.next++
	id := w.next
	w.trips[id] = t
	w.mu.Unlock()
	t.from.route(tunneltest.Inner{Dst: netip.AddrPortFrom(t.dst, echo), Payload: binary.BigEndian.AppendUint64(nil, id)})
}

// nobodyWaits is the number of a packet that may arrive or not.
var nobodyWaits = make([]byte, 8)

// sample sends a few packets that must not go astray: honest ones to addresses
// that are somebody's, were somebody's, or are nobody's; one of an insider who
// lies about its address; one of a host that was never admitted.
func (w *world) sample() {
	var up []*host
	for _, h := range w.hosts {
		if h.life != nil && h.admitted != byNobody {
			up = append(up, h)
		}
	}
	if len(up) == 0 {
		return
	}
	any := func(hosts []*host) *host { return hosts[w.random.IntN(len(hosts))] }
	for range 2 {
		any(up).route(tunneltest.Inner{Dst: netip.AddrPortFrom(w.someAddress(any(w.hosts)), echo), Payload: nobodyWaits})
	}
	w.forge(any(up), any(up), any(w.hosts))
	for _, h := range up {
		if h.revoked { // it tries on
			w.forge(h, any(up), h)
			h.route(tunneltest.Inner{Dst: netip.AddrPortFrom(w.controlOf(any(up).id), echo), Payload: nobodyWaits})
		}
	}
	for _, h := range w.hosts {
		if h.life != nil && h.admitted == byNobody {
			w.forge(h, any(up), any(w.hosts))
		}
	}
}

// someAddress gives an address that a host has or had, or that anybody may have.
func (w *world) someAddress(h *host) netip.Addr {
	claims := w.truth.claims(h)
	switch n := w.random.IntN(4); {
	case n == 0:
		return w.controlOf(h.id)
	case n == 1 || len(claims) == 0:
		network := w.mesh.Charter.Networks[0]
		return mesh.FirstHost(network.Slot(w.random.IntN(network.Slots()))[0])
	case n == 2:
		return mesh.FirstHost(claims[w.random.IntN(len(claims))].Prefixes[0])
	default:
		return mesh.FirstHost(claims[len(claims)-1].Prefixes[0])
	}
}

// forge has a host send a packet in another's name. None is for one that was revoked and
// has not heard of it: that one would take what a traitor sends it.
func (w *world) forge(liar, to, as *host) {
	liar.mu.Lock()
	e := liar.engine
	liar.mu.Unlock()
	if e == nil || liar == to || to.revoked && !to.knowsItsRevocation() {
		return
	}
	at := netip.AddrPortFrom(to.Addresses()[0], tunnelPort)
	src, dst := w.someAddress(as), w.someAddress(to)
	if src.Is4() != dst.Is4() {
		src = w.controlOf(as.id)
		dst = w.controlOf(to.id)
	}
	e.Forge(to.tunnel, at, tunneltest.Inner{
		Src: netip.AddrPortFrom(src, echo), Dst: netip.AddrPortFrom(dst, echo), Payload: nobodyWaits,
	})
}

// knowsItsRevocation tells whether it has heard of it.
func (h *host) knowsItsRevocation() bool {
	return h.life != nil && h.life.node.Status().State == mesh.Revoked
}

// everything is how a host configures its engine that was never admitted: it
// would take all.
func everything(c tunnel.Config, h *host) tunnel.Config {
	all := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	c.Own, c.Peers = all, nil
	for _, o := range h.w.hosts {
		if o != h {
			c.Peers = append(c.Peers, tunnel.Peer{ID: o.id, PublicKey: o.tunnel, AllowedIPs: all})
		}
	}
	return c
}

// unreached tries all pairs of hosts, by control address and by lease, and says
// which do not reach each other; empty: all do. What the weather may have eaten
// is tried again.
func (w *world) unreached(hosts []*host) string {
	var open []*trip
	for _, a := range hosts {
		for _, b := range hosts {
			if a == b {
				continue
			}
			open = append(open, &trip{from: a, to: b, dst: w.controlOf(b.id)})
			if claims := w.truth.claims(b); len(claims) > 0 {
				for _, p := range claims[len(claims)-1].Prefixes {
					open = append(open, &trip{from: a, to: b, dst: mesh.FirstHost(p)})
				}
			}
		}
	}
	tries := 1
	if w.sky.Loss > 0 {
		tries = 5
	}
	for range tries {
		for _, t := range open {
			w.send(t)
		}
		w.pass(w.sky.Latency + w.sky.Jitter + time.Millisecond)
		w.mu.Lock()
		clear(w.trips)
		open = slices.DeleteFunc(open, func(t *trip) bool { return t.arrived })
		w.mu.Unlock()
	}
	var lost []string
	for _, t := range open[:min(3, len(open))] {
		lost = append(lost, fmt.Sprintf("%s does not reach %s at %s", t.from, t.to, t.dst))
	}
	if n := len(open) - len(lost); n > 0 {
		lost = append(lost, fmt.Sprintf("and %d more", n))
	}
	return strings.Join(lost, ", ")
}
