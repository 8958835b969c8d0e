package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"meshd/cmd/internal/exit"
	"meshd/overlay/attach"
	"meshd/overlay/status"
	"meshd/tun/inside"
)

const detachHelp = `Detach a container from the mesh, or with --network from one network of it.

TARGET is as for ` + "`meshctl attach`" + `, or an ID that ` + "`meshctl attach list`" + ` shows. It may
have ended already. What Docker or a CNI runtime has attached, they detach.`

func (c *cli) detach() *cobra.Command {
	var network string
	cmd := &cobra.Command{
		Use: "detach TARGET", Short: "Detach a container from the mesh", Long: detachHelp, Args: exactly("TARGET"),
		Example: "  meshctl detach web1\n  meshctl detach web1 --network web\n  meshctl detach ctl/pid:4711/default",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.runDetach(cmd.Context(), args[0], network)
		},
		ValidArgsFunction: c.completeAttached,
	}
	cmd.Flags().StringVarP(&network, "network", "n", "", "`NAME` of the network (default: all that it is attached to)")
	_ = cmd.RegisterFlagCompletionFunc("network", c.completeNetworks)
	return cmd
}

func (c *cli) runDetach(ctx context.Context, arg, network string) error {
	if network != "" {
		if err := checkName("--network", network); err != nil {
			return err
		}
	}
	if err := needRoot(); err != nil {
		return err
	}
	client, _, err := c.client()
	if err != nil {
		return err
	}
	all, err := client.Attachments(ctx)
	if err != nil {
		return c.attachError(err)
	}
	t, mine, err := pick(ctx, arg, network, all)
	if err != nil {
		return err
	}
	if len(mine) == 0 {
		fmt.Fprintf(c.stdout, "%s is not attached.\n", t.name)
	}
	for _, a := range mine {
		if err := c.detachOne(ctx, client, t, a); err != nil {
			return err
		}
	}
	return nil
}

// pick finds a target, which need not be there any more, and which of all
// attachments are to go with it.
func pick(ctx context.Context, arg, network string, all []attach.Attachment) (t target, mine []attach.Attachment, err error) {
	var missing error
	if key := keyOf(arg); key != "" {
		t, missing = findKey(ctx, key)
	} else {
		t, missing = findTarget(ctx, arg)
	}
	var there []inside.Interface
	if missing == nil {
		// What cannot be looked into has a name and a key.
		there, _ = inside.List(ctx, t.ns)
	}
	here, hint := map[string]bool{}, map[string]bool{}
	sure, said := present(all, there)
	for _, a := range sure {
		here[a.ID] = true
	}
	for _, a := range said {
		hint[a.ID] = true
	}
	var doubt error
	for _, a := range all {
		key := keyOf(a.ID)
		switch {
		case network != "" && a.Network != network:
		case a.ID == arg && key != "":
			return t, []attach.Attachment{a}, nil
		case key != "" && keyOf(arg) == "" && (here[a.ID] || key == t.key || t.name != "" && a.Container == t.name):
			mine = append(mine, a)
		case key != "" && keyOf(arg) == "" && hint[a.ID]:
			doubt = onlySaid(t, a)
		case key == "" && (a.ID == arg || (here[a.ID] || hint[a.ID]) && network != ""):
			return t, nil, exit.With(exit.Unavailable, fmt.Errorf("%s is not for this command to detach, but for whoever attached it", a.ID))
		}
	}
	switch {
	case doubt != nil:
		return t, nil, doubt
	case len(mine) == 0 && missing != nil && !errors.Is(missing, errEnded):
		return t, nil, missing
	}
	return t, mine, nil
}

func (c *cli) detachOne(ctx context.Context, client *status.Client, t target, a attach.Attachment) error {
	if t.ns != "" {
		// The daemon cannot reach a link without an end on the host.
		if err := inside.Remove(ctx, t.ns, a.Peer); err != nil && !errors.Is(err, inside.ErrOwn) {
			return err
		}
	}
	if err := client.Detach(ctx, a.ID); err != nil {
		return c.attachError(err)
	}
	fmt.Fprintf(c.stdout, "Detached %s (%s) from the network %s.\n", cmp.Or(a.Container, t.name), prefixes(a.Addresses), a.Network)
	return nil
}

// completeAttached offers what this command has attached.
func (c *cli) completeAttached(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	client, _, err := c.clientQuietly()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, err := client.Attachments(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, a := range all {
		if keyOf(a.ID) != "" {
			names = append(names, a.Container)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
