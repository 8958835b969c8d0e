package main

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"sync/atomic"

	"meshd/overlay/config"
)

// logSwitch is a log handler whose level and format can change while it is in
// use, for all loggers that were made of it.
type logSwitch struct {
	out     io.Writer
	now     *atomic.Pointer[slog.Handler]     // shared by all that derive from one
	derived []func(slog.Handler) slog.Handler // what WithAttrs and WithGroup have added, in order
}

func newLogSwitch(c config.Log, out io.Writer) *logSwitch {
	s := &logSwitch{out: out, now: new(atomic.Pointer[slog.Handler])}
	s.Set(c)
	return s
}

// Set makes every later line be logged as c says.
func (s *logSwitch) Set(c config.Log) {
	h := c.Handler(s.out)
	s.now.Store(&h)
}

// Enabled implements [slog.Handler].
func (s *logSwitch) Enabled(ctx context.Context, level slog.Level) bool {
	return (*s.now.Load()).Enabled(ctx, level)
}

// Handle implements [slog.Handler].
func (s *logSwitch) Handle(ctx context.Context, r slog.Record) error {
	h := *s.now.Load()
	for _, d := range s.derived {
		h = d(h)
	}
	return h.Handle(ctx, r)
}

// WithAttrs implements [slog.Handler].
func (s *logSwitch) WithAttrs(attrs []slog.Attr) slog.Handler {
	return s.derive(func(h slog.Handler) slog.Handler { return h.WithAttrs(attrs) })
}

// WithGroup implements [slog.Handler].
func (s *logSwitch) WithGroup(name string) slog.Handler {
	return s.derive(func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}

func (s *logSwitch) derive(how func(slog.Handler) slog.Handler) slog.Handler {
	return &logSwitch{s.out, s.now, append(slices.Clip(s.derived), how)}
}
