package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"meshd/cmd/internal/exit"
	"meshd/mesh"
	"meshd/mesh/trust"
	"meshd/overlay/status"
)

const leaseHelp = `List the subnets that nodes lease, and change which.

Each node leases a subnet of the network "default", and of another network when it
first uses that. A lease is renewed by its node's daemon and ends when nobody has
heard of it for as long as a lease lasts (24 hours); then others may take the subnet.`

func (c *cli) lease() *cobra.Command {
	cmd := &cobra.Command{Use: "lease", Short: "List leases, renumber, release and reserve", Long: leaseHelp}
	cmd.AddCommand(c.leaseList(), c.leaseRenumber(), c.leaseRelease(), c.leaseReserve())
	return cmd
}

// leaseRow is a lease as `lease list` shows it, or a subnet that is reserved.
type leaseRow struct {
	Network  string         `json:"network"`
	Prefixes []netip.Prefix `json:"prefixes"`
	Node     string         `json:"node"`  // empty: nobody has it
	ID       *mesh.NodeID   `json:"id"`    // of the node; null: nobody has it
	State    string         `json:"state"` // as in the status document, of the lease or why it is void; reserved: nobody has it
	Reserved bool           `json:"reserved"`
	Since    *time.Time     `json:"since"`
	Renewed  *time.Time     `json:"renewed"`
	Ends     *time.Time     `json:"ends"` // unless it is renewed; null: not known, or it is void
}

const stateReserved = "reserved"

func (c *cli) leaseList() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List the leases of all nodes", Args: exactly(),
		Long:    "List the leases of all nodes, by network and subnet, and the subnets that are\nreserved. RENEWED is when this node last heard of the lease, ENDS when it is free for\nothers if it is not heard of again; one that is expired or forgotten is free.",
		Example: "  meshctl lease list\n  meshctl lease list -f '{{range .}}{{.node}} {{index .prefixes 0}} {{end}}'",
	}
	return c.lists(cmd, "{{range .}}{{.node}} {{index .prefixes 0}} {{end}}", func(_ context.Context, k *known, o *output, _ []string) error {
		rows, now := k.leases(), time.Now()
		return o.print(c.stdout, rows, func(w io.Writer, wide bool) error { return writeLeases(w, rows, wide, now) })
	})
}

// leases lists all that are not released, and what is reserved.
func (k *known) leases() []leaseRow {
	rows := []leaseRow{}
	add := func(node string, id mesh.NodeID, all []status.Lease, expired mesh.Expiry) {
		for _, l := range all {
			if expired != mesh.NotExpired {
				l.Expires = nil // it has ended
			}
			if l.State != mesh.Released.String() {
				rows = append(rows, leaseRow{
					Network: l.Network, Prefixes: l.Prefixes, Node: node, ID: &id, State: cmp.Or(string(expired), l.State), Reserved: k.charter.IsReserved(l.Prefixes),
					Since: l.Since, Renewed: l.Renewed, Ends: l.Expires,
				})
			}
		}
	}
	add(k.doc.Node.Name, k.self, k.doc.Node.Leases, mesh.NotExpired)
	for _, p := range k.doc.Peers {
		if p.State != status.PeerLeft {
			add(p.Name, p.ID, p.Leases, p.Expired)
		}
	}
	for _, p := range k.charter.Reserved {
		taken := func(r leaseRow) bool { return slices.Contains(r.Prefixes, p) }
		network, slot := slotOf(k.charter, p)
		if !slices.ContainsFunc(rows, taken) {
			rows = append(rows, leaseRow{Network: network, Prefixes: slot, State: stateReserved, Reserved: true})
		}
	}
	slices.SortStableFunc(rows, func(a, b leaseRow) int {
		return cmp.Or(cmp.Compare(a.Network, b.Network), a.Prefixes[0].Compare(b.Prefixes[0]))
	})
	return rows
}

// slotOf gives the network and all prefixes of a node's subnet.
func slotOf(charter *trust.Charter, p netip.Prefix) (network string, slot []netip.Prefix) {
	for _, n := range charter.Networks {
		if i, err := n.SlotOf(p); err == nil {
			return n.Name, n.Slot(i)
		}
	}
	return "", nil
}

