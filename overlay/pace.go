package overlay

import (
	"context"
	"time"
)

// pace spaces out the looks at a host whose kernel tells of changes without
// rest. The first change is looked at at once, and so is one after a quiet time;
// while they keep coming, the pauses between two looks grow.
type pace struct {
	last  time.Time // of the look that was planned last
	pause time.Duration
}

const (
	firstLook = 50 * time.Millisecond // lets our own changes, and those of one command, pass as one
	lastLook  = time.Second           // so that a repair takes at most this longer
)

// next says how long to wait with the look for a change that came now.
func (p *pace) next(now time.Time) time.Duration {
	if now.Sub(p.last) >= 2*p.pause {
		p.last, p.pause = now, firstLook
		return 0
	}
	at := p.last.Add(p.pause)
	if at.Before(now) {
		at = now
	}
	p.last, p.pause = at, min(2*p.pause, lastLook)
	return at.Sub(now)
}

// pause waits, and tells whether ctx let it.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
