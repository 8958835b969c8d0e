package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"meshd/cmd/internal/exit"
	"meshd/mesh/statedir"
	"meshd/overlay/config"
	"meshd/overlay/status"
)

const leaveHelp = `Leave the mesh for good.

The daemon signs that this node gives its subnet back, tells the other members,
removes everything that is its own from this host's network, and ends. To come
back, join again with a new token.`

func (c *cli) leave() *cobra.Command {
	return &cobra.Command{
		Use: "leave", Short: "Leave the mesh for good", Long: leaveHelp, Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, cfg, err := c.client()
			if err != nil {
				return err
			}
			if err := client.Leave(cmd.Context()); err != nil {
				if errors.Is(err, status.ErrNoDaemon) && left(cfg) {
					return exit.With(exit.BadData, errors.New("this node has left its mesh already: join one with `meshctl join -` and a new token"))
				}
				return noDaemon(err, fmt.Sprintf("only a running daemon can tell the others: start it with `%s`, then leave", c.daemonCommand()))
			}
			fmt.Fprintln(c.stdout, "This node has left the mesh, and the daemon is stopping. To come back: `meshctl join TOKEN`.")
			return nil
		},
	}
}

// left tells whether the state says that the node has left; cfg may be nil.
func left(cfg *config.Config) bool {
	if cfg == nil {
		return false
	}
	dir, err := statedir.Open(cfg.StateDir)
	if err != nil {
		return false
	}
	state, err := dir.State()
	return err == nil && state.Left
}
