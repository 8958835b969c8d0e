package sim

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	simSeed  = flag.Uint64("sim.seed", 0, "the one schedule to play")
	simFrom  = flag.Uint64("sim.from", 1, "the first of the schedules to play")
	simSeeds = flag.Int("sim.seeds", 0, "how many to play; 0: as many as fit in the time")
	simTime  = flag.Duration("sim.time", 40*time.Second, "for how long to play, without -sim.seeds")
	simJobs  = flag.Int("sim.jobs", 1, "in how many processes to play -sim.seeds; 0: one for each processor")
	// 200 take 40 s of CPU, and minutes if they are whole nodes.
	simWishers = flag.Int("sim.wishers", 50, "how many of a crowd want one subnet at once, and of whole nodes at most: 10, 50 or 200")
	simEvery   = flag.Int("sim.every", 1, "play only each n-th of -sim.seeds, and tell a process of each")
)

// playSchedule plays the schedule of one seed, and looks whether all is well
// again in time.
func playSchedule(t *testing.T, seed uint64, verbose bool) (took time.Duration) {
	t.Helper()
	bubble(t, seed, func(t *testing.T) {
		s := draw(seed)
		w := newWorld(t, s)
		w.play(s)
		var err error
		if took, err = w.settle(w.bound()); err == nil {
			err = w.quiet(noticed)
		}
		if err != nil && !w.failed() {
			t.Error(err)
		}
		tell(t, w, fmt.Sprintf("-run 'TestSim$' -sim.seed=%d", seed), verbose)
	})
	return took
}

// noticed is within what every node sees who is there no more: peers are probed every 16 s
// or so, and then each second until seven probes are lost.
const noticed = 25 * time.Second

// tell fails the test for what must never be, and tells the story of a failure.
func tell(t *testing.T, w *world, replay string, verbose bool) {
	t.Helper()
	for _, v := range w.violations() {
		t.Error(v)
	}
	if t.Failed() || verbose {
		w.tell(t.Output(), true) // all of it: a replay may go well
	}
	if t.Failed() {
		fmt.Fprintf(t.Output(), "replay: go test ./overlay/sim %s -v    if it goes well: -count=20\n", replay)
	}
}

// Whole nodes survive whatever a seed draws.
func TestSim(t *testing.T) {
	if *simSeed != 0 {
		playSchedule(t, *simSeed, testing.Verbose())
		return
	}
	runs(t, "schedules", *simTime, func(t *testing.T, seed uint64) time.Duration { return playSchedule(t, seed, false) })
}

// wishes is how soon so many nodes that want one subnet at the same moment have each
// one of its own, and hold it.
var wishes = map[int]time.Duration{10: 5 * time.Second, 50: 15 * time.Second, 200: 30 * time.Second}

const (
	lossTakes   = time.Second      // more, where up to 5 % is lost
	heardWithin = 10 * time.Second // until all know it, and reach each other
)

// wishBound is the bound of wishes for a network that loses some.
func wishBound(nodes int, loss float64) time.Duration {
	if loss > 0 {
		return wishes[nodes] + lossTakes
	}
	return wishes[nodes]
}

// Nodes that start together and have the same first wish get subnets of their own in
// time, and nobody is ready with one that it then loses.
func TestSameFirstWish(t *testing.T) {
	for _, nodes := range []int{10, 50, 200} {
		if nodes > *simWishers { // 200 take minutes for each mesh
			break
		}
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			meshes, lost := 0, 0
			runs(t, "meshes", *simTime/8, func(t *testing.T, seed uint64) (took time.Duration) {
				bubble(t, seed, func(t *testing.T) {
					s := drawWishers(seed, nodes)
					w := newWorld(t, s)
					w.start()
					var err error
					if took, err = w.unique(wishBound(nodes, s.Weather.Loss)); err == nil {
						_, err = w.settle(heardWithin)
					}
					n := 0
					if err == nil {
						n, err = w.readyOnce()
					}
					if err != nil && !w.failed() {
						t.Error(err)
					}
					tell(t, w, fmt.Sprintf("-run 'TestSameFirstWish$/^%d$' -sim.wishers=%d -sim.from=%d -sim.seeds=1", nodes, *simWishers, seed), false)
					meshes, lost = meshes+1, lost+n
				})
				return took
			})
			// Where news is quick, some are lucky. All are not, or there was nothing to be seen.
			if meshes > 4 && lost == 0 {
				t.Errorf("in %d meshes no two hosts have claimed one subnet", meshes)
			}
		})
	}
}

