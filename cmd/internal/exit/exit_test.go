package exit_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"meshd/cmd/internal/exit"
)

func TestCode(t *testing.T) {
	plain := errors.New("plain")
	for _, tt := range []struct {
		name string
		err  error
		want int
	}{
		{"nil", nil, 0},
		{"nil with a code", exit.With(exit.Config, nil), 0},
		{"plain", plain, 1},
		{"with a code", exit.With(exit.Config, plain), 78},
		{"wrapped", fmt.Errorf("load: %w", exit.With(exit.NoInput, plain)), 66},
		{"joined", errors.Join(plain, exit.With(exit.NoPerm, plain)), 77},
		{"the outermost counts", exit.With(exit.OSError, exit.With(exit.NoPerm, plain)), 71},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := exit.Code(tt.err); got != tt.want {
				t.Errorf("Code = %d, want %d", got, tt.want)
			}
		})
	}
}

func TestWithKeepsTheError(t *testing.T) {
	err := exit.With(exit.Usage, fmt.Errorf("read: %w", io.ErrUnexpectedEOF))
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error("the cause is lost")
	}
	if got, want := err.Error(), "read: unexpected EOF"; got != want {
		t.Errorf("text = %q, want %q", got, want)
	}
}

// The codes are a promise to scripts and to the systemd unit.
func TestCodesAreThePromisedOnes(t *testing.T) {
	got := []int{exit.OK, exit.Failed, exit.NotReady, exit.Usage, exit.BadData, exit.NoInput,
		exit.Unavailable, exit.OSError, exit.NoPerm, exit.Config}
	want := []int{0, 1, 3, 64, 65, 66, 69, 71, 77, 78}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("code %d is %d, want %d", i, got[i], want[i])
		}
	}
}
