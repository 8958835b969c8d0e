// Package exit gives the exit codes of meshd and meshctl, and carries them
// with an error up to main.
//
// The codes from 64 on are those of sysexits.h. The systemd unit does not
// restart the daemon after those that only a person can mend.
package exit

import "errors"

// The exit codes. A Go panic exits with 2, and nothing else does.
const (
	OK          = 0  // done; the mesh is healthy
	Failed      = 1  // failed; the mesh is degraded
	NotReady    = 3  // not ready, or no daemon answers
	Usage       = 64 // the command line is wrong
	BadData     = 65 // bad token or state, a foreign mesh or a clone
	NoInput     = 66 // a file is missing
	Unavailable = 69 // a port is in use
	OSError     = 71 // no TUN device
	NoPerm      = 77 // no permission
	Config      = 78 // bad configuration
)

// coded is an error with its exit code.
type coded struct {
	code int
	err  error
}

func (e *coded) Error() string { return e.err.Error() }
func (e *coded) Unwrap() error { return e.err }

// With gives err an exit code. The text stays as it is, nil stays nil, and the
// outermost code counts.
func With(code int, err error) error {
	if err == nil {
		return nil
	}
	return &coded{code, err}
}

// Code gives the code to exit with after err: OK for nil, Failed for an error
// to which none was given.
func Code(err error) int {
	if err == nil {
		return OK
	}
	if e, ok := errors.AsType[*coded](err); ok {
		return e.code
	}
	return Failed
}
