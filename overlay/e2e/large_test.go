//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"meshd/overlay/config"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/status"
)

// The bounds on a large mesh, at any size up to 50 nodes. Beyond, the figures
// are told and not judged, but everybody must reach everybody.
const (
	largeJudged   = 50
	largeAllPairs = 15 * time.Second
	largeReach    = 5 * time.Second
	largeLossy    = 15 * time.Second
	largeRSS      = 40 << 20
	// The median daemon's, if it was watched for largeRest: what is left of the start is
	// in a shorter time.
	largeIdleCPU = 0.5 // percent of a core
	largeTraffic = 20  // kbit/s
	largeRest    = 30 * time.Second
	// largePatience bounds each step, so that a mesh which does not form ends
	// the test; with more nodes on one machine it is so much for each.
	largePatience   = 5 * time.Minute
	patiencePerNode = 6 * time.Second
	// sweeping is how many hosts ask all others at a time: not every pair of 200.
	sweeping = 50
	// largeProgress is how often a person who watches is told of it.
	largeProgress = 2 * time.Second
)

// largeFigures are what TestLarge measures. Times are in seconds.
type largeFigures struct {
	Nodes      int         `json:"nodes"`
	Join       float64     `json:"join"`        // making all states with meshctl, no daemon running
	Ready      float64     `json:"ready"`       // from the first daemon's start until all are ready
	AllPairs   float64     `json:"all_pairs"`   // from there until everybody reached everybody
	AfterSeed  float64     `json:"after_seed"`  // the same, from the start of the seed, which is the last
	StartCPU   float64     `json:"start_cpu"`   // of all daemons until then
	Others     float64     `json:"others_cpu"`  // of all else on the machine until then, in seconds of CPU
	JoinOne    float64     `json:"join_one"`    // another host comes later: from its daemon's start until it and all others reach each other
	JoinAll    float64     `json:"join_all"`    // the same, from the start of meshctl join
	Restart    float64     `json:"restart"`     // one daemon stopped and started: until it and all others reach each other
	Crash      float64     `json:"crash"`       // every tenth killed and started: the same
	WithCached float64     `json:"with_cached"` // restart without table and seed: the same
	Idle       idleFigures `json:"idle"`
	Reach      float64     `json:"reach"`         // a label changed at one node: until all know
	Lossy      float64     `json:"reach_lossy"`   // the same, while each host loses a fifth of what it is sent
	Rotation   float64     `json:"rotation"`      // the gossip key: until the one before is read no more, and all know
	Lost       int         `json:"rotation_lost"` // of the pings until some seconds later
	Pings      int         `json:"rotation_pings"`
	Revocation float64     `json:"revocation"` // one node, which sends to all: until the last byte of it, anywhere
}

// idleFigures is what a mesh takes that has nothing to do.
type idleFigures struct {
	Seconds     float64 `json:"seconds"`
	CPU         spread  `json:"cpu_percent"` // of one core
	RSS         spread  `json:"rss_mib"`
	RSSAll      float64 `json:"rss_mib_all"` // of all daemons together
	Heap        spread  `json:"heap_mib"`    // that the last collection has left
	Goroutines  spread  `json:"goroutines"`
	Descriptors spread  `json:"descriptors"`
	Gossip      spread  `json:"gossip_kbit"` // per second, both directions, on the wire
	Tunnel      spread  `json:"tunnel_kbit"`
}

