//go:build linux

// Command bench measures overlay networks side by side on this machine: hosts are
// network namespaces, the programs and the traffic are real. `make bench` builds and
// runs it.
//
// All systems are measured in turn, in several rounds, and the median counts, so
// that a machine that gets slower meanwhile does so for all. What was measured
// while the hypervisor took the processors away (-steal) is measured again.
// A system that is not to be had, or does not start, is "not measured", and says
// why.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

func main() {
	if isAgent() {
		agentMain()
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintln(os.Stderr, "bench:", err)
	if ctx.Err() != nil {
		os.Exit(130) // as a shell says of a program that an interrupt has ended
	}
	os.Exit(1)
}

// options are what the command line says.
type options struct {
	Rounds  int
	Seconds float64 // of each measurement; below one for tests only
	Systems []string
	Layouts []string
	Only    *regexp.Regexp // of names of measurements; nil: all
	Bin     string         // directory of meshd and meshctl
	Peers   string         // directory of programs of others
	Out     string         // directory of the files to write; empty: none
	README  string         // file whose table is to be replaced; empty: none
	Render  string         // a latest.json to render instead of measuring
	Commit  string
	Steal   float64 // limit of stolen time
	Verbose bool
	// Containers: what containers take and cost, instead of systems side by side.
	Containers bool
	Crowd      int // of containers that are there when one more is attached
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	var chosen, layout, only string
	exe, err := os.Executable()
	if err != nil {
		return o, err
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.Rounds, "rounds", 5, "`number` of rounds; the median counts")
	flags.Float64Var(&o.Seconds, "seconds", 5, "`length` of each measurement")
	flags.StringVar(&chosen, "systems", "", "`names` of what to measure, separated by commas or spaces; empty: all of "+strings.Join(names(systems), " ")+", or with -containers of "+strings.Join(names(containerSystems), " "))
	flags.StringVar(&layout, "layout", "both", "`plain`, nic (segmentation forced on the underlay) or both")
	flags.StringVar(&only, "only", "", "`regexp` of what to measure, such as '^RTT' or 'TCP, 1 stream$'; empty: everything")
	flags.StringVar(&o.Bin, "bin", cmp.Or(os.Getenv("MESHD_BIN"), filepath.Dir(exe)), "`directory` of meshd and meshctl; also in MESHD_BIN")
	flags.StringVar(&o.Peers, "peers", os.Getenv("PEERS_DIR"), "`directory` of nebula and nebula-cert; also in PEERS_DIR")
	flags.StringVar(&o.Out, "out", "", "`directory` to write latest.json, latest.svg and latest.md to, or containers.json and containers.md")
	flags.StringVar(&o.README, "readme", "", "`file` whose table between the two markers is replaced")
	flags.StringVar(&o.Render, "render", "", "measure nothing: take the figures from this `file`, an earlier latest.json")
	flags.StringVar(&o.Commit, "commit", "unknown", "`name` of what is measured, for the report")
	flags.Float64Var(&o.Steal, "steal", stealLimit, "`part` of the time that the hypervisor may take during a measurement that counts")
	flags.BoolVar(&o.Containers, "containers", false, "measure containers on two hosts with meshd and Docker")
	flags.IntVar(&o.Crowd, "crowd", 200, "with -containers: `number` of them that are attached when one more is")
	flags.BoolVar(&o.Verbose, "v", false, "tell of every trial in the search for a rate")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("arguments are not taken: %q", flags.Args())
	case o.Rounds < 1:
		return o, fmt.Errorf("-rounds %d: at least one is needed", o.Rounds)
	case o.Crowd < 0 || o.Crowd > 250: // a host has a /24
		return o, fmt.Errorf("-crowd %d: from 0 to 250", o.Crowd)
	case o.Seconds <= 0 || o.Seconds > 60:
		return o, fmt.Errorf("-seconds %g: more than 0, at most 60", o.Seconds)
	}
	all := systems
	if o.Containers {
		all = containerSystems
	}
	o.Systems = strings.FieldsFunc(chosen, func(r rune) bool { return r == ',' || r == ' ' })
	for _, name := range o.Systems {
		if !slices.Contains(names(all), name) {
			return o, fmt.Errorf("-systems: there is no %q; there are %s", name, strings.Join(names(all), " "))
		}
	}
	if only != "" && o.README != "" {
		return o, errors.New("-only: README's table wants everything: leave -readme out")
	}
	if only != "" {
		if o.Only, err = regexp.Compile(only); err != nil {
			return o, fmt.Errorf("-only: %w", err)
		}
	}
	if len(o.Systems) == 0 {
		o.Systems = names(all)
	}
	if o.Containers {
		if layout != "both" || o.README != "" {
			return o, errors.New("-containers: it has neither layouts nor a table in README: leave -layout and -readme out")
		}
		o.Layouts = layoutsOf(o.Systems)
		return o, nil
	}
	switch layout {
	case "both":
		o.Layouts = []string{plain, nicLike}
	case plain, nicLike:
		o.Layouts = []string{layout}
	default:
		return o, fmt.Errorf("-layout %q: it is plain, nic or both", layout)
	}
	return o, nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if o.Render != "" {
		r, err := readReport(o.Render)
		if err != nil {
			return err
		}
		return publish(r, o, stdout)
	}
	if err := possible(); err != nil {
		return err
	}
	measure := measureAll
	if o.Containers {
		measure = measureContainers
	}
	r, err := measure(ctx, o, stderr)
	if err != nil {
		return err
	}
	if err := publish(r, o, stdout); err != nil {
		return err
	}
	if n := r.missing(); n > 0 {
		return fmt.Errorf("%d figures are missing, see above; where the hypervisor took the time, try again later or with -steal 0.1", n)
	}
	return nil
}

// publish prints the tables and writes the files that were asked for.
func publish(r *Report, o options, stdout io.Writer) error {
	if _, err := io.WriteString(stdout, r.Text()); err != nil {
		return err
	}
	if o.Out != "" {
		if err := r.write(o.Out); err != nil {
			return err
		}
	}
	if o.README != "" {
		return r.replaceTable(o.README)
	}
	return nil
}
