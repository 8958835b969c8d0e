package native

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/cpu"

	"meshd/mesh"
	"meshd/overlay/tunnel"
	"meshd/overlay/tunnel/wg"
	"meshd/overlay/udp"
	"meshd/tun/packet"
)

const (
	// lookEvery is how often the link is looked at: so that with the time to build
	// the engine again a renamed link is back within two seconds.
	lookEvery = time.Second
	// atOnce is how long what is due may wait for other things that are soon: the
	// timers of 200 peers would else wake an idle process all the time.
	atOnce = 100 * time.Millisecond
	// loadAt is how many waiting handshakes are more than can be served soon: 64
	// take ten milliseconds or two.
	loadAt = 64
	// loadFor is for how long cookies are asked for after that.
	loadFor = time.Second
	// triesPerEndpoint is how many initiations go to an endpoint, copies counted, before
	// the next one is tried.
	triesPerEndpoint = 2
)

// control owns the machine and all that workers read.
type control struct {
	// fixed at construction
	*Engine
	machine *wg.Machine
	group   *udp.Group
	sockets [2]*udp.Socket // IPv4, IPv6; the latter may be nil
	keeper  stampKeeper

	// owned by run
	byKey    map[mesh.Key]*peer
	unusable map[mesh.Key]bool // complained of
	renewal  uint64            // of the last configuration
	loadEnds time.Time         // zero: we are not under load
	slept    time.Duration     // of the host since its start, as the machine knows
	room     []byte
}

func newControl(e *Engine, m *wg.Machine, g *udp.Group) *control {
	c := &control{
		Engine: e, machine: m, group: g, byKey: map[mesh.Key]*peer{}, unusable: map[mesh.Key]bool{},
		keeper: stampKeeper{save: e.options.SaveStamp, log: e.log}, slept: e.asleep(),
	}
	c.sockets[0] = g.IPv4(0).Clone()
	if s := g.IPv6(0); s != nil {
		c.sockets[1] = s.Clone()
	}
	return c
}

func (c *control) run(ctx context.Context) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer c.saveLast()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-c.failed:
			return err
		case h := <-c.handshakes:
			c.receive(h)
		case r := <-c.requests:
			r.done <- c.apply(r.want)
		case <-c.poke:
		case <-timer.C:
		case <-look.C:
			if err := c.readMTU(); err != nil {
				return err
			}
			c.noticeSleep()
		}
		now := time.Now()
		c.wanted(now)
		c.do(c.machine.Step(now))
		if next, ok := c.machine.Next(); ok {
			timer.Reset(max(time.Until(next), atOnce))
		}
	}
}

// receive takes a handshake message in, and then others that wait. More come next
// time: a flood must not keep control from all else.
func (c *control) receive(h handshake) {
	c.shake(h)
	for range loadAt {
		select {
		case h := <-c.handshakes:
			c.shake(h)
		default:
			return
		}
	}
}

func (c *control) shake(h handshake) {
	now := time.Now()
	if len(c.handshakes) >= loadAt {
		c.loadEnds = now.Add(loadFor)
	}
	c.machine.UnderLoad(now.Before(c.loadEnds))
	actions, err := c.machine.Receive(now, h.message[:h.size], h.from)
	if err != nil {
		if !errors.Is(err, wg.ErrCopy) {
			c.drops.add(dropHandshake, 1)
		}
		h.from = netip.AddrPort{} // anybody may have repeated it, from where he likes
	}
	c.doFrom(actions, h)
}

// wanted starts handshakes that workers ask for.
func (c *control) wanted(now time.Time) {
	for key, p := range c.byKey {
		if p.needsSession.Load() {
			p.needsSession.Store(false)
			c.do(c.machine.Want(now, key))
		}
	}
}

func (c *control) do(actions []wg.Action) { c.doFrom(actions, handshake{}) }

