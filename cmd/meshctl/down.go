package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

const downHelp = `Take this host off the mesh for now: the daemon removes everything that is its own
from the host's network (device, addresses, routes) and ends. The node stays a
member and keeps its subnet; start the daemon to bring it back.

Stopping the daemon in any other way leaves unreachable routes behind, so that
nothing meant for the mesh travels in clear text meanwhile.`

func (c *cli) down() *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Take this host off the mesh for now", Long: downHelp, Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := c.client()
			if err != nil {
				return err
			}
			if err := client.Down(cmd.Context()); err != nil {
				return noDaemon(err, fmt.Sprintf("there is nothing to stop; `%s` removes what a daemon left on this host's network", c.line("meshd", "--cleanup")))
			}
			fmt.Fprintf(c.stdout, "The host's network is clean, and the daemon is stopping. To bring it back: `%s`.\n", c.daemonCommand())
			return nil
		},
	}
}