// spread is a figure over all nodes.
type spread struct {
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

func spreadOf(values []float64) spread {
	slices.Sort(values)
	return spread{values[len(values)/2], values[len(values)-1]}
}

// A mesh of MESHD_NODES daemons starts cold, with its seed last; it idles for
// MESHD_IDLE; one more host joins; something changes; a node is revoked; daemons are
// restarted and killed, and the seed dies for good. With
// MESHD_PACE the seed starts first, and the others so long after one another, or, if
// that is "ready", as soon as few are on their way: for sizes whose cold start is too
// much for one machine.
func TestLarge(t *testing.T) {
	n, rest := 12, 5*time.Second
	if text := os.Getenv("MESHD_NODES"); text != "" {
		var err error
		n, err = strconv.Atoi(text)
		must(t, err)
	}
	if text := os.Getenv("MESHD_IDLE"); text != "" {
		var err error
		rest, err = time.ParseDuration(text)
		must(t, err)
	}
	var pace pace
	switch text := os.Getenv("MESHD_PACE"); text {
	case "":
	case "ready":
		pace.ready = true
	default:
		var err error
		pace.each, err = time.ParseDuration(text)
		must(t, err)
	}
	// An interrupt lets the test clean up.
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	l := &large{t: t, figures: largeFigures{Nodes: n}}
	begin := time.Now()
	l.Cluster = hosts(t, n+1)
	l.guest, l.Nodes = l.Nodes[n], l.Nodes[:n]
	l.say("lab of %d hosts built in %.1f s", n+1, time.Since(begin).Seconds())
	l.start(ctx, pace)
	l.idle(ctx, rest)
	l.join(ctx)
	l.changes(ctx)
	l.revocation(ctx)
	l.restarts(ctx)

	line, err := json.Marshal(l.figures)
	must(t, err)
	fmt.Printf("%s%s\n\nfor docs/scale.md:\n%s", l.figures.table(), line, l.figures.markdown())
	l.judge()
}

// large is a run of TestLarge.
type large struct {
	*cluster.Cluster
	t       *testing.T
	figures largeFigures
	guest   *cluster.Node                  // who joins when all others are there
	own     map[*cluster.Node][]netip.Addr // addresses in the mesh
}

// say tells a person who watches how far it has come; t.Log would wait for the
// end when several packages are tested.
func (l *large) say(format string, args ...any) {
	fmt.Printf("%s %s\n", time.Now().Format("15:04:05"), fmt.Sprintf(format, args...))
}

func (l *large) seed() *cluster.Node { return l.Nodes[0] }

// bounded ends in time for a message of what is missing.
func (l *large) bounded(ctx context.Context) context.Context {
	ctx, cancel := context.WithTimeout(ctx, max(largePatience, time.Duration(len(l.Nodes))*patiencePerNode))
	l.t.Cleanup(cancel)
	return ctx
}

// pace is how daemons start; its zero value: all at once, the seed last.
type pace struct {
	each  time.Duration // one so long after the other
	ready bool          // one as soon as few others are on their way
}

// start makes the states, starts the daemons and waits until everybody reaches
// everybody.
func (l *large) start(ctx context.Context, pace pace) {
	t := l.t
	begin := time.Now()
	must(t, l.Init(ctx))
	l.figures.Join = time.Since(begin).Seconds()
	l.say("%d nodes have joined after %.1f s", len(l.Nodes), l.figures.Join)

	machine := machineCPU(t)
	begin = time.Now()
	seed, atOnce := begin, pace.each == 0 && !pace.ready
	if !atOnce {
		must(t, l.seed().Start())
	}
	waiting := []*cluster.Node{l.seed()}
	for i, n := range l.Nodes[1:] {
		pause(ctx, pace.each)
		if pace.ready {
			waiting = l.waitReady(l.bounded(ctx), waiting, onTheirWay(i+1)-1)
		}
		must(t, n.Start())
		waiting = append(waiting, n)
	}
	if atOnce {
		seed = time.Now()
		must(t, l.seed().Start())
	}
	l.say("daemons started in %.1f s", time.Since(begin).Seconds())
	ctx = l.bounded(ctx)
	l.waitReady(ctx, waiting, 0)
	l.figures.Ready = time.Since(begin).Seconds()
	l.say("all ready after %.1f s", l.figures.Ready)
	must(t, l.learnAddresses(ctx))
	must(t, l.allPairs(ctx, l.Nodes, l.Nodes))
	l.figures.AllPairs, l.figures.AfterSeed = time.Since(begin).Seconds(), time.Since(seed).Seconds()
	own := time.Duration(0)
	for _, u := range l.usage() {
		own += u.CPU
	}
	l.figures.StartCPU, l.figures.Others = own.Seconds(), (machineCPU(t) - machine - own).Seconds()
	l.say("all pairs after %.1f s, %.1f s of it since the seed's start; %.1f s of CPU, %.1f s of others",
		l.figures.AllPairs, l.figures.AfterSeed, l.figures.StartCPU, l.figures.Others)
}

// onTheirWay is how many daemons start at a time beside so many that run, where each
// waits for others to be ready: first the seed, then four. Beyond 60 they are fewer, since
// everybody has work with each newcomer.
func onTheirWay(running int) int { return min(running, 4, max(1, 240/running)) }

// waitReady waits until so few of the nodes at most are not ready, and gives those. It
// asks the files, not the daemons, which have enough to do.
func (l *large) waitReady(ctx context.Context, nodes []*cluster.Node, most int) []*cluster.Node {
	nodes = slices.Clone(nodes)
	told := time.Now()
	must(l.t, cluster.Poll(ctx, func() (bool, error) {
		nodes = slices.DeleteFunc(nodes, func(n *cluster.Node) bool { return strings.Contains(n.Log(), "msg=ready") })
		var names []string
		for _, n := range nodes[:min(len(nodes), 5)] {
			names = append(names, n.Name)
		}
		missing := fmt.Errorf("%d are not ready, such as %s", len(nodes), names)
		if time.Since(told) > largeProgress {
			told = time.Now()
			l.say("%s", missing)
		}
		return len(nodes) <= most, missing
	}))
	return nodes
}

// learnAddresses asks the seed for everybody's addresses.
func (l *large) learnAddresses(ctx context.Context) error {
	return cluster.Poll(ctx, func() (bool, error) {
		d, err := l.seed().Document(ctx)
		if err != nil {
			return false, err
		}
		l.own = map[*cluster.Node][]netip.Addr{}
		add := func(name string, leases []status.Lease) {
			for _, lease := range leases {
				if n := l.Node(name); lease.State == "held" {
					l.own[n] = append(l.own[n], lease.Addresses...)
				}
			}
		}
		add(d.Node.Name, d.Node.Leases)
		for _, p := range d.Peers {
			add(p.Name, p.Leases)
		}
		return len(l.own) == len(l.Nodes), fmt.Errorf("the seed knows of %d leases, there should be %d", len(l.own), len(l.Nodes))
	})
}

// allPairs waits until everybody in from reaches everybody in to, in both
// families.
func (l *large) allPairs(ctx context.Context, from, to []*cluster.Node) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var pairs silence
	var sweeps sync.WaitGroup
	errs, turns := make(chan error, len(from)), make(chan struct{}, sweeping)
	for _, f := range from {
		names := map[netip.Addr]string{}
		for _, n := range to {
			for _, a := range l.own[n] {
				if n != f {
					names[a] = f.Name + " -> " + n.Name
					pairs.add(names[a], 1)
				}
			}
		}
		sweeps.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			err := f.Host.Sweep(ctx, slices.Collect(maps.Keys(names)), func(a netip.Addr) { pairs.add(names[a], -1) })
			if err != nil {
				cancel() // the others
			}
			errs <- err
		})
	}
	all := make(chan struct{})
	go func() {
		sweeps.Wait()
		close(all)
	}()
	tick := time.NewTicker(largeProgress)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			l.say("%s", &pairs)
		case <-all:
			close(errs)
			for err := range errs {
				if err != nil {
					return err
				}
			}
			return nil
		}
	}
}

