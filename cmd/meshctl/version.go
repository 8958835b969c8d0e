package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"meshd/overlay/status"
)

type versionDocument struct {
	Client string  `json:"client"`
	Daemon *string `json:"daemon"` // null: none answers
	why    string  // it is null
}

func (c *cli) version() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "version", Short: "Show the versions of meshctl and of the daemon", Args: exactly(),
		Long: "Show the versions of meshctl and of the daemon that runs on this host, if one\nanswers.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			doc := versionDocument{Client: version, why: "no daemon answers"}
			if client, _, err := c.clientQuietly(); err == nil {
				switch v, err := client.Version(cmd.Context()); {
				case err == nil:
					doc.Daemon = &v
				case !errors.Is(err, status.ErrNoDaemon):
					doc.why = err.Error()
				}
			}
			return o.print(c.stdout, doc, doc.writeText)
		},
	}
	o.addFlags(cmd, "{{.client}}")
	return cmd
}

func (d versionDocument) writeText(w io.Writer, _ bool) error {
	daemon := d.why
	if d.Daemon != nil {
		daemon = *d.Daemon
	}
	_, err := fmt.Fprintf(w, "meshctl  %s\nmeshd    %s\n", d.Client, daemon)
	return err
}
