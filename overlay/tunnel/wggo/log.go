package wggo

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// deviceLogger passes on the device's errors, at most one of a kind a minute:
// some of them come once per packet. Its verbose messages are dropped, most of
// them can be provoked by anybody who sends us a datagram; so are errors that
// Run returns (before up) or Apply returns (they are logged as a bare "%v").
func deviceLogger(log *slog.Logger, up <-chan struct{}) *device.Logger {
	l := &limiter{every: time.Minute, kinds: map[string]*occurrence{}}
	return &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf: func(format string, args ...any) {
			select {
			case <-up:
			default:
				return
			}
			if format == "%v" {
				return
			}
			if suppressed, ok := l.allow(format, time.Now()); ok {
				log.Warn("tunnel", "message", fmt.Sprintf(format, args...), "omitted", suppressed)
			}
		},
	}
}

// limiter lets one message of each kind through per period. Kinds are format
// strings, of which a program has finitely many.
type limiter struct {
	every time.Duration
	mu    sync.Mutex // guards kinds
	kinds map[string]*occurrence
}

type occurrence struct {
	last       time.Time
	suppressed int
}

// allow tells whether to log now, and how many were not logged since the last.
func (l *limiter) allow(kind string, now time.Time) (suppressed int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o, known := l.kinds[kind]
	if !known {
		l.kinds[kind] = &occurrence{last: now}
		return 0, true
	}
	if now.Sub(o.last) < l.every {
		o.suppressed++
		return 0, false
	}
	suppressed, o.suppressed, o.last = o.suppressed, 0, now
	return suppressed, true
}