// silence counts the addresses that have not answered yet, by pairs of nodes.
type silence struct {
	mu    sync.Mutex
	pairs map[string]int // guarded by mu
}

func (s *silence) add(pair string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pairs == nil {
		s.pairs = map[string]int{}
	}
	if s.pairs[pair] += n; s.pairs[pair] == 0 {
		delete(s.pairs, pair)
	}
}

// String tells how many are left, and some of them.
func (s *silence) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := slices.Sorted(maps.Keys(s.pairs))
	return fmt.Sprintf("%d pairs have not reached each other yet: %s", len(left), strings.Join(left[:min(len(left), 4)], ", "))
}

// idle measures a mesh that is left alone.
func (l *large) idle(ctx context.Context, rest time.Duration) {
	t := l.t
	// What the start has left behind is over: repeated broadcasts, the second
	// probes, garbage.
	pause(ctx, min(rest, 40*time.Second))
	meters := make([]*lab.Meter, len(l.Nodes))
	for i, n := range l.Nodes {
		m, err := n.Host.Meter(gossipPort, tunnelPort)
		must(t, err)
		defer m.Stop()
		meters[i] = m
	}
	before, machine, begin := l.usage(), machineCPU(t), time.Now()
	l.say("idle for %s", rest)
	pause(ctx, rest)
	after, took := l.usage(), time.Since(begin)
	busy := machineCPU(t) - machine

	total := 0.0
	var cpu, rss, heap, goroutines, descriptors, gossip, tunnel []float64
	for i, n := range l.Nodes {
		gossip = append(gossip, float64(meters[i].Bytes(gossipPort))*8/1000/took.Seconds())
		tunnel = append(tunnel, float64(meters[i].Bytes(tunnelPort))*8/1000/took.Seconds())
		used := after[i].CPU - before[i].CPU
		busy -= used
		cpu = append(cpu, 100*used.Seconds()/took.Seconds())
		rss = append(rss, float64(after[i].RSS)/(1<<20))
		total += rss[i]
		descriptors = append(descriptors, float64(after[i].Descriptors))
		m, err := n.Metrics(ctx, fmt.Sprintf("127.0.0.1:%d", config.DefaultHTTPPort), "go_goroutines", "go_gc_heap_live_bytes")
		must(t, err)
		goroutines = append(goroutines, m["go_goroutines"])
		heap = append(heap, m["go_gc_heap_live_bytes"]/(1<<20))
	}
	l.figures.Idle = idleFigures{
		Seconds: took.Seconds(), CPU: spreadOf(cpu), RSS: spreadOf(rss), RSSAll: total, Heap: spreadOf(heap),
		Goroutines: spreadOf(goroutines), Descriptors: spreadOf(descriptors),
		Gossip: spreadOf(gossip), Tunnel: spreadOf(tunnel),
	}
	l.say("idle: %.2f %% of a core (worst %.2f), %.1f MiB (worst %.1f); others used %.0f %% of the machine",
		l.figures.Idle.CPU.Median, l.figures.Idle.CPU.Max, l.figures.Idle.RSS.Median, l.figures.Idle.RSS.Max,
		100*busy.Seconds()/took.Seconds()/float64(runtime.NumCPU()))
}

