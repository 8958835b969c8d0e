package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

func TestDockerUnavailable(t *testing.T) {
	ends := func(err error) func(context.Context) error { return func(context.Context) error { return err } }
	denied := errors.New("permission denied")
	for name, tt := range map[string]struct {
		run              func(context.Context) error
		required, wanted bool
		err              error
		found            bool
	}{
		"no door":              {run: nil, wanted: true},
		"it ended well":        {run: ends(nil), wanted: true},
		"shut":                 {run: ends(denied), wanted: true, found: true},
		"shut, without Docker": {run: ends(denied)},
		"one that must be had": {run: ends(denied), required: true, wanted: true, err: denied},
	} {
		t.Run(name, func(t *testing.T) {
			d := &dockerDoor{run: tt.run, required: tt.required, wanted: func() bool { return tt.wanted }, log: slog.New(slog.DiscardHandler)}
			if err := d.serve(t.Context()); !errors.Is(err, tt.err) {
				t.Errorf("serve: %v, want %v", err, tt.err)
			}
			found := d.findings()
			if (len(found) == 1) != tt.found {
				t.Fatalf("findings %v, want one: %t", found, tt.found)
			}
			if tt.found && (found[0].Level != "warning" || found[0].Code != "docker_unavailable" || !strings.Contains(found[0].Message, denied.Error())) {
				t.Errorf("finding %+v, want a warning that says why", found[0])
			}
		})
	}
}
