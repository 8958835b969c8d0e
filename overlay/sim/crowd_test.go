package sim

import (
	"fmt"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"
)

// playCrowd plays the schedule of one seed, and looks whether all is well again in
// time, and for good.
func playCrowd(t *testing.T, seed uint64, verbose bool) (took time.Duration) {
	t.Helper()
	cryptotest.SetGlobalRandom(t, seed)
	synctest.Test(t, func(t *testing.T) { // only for a clock that always begins at the same time
		s := drawCrowd(seed)
		c := newCrowd(t, s)
		c.play(s)
		var err error
		if len(c.wrong) == 0 {
			took, err = c.settle()
		}
		for _, v := range c.wrong {
			t.Error(v)
		}
		if err != nil && len(c.wrong) == 0 {
			t.Error(err)
		}
		if t.Failed() || verbose {
			c.tell(t.Output())
		}
		if t.Failed() {
			fmt.Fprintf(t.Output(), "replay: go test ./overlay/sim -run 'TestCrowd$' -sim.seed=%d -v\n", seed)
		}
	})
	return took
}

// Membership alone survives whatever a seed draws, leases that expire included.
func TestCrowd(t *testing.T) {
	if *simSeed != 0 {
		playCrowd(t, *simSeed, testing.Verbose())
		return
	}
	runs(t, "crowds", *simTime/2, func(t *testing.T, seed uint64) time.Duration { return playCrowd(t, seed, false) })
}

// A seed tells the same story each time.
func TestCrowdIsOfItsSeed(t *testing.T) {
	story := func(t *testing.T, seed uint64) (out string) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			cryptotest.SetGlobalRandom(t, seed)
			synctest.Test(t, func(t *testing.T) {
				s := drawCrowd(seed)
				c := newCrowd(t, s)
				c.play(s)
				_, _ = c.settle()
				out = fmt.Sprint(c.story)
			})
		})
		return out
	}
	for seed := range uint64(3) {
		if story(t, seed+1) != story(t, seed+1) {
			t.Errorf("seed %d tells two stories", seed+1)
		}
	}
}