// join has one more host join.
func (l *large) join(ctx context.Context) {
	t, ctx := l.t, l.bounded(ctx)
	token, err := l.seed().Token(ctx)
	must(t, err)
	begin := time.Now()
	must(t, l.guest.Join(ctx, token))
	start := time.Now()
	must(t, l.guest.Start())
	must(t, l.guest.WaitReady(ctx))
	ready := time.Since(start)
	l.own[l.guest], err = l.guest.Addresses(ctx)
	must(t, err)
	guest := []*cluster.Node{l.guest}
	back := make(chan error, 1)
	go func() { back <- l.allPairs(ctx, l.Nodes, guest) }()
	must(t, l.allPairs(ctx, guest, l.Nodes))
	must(t, <-back)
	l.figures.JoinOne, l.figures.JoinAll = time.Since(start).Seconds(), time.Since(begin).Seconds()
	l.Nodes = append(l.Nodes, l.guest)
	l.say("one more host has joined: ready after %.2f s, all pairs after %.2f s, %.2f s since meshctl join", ready.Seconds(), l.figures.JoinOne, l.figures.JoinAll)
}

// changes measures how what is new gets round: a record, and another gossip key.
func (l *large) changes(ctx context.Context) {
	t := l.t
	reach := func(word string) float64 {
		from := l.Nodes[len(l.Nodes)-1]
		must(t, from.Configure("node: {name: "+from.Name+", labels: {said: "+word+"}}"))
		begin := time.Now()
		_, err := from.Meshctl(l.bounded(ctx), "config", "reload")
		must(t, err)
		// One after the other: to ask all of them all the time would be more work than
		// what is measured.
		for _, n := range l.Nodes[:len(l.Nodes)-1] {
			must(t, n.WaitFor(l.bounded(ctx), "to hear of "+from.Name, func(d *status.Document) bool {
				p := peerNamed(d, from.Name)
				return p != nil && p.Labels["said"] == word
			}))
		}
		return time.Since(begin).Seconds()
	}
	l.figures.Reach = reach("it")
	l.say("all know a changed record after %.2f s", l.figures.Reach)
	must(t, l.Filter(func(*cluster.Node) lab.Filter { return lab.Filter{Loss: 0.2} }))
	l.figures.Lossy = reach("again")
	must(t, l.Heal())
	l.say("all know it after %.2f s when a fifth is lost", l.figures.Lossy)

	var flows []*lab.Pings
	for i, n := range l.Nodes {
		// Beyond 50 all together send 500 a second: else it is pings that are measured.
		every := max(100*time.Millisecond, time.Duration(len(l.Nodes))*2*time.Millisecond)
		p, err := n.Host.Pings(ctx, l.own[l.Nodes[(i+1)%len(l.Nodes)]][0], every)
		must(t, err)
		defer p.Stop()
		flows = append(flows, p)
	}
	begin := time.Now()
	_, err := l.seed().Meshctl(l.bounded(ctx), "keys", "rotate", "gossip", "--now")
	switch {
	case err != nil && len(l.Nodes) > largeJudged: // it goes on by itself
		l.say("the command has not waited for all: %v", err)
	default:
		must(t, err)
	}
	for _, n := range l.Nodes {
		must(t, n.WaitFor(l.bounded(ctx), "to send with the new gossip key", func(d *status.Document) bool {
			return d.Node.GossipKey != nil && d.Node.GossipKey.Sends == 1
		}))
	}
	l.figures.Rotation = time.Since(begin).Seconds()
	pause(ctx, 5*time.Second) // the old key is dropped
	end := time.Now()
	for _, p := range flows {
		_, err := p.Flows(l.bounded(ctx), end)
		must(t, err)
		lost, sent := p.Between(begin, end)
		l.figures.Lost, l.figures.Pings = l.figures.Lost+lost, l.figures.Pings+sent
	}
	l.say("gossip key changed after %.1f s, %d of %d pings lost", l.figures.Rotation, l.figures.Lost, l.figures.Pings)
}

