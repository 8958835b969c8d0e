//go:build linux

// Command demo shows a whole mesh on one machine: three hosts in network
// namespaces, with the real programs. `make demo` builds and runs it.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	// Nobody reads on, as with `| head`: that is an interruption too, and what is
	// printed while cleaning up must not kill us.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	unread := make(chan os.Signal, 1)
	signal.Notify(unread, syscall.SIGPIPE)
	go func() {
		<-unread
		cancel()
	}()
	err := run(ctx, os.Args[1:])
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintln(os.Stderr, "\ndemo:", err)
	if ctx.Err() != nil {
		os.Exit(130) // as a shell says of a program that an interrupt has ended
	}
	os.Exit(1)
}

func run(ctx context.Context, args []string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	bin := flags.String("bin", cmp.Or(os.Getenv("MESHD_BIN"), filepath.Dir(exe)), "`directory` of meshd and meshctl; also in MESHD_BIN")
	load := flags.Duration("load", 3*time.Second, "how long to move data through a tunnel")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := possible(); err != nil {
		return err
	}
	return show(ctx, os.Stdout, *bin, *load)
}
