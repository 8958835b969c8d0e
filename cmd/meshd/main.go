// Command meshd is the daemon: it makes this host a node of a mesh.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"meshd/cmd/internal/exit"
)

// version is set by the build.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "meshd:", strings.ReplaceAll(err.Error(), "\n", "; ")) // one line, also of joined errors
	}
	os.Exit(exit.Code(err))
}