// revocation throws a node out that sends to all others.
func (l *large) revocation(ctx context.Context) {
	t := l.t
	at := len(l.Nodes) - 2
	evil := l.Nodes[at]
	others := slices.Delete(slices.Clone(l.Nodes), at, at+1)
	var ears []*ear
	for _, n := range others {
		ears = append(ears, listenAt(t, n, l.own[n][0]))
		every := max(10*time.Millisecond, time.Duration(len(l.Nodes))*200*time.Microsecond) // as with pings
		stop, err := shout(ctx, evil.Host, l.own[n][0], every)
		must(t, err)
		defer stop()
	}
	must(t, cluster.Poll(l.bounded(ctx), func() (bool, error) {
		for _, e := range ears {
			if n, _ := e.heard(); n < 10 {
				return false, fmt.Errorf("%s has heard %d datagrams of %s", e.name, n, evil.Name)
			}
		}
		return true, nil
	}))
	begin := time.Now()
	_, err := l.seed().Meshctl(l.bounded(ctx), "revoke", evil.Name, "--yes")
	must(t, err)
	pause(ctx, 3*revokedWithin)
	late := ""
	for _, e := range ears {
		if _, last := e.heard(); last.Sub(begin).Seconds() > l.figures.Revocation {
			l.figures.Revocation, late = last.Sub(begin).Seconds(), e.name
		}
	}
	l.say("the last byte of a revoked node came to %s after %.2f s", late, l.figures.Revocation)
	evil.Kill()
	l.Nodes = others
	delete(l.own, evil)
}

// restarts stops and kills daemons, and looks how the mesh takes it.
func (l *large) restarts(ctx context.Context) {
	t := l.t
	one := l.Nodes[len(l.Nodes)-1]
	must(t, one.Stop(l.bounded(ctx)))
	l.figures.Restart = l.back(ctx, "one daemon restarted", one)

	some := l.Nodes[1 : 1+max(1, len(l.Nodes)/10)]
	for _, n := range some {
		n.Kill()
	}
	l.figures.Crash = l.back(ctx, fmt.Sprintf("%d daemons killed and started", len(some)), some...)

	// The seed is gone for good. Who forgot everything but the addresses of
	// others must come back by these.
	l.seed().Kill()
	l.Nodes = l.Nodes[1:]
	must(t, one.Stop(l.bounded(ctx)))
	must(t, os.Remove(filepath.Join(one.StateDir(), "table")))
	l.figures.WithCached = l.back(ctx, "one daemon restarted without seed and table", one)
}

