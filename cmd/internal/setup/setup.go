// Package setup is what both commands begin and end with: the configuration, and
// the exit codes of errors that both know.
package setup

import (
	"errors"
	"fmt"
	"io/fs"

	"meshd/cmd/internal/exit"
	"meshd/mesh/statedir"
	"meshd/mesh/trust"
	"meshd/overlay/config"
	"meshd/overlay/status"
)

// LoadConfig reads the config file, which must be there.
func LoadConfig(path string) (*config.Config, error) {
	cfg, err := config.Load(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, exit.With(exit.NoInput, fmt.Errorf("no config file %s: make one with `meshctl init` or `meshctl join`, or name another with --config", path))
	case errors.Is(err, fs.ErrPermission):
		return nil, exit.With(exit.NoPerm, fmt.Errorf("%w: chmod a+r it, it holds no secret", err))
	case err != nil:
		return nil, exit.With(exit.Config, err)
	}
	return cfg, nil
}

// codes are the exit codes of the parts' errors.
var codes = []struct {
	is   error
	code int
}{
	{status.ErrNoDaemon, exit.NotReady},
	{status.ErrHangs, exit.NotReady},
	{status.ErrInUse, exit.Unavailable},
	{status.ErrBadConfig, exit.Config},
	{status.ErrUnreadable, exit.NoPerm},
	{status.ErrUnknownNode, exit.BadData},
	{status.ErrAmbiguousNode, exit.BadData},
	{trust.ErrToken, exit.BadData},
	{statedir.ErrNoState, exit.NoInput},
	{statedir.ErrCAKey, exit.BadData},
	{statedir.ErrExists, exit.BadData},
	{statedir.ErrCopied, exit.BadData},
	{statedir.ErrDamaged, exit.BadData},
	{statedir.ErrNewer, exit.BadData},
	{statedir.ErrLocked, exit.Unavailable},
	{statedir.ErrShared, exit.Config},
}

// Coded gives an error its exit code, unless it has one.
func Coded(err error) error {
	if err == nil || exit.Code(err) != exit.Failed {
		return err
	}
	for _, known := range codes {
		if errors.Is(err, known.is) {
			return exit.With(known.code, err)
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		return exit.With(exit.NoPerm, fmt.Errorf("%w: run this as root", err))
	}
	return err
}
