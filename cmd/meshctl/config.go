package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"meshd/cmd/internal/exit"
	"meshd/cmd/internal/setup"
	"meshd/overlay/config"
	"meshd/overlay/status"
)

const configHelp = `Check, show and reload the daemon's configuration.

The usual way to change something on a running node:

  edit /etc/meshd/config.yaml
  meshctl config check       is the file good?
  meshctl config reload      the daemon takes it over, and says what waits for a restart`

func (c *cli) config() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Check, show and reload the configuration", Long: configHelp}
	cmd.AddCommand(c.configCheck(), c.configShow(), c.configReload())
	return cmd
}

const configCheckHelp = `Say whether a configuration file is good: one line and exit code 0, or every
mistake with file, line and key, and exit code 78.

FILE is that of --config if none is named. It takes no daemon, and no rights but to
read the file. What only the host can tell (are the ports free, does the state
exist) is not looked at: "meshd --check" looks at the state, and whether the mesh
overlaps what this host uses.`

func (c *cli) configCheck() *cobra.Command {
	return &cobra.Command{
		Use: "check [FILE]", Short: "Say whether a configuration file is good", Long: configCheckHelp,
		Example: "  meshctl config check\n  meshctl config check new.yaml && cp new.yaml /etc/meshd/config.yaml",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("unexpected argument %q: see `%s --help`", args[1], cmd.CommandPath())
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			path := c.configPath
			if len(args) > 0 {
				path = args[0]
			}
			if _, err := setup.LoadConfig(path); err != nil {
				return err
			}
			fmt.Fprintf(c.stdout, "%s is good\n", path)
			return nil
		},
	}
}

const configShowHelp = `Show the whole configuration that the file makes, with the defaults of every key
that it leaves out, as a file.

If a daemon runs and has something else in force, standard error says so, key by
key, and what to do about it.`

func (c *cli) configShow() *cobra.Command {
	var form string
	cmd := &cobra.Command{
		Use: "show", Short: "Show the whole configuration, defaults and all", Long: configShowHelp, Args: exactly(),
		Example: "  meshctl config show\n  meshctl config show -o json | jq -r .interface.name",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if form != "yaml" && form != "json" {
				return usage("-o %s: there are yaml, json", form)
			}
			cfg, err := c.loadConfig()
			if err != nil {
				return err
			}
			if form == "json" {
				err = writeJSON(c.stdout, config.Document(cfg))
			} else {
				_, err = c.stdout.Write(config.Show(cfg))
			}
			if err != nil {
				return err
			}
			c.compare(cmd.Context(), cfg)
			return nil
		},
	}
	cmd.Flags().StringVarP(&form, "output", "o", "yaml", "`FORM`: yaml, json")
	// Only a flag that does not exist is refused.
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"yaml", "json"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// compare notes where the running daemon, if there is one, differs from the file.
func (c *cli) compare(ctx context.Context, file *config.Config) {
	client, _, err := c.client()
	if err != nil {
		return
	}
	answer, err := client.Config(ctx)
	if errors.Is(err, status.ErrNoDaemon) {
		return
	}
	var inForce *config.Config
	if err == nil {
		inForce, err = config.Parse("the running daemon's", []byte(answer.Config))
	}
	if err != nil {
		fmt.Fprintf(c.stderr, "Note: not compared with the running daemon: %v\n", err)
		return
	}
	c.noteOtherFile(answer.File)
	for _, change := range config.Changes(inForce, file) {
		todo := "restart the daemon to change it"
		switch {
		case change.Join:
			todo = "it counts when this host joins a mesh anew"
		case change.Live:
			todo = fmt.Sprintf("`%s` changes it", c.again("config reload"))
		}
		fmt.Fprintf(c.stderr, "Note: the running daemon has %s: %s; %s\n", change.Key, change.Old, todo)
	}
}

// noteOtherFile says so if the daemon reads another file than this command.
func (c *cli) noteOtherFile(daemon string) {
	if own := absolute(c.configPath); daemon != own {
		fmt.Fprintf(c.stderr, "Note: the running daemon reads %s, not %s\n", daemon, own)
	}
}

const configReloadHelp = `Make the daemon read its configuration file again, as SIGHUP does, and say what
came of it.

What can change while the daemon runs is changed at once, and no packet is lost. Keys
that count only at a restart are listed each time until then. A bad file changes
nothing.

Exit codes: 0 done, also if keys wait for a restart; 1 a key could not be applied,
such as an address that is taken, and stays as it was; 3 no daemon; 77 the daemon may
not read the file; 78 it is bad.`

func (c *cli) configReload() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "reload", Short: "Make the daemon read its configuration again", Long: configReloadHelp, Args: exactly(),
		Example: "  meshctl config reload\n  meshctl config reload -f '{{range .restart}}{{.key}} {{end}}'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			if _, err := c.loadConfig(); err != nil && c.socket == "" {
				fmt.Fprintln(c.stderr, "Note: the daemon was not asked, and stays as it is")
				return err
			}
			client, _, err := c.client()
			if err != nil {
				return err
			}
			answer, err := client.Reload(cmd.Context())
			if err != nil {
				return noDaemon(err, fmt.Sprintf("start it with `%s`, or name its --socket if `control` was changed in the file", c.daemonCommand()))
			}
			c.noteOtherFile(answer.File)
			if err := o.print(c.stdout, answer, func(w io.Writer, _ bool) error { return writeReload(w, answer) }); err != nil {
				return err
			}
			var failed []string
			for _, f := range answer.Failed {
				failed = append(failed, fmt.Sprintf("%s stays %s: %s", f.Key, f.Old, f.Error))
			}
			if len(failed) > 0 {
				return exit.With(exit.Failed, errors.New(strings.Join(failed, "\n")))
			}
			return nil
		},
	}
	o.addFlags(cmd, "{{.file}}")
	return cmd
}

func writeReload(w io.Writer, r status.ReloadReply) error {
	var b strings.Builder
	for _, part := range []struct {
		title   string
		changes []status.Change
	}{
		{"Applied:", r.Applied},
		{"Counts when the daemon is restarted:", r.Restart},
		{"Counts when this host joins a mesh anew:", r.Rejoin},
	} {
		if len(part.changes) > 0 {
			b.WriteString(part.title + "\n")
		}
		for _, c := range part.changes {
			fmt.Fprintf(&b, "  %s: %s -> %s\n", c.Key, c.Old, c.New)
		}
	}
	if b.Len() == 0 && len(r.Failed) == 0 {
		fmt.Fprintf(&b, "Nothing to change: the daemon has in force what %s says.\n", r.File)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
