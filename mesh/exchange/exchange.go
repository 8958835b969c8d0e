// Package exchange is how members come to believe the same: each of them compares
// what it has with one other at a time, through the tunnel between them, and both
// fetch what they lack. It needs neither seeds, nor gossip, nor gossip's key.
//
//	asks                                            answers
//	  │ hello: "mshX" │ 1 │ salt, 8 │ digest, 16       │
//	  ├───────────────────────────────────────────────►│
//	  │                                      same: 0   │  that is all; or
//	  │      differ: 1 │ keys it has │ keys it refused │
//	  │◄───────────────────────────────────────────────┤
//	  │ keys it wants │ keys it gives │ their objects  │
//	  ├───────────────────────────────────────────────►│
//	  │                           objects it asked for │
//	  │◄───────────────────────────────────────────────┤
//
// It decides nothing of what is believed. It listens on this node's control address,
// and reads nothing from whoever is not a member's daemon. The owner calls
// [Exchange.Run] once; all else may be called from anywhere.
package exchange

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
)

// Both ends of a stream have a fixed port. Where the kernel is the network, both are
// held by the daemon for as long as it runs, so no other program of a member's host
// can speak for it.
const (
	Port    = 51882 // of who answers
	AskPort = 51883 // of who asks
)

// Objects is what one node believes. Its methods are called from any goroutine.
type Objects interface {
	// Set is what may be told.
	Set() *Set
	// Get gives objects by their hashes, each after what it rests on. What is not
	// there any more is left out.
	Get(ctx context.Context, hashes []trust.Hash) ([][]byte, error)
	// Put takes in what a member sent, and returns those objects that it has decided
	// about; it may leave out what is outdated, or too much. whole says that nothing
	// which the member has is lacking now.
	Put(ctx context.Context, objects [][]byte, whole bool) (decided [][]byte, err error)
}

// Network opens streams inside the tunnels. Addresses at the ends of a stream are
// what [net.Conn] tells, as TCP's are.
type Network interface {
	// Listen listens on an address of this node, at [Port].
	Listen(ctx context.Context, at netip.Addr) (net.Listener, error)
	// Dial connects from that address, at [AskPort], to another node's.
	Dial(ctx context.Context, from, to netip.Addr) (net.Conn, error)
}

const (
	// dialWait is how long a member may take to accept: some round trips, and a
	// handshake of the tunnel.
	dialWait = 3 * time.Second
	// helloWait is how long one may take to say what it wants.
	helloWait = 3 * time.Second
	// exchangeWait bounds all of it: maxBytes both ways at 1.1 Mbit/s.
	exchangeWait = 30 * time.Second
	// maxAsking and maxServing bound the exchanges at a time, with a member each. An
	// exchange holds maxBytes at most.
	maxAsking  = 3
	maxServing = 8
	// listenAgain is the pause after it could not listen: the address comes with the
	// first plan.
	listenAgain = 250 * time.Millisecond
	// complainAfter is how long that may go on before it is told.
	complainAfter = 10 * time.Second
	// tooSoon is how fast an error is that cannot be the silence of a member.
	tooSoon = dialWait / 2
)

// ErrNoMember says that there is nobody to exchange with.
var ErrNoMember = errors.New("not a member that has a tunnel")

// Exchange is this node's part.
type Exchange struct {
	// fixed at construction
	network Network
	objects Objects
	log     *slog.Logger
	wake    chan struct{} // capacity 1

	past memory

	mu       sync.Mutex // guards all below
	self     netip.Addr // own control address; zero: not known yet
	schedule schedule
	asking   int
	serving  int
}

// New builds it; nothing happens before Run.
func New(network Network, objects Objects, log *slog.Logger) *Exchange {
	return &Exchange{network: network, objects: objects, log: log, wake: make(chan struct{}, 1)}
}

// SetView says who the members are: those that have a tunnel and have not left.
func (e *Exchange) SetView(view *mesh.View) {
	others := make(map[mesh.NodeID]netip.Addr, len(view.Nodes))
	var self netip.Addr
	for _, n := range view.Nodes {
		switch {
		case n.ID == view.Self:
			self = n.Control
		case !n.Left && !n.Key.IsZero():
			others[n.ID] = n.Control
		}
	}
	e.mu.Lock()
	e.self = self
	e.schedule.set(time.Now(), others)
	e.mu.Unlock()
	e.poke()
}

// Hurry tells that there is news, which others should hear soon.
func (e *Exchange) Hurry() {
	e.mu.Lock()
	e.schedule.hurry(time.Now())
	e.mu.Unlock()
	e.poke()
}

// Met tells whether the last exchange with a member went well.
func (e *Exchange) Met(id mesh.NodeID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.schedule.peers[id]
	return p != nil && p.met
}

// Others draws up to n members, those first with whom the last exchange went well.
func (e *Exchange) Others(n int) []mesh.NodeID {
	e.mu.Lock()
	defer e.mu.Unlock()
	var met, rest []mesh.NodeID
	for id, p := range e.schedule.peers { // in random order
		if p.met {
			met = append(met, id)
		} else {
			rest = append(rest, id)
		}
	}
	all := append(met, rest...)
	return all[:min(n, len(all))]
}

