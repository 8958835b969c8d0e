package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"meshd/overlay/attach"
)

func (c *cli) attachList() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "list", Short: "List what is attached on this host", Args: exactly(),
		Long: `List what is attached on this host, whoever attached it.

STATE is live, local (the subnet is not held now: only this host is reached) or stale
(of a subnet that this node no longer has: attach it anew).`,
		Example: "  meshctl attach list\n  meshctl attach list -o json | jq '.[] | select(.network == \"web\")'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			client, _, err := c.client()
			if err != nil {
				return err
			}
			all, err := client.Attachments(cmd.Context())
			if err != nil {
				return c.attachError(err)
			}
			slices.SortFunc(all, func(a, b attach.Attachment) int {
				return cmp.Or(cmp.Compare(a.Network, b.Network), cmp.Compare(a.Container, b.Container), cmp.Compare(a.ID, b.ID))
			})
			return o.print(c.stdout, all, func(w io.Writer, wide bool) error { return writeAttachments(w, all, wide) })
		},
	}
	o.addFlags(cmd, "{{range .}}{{.state}} {{end}}")
	return cmd
}

func writeAttachments(w io.Writer, all []attach.Attachment, wide bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	head, row := "NETWORK\tCONTAINER\tADDRESSES\tMODE\tSTATE\tID", "%s\t%s\t%s\t%s\t%s\t%s"
	if wide {
		head += "\tMAC\tMTU\tLINK"
	}
	fmt.Fprintln(t, head)
	for _, a := range all {
		fmt.Fprintf(t, row, a.Network, cmp.Or(a.Container, "-"), prefixes(a.Addresses), a.Mode, a.State, a.ID)
		if wide {
			fmt.Fprintf(t, "\t%s\t%d\t%s", cmp.Or(a.MAC, "-"), a.MTU, cmp.Or(a.HostLink, a.Parent))
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}
