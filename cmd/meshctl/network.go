package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"meshd/cmd/internal/exit"
	"meshd/mesh"
	"meshd/mesh/trust"
	"meshd/overlay/plan"
	"meshd/overlay/status"
	"meshd/tun"
)

const networkHelp = `List, make and delete the networks of the mesh.

Every mesh has the network "default", from which each node has a subnet. Other
networks are for containers that are to be apart: a node takes a subnet of one when
it first attaches something to it, as ` + "`meshctl attach`" + ` does.

The networks stand in the mesh's charter, which the CA key signs, so all nodes have
the same ones within seconds of a change. Its ranges never change: to change a
network, delete it and make it anew.`

func (c *cli) network() *cobra.Command {
	cmd := &cobra.Command{Use: "network", Short: "List, make and delete networks", Long: networkHelp}
	cmd.AddCommand(c.networkList(), c.networkCreate(), c.networkDelete())
	return cmd
}

// networkRow is one network as `network list` shows it.
type networkRow struct {
	Name    string         `json:"name"`
	Ranges  []status.Range `json:"ranges"`
	Subnets int            `json:"subnets"` // for so many nodes there is room
	Lease   *status.Lease  `json:"lease"`   // this node's; null: none
	Nodes   *int           `json:"nodes"`   // that have a lease in it; null: no daemon knows
}

func (c *cli) networkList() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List the networks", Args: exactly(),
		Long:    "List the networks, this node's subnet in each, and how many nodes have one.\nWithout a daemon it shows what the state says.",
		Example: "  meshctl network list\n  meshctl network list -f '{{range .}}{{.name}} {{end}}'",
	}
	return c.lists(cmd, "{{range .}}{{.name}} {{end}}", func(_ context.Context, k *known, o *output, _ []string) error {
		rows := networkRows(k.doc, k.daemon != nil)
		return o.print(c.stdout, rows, func(w io.Writer, _ bool) error { return writeNetworks(w, rows) })
	})
}

func networkRows(doc *status.Document, known bool) []networkRow {
	rows := []networkRow{}
	for _, n := range doc.Networks {
		row := networkRow{Name: n.Name, Ranges: n.Ranges, Subnets: n.Subnets}
		if l, ok := leaseIn(doc.Node.Leases, n.Name); ok {
			row.Lease = &l
		}
		if known {
			row.Nodes = new(len(holders(doc, n.Name)))
		}
		rows = append(rows, row)
	}
	return rows
}

// holders names the nodes that have a lease in a network.
func holders(doc *status.Document, network string) []string {
	var names []string
	if _, ok := leaseIn(doc.Node.Leases, network); ok {
		names = append(names, doc.Node.Name)
	}
	for _, p := range doc.Peers {
		if _, ok := leaseIn(p.Leases, network); ok && p.State != status.PeerLeft {
			names = append(names, p.Name)
		}
	}
	return names
}

// leaseIn finds the lease in a network, unless it was given back.
func leaseIn(leases []status.Lease, network string) (status.Lease, bool) {
	i := slices.IndexFunc(leases, func(l status.Lease) bool { return l.Network == network && l.State != mesh.Released.String() })
	if i < 0 {
		return status.Lease{}, false
	}
	return leases[i], true
}

func writeNetworks(w io.Writer, rows []networkRow) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NETWORK\tRANGES\tSUBNET\tSTATE\tNODES")
	for _, row := range rows {
		var ranges []string
		for _, r := range row.Ranges {
			ranges = append(ranges, r.Prefix.String())
		}
		subnet, state, nodes := "-", "-", "-"
		if row.Lease != nil {
			subnet, state = prefixes(row.Lease.Prefixes), row.Lease.State
		}
		if row.Nodes != nil {
			nodes = fmt.Sprintf("%d of %d", *row.Nodes, row.Subnets)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", row.Name, strings.Join(ranges, ", "), subnet, state, nodes)
	}
	return t.Flush()
}

const networkCreateHelp = `Make a network. It needs the CA key.

--ipv4 auto takes the first of 10.86.0.0/16, 10.113.0.0/16 and 10.171.0.0/16
that means nothing to this host or the mesh already; --ipv6 auto takes a random
unique local /48, with a /64 per node. Choose ranges that mean nothing to any host of
the mesh: one that uses them for something else leaves the network out.

The running daemon tells all others. Without one the state is changed, and the daemon
tells them when it is started.`

func (c *cli) networkCreate() *cobra.Command {
	var f rangeFlags
	var ca string
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a network", Long: networkCreateHelp, Args: exactly("NAME"),
		Example: "  meshctl network create web --ipv4 10.87.0.0/16\n  meshctl network create lab --ipv4 10.88.0.0/20 --ipv4-subnet-len 26 --ipv6 none",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.runNetworkCreate(cmd.Context(), args[0], f, ca)
		},
	}
	f.addFlags(cmd)
	caFlag(cmd, &ca)
	return cmd
}

