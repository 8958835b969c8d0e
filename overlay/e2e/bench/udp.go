//go:build linux

package main

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

const (
	// lossLimit is the part of the packets that may get lost.
	lossLimit = 0.01
	// grace is how long after the last packet was sent others may arrive. It is
	// short, so that what piles up in queues does not count as carried.
	grace = 20 * time.Millisecond
	// closeEnough ends the search: the highest rate that passes and the lowest
	// that does not differ by less.
	closeEnough = 1.04
	// keptPart is the part of the asked rate that makes a trial one of that rate.
	keptPart = 0.9
	// mostTrials bounds the search. After it come long trials, at most
	// mostConfirms; after one that fails the rate goes down to what arrived, but
	// by no less and no more than these factors.
	mostTrials   = 12
	mostConfirms = 15
	leastStep    = 0.97
	mostStep     = 0.9
	// trialPart is the length of a short trial as a part of a long one's, and
	// leastTrial the least, below which chance decides.
	trialPart  = 10
	leastTrial = 50 * time.Millisecond
	// drain is the pause after a trial that overran a queue somewhere, so that the
	// next one finds it empty.
	drain = 200 * time.Millisecond
)

// trial is what came of sending at some rate.
type trial struct{ sent, received, seconds float64 }

// kept tells whether the sender came near the rate that it was asked for. It is kept
// from it where it has no processor for a while.
func (t trial) kept(rate float64) bool { return t.sent >= rate*t.seconds*keptPart }

func (t trial) passes() bool { return t.received >= t.sent*(1-lossLimit) && t.received > 0 }

func (t trial) rate() float64 {
	if t.seconds == 0 {
		return 0
	}
	return t.received / t.seconds
}

// search finds the highest rate in packets per second that passes. Short trials
// look for it, going by halves; long ones, from there downwards, decide, since a
// queue can hide for a moment that a rate is too high. A short one that fails is
// repeated: a hiccup of the machine should not halve the range. Rate 0 stands for
// as fast as the sender can.
func search(try func(rate float64, long bool) (trial, error)) (float64, error) {
	short := func(rate float64) (t trial, err error) {
		for range 2 {
			if t, err = try(rate, false); err != nil || t.passes() && t.kept(rate) {
				break
			}
		}
		return t, err
	}
	flood, err := try(0, false)
	if err != nil {
		return 0, err
	}
	if flood.passes() { // perhaps the sender is the limit
		if t, err := try(0, true); err != nil || t.passes() {
			return t.rate(), err
		}
	}
	low, high, next := 0.0, flood.sent/flood.seconds, flood.rate()
	for range mostTrials {
		if high <= low*closeEnough {
			break
		}
		if next <= low || next >= high {
			next = (low + high) / 2
		}
		t, err := short(next)
		if err != nil {
			return 0, err
		}
		if t.passes() {
			low = next
		} else {
			high = next
		}
		next = (low + high) / 2
	}
	if low == 0 {
		low = high
	}
	best := 0.0
	for range mostConfirms {
		t, err := try(low, true)
		if err != nil {
			return 0, err
		}
		if t.passes() {
			if best = max(best, t.rate()); t.kept(low) {
				break
			}
		}
		low *= min(leastStep, max(mostStep, t.rate()/low))
	}
	if best > 0 {
		return best, nil
	}
	return 0, errors.New("no rate was found at which less than 1 % gets lost")
}

// rate measures the packets per second that get from the first host to the others.
func (p *place) rate(ctx context.Context, size, flows int, length time.Duration, detail func(string, ...any)) (float64, error) {
	var to []netip.AddrPort
	receivers := p.agents[1:]
	for i, a := range receivers {
		at := p.net.addrs[i+1]
		got, err := a.ask(ctx, order{Do: "listen", At: addrPort(at, 0)})
		if err != nil {
			return 0, err
		}
		to = append(to, addrPort(at, got.Port))
		// A receiver that looks for packets disturbs what comes next. If this
		// fails, so does that.
		defer func() { _, _ = a.ask(ctx, order{Do: "silence"}) }()
	}
	number := uint32(time.Now().UnixNano()) // so that late packets of others do not count
	return search(func(rate float64, long bool) (trial, error) {
		number++
		for _, a := range receivers {
			if _, err := a.ask(ctx, order{Do: "expect", Trial: number}); err != nil {
				return trial{}, err
			}
		}
		d := max(length/trialPart, leastTrial)
		if long {
			d = max(length, leastTrial)
		}
		if rate > 0 { // the sender wakes up for that many
			rate = max(rate, 2*leastBatch/d.Seconds())
		}
		s, err := p.agents[0].ask(ctx, order{Do: "send", To: to, Trial: number, Size: size, Flows: flows, Rate: rate, For: d})
		if err != nil {
			return trial{}, err
		}
		select {
		case <-time.After(grace):
		case <-ctx.Done():
			return trial{}, ctx.Err()
		}
		t := trial{sent: float64(s.Packets), seconds: s.Took.Seconds()}
		for _, a := range receivers {
			got, err := a.ask(ctx, order{Do: "count"})
			if err != nil {
				return trial{}, err
			}
			t.received += float64(got.Packets)
		}
		detail("    trial of %v: asked %.0f/s, sent %.0f/s, received %.0f/s", d, rate, t.sent/t.seconds, t.rate())
		if !t.passes() {
			select {
			case <-time.After(drain):
			case <-ctx.Done():
				return trial{}, ctx.Err()
			}
		}
		return t, nil
	})
}

func addrPort(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func addrPorts(addrs []netip.Addr, port uint16) []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range addrs {
		out = append(out, addrPort(a, port))
	}
	return out
}