// doFrom carries out what follows from a message; its zero value: from nothing
// that came.
func (c *control) doFrom(actions []wg.Action, h handshake) {
	for _, a := range actions {
		switch a := a.(type) {
		case wg.Save:
			c.keeper.keep(a.Stamp)
		case wg.Send:
			if p := c.byKey[a.Peer]; p != nil {
				p.came(h.from, h.local) // an answer leaves from where it was asked
				c.sendTo(p, a)
			}
		case wg.Reply:
			c.transmit(udp.Train{Data: a.Packet, Remote: a.To, Local: h.local}, nil)
		case wg.Move:
			if p := c.byKey[a.Peer]; p != nil {
				p.moveTo(a.Endpoint)
			}
		case wg.Use:
			if p := c.byKey[a.Peer]; p != nil {
				c.use(p, a.Session)
			}
		case wg.GiveUp:
			if p := c.byKey[a.Peer]; p != nil {
				c.drops.add(dropWaiting, p.giveUp())
			}
		}
	}
}

// saveLast saves what was used, so that the next run need not begin ahead of its
// clock.
func (c *control) saveLast() {
	if stamp := c.machine.Stamp(); !stamp.IsZero() {
		c.keeper.keepLast(stamp)
	}
}

// sendTo sends a message to a peer. An initiation that is repeated goes to its
// next endpoint, unless the peer was heard from this one meanwhile.
func (c *control) sendTo(p *peer, a wg.Send) {
	counts := wg.IsInitiation(a.Packet)
	if rx := p.rx.Load(); counts && rx != p.seen {
		p.seen, p.tries, counts = rx, 1, false
	}
	for range a.Copies {
		if counts {
			c.turn(p)
		}
		at := p.path.Load()
		if at == nil {
			c.drops.add(dropNoEndpoint, 1)
			return
		}
		c.transmit(udp.Train{Data: a.Packet, Remote: at.remote, Local: at.local}, p)
	}
}

// turn counts a copy of an initiation, and goes on to the next endpoint after a few.
func (c *control) turn(p *peer) {
	if p.tries >= triesPerEndpoint {
		p.tries = 0
		c.point(p, p.next())
	}
	p.tries++
}

// transmit sends one message, to a peer or nobody that is known.
func (c *control) transmit(t udp.Train, to *peer) {
	socket := c.sockets[0]
	if t.Remote.Addr().Is6() {
		socket = c.sockets[1]
	}
	if socket == nil {
		c.drops.add(dropSend, 1)
		return
	}
	sent, err := socket.Send(&t)
	if err != nil && !errors.Is(err, udp.ErrSource) {
		c.drops.add(dropSend, 1)
	}
	if to == nil {
		return
	}
	to.tx.Add(uint64(sent))
	if errors.Is(err, udp.ErrSource) {
		to.path.Store(&path{remote: t.Remote})
	}
}

// point sends to another endpoint from now on.
func (c *control) point(p *peer, at netip.AddrPort) {
	p.moveTo(at)
	c.machine.SetEndpoint(p.config.PublicKey, at)
}

// use takes up another session, or none, and sends what waited for it.
func (c *control) use(p *peer, s *wg.Session) {
	waited := p.use(s)
	p.tries = 0
	if s == nil || len(waited) == 0 {
		return
	}
	at := p.path.Load()
	counter, ok := s.Reserve(len(waited))
	if at == nil || !ok {
		c.drops.add(dropWaiting, len(waited))
		return
	}
	mtu := int(c.mtu.Load())
	for i, one := range waited {
		size := wg.Padded(len(one), mtu)
		c.room = slices.Grow(c.room[:0], size+wg.Overhead)
		c.transmit(udp.Train{
			Data: s.SealPadded(c.room, counter+uint64(i), one, size), Remote: at.remote, Local: at.local,
			ECN: byte(packet.OuterECN(packet.GetECN(one))),
		}, p)
	}
	s.NoteSent(time.Now(), true) // the session is new: there is no other to want
}

