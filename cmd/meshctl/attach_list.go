package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"meshd/overlay/attach"
)

func (c *cli) attachList() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "list", Short: "List what is attached on this host", Args: exactly(),
		Long: `List what is attached on this host, whoever attached it. What Docker has attached is
named as Docker does, if it answers.

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
			nameContainers(cmd.Context(), all)
			slices.SortFunc(all, func(a, b attach.Attachment) int {
				return cmp.Or(cmp.Compare(a.Network, b.Network), cmp.Compare(a.Container, b.Container), cmp.Compare(a.ID, b.ID))
			})
			return o.print(c.stdout, all, func(w io.Writer, wide bool) error { return writeAttachments(w, all, wide) })
		},
	}
	o.addFlags(cmd, "{{range .}}{{.state}} {{end}}")
	return cmd
}

// namesWait bounds how long a list waits for names.
const namesWait = 2 * time.Second

// nameContainers fills in what Docker calls the containers that it has attached: when
// it asked for their links, it had not said whose they are. Without its answer they
// have none.
func nameContainers(ctx context.Context, all []attach.Attachment) {
	unnamed := map[string]*attach.Attachment{} // by Docker's endpoint
	for i, a := range all {
		if endpoint, ok := strings.CutPrefix(a.ID, dockerDoor); ok && a.Container == "" {
			unnamed[endpoint] = &all[i]
		}
	}
	if len(unnamed) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, namesWait)
	defer cancel()
	known, err := containers(ctx)
	if err != nil {
		return
	}
	for _, c := range known {
		names := c.names()
		for _, n := range c.NetworkSettings.Networks {
			if a := unnamed[n.EndpointID]; a != nil && len(names) > 0 {
				a.Container = names[0]
			}
		}
	}
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
