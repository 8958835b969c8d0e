package gossip

import (
	"log/slog"
	"time"
)

// Clocks are what three clocks of a host show, see clock_gettime(2). Between two
// looks they differ by how long the host was suspended, which the monotonic clock
// does not count, and by how much the wall clock was set.
type Clocks struct{ Boot, Monotonic, Wall time.Duration }

const (
	// clockStep is what is worth a word: a clock that is slewed moves by less.
	clockStep = time.Second
	// clockEvery bounds how late a suspend is noticed, and so how long a host that
	// wakes up acts on what was true before.
	clockEvery = time.Second
)

// lookAtClocks tells the core what has happened to time.
func (l *loop) lookAtClocks(now time.Time) {
	if l.opt.Clocks == nil {
		return
	}
	before, c := l.clocks, l.opt.Clocks()
	l.clocks = c
	if before == (Clocks{}) {
		return
	}
	if slept := c.Boot - before.Boot - (c.Monotonic - before.Monotonic); slept >= clockStep {
		l.opt.Log.Info("host was suspended", "for", slept.Round(time.Second))
		l.opt.Core.Slept(now, slept)
	}
	if jumped := c.Wall - before.Wall - (c.Boot - before.Boot); jumped.Abs() >= clockStep {
		l.say.say(slog.LevelWarn, "wall clock was set", "by", jumped.Round(time.Second))
		l.opt.Core.Jumped(now, jumped)
	}
}