// apply makes peers and routes as they should be. Removed peers are cut off both
// ways when it returns, but for packets that a worker has in hand.
func (c *control) apply(want tunnel.Config) error {
	var errs []error
	var peers []*peer
	var ends []wg.Peer
	if want.Key != (tunnel.PrivateKey{}) {
		errs = append(errs, c.machine.SetKey(time.Now(), want.Key))
	}
	known := make(map[mesh.NodeID]*peer, len(c.byKey)) // those left over are no longer wanted
	for _, p := range c.byKey {
		known[p.config.ID] = p
	}
	next := make(map[mesh.Key]*peer, len(want.Peers))
	for _, w := range want.Peers {
		w.Suite = cmp.Or(w.Suite, tunnel.ChaCha20Poly1305)
		suite, err := wg.ParseSuite(w.Suite)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("peer %s: %w", w.ID.Short(), err))
			continue
		case c.isUnusable(w):
			continue
		case next[w.PublicKey] != nil:
			errs = append(errs, fmt.Errorf("peer %s has the key of another peer", w.ID.Short()))
			continue
		}
		p := known[w.ID]
		if p == nil {
			p = &peer{}
		}
		delete(known, w.ID)
		next[w.PublicKey] = p
		peers = append(peers, p)
		ends = append(ends, wg.Peer{Key: w.PublicKey, Suite: suite, Handle: p})
		w.Endpoints = usable(w.Endpoints, want.Inside)
		p.configure(w, want.Inside)
	}
	for _, p := range known {
		c.drops.add(dropWaiting, p.giveUp())
	}
	c.byKey = next
	actions, err := c.machine.SetPeers(time.Now(), ends)
	errs = append(errs, err)
	for key, p := range next {
		c.machine.SetEndpoint(key, p.endpoint())
	}
	c.routes.Store(newRoutes(want, peers))
	c.show(peers)
	c.do(actions)
	if want.Renewal != c.renewal {
		c.renewal = want.Renewal
		c.do(c.machine.Renew(time.Now()))
	}
	return errors.Join(errs...)
}

// isUnusable tells whether a peer shows a key that is none. That is its own doing,
// and must not look as if this node could not be configured.
func (c *control) isUnusable(w tunnel.Peer) bool {
	if c.byKey[w.PublicKey] != nil {
		return false
	}
	err := wg.CheckKey(w.PublicKey)
	if err != nil && !c.unusable[w.PublicKey] {
		if len(c.unusable) >= maxUnusable {
			clear(c.unusable)
		}
		c.unusable[w.PublicKey] = true
		c.log.Warn("peer left out, its tunnel key is not one", "id", w.ID.Short(), "err", err)
	}
	return err != nil
}

// maxUnusable bounds the keys that were complained of.
const maxUnusable = 64

// show lets Stats see the peers.
func (c *control) show(peers []*peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.peers)
	for _, p := range peers {
		c.peers[p.config.ID] = p
	}
}

// usable gives the endpoints that are outside of the mesh, IPv4 as IPv4.
func usable(endpoints []netip.AddrPort, inside []netip.Prefix) []netip.AddrPort {
	var out []netip.AddrPort
	for _, ep := range endpoints {
		ep = netip.AddrPortFrom(ep.Addr().Unmap(), ep.Port())
		if !contains(inside, ep.Addr()) {
			out = append(out, ep)
		}
	}
	return out
}

// Suites lists what this engine offers on this machine, the best first: AES only
// where the processor has instructions for it, since it is neither fast nor of
// constant time without.
func Suites() []string {
	x86 := cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ && cpu.X86.HasSSE41
	arm := cpu.ARM64.HasAES && cpu.ARM64.HasPMULL
	if x86 || arm || cpu.S390X.HasAESGCM {
		return []string{tunnel.AES256GCM, tunnel.ChaCha20Poly1305}
	}
	return []string{tunnel.ChaCha20Poly1305}
}