// With makes an exchange with a member now, after the one that is under way, and
// returns when it is over.
func (e *Exchange) With(ctx context.Context, id mesh.NodeID) error {
	for {
		e.mu.Lock()
		p, self := e.schedule.peers[id], e.self
		if p == nil || !self.IsValid() {
			e.mu.Unlock()
			return fmt.Errorf("exchange with %s: %w", id.Short(), ErrNoMember)
		}
		before := p.asking
		if before == nil {
			p.asking = make(chan struct{})
		}
		e.mu.Unlock()
		if before == nil {
			return e.with(ctx, self, p)
		}
		select {
		case <-before:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Run asks and answers until ctx is done, and returns when all has ended.
func (e *Exchange) Run(ctx context.Context) {
	var tasks sync.WaitGroup
	tasks.Go(func() { e.listen(ctx) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-e.wake:
		case <-timer.C:
		}
		now := time.Now()
		e.mu.Lock()
		wait := e.schedule.at.Sub(now)
		self := e.self
		var p *peer
		if wait <= 0 && self.IsValid() && ctx.Err() == nil {
			if e.asking < maxAsking {
				p = e.schedule.pick(now)
			}
			e.schedule.asked(now, p)
			wait = e.schedule.at.Sub(now)
		}
		if p != nil {
			p.asking = make(chan struct{})
			e.asking++
		}
		e.mu.Unlock()
		if p != nil {
			tasks.Go(func() {
				if err := e.with(ctx, self, p); err != nil {
					e.log.Debug("no exchange", "node", p.id.Short(), "err", err)
				}
				e.mu.Lock()
				e.asking--
				e.mu.Unlock()
			})
		}
		if !self.IsValid() {
			wait = time.Hour // until there is a view
		}
		timer.Reset(max(wait, time.Millisecond))
	}
	tasks.Wait()
}

func (e *Exchange) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// with asks a member that is marked so.
func (e *Exchange) with(ctx context.Context, self netip.Addr, p *peer) error {
	ctx, cancel := context.WithTimeout(ctx, exchangeWait)
	defer cancel()
	begin := time.Now()
	out, err := e.ask(ctx, self, p.addr)
	e.mu.Lock()
	close(p.asking)
	p.asking = nil
	now := time.Now()
	if err != nil {
		e.schedule.failed(now, p, now.Sub(begin) >= tooSoon)
		e.mu.Unlock()
		return fmt.Errorf("exchange with %s: %w", p.id.Short(), err)
	}
	e.mu.Unlock()
	return e.take(ctx, p, out)
}

func (e *Exchange) ask(ctx context.Context, self, to netip.Addr) (outcome, error) {
	dial, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	conn, err := e.network.Dial(dial, self, to)
	if err != nil {
		return outcome{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	return ask(conn, e.objects.Set(), e.getter(ctx), &e.past)
}

func (e *Exchange) getter(ctx context.Context) getter {
	return func(hashes []trust.Hash) ([][]byte, error) {
		if len(hashes) == 0 {
			return nil, nil
		}
		return e.objects.Get(ctx, hashes)
	}
}

// take takes in what an exchange has brought.
func (e *Exchange) take(ctx context.Context, p *peer, out outcome) error {
	decided, err := e.objects.Put(ctx, out.got, out.whole)
	if err != nil {
		return err
	}
	e.past.note(out.by.among(out.named, decided))
	e.mu.Lock()
	e.schedule.met(time.Now(), p, len(out.got)+out.sent > 0)
	e.mu.Unlock()
	e.poke()
	return nil
}

// listen answers others. While it cannot listen it tries again.
func (e *Exchange) listen(ctx context.Context) {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	since := time.Now() // it does not listen
	for ctx.Err() == nil {
		e.mu.Lock()
		self := e.self
		e.mu.Unlock()
		if self.IsValid() {
			l, err := e.network.Listen(ctx, self)
			if err == nil {
				e.accept(ctx, l, &tasks)
				since = time.Now()
			} else if !since.IsZero() && time.Since(since) > complainAfter {
				since = time.Time{} // once is enough
				e.log.Warn("members cannot compare with this node through the tunnels, trying on", "address", self, "port", Port, "err", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(listenAgain):
		}
	}
}

func (e *Exchange) accept(ctx context.Context, l net.Listener, tasks *sync.WaitGroup) {
	defer l.Close()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		p := e.admit(conn.RemoteAddr())
		if p == nil {
			_ = conn.Close()
			continue
		}
		tasks.Go(func() {
			if err := e.serve(ctx, conn, p); err != nil {
				e.log.Debug("exchange not answered", "node", p.id.Short(), "err", err)
			}
			e.mu.Lock()
			p.serving = false
			e.serving--
			e.mu.Unlock()
		})
	}
}

// admit tells whose daemon is at the other end, and takes a place for it; nil: none
// is to be answered.
func (e *Exchange) admit(from net.Addr) *peer {
	tcp, ok := from.(*net.TCPAddr)
	if !ok || tcp.Port != AskPort {
		return nil
	}
	at := tcp.AddrPort().Addr().WithZone("")
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.schedule.peers {
		if p.addr != at {
			continue
		}
		if p.serving || e.serving >= maxServing || !p.granted.Take(time.Now()) {
			return nil
		}
		p.serving = true
		e.serving++
		return p
	}
	return nil
}

func (e *Exchange) serve(ctx context.Context, conn net.Conn, p *peer) error {
	ctx, cancel := context.WithTimeout(ctx, exchangeWait)
	defer cancel()
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := conn.SetReadDeadline(time.Now().Add(helloWait)); err != nil {
		return err
	}
	out, err := answer(patient{conn}, e.objects.Set(), e.getter(ctx), &e.past)
	if err != nil {
		return err
	}
	return e.take(ctx, p, out)
}

// patient gives whoever has said something the time that is left for all of it.
type patient struct{ net.Conn }

func (c patient) Write(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}
