package sim

import (
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"
)

var (
	simSeed  = flag.Uint64("sim.seed", 0, "the one schedule to play")
	simFrom  = flag.Uint64("sim.from", 1, "the first of the schedules to play")
	simSeeds = flag.Int("sim.seeds", 0, "how many to play; 0: as many as fit in the time")
	simTime  = flag.Duration("sim.time", 40*time.Second, "for how long to play, without -sim.seeds")
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
			err = w.quiet(15 * time.Second)
		}
		if err != nil && !w.failed() {
			t.Error(err)
		}
		tell(t, w, fmt.Sprintf("-run 'TestSim$' -sim.seed=%d", seed), verbose)
	})
	return took
}

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

// wishers is how many nodes want one subnet at the same moment.
const wishers = 20

// Twenty nodes that start together and have the same first wish get subnets of
// their own, and nobody is ready with one that it then loses.
func TestSameFirstWish(t *testing.T) {
	runs(t, "meshes", *simTime/4, func(t *testing.T, seed uint64) (took time.Duration) {
		bubble(t, seed, func(t *testing.T) {
			s := drawWishers(seed, wishers)
			w := newWorld(t, s)
			w.start()
			var err error
			if took, err = w.settle(10 * time.Second); err == nil {
				err = w.readyOnce()
			}
			if err != nil && !w.failed() {
				t.Error(err)
			}
			tell(t, w, fmt.Sprintf("-run 'TestSameFirstWish$' -sim.from=%d -sim.seeds=1", seed), false)
		})
		return took
	})
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
	begin, told := time.Now(), time.Now()
	var took []time.Duration
	for seed := *simFrom; ; seed++ {
		done := int(seed - *simFrom)
		if *simSeeds > 0 && done >= *simSeeds || *simSeeds == 0 && time.Since(begin) > limit {
			break
		}
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { took = append(took, play(t, seed)) })
		if t.Failed() {
			break
		}
		if *simSeeds > 0 && time.Since(told) > 5*time.Second {
			told = time.Now()
			fmt.Printf("%d of %d %s\n", done+1, *simSeeds, what)
		}
	}
	if len(took) == 0 {
		return
	}
	slices.Sort(took)
	at := func(share float64) time.Duration {
		return took[min(len(took)-1, int(share*float64(len(took))))].Round(time.Millisecond)
	}
	summary := fmt.Sprintf("%d %s in %s, well after %s (median), %s (p99), %s (max) of virtual time",
		len(took), what, time.Since(begin).Round(100*time.Millisecond), at(0.5), at(0.99), at(1))
	if *simSeeds > 0 {
		fmt.Println(summary)
	} else {
		t.Log(summary)
	}
}
