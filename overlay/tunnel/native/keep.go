package native

import (
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// stampWait is for how long a handshake waits until its stamp is saved: what a
	// disk takes that is busy. One that hangs must not stop handshakes; then a
	// restart may meet with peers that do not answer until the clock is ahead again.
	stampWait = 500 * time.Millisecond
	// lastWait is the same for the end of the engine.
	lastWait = 2 * time.Second
)

// stampKeeper saves stamps, the newest only, on a goroutine of its own while there
// are any.
type stampKeeper struct {
	// fixed at construction
	save func(time.Time) error // nil: nothing is saved
	log  *slog.Logger

	mu     sync.Mutex
	newest time.Time     // guarded by mu: to be saved; zero: none is
	done   chan struct{} // guarded by mu: closed when all is; nil: it is
}

// keep saves a stamp, and waits for that unless it takes long, or has been taking
// long already.
func (k *stampKeeper) keep(stamp time.Time) {
	if done, busy := k.start(stamp); !busy {
		k.wait(done, stampWait)
	}
}

// keepLast saves a stamp, and waits longer.
func (k *stampKeeper) keepLast(stamp time.Time) {
	done, _ := k.start(stamp)
	k.wait(done, lastWait)
}

// start begins to save a stamp. busy tells that one before has not been yet.
func (k *stampKeeper) start(stamp time.Time) (done <-chan struct{}, busy bool) {
	if k.save == nil {
		return nil, true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.newest = stamp
	if k.done != nil {
		return k.done, true
	}
	all := make(chan struct{})
	k.done = all
	go k.work(all)
	return all, false
}

func (k *stampKeeper) wait(done <-chan struct{}, wait time.Duration) {
	if done == nil {
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		k.log.Warn("the disk takes long to save the time of the last handshake, going on without")
	}
}

func (k *stampKeeper) work(done chan struct{}) {
	for {
		k.mu.Lock()
		stamp := k.newest
		k.newest = time.Time{}
		if stamp.IsZero() {
			k.done = nil
			close(done)
			k.mu.Unlock()
			return
		}
		k.mu.Unlock()
		if err := k.save(stamp); err != nil {
			k.log.Warn("time of the last handshake not saved; with a clock that is set back, peers may not answer after a restart", "err", err)
		}
	}
}

// leastSleep is what is worth telling: the two clocks are read within half of it.
const leastSleep = 100 * time.Millisecond

// asleep is for how long the host has slept since it was started: time that the
// clock of timers and of time.Now does not count. Where much is to be done the two clocks
// may be read long after one another, and are read again.
func asleep() time.Duration {
	for {
		boot, awake := read(unix.CLOCK_BOOTTIME), read(unix.CLOCK_MONOTONIC)
		if read(unix.CLOCK_BOOTTIME)-boot < leastSleep/2 {
			return boot - awake
		}
	}
}

func read(clock int32) time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(clock, &t) // never fails for these
	return time.Duration(t.Nano())
}

// noticeSleep lets sessions count the time that the host was asleep. It is asked every
// second, and so within one of waking.
func (c *control) noticeSleep() {
	total := c.asleep()
	if d := total - c.slept; d >= leastSleep {
		c.slept = total
		c.machine.Slept(d)
	}
}
