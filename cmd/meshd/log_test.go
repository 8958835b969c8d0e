package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"meshd/overlay/config"
)

func TestLogSwitch(t *testing.T) {
	var out bytes.Buffer
	logs := newLogSwitch(config.Log{Level: slog.LevelInfo, Format: config.LogText}, &out)
	plain := slog.New(logs)
	derived := plain.With("part", "gossip").WithGroup("g").With("a", 1)
	line := func(do func()) string {
		out.Reset()
		do()
		return strings.TrimSpace(out.String())
	}
	ends := func(got, want string) {
		t.Helper()
		if !strings.HasSuffix(got, want) || (want == "") != (got == "") {
			t.Errorf("logged %q, want it to end with %q", got, want)
		}
	}
	ends(line(func() { plain.Debug("x") }), "")
	ends(line(func() { derived.Info("x", "b", 2) }), `msg=x part=gossip g.a=1 g.b=2`)

	logs.Set(config.Log{Level: slog.LevelDebug, Format: config.LogJSON})
	ends(line(func() { plain.Debug("x") }), `"level":"DEBUG","msg":"x"}`)
	ends(line(func() { derived.Debug("x", "b", 2) }), `"msg":"x","part":"gossip","g":{"a":1,"b":2}}`)

	logs.Set(config.Log{Level: slog.LevelError, Format: config.LogText})
	ends(line(func() { derived.Warn("x") }), "")
	ends(line(func() { plain.Error("x", "err", "y") }), `level=ERROR msg=x err=y`)
}
