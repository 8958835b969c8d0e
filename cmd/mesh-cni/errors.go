package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"syscall"

	"github.com/containernetworking/cni/pkg/types"

	"meshd/overlay/attach"
	"meshd/overlay/status"
	"meshd/tun/inside"
)

// Codes of our own; CNI leaves those from 100 on to plugins. examples/cni/README.md
// lists them.
const (
	codeTaken      = 100 // the address is somebody else's
	codeOutside    = 101 // the address is not one for containers of this host
	codeExhausted  = 102 // the host's subnet has no free address
	codeInUse      = 103 // the container has another interface of that name
	codeNotThere   = 104 // nothing is attached by that name
	codeDamaged    = 105 // the daemon's record of attachments is damaged
	codeChanged    = 106 // CHECK found a difference
	codePermission = 107 // not root
)

// codes are those of errors, the first that fits.
var codes = []struct {
	err  error
	code uint
}{
	{status.ErrNoDaemon, types.ErrTryAgainLater},
	{status.ErrHangs, types.ErrTryAgainLater},
	{io.EOF, types.ErrTryAgainLater}, // it has ended meanwhile
	{syscall.ECONNRESET, types.ErrTryAgainLater},
	{syscall.EPIPE, types.ErrTryAgainLater},
	{attach.ErrNoLease, types.ErrTryAgainLater},
	{context.DeadlineExceeded, types.ErrTryAgainLater},
	{context.Canceled, types.ErrTryAgainLater},
	{attach.ErrUnknownNetwork, types.ErrInvalidNetworkConfig},
	{attach.ErrBadAsk, types.ErrInvalidNetworkConfig},
	{attach.ErrDelegated, types.ErrInvalidNetworkConfig},
	{attach.ErrTaken, codeTaken},
	{attach.ErrOutside, codeOutside},
	{attach.ErrExhausted, codeExhausted},
	{attach.ErrInUse, codeInUse},
	{inside.ErrTaken, codeInUse},
	{inside.ErrNoNamespace, types.ErrInvalidNetNS},
	{inside.ErrOwn, types.ErrInvalidNetNS},
	{attach.ErrUnknown, codeNotThere},
	{attach.ErrDamaged, codeDamaged},
	{fs.ErrPermission, codePermission},
}

// failed gives an error CNI's form. nil stays nil.
func failed(what string, err error) error {
	if err == nil {
		return nil
	}
	code := types.ErrInternal
	for _, c := range codes {
		if errors.Is(err, c.err) {
			code = c.code
			break
		}
	}
	return types.NewError(code, what, err.Error())
}
