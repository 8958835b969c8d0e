package overlay_test

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"meshd/mesh/meshtest"
	"meshd/overlay/sim"
)

var (
	simSeed  = flag.Uint64("sim.seed", 0, "the one schedule to play")
	simFrom  = flag.Uint64("sim.from", 1, "the first of the schedules to play")
	simSeeds = flag.Int("sim.seeds", 0, "how many to play; 0: as many as fit in the time")
	simOn    = flag.Bool("sim.on", false, "go on after a failure")
	simTime  = flag.Duration("sim.time", 40*time.Second, "for how long to play, without -sim.seeds")
)

// playSchedule plays the schedule of one seed, and looks whether all is well
// again in time.
func playSchedule(t *testing.T, seed uint64, verbose bool) (took time.Duration) {
	t.Helper()
	meshtest.Bubble(t, func(t *testing.T) {
		s := sim.Draw(seed)
		w := sim.New(t, s)
		defer func() {
			if t.Failed() || verbose {
				w.Tell(t.Output(), verbose)
			}
			if t.Failed() {
				fmt.Fprintf(t.Output(), "replay: go test ./overlay -run 'TestSim$' -sim.seed=%d -v\n", seed)
			}
		}()
		w.Play(s)
		var err error
		if took, err = w.Settle(w.Bound()); err == nil {
			err = w.Quiet(15 * time.Second)
		}
		if err != nil && !w.Failed() {
			t.Error(err)
		}
		for _, v := range w.Violations() {
			t.Error(v)
		}
	})
	return took
}

// Whole nodes survive whatever a seed draws; see package sim.
func TestSim(t *testing.T) {
	if *simSeed != 0 {
		playSchedule(t, *simSeed, testing.Verbose())
		return
	}
	begin := time.Now()
	played, worst := 0, time.Duration(0)
	for seed := *simFrom; ; seed++ {
		if *simSeeds > 0 && played >= *simSeeds || *simSeeds == 0 && time.Since(begin) > *simTime {
			break
		}
		ok := t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { worst = max(worst, playSchedule(t, seed, false)) })
		if !ok && !*simOn {
			break
		}
		played++
	}
	t.Logf("%d schedules in %s, all well again within %s", played, time.Since(begin).Round(time.Second), worst)
}