// back starts daemons and gives the time until they and all others reach each
// other.
func (l *large) back(ctx context.Context, what string, nodes ...*cluster.Node) float64 {
	begin := time.Now()
	for _, n := range nodes {
		must(l.t, n.Start())
	}
	ctx = l.bounded(ctx)
	must(l.t, l.allPairs(ctx, nodes, l.Nodes))
	must(l.t, l.allPairs(ctx, l.Nodes, nodes))
	took := time.Since(begin).Seconds()
	l.say("%s: all pairs after %.2f s", what, took)
	return took
}

// joinWithin is how soon a host that joins so many others is to reach all of them, and
// they it.
func joinWithin(nodes int) time.Duration {
	switch {
	case nodes <= 10:
		return 2 * time.Second
	case nodes <= 50:
		return 5 * time.Second
	default:
		return 15 * time.Second
	}
}

// judge compares the figures with the bounds.
func (l *large) judge() {
	f := l.figures
	if f.Nodes > largeJudged {
		return
	}
	if f.AllPairs > largeAllPairs.Seconds() {
		l.t.Errorf("all pairs after %.1f s, not within %s; other programs have used %.1f s of CPU meanwhile", f.AllPairs, largeAllPairs, f.Others)
	}
	if within := joinWithin(f.Nodes); f.JoinOne > within.Seconds() {
		l.t.Errorf("a host that joins reaches all others, and they it, after %.2f s, not within %s", f.JoinOne, within)
	}
	if f.Reach > largeReach.Seconds() || f.Lossy > largeLossy.Seconds() {
		l.t.Errorf("all know a record after %.1f s, and %.1f s with loss; it should be %s, %s", f.Reach, f.Lossy, largeReach, largeLossy)
	}
	rested := f.Idle.Seconds >= largeRest.Seconds()
	if rested && f.Idle.CPU.Median > largeIdleCPU {
		l.t.Errorf("an idle daemon takes %.2f %% of a core, the worst one %.2f; it should be %.1f", f.Idle.CPU.Median, f.Idle.CPU.Max, largeIdleCPU)
	}
	if traffic := f.Idle.Gossip.Median + f.Idle.Tunnel.Median; rested && traffic > largeTraffic {
		l.t.Errorf("an idle daemon sends and gets %.1f kbit/s, it should be %d", traffic, largeTraffic)
	}
	if f.Lost > 0 {
		l.t.Errorf("%d of %d pings lost while the gossip key changed", f.Lost, f.Pings)
	}
	if f.Revocation > revokedWithin.Seconds() {
		l.t.Errorf("%.2f s after the command something still came from the revoked node; it should be %s", f.Revocation, revokedWithin)
	}
	if f.Idle.RSS.Max > largeRSS>>20 {
		l.t.Errorf("an idle daemon has %.1f MiB, the worst one %.1f; at most it should be %d", f.Idle.RSS.Median, f.Idle.RSS.Max, largeRSS>>20)
	}
}

// usage asks for all nodes.
func (l *large) usage() []cluster.Usage {
	out := make([]cluster.Usage, len(l.Nodes))
	for i, n := range l.Nodes {
		u, err := n.Usage()
		must(l.t, err)
		out[i] = u
	}
	return out
}

