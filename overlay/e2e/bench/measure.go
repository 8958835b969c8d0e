//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"meshd/overlay/e2e/lab"
)

// Layouts of the underlay.
const (
	plain   = "plain" // veth, which carries packets of 64 KiB as they are
	nicLike = "nic"   // segmentation forced, as on a card without offloads of its own
)

const (
	// stealLimit is the part of the machine's time that the hypervisor may have
	// given to others during a measurement that counts.
	stealLimit = 0.05
	// repeats is how often a measurement that does not count is repeated.
	repeats = 3
	// giveUp is how often a system may fail to start until it is left out.
	giveUp = 2
	// setupTime bounds how long a system takes to carry its first packet.
	setupTime = 90 * time.Second
	// bulkHead is the start of a bulk stream, before others are measured beside it.
	bulkHead       = 500 * time.Millisecond
	pingsPerSecond = 1000
	pingSize       = 64
	flows          = 1000 // from one host to the four others
)

// bench is one run.
type bench struct {
	o        options
	tools    *tools
	report   *Report
	progress io.Writer
	noStart  map[string]int // how often systems did not start
}

// measureAll measures what the options say, all systems in turn in each round.
func measureAll(ctx context.Context, o options, progress io.Writer) (*Report, error) {
	dir, err := os.MkdirTemp("", "meshd-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	b := &bench{o: o, tools: &tools{dir: dir, bin: o.Bin, peers: o.Peers}, report: newReport(o), progress: progress, noStart: map[string]int{}}

	var ready []system
	for _, s := range systems {
		if !slices.Contains(o.Systems, s.name) {
			continue
		}
		version, err := s.prepare(ctx, b.tools)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		b.report.addSystem(s, version, err)
		if err != nil {
			b.say("%s: not measured: %v", s.name, err)
			continue
		}
		ready = append(ready, s)
	}
	start := time.Now()
	for round := range o.Rounds {
		for _, layout := range o.Layouts {
			for _, s := range ready {
				if b.noStart[s.name] >= giveUp {
					continue
				}
				b.say("round %d of %d, %s, %s", round+1, o.Rounds, layout, s.name)
				b.onTwo(ctx, layout, s)
				b.onFive(ctx, layout, s)
				if err := ctx.Err(); err != nil {
					return nil, err
				}
			}
		}
		b.sayLeft(start, round)
	}
	b.report.finish()
	return b.report, nil
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.progress, format+"\n", args...)
}

// sayLeft tells how long it will go on, after a round.
func (b *bench) sayLeft(start time.Time, round int) {
	took := time.Since(start)
	if left := b.o.Rounds - round - 1; left > 0 {
		b.say("%v so far; about %v to go", took.Round(time.Second), (took / time.Duration(round+1) * time.Duration(left)).Round(time.Second))
	}
}

// detail tells what only -v asks for.
func (b *bench) detail(format string, args ...any) {
	if b.o.Verbose {
		b.say(format, args...)
	}
}

// place is where a system runs, with agents on its hosts.
type place struct {
	lab    *lab.Lab
	net    *network
	ends   []end // of traffic, in the order of the network's addresses
	agents []*agent
	iperf  *iperf // nil: none yet
}