func writeLeases(w io.Writer, rows []leaseRow, wide bool, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	head := "NETWORK\tSUBNET\tNODE\tSTATE\tSINCE\tRENEWED\tENDS"
	if wide {
		head += "\tID"
	}
	fmt.Fprintln(t, head)
	for _, r := range rows {
		subnet := r.Prefixes[0].String()
		if wide {
			subnet = prefixes(r.Prefixes)
		}
		state := r.State
		if r.Reserved && state != stateReserved {
			state += ", reserved"
		}
		renewed, ends := "-", "-"
		if r.Renewed != nil {
			renewed = remaining(*r.Renewed, now) + " ago"
		}
		if r.Ends != nil {
			ends = remaining(now, *r.Ends)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s", r.Network, subnet, cmp.Or(r.Node, "-"), state, timeOr(r.Since, "-"), renewed, ends)
		switch {
		case wide && r.ID != nil:
			fmt.Fprint(t, "\t", r.ID)
		case wide:
			fmt.Fprint(t, "\t-")
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}

const leaseRenumberHelp = `Take another subnet for this node in a network, "default" unless another is named.

All addresses of this host and its containers in that network change. It refuses while
containers have addresses there, unless --force is given: those are cut off from the
mesh until they are started again. A node that is pinned to a subnet stays there.`

func (c *cli) leaseRenumber() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "renumber [NETWORK]", Short: "Take another subnet", Long: leaseRenumberHelp, Args: atMostOne,
		Example: "  meshctl lease renumber\n  meshctl lease renumber web --force",
		RunE: func(cmd *cobra.Command, args []string) error {
			network := mesh.DefaultNetwork
			if len(args) > 0 {
				network = args[0]
			}
			if err := checkName("NETWORK", network); err != nil {
				return err
			}
			return c.changeLease(cmd.Context(), network, taken, func(ctx context.Context, client *status.Client) error {
				err := client.Renumber(ctx, network, force)
				if errors.Is(err, status.ErrLeaseInUse) {
					return fmt.Errorf("%w: detach the containers, or use --force", err)
				}
				return err
			})
		},
		ValidArgsFunction: c.completeNetworks,
	}
	cmd.Flags().BoolVar(&force, "force", false, "also if containers have addresses there")
	return cmd
}

const leaseReleaseHelp = `Give this node's subnet in a network back.

The node takes one there again when something is attached to the network, and when its
daemon is started again while Docker has a network on it. It refuses while containers
have addresses there. The subnet in the network "default" cannot be given back but by
` + "`meshctl leave`."

func (c *cli) leaseRelease() *cobra.Command {
	return &cobra.Command{
		Use: "release NETWORK", Short: "Give a subnet back", Long: leaseReleaseHelp, Args: exactly("NETWORK"),
		Example: "  meshctl lease release web",
		RunE: func(cmd *cobra.Command, args []string) error {
			network := args[0]
			if err := checkName("NETWORK", network); err != nil {
				return err
			}
			if network == mesh.DefaultNetwork {
				return usage("every node has a subnet in the network %s: `%s` takes another one, `%s` gives it back for good", network, c.again("lease renumber"), c.again("leave"))
			}
			return c.changeLease(cmd.Context(), network, givenBack, func(ctx context.Context, client *status.Client) error {
				err := client.Release(ctx, network)
				if errors.Is(err, status.ErrLeaseInUse) {
					return fmt.Errorf("%w: detach the containers (`%s` lists them), and try again", err, c.again("attach list"))
				}
				return err
			})
		},
		ValidArgsFunction: c.completeNetworks,
	}
}

// settleTime is how long a command waits to see what a change of leases came to.
const settleTime = 15 * time.Second

// taken says, for people, that a node has another subnet in a network; empty: not yet.
func taken(network string, old, now status.Lease, has bool) string {
	if !has || now.State != mesh.Held.String() || slices.Equal(now.Prefixes, old.Prefixes) {
		return ""
	}
	return fmt.Sprintf("This node has taken another subnet in network %s: %s, before %s.", network, prefixes(now.Prefixes), cmp.Or(prefixes(old.Prefixes), "none"))
}

// givenBack says that it has none any more.
func givenBack(network string, old, _ status.Lease, has bool) string {
	if has {
		return ""
	}
	return fmt.Sprintf("This node has given its subnet back: %s in network %s.", prefixes(old.Prefixes), network)
}

// changeLease makes a change of this node's lease and shows what came of it, once
// there is something to tell.
func (c *cli) changeLease(ctx context.Context, network string, outcome func(network string, old, now status.Lease, has bool) string, change func(context.Context, *status.Client) error) error {
	client, _, err := c.client()
	if err != nil {
		return err
	}
	before, err := client.Status(ctx)
	if err != nil {
		return c.unanswered(err)
	}
	switch {
	case before.State == mesh.Revoked:
		return errOutcast
	case !slices.ContainsFunc(before.Networks, func(n status.Network) bool { return n.Name == network }):
		return exit.With(exit.BadData, fmt.Errorf("the mesh has no network %s: see `%s`", network, c.again("network list")))
	}
	if err := change(ctx, client); err != nil {
		return err
	}
	old, _ := leaseIn(before.Node.Leases, network)
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		doc, err := client.Status(ctx)
		if err == nil {
			now, has := leaseIn(doc.Node.Leases, network)
			if text := outcome(network, old, now, has); text != "" {
				fmt.Fprintln(c.stdout, text)
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the change is under way: see `%s`", c.again("lease list"))
		}
	}
}

const leaseReserveHelp = `Keep subnets free: no node takes one that is reserved, but for one that is pinned to it
with ` + "`meshctl token create --subnet`" + `. It needs the CA key.

A node that has the subnet already keeps it until it gives it back. What is reserved
stands in the mesh's charter, so it counts on all nodes within seconds of a change.

SUBNET is one node's subnet, by its IPv4 or its IPv6 prefix.`

func (c *cli) leaseReserve() *cobra.Command {
	var ca string
	var remove bool
	cmd := &cobra.Command{
		Use: "reserve SUBNET...", Short: "Keep subnets free for nodes that are pinned to them", Long: leaseReserveHelp,
		Example: "  meshctl lease reserve 10.86.0.0/24 10.86.1.0/24\n  meshctl lease reserve --remove 10.86.1.0/24",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage("SUBNET is missing: see `%s --help`", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.runLeaseReserve(cmd.Context(), args, ca, remove)
		},
	}
	cmd.Flags().BoolVar(&remove, "remove", false, "let nodes take them again")
	caFlag(cmd, &ca)
	return cmd
}

func (c *cli) runLeaseReserve(ctx context.Context, args []string, ca string, remove bool) error {
	k, err := c.openKnown(ctx)
	if err != nil {
		return err
	}
	defer k.release()
	next := k.charter.Next(time.Now(), slices.Clone(k.charter.Networks))
	var named []netip.Prefix
	for _, arg := range args {
		p, err := parseSubnet("SUBNET", arg)
		if err != nil {
			return err
		}
		network, slot := slotOf(k.charter, p)
		if network == "" {
			return usage("%s is not one node's subnet: see `%s`", p, c.again("network list"))
		}
		has := k.charter.IsReserved(slot)
		switch {
		case has && !remove:
			fmt.Fprintf(c.stderr, "Note: %s is reserved already\n", p)
			continue
		case !has && remove:
			return exit.With(exit.BadData, fmt.Errorf("%s is not reserved", p))
		case remove:
			next.Reserved = slices.DeleteFunc(next.Reserved, func(r netip.Prefix) bool { return slices.Contains(slot, r) })
		case !slices.Contains(next.Reserved, slot[0]):
			next.Reserved = append(next.Reserved, slot[0])
		}
		if holder := holderOf(k.doc, slot); holder != "" && !remove {
			fmt.Fprintf(c.stderr, "Note: %s has %s, and keeps it until it gives it back\n", holder, p)
		}
		named = append(named, slot[0])
	}
	if len(named) == 0 {
		fmt.Fprintln(c.stdout, "Nothing is changed.")
		return nil
	}
	if err := c.changeCharter(ctx, k, ca, next); err != nil {
		return err
	}
	what := "Reserved"
	if remove {
		what = "No longer reserved:"
	}
	fmt.Fprintf(c.stdout, "%s %s.\n%s", what, prefixes(named), k.afterwards())
	return nil
}

// holderOf names the node that has a subnet.
func holderOf(doc *status.Document, slot []netip.Prefix) string {
	has := func(leases []status.Lease) bool {
		return slices.ContainsFunc(leases, func(l status.Lease) bool {
			return l.State != mesh.Released.String() && slices.Contains(l.Prefixes, slot[0])
		})
	}
	if has(doc.Node.Leases) {
		return doc.Node.Name
	}
	if i := slices.IndexFunc(doc.Peers, func(p status.Peer) bool { return p.State != status.PeerLeft && has(p.Leases) }); i >= 0 {
		return doc.Peers[i].Name
	}
	return ""
}
