package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"meshd/mesh/statedir"
)

const adoptHelp = `Make the state on this host its own, after it was copied from another machine.

The state is bound to the machine on which it was made: two machines with one
would harm each other. Adopt it where a machine was replaced or restored from a
backup, and only if the old one is gone for good. The daemon must not run.`

func (c *cli) adopt() *cobra.Command {
	return &cobra.Command{
		Use: "adopt", Short: "Make a state from another machine this one's", Long: adoptHelp, Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			cfg, err := c.loadConfig()
			if err != nil {
				return err
			}
			release, err := statedir.Lock(cfg.StateDir)
			if errors.Is(err, statedir.ErrLocked) {
				return fmt.Errorf("%w: stop the daemon first", err)
			}
			if err != nil {
				return err
			}
			defer release()
			dir, changed, err := statedir.Adopt(cfg.StateDir)
			if err != nil {
				return err
			}
			if !changed {
				fmt.Fprintf(c.stdout, "The state in %s belongs to this machine already: nothing was changed.\n", cfg.StateDir)
				return nil
			}
			fmt.Fprintf(c.stdout, `The state in %s belongs to this machine now: this is node %s.
Where it came from it must never be used again.

Next:
  %s
`, cfg.StateDir, dir.Keys().ID(), c.daemonCommand())
			return nil
		},
	}
}