// set builds a place, and waits until every host has reached the first one.
func (b *bench) set(ctx context.Context, layout string, s system, hosts ...string) (*place, error) {
	ctx, cancel := context.WithTimeout(ctx, setupTime)
	defer cancel()
	p := &place{}
	var err error
	if len(hosts) == 2 {
		p.lab, err = lab.Cable(ctx, hosts[0], hosts[1])
	} else {
		p.lab, err = lab.New(ctx, hosts...)
	}
	if err != nil {
		return nil, err
	}
	if layout == nicLike {
		for _, h := range p.lab.Hosts() {
			if err := h.LikeNIC(); err != nil {
				return nil, errors.Join(err, p.close())
			}
		}
	}
	p.net, err = s.start(ctx, b.tools, p.lab)
	if err == nil {
		err = p.join(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *place) join(ctx context.Context) error {
	for i, h := range p.lab.Hosts() {
		p.ends = append(p.ends, end{host: h})
		a, err := startAgent(p.ends[i])
		if err != nil {
			return err
		}
		p.agents = append(p.agents, a)
		if i == 0 {
			continue
		}
		if _, err := p.lab.Hosts()[0].Await(ctx, p.net.addrs[i]); err != nil {
			return err
		}
	}
	return nil
}

func (p *place) close() error {
	var err error
	if p.net != nil && p.net.close != nil {
		err = p.net.close()
	}
	return errors.Join(err, p.lab.Close())
}

// onTwo measures what takes two hosts on a cable.
func (b *bench) onTwo(ctx context.Context, layout string, s system) {
	p, err := b.set(ctx, layout, s, "alpha", "beta")
	if err != nil {
		b.didNotStart(layout, s, "start", err, keysOfTwo()...)
		return
	}
	defer b.leave(p, layout, s)
	b.report.row(layout, s.name).MTU = p.net.mtu

	length := b.length()
	mbits := func(streams int, reverse bool) func(context.Context) (values, error) {
		return func(ctx context.Context) (values, error) {
			before, err := usage(p.net.daemons)
			if err != nil {
				return nil, err
			}
			r, err := p.tcp(ctx, streams, reverse, length)
			if err != nil {
				return nil, err
			}
			after, err := usage(p.net.daemons)
			if err != nil {
				return nil, err
			}
			out := values{tcpKey(streams, reverse): r.bitsPerSecond / 1e6}
			if streams == 1 && !reverse && len(p.net.daemons) > 0 {
				out[keyCPU] = (after.CPU - before.CPU).Seconds() / (r.bytes / 1e9)
			}
			return out, nil
		}
	}
	rate := func(key string, size int) func(context.Context) (values, error) {
		return func(ctx context.Context) (values, error) {
			r, err := p.rate(ctx, size, 1, length, b.detail)
			if key == keyUDPMTU {
				return values{key: r * float64(size) * 8 / 1e6}, err
			}
			return values{key: r / 1e3}, err
		}
	}
	rtt := func(p50, p99 string, beside bool) func(context.Context) (values, error) {
		return func(ctx context.Context) (values, error) {
			rtts, err := p.pings(ctx, length, beside)
			if err != nil {
				return nil, err
			}
			return percentiles(rtts, time.Microsecond, map[string]float64{p50: 0.5, p99: 0.99}), nil
		}
	}
	for _, m := range []struct {
		name string
		take func(context.Context) (values, error)
		keys []string
	}{
		{"RTT", rtt(keyRTT50, keyRTT99, false), []string{keyRTT50, keyRTT99}},
		{"TCP, 1 stream", mbits(1, false), []string{keyTCP1, keyCPU}},
		{"TCP, 1 stream back", mbits(1, true), []string{keyTCP1R}},
		{"TCP, 4 streams", mbits(4, false), []string{keyTCP4}},
		{"TCP, 4 streams back", mbits(4, true), []string{keyTCP4R}},
		{"UDP, 64 B", rate(keyUDP64, 64), []string{keyUDP64}},
		{"UDP, MTU", rate(keyUDPMTU, p.net.mtu-28), []string{keyUDPMTU}}, // less the headers of IPv4 and UDP
		{"RTT beside TCP", rtt(keyLoad50, keyLoad99, true), []string{keyLoad50, keyLoad99}},
	} {
		b.take(ctx, layout, s, m.name, m.take, m.keys...)
	}
	if len(p.net.daemons) == 0 {
		return
	}
	u, err := usage(p.net.daemons)
	if err != nil {
		b.report.fail(layout, s.name, "memory", err, keyRSS, keyPeak)
		return
	}
	b.report.add(layout, s.name, values{keyRSS: float64(u.RSS) / 1e6, keyPeak: float64(u.Peak) / 1e6})
}

// onFive measures many flows from one host to four others, on a switch.
func (b *bench) onFive(ctx context.Context, layout string, s system) {
	const name = "UDP, 64 B, 1000 flows"
	if ctx.Err() != nil || !b.wants(name) {
		return
	}
	p, err := b.set(ctx, layout, s, "alpha", "beta", "gamma", "delta", "epsilon")
	if err != nil {
		b.didNotStart(layout, s, "start of five", err, keyFlows)
		return
	}
	defer b.leave(p, layout, s)
	b.take(ctx, layout, s, name, func(ctx context.Context) (values, error) {
		r, err := p.rate(ctx, 64, flows, b.length(), b.detail)
		return values{keyFlows: r / 1e3}, err
	}, keyFlows)
}

// keysOfTwo are all keys but that of onFive.
func keysOfTwo() (out []string) {
	for _, m := range metrics {
		if m.key != keyFlows {
			out = append(out, m.key)
		}
	}
	return out
}

func (b *bench) didNotStart(layout string, s system, what string, err error, keys ...string) {
	b.noStart[s.name]++
	b.report.fail(layout, s.name, what, err, keys...)
	b.say("  %s: %v", what, err)
}

func (b *bench) leave(p *place, layout string, s system) {
	if err := p.close(); err != nil {
		b.report.fail(layout, s.name, "end", err)
		b.say("  end: %v", err)
	}
}

func (b *bench) length() time.Duration { return time.Duration(b.o.Seconds * float64(time.Second)) }

// wants tells whether a measurement was asked for.
func (b *bench) wants(name string) bool { return b.o.Only == nil || b.o.Only.MatchString(name) }

// take makes one measurement, writes down what comes of it and gives that.
func (b *bench) take(ctx context.Context, layout string, s system, name string, measure func(context.Context) (values, error), keys ...string) values {
	if ctx.Err() != nil || !b.wants(name) {
		return nil
	}
	got, dropped, err := steady(ctx, b.o.Steal, machineTime, func() (values, error) {
		// The longest is the search for a rate.
		ctx, cancel := context.WithTimeout(ctx, time.Minute+20*b.length())
		defer cancel()
		return measure(ctx)
	})
	b.report.Dropped += dropped
	if err != nil {
		b.report.fail(layout, s.name, name, err, keys...)
		b.say("  %s: %v", name, err)
		return nil
	}
	b.report.add(layout, s.name, got)
	b.say("  %s: %v", name, got)
	return got
}

// steady repeats a measurement until at most that part of the time was stolen
// meanwhile, and says how often it was more.
func steady(ctx context.Context, limit float64, clock func() (cpuTime, error), measure func() (values, error)) (got values, dropped int, err error) {
	for range repeats + 1 {
		before, err := clock()
		if err != nil {
			return nil, dropped, err
		}
		got, err = measure()
		if err != nil {
			return nil, dropped, cmp.Or(ctx.Err(), err)
		}
		after, err := clock()
		if err != nil {
			return nil, dropped, err
		}
		if stolen(before, after) <= limit {
			return got, dropped, nil
		}
		dropped++
	}
	return nil, dropped, fmt.Errorf("dropped %d times: the hypervisor took more than %g %% of the time", dropped, limit*100)
}

// percentiles of durations, in units, by key.
func percentiles(of []time.Duration, unit time.Duration, parts map[string]float64) values {
	slices.Sort(of)
	v := values{}
	for key, part := range parts {
		v[key] = float64(percentile(of, part)) / float64(unit)
	}
	return v
}

// percentile of sorted durations; 0 for none.
func percentile(sorted []time.Duration, part float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(part*float64(len(sorted))), len(sorted)-1)]
}

// pings gives round trips between the two hosts, beside a bulk stream or not.
func (p *place) pings(ctx context.Context, length time.Duration, beside bool) ([]time.Duration, error) {
	echo, err := p.agents[1].ask(ctx, order{Do: "echo", At: addrPort(p.net.addrs[1], 0)})
	if err != nil {
		return nil, err
	}
	// Few are enough when nothing else happens; beside others, what is rare counts.
	count := max(10, int(length.Seconds()*pingsPerSecond))
	if beside {
		count = 0
		stop, err := p.bulk(ctx)
		if err != nil {
			return nil, err
		}
		defer stop()
	}
	a, err := p.agents[0].ask(ctx, order{
		Do: "ping", To: addrPorts(p.net.addrs[1:2], echo.Port), Size: pingSize,
		For: length, Count: count,
	})
	if err == nil && len(a.RTT) == 0 {
		err = fmt.Errorf("none of %d pings came back", a.Lost)
	}
	return a.RTT, err
}
