//go:build linux

// Command chaos runs a mesh of real daemons for as long as you like, does
// something bad to it every few seconds, and looks all the time whether anything
// happens that must never. `make chaos` builds and runs it.
//
//	draw a fault ──► it begins ──► it ends ──► all is well again ──► a pause
//	(seed, step)        │                            │
//	                    └── which pairs it may hurt  └── how soon, how many pings
//	                        all others lose nothing      were lost
//
// A seed and a step decide a fault, whatever came before, so one step can be
// played again alone. What the daemons make of it is theirs, so it may take
// several runs.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"meshd/tun/netns"
)

// Exit codes.
const (
	exitViolation   = 1
	exitImpossible  = 2
	exitInterrupted = 130 // as a shell says of a program that an interrupt has ended
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	signal.Ignore(syscall.SIGPIPE)
	err := run(ctx, os.Args[1:])
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return
	case errors.Is(err, errViolation):
		os.Exit(exitViolation)
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "chaos: interrupted; everything was cleaned up")
		os.Exit(exitInterrupted)
	}
	fmt.Fprintln(os.Stderr, "chaos:", err)
	os.Exit(exitImpossible)
}

// options is what a person may choose.
type options struct {
	bin      string
	nodes    int
	duration time.Duration
	seed     uint64
	step     int // the only one; 0: one after the other
	only     string
	every    time.Duration // between two pings of a pair
	limit    time.Duration // for all to be well again
	out      string
}

func run(ctx context.Context, args []string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	var o options
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.StringVar(&o.bin, "bin", cmp.Or(os.Getenv("MESHD_BIN"), filepath.Dir(exe)), "`directory` of meshd and meshctl; also in MESHD_BIN")
	flags.IntVar(&o.nodes, "nodes", 10, "how many daemons, 3 to 50")
	flags.DurationVar(&o.duration, "duration", 10*time.Minute, "no fault begins later, and most last for an eighth of it at most")
	flags.Uint64Var(&o.seed, "seed", 0, "what the faults are drawn from; 0: another one each time")
	flags.IntVar(&o.step, "step", 0, "play only the `n`-th fault of the seed; 0: all in turn")
	flags.StringVar(&o.only, "only", "", "draw only from these faults, `names` with commas between them")
	flags.DurationVar(&o.every, "every", 200*time.Millisecond, "between two pings of a pair of nodes")
	flags.DurationVar(&o.limit, "limit", 15*time.Second, "all must be well so long after the end of a fault")
	flags.StringVar(&o.out, "out", "", "`file` for the report as JSON")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if o.nodes < 3 || o.nodes > 50 {
		return fmt.Errorf("%d nodes: it can be 3 to 50", o.nodes)
	}
	if o.seed == 0 {
		o.seed = rand.Uint64() >> 40 // short enough to be typed
	}
	for name := range strings.SplitSeq(o.only, ",") {
		if name != "" && !known(name) {
			return fmt.Errorf("there is no fault %q; there are %s", name, strings.Join(names(), ", "))
		}
	}
	if err := possible(); err != nil {
		return err
	}
	return play(ctx, os.Stdout, o)
}

// possible says what this machine lacks, and how to get it.
func possible() error {
	if os.Geteuid() != 0 {
		return errors.New("it makes network namespaces, which takes root: sudo make chaos")
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%w: load it with `modprobe tun`; give it to a container with `--device /dev/net/tun --cap-add NET_ADMIN`", err)
	}
	tun.Close()
	ns, err := netns.New()
	if err != nil {
		return fmt.Errorf("%w: in a container, add `--privileged`", err)
	}
	ns.Close()
	return nil
}