func (c *cli) runNetworkCreate(ctx context.Context, name string, f rangeFlags, ca string) error {
	if err := checkName("NAME", name); err != nil {
		return err
	}
	k, err := c.openKnown(ctx)
	if err != nil {
		return err
	}
	defer k.release()
	if n, ok := k.charter.Network(name); ok {
		return exit.With(exit.BadData, fmt.Errorf("the mesh has that network already (%s)", networkText(n)))
	}
	all, err := uses(ctx, candidates(f)...)
	if err != nil {
		return err
	}
	network, err := chooseNetwork(name, f, randomIPv6(), append(all, k.uses()...))
	if err != nil {
		return err
	}
	if err := c.changeCharter(ctx, k, ca, k.charter.Next(time.Now(), append(slices.Clone(k.charter.Networks), network))); err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "Made the network %s.\n%s", networkText(network), k.afterwards())
	return nil
}

// randomIPv6 makes a unique local range (RFC 4193).
func randomIPv6() netip.Prefix {
	addr := [16]byte{0xfd}
	_, _ = rand.Read(addr[1:6]) // never fails since Go 1.24
	return netip.PrefixFrom(netip.AddrFrom16(addr), 48)
}

const networkDeleteHelp = `Delete a network. It needs the CA key.

All nodes give their subnets in it back. What is attached to it keeps its addresses
and is cut off at once: ` + "`meshctl attach list`" + ` shows it as stale, until it is detached.
It refuses while nodes have subnets there, unless --force is given. The network
"default" stays.`

func (c *cli) networkDelete() *cobra.Command {
	var ca string
	var force bool
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Delete a network", Long: networkDeleteHelp, Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.runNetworkDelete(cmd.Context(), args[0], ca, force)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "delete it although nodes have subnets in it")
	caFlag(cmd, &ca)
	return cmd
}

func (c *cli) runNetworkDelete(ctx context.Context, name, ca string, force bool) error {
	if name == mesh.DefaultNetwork {
		return usage("the network %s cannot be deleted: every node has its subnet there", name)
	}
	if err := checkName("NAME", name); err != nil {
		return err
	}
	k, err := c.openKnown(ctx)
	if err != nil {
		return err
	}
	defer k.release()
	rest := slices.DeleteFunc(slices.Clone(k.charter.Networks), func(n mesh.Network) bool { return n.Name == name })
	if len(rest) == len(k.charter.Networks) {
		return exit.With(exit.BadData, fmt.Errorf("the mesh has no network %s: see `%s`", name, c.again("network list")))
	}
	if !force {
		if k.daemon == nil {
			return exit.With(exit.NotReady, errors.New("no daemon runs that knows who has subnets there: start it, or use --force"))
		}
		if names := holders(k.doc, name); len(names) > 0 {
			return exit.With(exit.Failed, fmt.Errorf("the network %s has subnets on %s: disconnect what is attached to it there and remove Docker's networks of it, or delete it all the same with --force", name, someOf(names)))
		}
	}
	if err := c.changeCharter(ctx, k, ca, k.charter.Next(time.Now(), rest)); err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "Deleted the network %s.\n%s", name, k.afterwards())
	return nil
}

// someOf lists names, but not hundreds of them.
func someOf(names []string) string {
	const most = 10
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// uses is what the mesh has in its own ranges and where its members are.
func (k *known) uses() []tun.Use {
	all := []tun.Use{{Prefix: k.charter.Control(), What: "the mesh's control addresses"}}
	for _, n := range k.charter.Networks {
		for _, r := range n.Ranges() {
			all = append(all, tun.Use{Prefix: r, What: "the network " + n.Name + " of the mesh"})
		}
	}
	for _, peer := range k.doc.Peers {
		if peer.Endpoint != nil && peer.State != status.PeerLeft {
			all = append(all, plan.Named("the node "+peer.Name+" at", peer.Endpoint.String())...)
		}
	}
	return all
}

// changeCharter signs the charter that follows, and hands it in.
func (c *cli) changeCharter(ctx context.Context, k *known, ca string, next *trust.Charter) error {
	key, err := k.loadCA(c, ca)
	if err != nil {
		return err
	}
	raw, err := next.Sign(key)
	if err != nil {
		return usage("%w", err)
	}
	if err := k.submit(ctx, raw); errors.Is(err, status.ErrNotNext) {
		return fmt.Errorf("%w: run this again", err)
	} else if err != nil {
		return err
	}
	return nil
}
