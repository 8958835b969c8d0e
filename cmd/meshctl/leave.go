package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

const leaveHelp = `Leave the mesh for good.

The daemon signs that this node gives its subnet back, tells the other members,
removes everything that is its own from this host's network, and ends. To come
back, join again with a new token.`

func (c *cli) leave() *cobra.Command {
	return &cobra.Command{
		Use: "leave", Short: "Leave the mesh for good", Long: leaveHelp, Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := c.client()
			if err != nil {
				return err
			}
			if err := client.Leave(cmd.Context()); err != nil {
				return noDaemon(err, fmt.Sprintf("only a running daemon can tell the others: start it with `%s`, then leave", c.daemonCommand()))
			}
			fmt.Fprintln(c.stdout, "This node has left the mesh, and the daemon is stopping. To come back: `meshctl join TOKEN`.")
			return nil
		},
	}
}
