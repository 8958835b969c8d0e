//go:build linux

package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Pings is a steady flow of ICMP echo requests, which shows for how long
// traffic did not get through.
type Pings struct {
	// fixed at construction
	conn   net.PacketConn
	from   string
	to     netip.Addr
	family family
	id     uint64
	every  time.Duration
	stop   context.CancelFunc
	tasks  sync.WaitGroup

	mu       sync.Mutex
	sent     []time.Time // guarded by mu
	answered []bool      // guarded by mu; of the request of the same number
}

// Pings begins to send from the host. Call [Pings.Stop].
func (h *Host) Pings(ctx context.Context, to netip.Addr, every time.Duration) (*Pings, error) {
	p := &Pings{from: h.Name, to: to, family: familyOf(to), id: rand.Uint64(), every: every}
	ctx, p.stop = context.WithCancel(ctx)
	var err error
	if p.conn, err = h.ListenPacket(ctx, p.family.network, ""); err != nil {
		return nil, fmt.Errorf("ping %s from %s: %w", to, h.Name, err)
	}
	if err := onlyReplies(p.conn.(*net.IPConn), p.family); err != nil {
		p.conn.Close()
		return nil, fmt.Errorf("ping %s from %s: %w", to, h.Name, err)
	}
	p.tasks.Go(func() { p.send(ctx) })
	p.tasks.Go(p.receive)
	return p, nil
}

func (p *Pings) send(ctx context.Context) {
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		p.mu.Lock()
		seq := len(p.sent)
		p.sent, p.answered = append(p.sent, time.Now()), append(p.answered, false)
		p.mu.Unlock()
		// One that cannot be sent is one without an answer.
		_, _ = p.conn.WriteTo(echoMessage(p.family.request, p.id, seq), &net.IPAddr{IP: p.to.AsSlice()})
	}
}

func (p *Pings) receive() {
	buf := make([]byte, 1500)
	for {
		n, _, err := p.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if seq, ok := echoSeq(buf[:n], p.family.reply, p.id); ok {
			p.mu.Lock()
			// The number has 16 bits: it is the last request that has it.
			if last := len(p.answered) - 1; seq <= last {
				p.answered[last-(last-seq)&0xffff] = true
			}
			p.mu.Unlock()
		}
	}
}

// Gap is the longest time without an answer, so far: from one request that was
// answered to the next one that was. Until then the last gap counts as it is.
func (p *Pings) Gap() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	var gap time.Duration
	if len(p.sent) == 0 {
		return 0
	}
	last := p.sent[0]
	for i, at := range p.sent {
		if p.answered[i] {
			gap, last = max(gap, at.Sub(last)), at
		}
	}
	return max(gap, p.sent[len(p.sent)-1].Sub(last))
}

// Lost counts the requests that were sent before the given time, and those of them
// without an answer. When [Pings.Flows] has seen a later one answered, they are
// lost.
func (p *Pings) Lost(before time.Time) (lost, sent int) { return p.Between(time.Time{}, before) }

// Between is [Pings.Lost] of the requests that were sent in some time.
func (p *Pings) Between(from, to time.Time) (lost, sent int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first, _ := slices.BinarySearchFunc(p.sent, from, time.Time.Compare)
	for i := first; i < len(p.sent) && p.sent[i].Before(to); i++ {
		sent++
		if !p.answered[i] {
			lost++
		}
	}
	return lost, sent
}

// LastLost tells when the last request without an answer was sent, of those in
// some time; the zero time: there is none.
func (p *Pings) LastLost(from, to time.Time) (last time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first, _ := slices.BinarySearchFunc(p.sent, from, time.Time.Compare)
	for i := first; i < len(p.sent) && p.sent[i].Before(to); i++ {
		if !p.answered[i] {
			last = p.sent[i]
		}
	}
	return last
}

// Flows waits until a request that was sent after the given time is answered,
// and tells how long after it that was sent.
func (p *Pings) Flows(ctx context.Context, after time.Time) (time.Duration, error) {
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	for {
		if d, ok := p.flows(after); ok {
			return d, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, fmt.Errorf("ping %s: no answer in %s: %w", p.to, time.Since(after).Round(time.Millisecond), ctx.Err())
		}
	}
}

func (p *Pings) flows(after time.Time) (time.Duration, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first, _ := slices.BinarySearchFunc(p.sent, after, time.Time.Compare)
	for i := first; i < len(p.sent); i++ {
		if p.answered[i] && p.sent[i].After(after) {
			return p.sent[i].Sub(after), true
		}
	}
	return 0, false
}

// String says from where to where.
func (p *Pings) String() string { return "ping from " + p.from + " to " + p.to.String() }

// Marker is in every request and every answer, and in nothing else.
func (p *Pings) Marker() []byte { return binary.BigEndian.AppendUint64(nil, p.id) }

// Stop ends the flow, some time after the last request so that its answer
// counts.
func (p *Pings) Stop() {
	p.stop()
	_ = p.conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	p.tasks.Wait()
	p.conn.Close()
}
