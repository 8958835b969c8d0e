package sim

import (
	"time"
	"unsafe" //nolint:depguard // only from the inside can a time be made of both that clock.now tells

	"meshd/mesh/gossip"
)

// clock is that of a host. It tells two things: what time it is, which somebody may
// set, and how much time has passed, which nobody can.
type clock struct {
	skew  time.Duration // from the beginning
	set   time.Duration // by so much since
	still time.Duration // for so long the host was asleep, and no time passed
}

// wall is what it shows.
func (c clock) wall(now time.Time) time.Time { return now.Add(c.skew + c.set) }

// passed is since a moment that is the same for all.
func (c clock) passed(now time.Time) time.Duration { return now.Sub(time.Unix(0, 0)) - c.still }

// now is what time.Now gives on the host: what it shows where it is compared with
// dates, and what has passed where it is compared with its like. A bubble's
// time.Now has no more than the former.
func (c clock) now(now time.Time) time.Time {
	t := c.wall(now)
	const secondsBegin, passedToo = 30, 1 << 63 // in wall, see time.Time
	inside := (*struct {
		wall uint64
		ext  int64
	})(unsafe.Pointer(&t))
	seconds := t.Unix() - time.Date(1885, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	inside.wall = passedToo | uint64(seconds)<<secondsBegin | uint64(t.Nanosecond())
	inside.ext = int64(c.passed(now))
	return t
}

// clocks are those of the kernel.
func (c clock) clocks(now time.Time) gossip.Clocks {
	boot := now.Sub(time.Unix(0, 0))
	return gossip.Clocks{Boot: boot, Monotonic: c.passed(now), Wall: c.wall(now).Sub(time.Unix(0, 0))}
}

// setting is what a clock is set to.
type setting struct {
	name string
	of   func(right time.Time) time.Duration // from what is right
}

func ahead(d time.Duration) func(time.Time) time.Duration {
	return func(time.Time) time.Duration { return d }
}

const day = 24 * time.Hour

// settings are what clocks are set to: what a slip of the hand does, and a battery
// that is empty.
var settings = []setting{
	{"a day ahead", ahead(day)},
	{"a day back", ahead(-day)},
	{"ten years ahead", ahead(3652 * day)},
	{"ten years back", ahead(-3652 * day)},
	{"to 1970", func(right time.Time) time.Duration { return time.Unix(1, 0).Sub(right) }},
}

var right = setting{"right", ahead(0)}

// setClock draws that the clock of a host is set, for a while or for good.
func (d *crowdDrawer) setClock() {
	n, to := d.host(), settings[d.IntN(len(settings))]
	if d.Short == nil {
		n = max(n, 1) // clocks may stay so: then one is right by which newcomers are let in
	}
	d.add(0, func(c *crowd) { c.hosts[n].setClock(to) }, "n%d: its clock is set %s", n, to.name)
	if d.chance(0.7) {
		d.add(d.length(), func(c *crowd) { c.hosts[n].setClock(right) }, "n%d: its clock is set %s", n, right.name)
	}
}

// setClock draws that the clock of a host is set, for a while.
func (d *drawer) setClock() {
	n, to := d.host(), settings[d.IntN(len(settings))]
	d.add(0, func(w *world) { w.hosts[n].setClock(to) }, "n%d: its clock is set %s", n, to.name)
	d.add(d.between(time.Second, time.Minute), func(w *world) { w.hosts[n].setClock(right) }, "n%d: its clock is set %s", n, right.name)
}

func (h *host) setClock(to setting) {
	if h.member == nil {
		return // it would not be let in with a token of another time
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock.set = to.of(time.Now().Add(h.clock.skew))
}

// shown is the clock as it is now.
func (h *host) shown() clock {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.clock
}

// look reads the clock, by which the daemon goes until it looks again: it knows of
// no other.
func (l *life) look() gossip.Clocks {
	l.clock = l.h.shown()
	return l.clock.clocks(time.Now())
}

func (h *machine) setClock(to setting) {
	if h.card == nil {
		return // it would not be let in with a token of another time
	}
	h.clock.set = to.of(h.c.now.Add(h.clock.skew))
	if h.runs() {
		h.lookAtClock()
		h.step()
	}
}

// lookAtClock tells the daemon by how much the clock was set.
func (h *machine) lookAtClock() {
	if by := h.clock.set - h.told; by != 0 {
		h.told = h.clock.set
		h.m.Jumped(h.now(), by)
	}
}