// table is for people.
func (f *largeFigures) table() string {
	var b strings.Builder
	line := func(name string, format string, args ...any) {
		fmt.Fprintf(&b, "%-34s %s\n", name, fmt.Sprintf(format, args...))
	}
	both := func(name, unit string, s spread) {
		line(name, "%8.2f  %8.2f  %s", s.Median, s.Max, unit)
	}
	fmt.Fprintf(&b, "\n%d nodes\n", f.Nodes)
	line("states made", "%8.2f s", f.Join)
	line("cold start to all ready", "%8.2f s", f.Ready)
	line("cold start to all pairs", "%8.2f s", f.AllPairs)
	line("  since the seed's start", "%8.2f s", f.AfterSeed)
	line("  CPU of the daemons", "%8.2f s", f.StartCPU)
	line("  CPU of all else", "%8.2f s", f.Others)
	line("join of one", "%8.2f s, %.2f s since meshctl join", f.JoinOne, f.JoinAll)
	line("restart of one", "%8.2f s", f.Restart)
	line("kill -9 of every tenth", "%8.2f s", f.Crash)
	line("restart without seed and table", "%8.2f s", f.WithCached)
	line("a record known to all", "%8.2f s", f.Reach)
	line("  when a fifth is lost", "%8.2f s", f.Lossy)
	line("gossip key rotation", "%8.2f s, %d of %d pings lost", f.Rotation, f.Lost, f.Pings)
	line("revocation, last byte anywhere", "%8.2f s", f.Revocation)
	fmt.Fprintf(&b, "%-34s %8s  %8s\n", fmt.Sprintf("idle for %.0f s", f.Idle.Seconds), "median", "worst")
	both("  CPU", "% of a core", f.Idle.CPU)
	both("  resident memory", "MiB", f.Idle.RSS)
	line("    of all daemons", "%8.0f MiB", f.Idle.RSSAll)
	both("  heap without garbage", "MiB", f.Idle.Heap)
	both("  goroutines", "", f.Idle.Goroutines)
	both("  descriptors", "", f.Idle.Descriptors)
	both("  gossip on the wire", "kbit/s", f.Idle.Gossip)
	both("  tunnels on the wire", "kbit/s", f.Idle.Tunnel)
	return b.String()
}

// markdown is a table as those in docs/scale.md.
func (f *largeFigures) markdown() string {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "| %-29s | %-12s |\n", name, fmt.Sprintf(format, args...))
	}
	both := func(name, format string, s spread) { row(name, format+", "+format, s.Median, s.Max) }
	row("", "%d", f.Nodes)
	row("---", "---:")
	row("cold start to all ready", "%.1f s", f.Ready)
	row("cold start to all pairs", "%.1f s", f.AllPairs)
	row("CPU of all daemons until then", "%.1f s", f.StartCPU)
	row("CPU of others until then", "%.1f s", f.Others)
	row("join of one", "%.1f s", f.JoinOne)
	row("restart of one", "%.1f s", f.Restart)
	row("kill -9 of every tenth", "%.1f s", f.Crash)
	row("restart without seed or table", "%.1f s", f.WithCached)
	row("a record known to all", "%.1f s", f.Reach)
	row("the same, a fifth is lost", "%.1f s", f.Lossy)
	row("gossip key rotation", "%.1f s", f.Rotation)
	row("pings lost meanwhile", "%d of %d", f.Lost, f.Pings)
	row("revocation, last byte", "%.1f s", f.Revocation)
	both("idle: CPU of one core, %", "%.2f", f.Idle.CPU)
	both("idle: resident memory, MiB", "%.0f", f.Idle.RSS)
	both("idle: heap without garbage, MiB", "%.2f", f.Idle.Heap)
	both("idle: gossip, kbit/s", "%.1f", f.Idle.Gossip)
	both("idle: tunnels, kbit/s", "%.1f", f.Idle.Tunnel)
	row("goroutines", "%.0f", f.Idle.Goroutines.Median)
	row("descriptors", "%.0f", f.Idle.Descriptors.Median)
	return b.String()
}

// machineCPU is what all programs have used of this machine's CPUs so far.
func machineCPU(t *testing.T) time.Duration {
	t.Helper()
	raw, err := os.ReadFile("/proc/stat")
	must(t, err)
	var ticks time.Duration
	// user nice system idle iowait irq softirq; steal is nobody's
	for i, field := range strings.Fields(strings.SplitN(string(raw), "\n", 2)[0])[1:8] {
		if i == 3 || i == 4 {
			continue
		}
		n, err := strconv.Atoi(field)
		must(t, err)
		ticks += time.Duration(n)
	}
	return ticks * 10 * time.Millisecond
}