// A seed decides everything that is ours to decide.
func TestScheduleIsOfItsSeed(t *testing.T) {
	text := func(seed uint64) string {
		s := draw(seed)
		out := fmt.Sprint(s.Hosts, s.Weather, s.Pin, s.End)
		for _, step := range s.Steps {
			out += fmt.Sprintln(step.At, step.Text)
		}
		return out
	}
	for seed := range uint64(20) {
		if first, second := text(seed), text(seed); first != second {
			t.Errorf("seed %d gives two schedules", seed)
		}
		if text(seed) == text(seed+1) {
			t.Errorf("seeds %d and %d give one schedule", seed, seed+1)
		}
	}
}

// runs plays one seed after the other, and tells how they went.
func runs(t *testing.T, what string, limit time.Duration, play func(*testing.T, uint64) time.Duration) {
	t.Helper()
	progress := &progress{what: what, begin: time.Now(), told: time.Now()}
	if n := processes(); n > 1 && *simEvery == 1 {
		jobs(t, n, progress)
	} else {
		for seed := *simFrom; ; seed += uint64(*simEvery) {
			if *simSeeds > 0 && seed >= *simFrom+uint64(*simSeeds) || *simSeeds == 0 && time.Since(progress.begin) > limit {
				break
			}
			var took time.Duration
			t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { took = play(t, seed) })
			if t.Failed() {
				break
			}
			progress.add(took)
		}
	}
	if summary := progress.summary(); *simSeeds > 0 && *simEvery == 1 {
		fmt.Println(summary)
	} else {
		t.Log(summary)
	}
}

// wellAfter begins a line by which a process tells another one of a seed.
const wellAfter = "well after "

// processes is in how many to play: a bubble keeps one processor busy.
func processes() int {
	n := *simJobs
	if n == 0 {
		n = runtime.NumCPU()
	}
	return min(n, *simSeeds)
}

// jobs plays the seeds in so many processes.
func jobs(t *testing.T, n int, progress *progress) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var tasks sync.WaitGroup
	for i := range n {
		tasks.Go(func() {
			cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout=0", fmt.Sprint("-sim.every=", n),
				fmt.Sprint("-sim.from=", *simFrom+uint64(i)), fmt.Sprint("-sim.seeds=", *simSeeds-i), fmt.Sprint("-sim.wishers=", *simWishers))
			cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "GOGC=400")
			pipe, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				t.Error(err)
				return
			}
			var rest strings.Builder
			for lines := bufio.NewScanner(pipe); lines.Scan(); {
				if d, err := time.ParseDuration(strings.TrimPrefix(lines.Text(), wellAfter)); err == nil {
					progress.add(d)
				} else {
					fmt.Fprintln(&rest, lines.Text())
				}
			}
			if err := cmd.Wait(); err != nil && ctx.Err() == nil {
				t.Errorf("%v\n%s", err, &rest)
				cancel()
			}
		})
	}
	tasks.Wait()
	if played := len(progress.took); played != *simSeeds && !t.Failed() {
		t.Errorf("%d of %d %s were played", played, *simSeeds, progress.what)
	}
}

// progress is how the seeds went so far.
type progress struct {
	what  string // fixed at construction
	begin time.Time

	mu   sync.Mutex // guards all below
	told time.Time
	took []time.Duration
}

func (p *progress) add(took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.took = append(p.took, took)
	switch {
	case *simEvery > 1:
		fmt.Println(wellAfter + took.String())
	case *simSeeds > 0 && time.Since(p.told) > 5*time.Second:
		p.told = time.Now()
		fmt.Printf("%d of %d %s, %.1f a second\n", len(p.took), *simSeeds, p.what, float64(len(p.took))/time.Since(p.begin).Seconds())
	}
}

func (p *progress) summary() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.took) == 0 {
		return "no " + p.what
	}
	slices.Sort(p.took)
	at := func(share float64) time.Duration {
		return p.took[min(len(p.took)-1, int(share*float64(len(p.took))))].Round(time.Millisecond)
	}
	since := time.Since(p.begin)
	return fmt.Sprintf("%d %s in %s, %.1f a second; well after %s (median), %s (p99), %s (max) of virtual time",
		len(p.took), p.what, since.Round(100*time.Millisecond), float64(len(p.took))/since.Seconds(), at(0.5), at(0.99), at(1))
}
