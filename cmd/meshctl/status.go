package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"meshd/cmd/internal/exit"
	"meshd/mesh"
	"meshd/mesh/statedir"
	"meshd/mesh/trust"
	"meshd/overlay/config"
	"meshd/overlay/status"
)

const statusHelp = `Show how this node and its peers are doing.

Exit code: 0 ready and healthy, 1 degraded (health findings, or a peer is down),
3 not ready or no daemon. --check healthy gives that without printing; --check ready
is for who waits for this node alone, and gives 0 or 3.

What was not measured is shown as - (null in JSON). Round-trip time and loss are
those of probes through the tunnel.`

// What --check may ask for.
const checkReady, checkHealthy = "ready", "healthy"

var checks = []string{checkReady, checkHealthy}

const watchInterval = 2 * time.Second

func (c *cli) status() *cobra.Command {
	var o output
	var check string
	var watch bool
	cmd := &cobra.Command{
		Use: "status", Short: "Show how this node and its peers are doing", Long: statusHelp,
		Example: "  meshctl status\n  meshctl status -o json | jq '.peers[] | select(.state != \"up\")'\n  meshctl status -f '{{.node.name}} {{.state}}'\n  until meshctl status --check ready; do sleep 1; done",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			if check != "" && !slices.Contains(checks, check) {
				return usage("--check %s: there are %s", check, strings.Join(checks, ", "))
			}
			for _, form := range []string{"output", "format", "watch"} {
				if err := apart(cmd.Flags().Changed, "check", form); err != nil {
					return err
				}
			}
			if check != "" {
				return c.checkStatus(cmd.Context(), check)
			}
			client, cfg, err := c.client()
			if err != nil {
				return err
			}
			if watch {
				return c.watchStatus(cmd.Context(), client, cfg, &o)
			}
			return c.showStatus(cmd.Context(), client, cfg, &o)
		},
	}
	o.addFlags(cmd, "{{.state}}")
	cmd.Flags().StringVar(&check, "check", "", "print nothing, only exit with the code; `WHAT` is "+strings.Join(checks, " or "))
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again every two seconds")
	_ = cmd.RegisterFlagCompletionFunc("check", cobra.FixedCompletions(checks, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (c *cli) checkStatus(ctx context.Context, what string) error {
	client, _, err := c.clientQuietly()
	if err != nil {
		return err
	}
	doc, err := client.Status(ctx)
	if errors.Is(err, status.ErrNoDaemon) || errors.Is(err, status.ErrHangs) {
		return quiet(exit.NotReady)
	}
	if err != nil {
		return noDaemon(err, "")
	}
	if what == checkReady && doc.State == mesh.Ready {
		return nil // whatever is wrong elsewhere
	}
	return quiet(doc.ExitCode())
}

func (c *cli) showStatus(ctx context.Context, client *status.Client, cfg *config.Config, o *output) error {
	doc, err := client.Status(ctx)
	if errors.Is(err, status.ErrNoDaemon) {
		doc = withoutDaemon(cfg)
		if err := o.print(c.stdout, doc, textOf(doc)); err != nil {
			return err
		}
		return noDaemon(err, c.howToStart(cfg, doc))
	}
	if err != nil {
		return noDaemon(err, "")
	}
	if err := o.print(c.stdout, doc, textOf(doc)); err != nil {
		return err
	}
	return quiet(doc.ExitCode())
}

// howToStart says what to do where no daemon runs.
func (c *cli) howToStart(cfg *config.Config, doc *status.Document) string {
	if cfg != nil {
		if _, err := statedir.Open(cfg.StateDir); errors.Is(err, statedir.ErrNoState) {
			return "this host is not a member yet: make a mesh with `meshctl init`, or join one with `meshctl join -`"
		}
	}
	if slices.ContainsFunc(doc.Health, func(f status.Finding) bool { return f.Code == "left" }) {
		return "this node has left its mesh: join one with `meshctl join -` and a new token"
	}
	if slices.ContainsFunc(doc.Health, func(f status.Finding) bool { return f.Level == "error" }) {
		return "it will not start before that is mended"
	}
	return fmt.Sprintf("start it with `%s`", c.daemonCommand())
}

func textOf(doc *status.Document) func(io.Writer, bool) error {
	return func(w io.Writer, wide bool) error { return doc.WriteTable(w, time.Now(), wide) }
}

// watchStatus shows the status until it is interrupted; then the last one gives
// the exit code. On a terminal each replaces the one before.
func (c *cli) watchStatus(ctx context.Context, client *status.Client, cfg *config.Config, o *output) error {
	file, ok := c.stdout.(*os.File)
	terminal := ok && isTerminal(file) && o.isText()
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	var last status.Document
	for first := true; ; first = false {
		doc, err := client.Status(ctx)
		switch {
		case ctx.Err() != nil:
			return quiet(last.ExitCode())
		case errors.Is(err, status.ErrNoDaemon), errors.Is(err, status.ErrHangs):
			doc = withoutDaemon(cfg)
		case err != nil:
			return noDaemon(err, "")
		}
		last = *doc
		switch {
		case terminal:
			fmt.Fprint(c.stdout, "\x1b[H\x1b[2J") // cursor to the corner, clear
		case !first && o.isText():
			fmt.Fprintln(c.stdout)
		}
		if o.format == "json" && o.parsed == nil {
			err = json.NewEncoder(c.stdout).Encode(doc) // one per line
		} else {
			err = o.print(c.stdout, doc, textOf(doc))
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return quiet(last.ExitCode())
		case <-ticker.C:
		}
	}
}

// withoutDaemon says what the files tell, as far as they may be read.
func withoutDaemon(cfg *config.Config) *status.Document {
	doc := &status.Document{Version: status.Version, State: mesh.Unreachable}
	if cfg == nil {
		return doc
	}
	doc.Node.Name = cfg.Node.Name
	dir, err := statedir.Open(cfg.StateDir)
	if errors.Is(err, statedir.ErrDamaged) {
		doc.Health = append(doc.Health, status.Finding{Level: "error", Code: "state_damaged", Message: err.Error()})
	}
	if errors.Is(err, statedir.ErrCopied) {
		doc.Health = append(doc.Health, status.Finding{Level: "error", Code: "state_copied", Message: err.Error()})
	}
	if err != nil {
		return doc
	}
	doc.Node.ID = dir.Keys().ID()
	state, err := dir.State()
	if err == nil {
		doc.Node.Epoch = state.Epoch
		if state.Left {
			doc.Health = append(doc.Health, status.Finding{Level: "error", Code: "left", Message: "this node has left its mesh"})
			state.Leases = nil // also if it could not give them back
		}
		for _, l := range state.Leases {
			doc.Node.Leases = append(doc.Node.Leases, status.NewLease(l))
		}
	}
	charter, err := trust.ParseCharter(dir.Membership().Charter, mesh.ID{})
	if err != nil {
		return doc
	}
	doc.Mesh = status.Mesh{ID: charter.ID(), Name: charter.Name}
	for _, n := range charter.Networks {
		doc.Networks = append(doc.Networks, status.NewNetwork(n))
	}
	control := mesh.ControlAddr(charter.ID(), doc.Node.ID)
	doc.Node.Control = &control
	if certificate, err := trust.ParseCertificate(dir.Membership().Certificate, charter.CA); err == nil {
		doc.Node.Name = certificate.Name
	}
	return doc
}
