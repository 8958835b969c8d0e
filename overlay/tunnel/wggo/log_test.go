package wggo

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestOneMessageOfAKindPerMinute(t *testing.T) {
	l := &limiter{every: time.Minute, kinds: map[string]*occurrence{}}
	begin := time.Unix(1e9, 0)
	for i, c := range []struct {
		second     int
		kind       string
		ok         bool
		suppressed int
	}{
		{0, "a", true, 0},
		{1, "a", false, 0},
		{1, "b", true, 0},
		{59, "a", false, 0},
		{60, "a", true, 2},
		{119, "a", false, 0},
		{600, "a", true, 1},
		{600, "b", true, 0},
	} {
		suppressed, ok := l.allow(c.kind, begin.Add(time.Duration(c.second)*time.Second))
		if ok != c.ok || suppressed != c.suppressed {
			t.Errorf("%d: %q at %d s: %v, %d suppressed; want %v, %d", i, c.kind, c.second, ok, suppressed, c.ok, c.suppressed)
		}
	}
}

func TestDeviceLogger(t *testing.T) {
	var out bytes.Buffer
	up := make(chan struct{})
	l := deviceLogger(slog.New(slog.NewTextHandler(&out, nil)), up)
	l.Errorf("Unable to update bind: %v", "taken")
	close(up)
	l.Errorf("%v", "returned by Apply")
	for i := range 100 {
		l.Errorf("Failed to send: %v", i)
		l.Verbosef("Received junk: %v", i)
	}
	if n := strings.Count(out.String(), "\n"); n != 1 || !strings.Contains(out.String(), "Failed to send: 0") {
		t.Errorf("logged %d lines, want the first failure only:\n%s", n, out.String())
	}
}
