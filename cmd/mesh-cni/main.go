// Command mesh-cni is the CNI plugin of meshd: container runtimes and Kubernetes
// call it to put a container on the mesh.
//
//	runtime ──CNI──► mesh-cni ──control socket──► meshd    address, link on the host
//	                    └──────► the container's namespace: link, addresses, routes
//
// It speaks CNI 0.3.1 to 1.1.0 and keeps nothing: what is attached, the daemon
// knows by the ID cni/NETWORK/CONTAINER/INTERFACE, where NETWORK is the name in the
// CNI configuration. examples/cni tells how to use it.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	cni "github.com/containernetworking/cni/pkg/version"

	"meshd/overlay/status"
)

// version is set by the build.
var version = "unknown"

// maxInput bounds a configuration. One for GC lists every container of the host.
const maxInput = 4 << 20

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	p := plugin{
		stdout:     os.Stdout,
		daemon:     func(socket string) daemon { return status.NewClient(socket) },
		namespaces: kernel{},
	}
	if err := run(ctx, p); err != nil {
		_ = err.Print() // who has closed our output does not want to know
		os.Exit(1)
	}
}

// run is the whole program but for the exit code. What a command prints is in CNI's
// form, and so is the error.
func run(ctx context.Context, p plugin) *types.Error {
	if command := os.Getenv("CNI_COMMAND"); command != "" && command != "VERSION" {
		if err := boundInput(); err != nil {
			return err
		}
	}
	command := func(do func(context.Context, *skel.CmdArgs) error) func(*skel.CmdArgs) error {
		return func(args *skel.CmdArgs) error { return do(ctx, args) }
	}
	return skel.PluginMainFuncsWithError(skel.CNIFuncs{
		Add: command(p.add), Del: command(p.del), Check: command(p.check), GC: command(p.gc), Status: command(p.status),
	}, cni.VersionsStartingFrom("0.3.1"), "CNI plugin mesh-cni "+version+": called by container runtimes; see docs/containers.md")
}

// boundInput reads the standard input, since the library would read any amount of
// it, and gives it back in a new one.
func boundInput() *types.Error {
	raw, err := io.ReadAll(io.LimitReader(os.Stdin, maxInput+1))
	if err != nil {
		return types.NewError(types.ErrIOFailure, "read configuration", err.Error())
	}
	if len(raw) > maxInput {
		return types.NewError(types.ErrDecodingFailure, "configuration is too long", fmt.Sprintf("at most %d MiB on standard input", maxInput>>20))
	}
	r, w, err := os.Pipe()
	if err != nil {
		return types.NewError(types.ErrIOFailure, "pass configuration on", err.Error())
	}
	os.Stdin = r
	go func() {
		_, _ = io.Copy(w, bytes.NewReader(raw))
		w.Close()
	}()
	return nil
}
