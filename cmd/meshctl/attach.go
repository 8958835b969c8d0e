package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"meshd/cmd/internal/exit"
	"meshd/mesh"
	"meshd/overlay/attach"
	"meshd/tun/inside"
)

const attachHelp = `Attach a running container to a network of the mesh.

The container gets one more interface, with an address of this host's subnet and
routes to the network. Its other interfaces, routes and addresses stay as they are.
To do the same again changes nothing; what the container lost of it comes back.

TARGET is the name or ID of a container of Docker's, a process ID, the path of a
network namespace, or its name in ` + netnsDir + `. What is ambiguous gets a prefix:
docker:NAME, pid:NUMBER, netns:NAME. For other runtimes, name the process ID of
anything that runs in the container.

A first attachment to a network may take some seconds: this node takes its subnet in
it then. When a container ends, its address is free again after a minute; one that is
started anew is attached anew. Containers that are always to be attached are better
off with Docker's or the CNI's own configuration.

It needs root, and a daemon that runs.`

// attachFlags are what one can wish for.
type attachFlags struct {
	network, mode, parent, link, mac string
	addresses                        []string
	defaultRoute                     bool
}

var modes = []string{string(attach.Bridge), string(attach.PTP), string(attach.MACVLAN), string(attach.IPVLAN)}

func (c *cli) attach() *cobra.Command {
	var f attachFlags
	var o output
	cmd := &cobra.Command{
		Use: "attach TARGET", Short: "Attach a running container to a network", Long: attachHelp, Args: exactly("TARGET"),
		Example: "  meshctl attach web1\n  meshctl attach web1 --network web --ip 10.87.12.40\n  meshctl attach $(pidof nginx | cut -d' ' -f1) --default-route\n" +
			"  meshctl attach /run/netns/blue --mode macvlan --parent eth0\n  meshctl attach list\n  meshctl detach web1 --network web",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return c.runAttach(cmd.Context(), args[0], f, &o)
		},
		ValidArgsFunction: completeTargets,
	}
	o.addFlags(cmd, "{{.interface}}")
	flags := cmd.Flags()
	flags.StringVarP(&f.network, "network", "n", mesh.DefaultNetwork, "`NAME` of the network")
	flags.StringArrayVar(&f.addresses, "ip", nil, "`ADDRESS` of this host's subnet in it, at most one of each family; without: free ones")
	flags.StringVar(&f.link, "interface", "", "`NAME` of the interface in the container (default: the first of eth0, eth1, ... that is free)")
	flags.StringVar(&f.mode, "mode", string(attach.Bridge), "`HOW` it hangs on the host: "+strings.Join(modes, ", "))
	flags.StringVar(&f.parent, "parent", "", "`LINK` of this host that a macvlan or ipvlan is on")
	flags.StringVar(&f.mac, "mac", "", "MAC `ADDRESS`; without: one that follows from the address")
	flags.BoolVar(&f.defaultRoute, "default-route", false, "all that the container sends elsewhere goes by this host too; a default route that it has stays, and comes after")
	_ = cmd.RegisterFlagCompletionFunc("mode", cobra.FixedCompletions(modes, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("network", c.completeNetworks)
	cmd.AddCommand(c.attachList())
	return cmd
}

// ask gives what the daemon is asked for.
func (f attachFlags) ask() (attach.Ask, error) {
	a := attach.Ask{Network: f.network, Mode: attach.Mode(f.mode), Parent: f.parent, MAC: f.mac}
	if !slices.Contains(modes, f.mode) {
		return a, usage("--mode %s: there are %s", f.mode, strings.Join(modes, ", "))
	}
	if a.Mode.IsLAN() != (f.parent != "") {
		return a, usage("--parent is for --mode macvlan and ipvlan, which need it")
	}
	if err := checkName("--network", f.network); err != nil {
		return a, err
	}
	for _, text := range f.addresses {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" {
			return a, usage("--ip %.70q is no IP address", text)
		}
		a.Addresses = append(a.Addresses, addr)
	}
	return a, nil
}

// attached is what `attach` prints.
type attached struct {
	attach.Attachment
	Interface string `json:"interface"` // in the container
}

func (c *cli) runAttach(ctx context.Context, arg string, f attachFlags, o *output) error {
	ask, err := f.ask()
	if err != nil {
		return err
	}
	if err := needRoot(); err != nil {
		return err
	}
	client, _, err := c.client()
	if err != nil {
		return err
	}
	t, err := findTarget(ctx, arg)
	if err != nil {
		return err
	}
	ask.Container = t.name
	there, err := inside.List(ctx, t.ns)
	if err != nil {
		return attachCode(err)
	}
	all, err := client.Attachments(ctx)
	if err != nil {
		return c.attachError(err)
	}
	if ask.ID, err = idFor(t, ask.Network, all, there); err != nil {
		return err
	}
	fresh := !slices.ContainsFunc(all, func(a attach.Attachment) bool { return a.ID == ask.ID })
	a, err := client.Attach(ctx, ask)
	if err != nil {
		return c.attachError(err)
	}
	link, err := put(ctx, t.ns, a, f)
	if err != nil {
		err = attachCode(err)
		if fresh { // else somebody may have it in use
			err = errors.Join(err, client.Detach(context.WithoutCancel(ctx), a.ID))
		}
		return err
	}
	if a.State != attach.Live {
		fmt.Fprintf(c.stderr, "Note: this node's subnet in the network %s is not held now: until then only containers on this host are reached\n", a.Network)
	}
	return o.print(c.stdout, attached{a, link}, func(w io.Writer, _ bool) error {
		_, err := fmt.Fprintf(w, "Attached %s to the network %s: %s on %s.\n", t.name, a.Network, prefixes(a.Addresses), link)
		return err
	})
}

// idFor gives the ID of a target's attachment to a network. The same container may
// have been named in another way, when it was put here.
func idFor(t target, network string, all []attach.Attachment, there []inside.Interface) (string, error) {
	id := t.idOf(network)
	sure, said := present(all, there)
	for _, a := range slices.Concat(sure, said) {
		switch {
		case a.Network != network || a.ID == id:
		case keyOf(a.ID) != "" && a.HostLink == "":
			return "", onlySaid(t, a)
		case keyOf(a.ID) == "":
			return "", exit.With(exit.Unavailable, fmt.Errorf("%s is attached to the network %s already, as %s", t.name, a.Network, a.ID))
		default:
			id = a.ID
		}
	}
	return id, nil
}

// present picks the attachments that have a link in a container. That is sure where
// the host has the other end. What hangs on a physical link has none, and whose it is
// only the link itself says: root in a container can make any link say so.
func present(all []attach.Attachment, there []inside.Interface) (sure, said []attach.Attachment) {
	for _, a := range all {
		switch {
		case a.HostLink != "":
			if slices.ContainsFunc(there, func(i inside.Interface) bool { return i.Host == a.HostLink }) {
				sure = append(sure, a)
			}
		case slices.ContainsFunc(there, func(i inside.Interface) bool { return i.Peer == a.Peer }):
			said = append(said, a)
		}
	}
	return sure, said
}

// onlySaid refuses to take a container for one that was attached by another name.
func onlySaid(t target, a attach.Attachment) error {
	return exit.With(exit.Unavailable, fmt.Errorf(
		"a link in %s says that it is %s, and so could any: if the container was attached by that name, use that", cmp.Or(t.name, t.key), a.ID))
}

// put moves the container's end there, and gives its name.
func put(ctx context.Context, ns string, a attach.Attachment, f attachFlags) (string, error) {
	want := inside.Link{
		Peer: a.Peer, Name: f.link, MAC: a.MAC, MTU: a.MTU, Addresses: a.Addresses, Gateways: a.Gateways, Routes: a.Routes, Default: f.defaultRoute,
	}
	const tries = 3 // another runtime may add an interface meanwhile
	for i := 0; ; i++ {
		if f.link == "" {
			there, err := inside.List(ctx, ns)
			if err != nil {
				return "", err
			}
			want.Name = linkName(there, a.Peer)
		}
		err := inside.Put(ctx, ns, want)
		if f.link != "" || i == tries || !errors.Is(err, inside.ErrTaken) {
			return want.Name, err
		}
	}
}

// linkName is the one that a link has, or the first that is free.
func linkName(there []inside.Interface, peer string) string {
	taken := map[string]bool{}
	for _, i := range there {
		if i.Peer == peer && i.Name != peer { // else somebody is about to name it
			return i.Name
		}
		taken[i.Name] = true
	}
	for n := 0; ; n++ {
		if name := fmt.Sprintf("eth%d", n); !taken[name] {
			return name
		}
	}
}

// needRoot says so where a container's namespace could not be entered.
func needRoot() error {
	if os.Geteuid() == 0 {
		return nil
	}
	return exit.With(exit.NoPerm, errors.New("entering a container's network takes root: run this as root"))
}

// attachError adds to the daemon's error what to do, and the exit code.
func (c *cli) attachError(err error) error {
	switch {
	case errors.Is(err, attach.ErrUnknownNetwork):
		err = fmt.Errorf("%w: see `%s`", err, c.again("network list"))
	case errors.Is(err, attach.ErrInUse):
		err = fmt.Errorf("%w: detach it first", err)
	}
	return c.unanswered(attachCode(err))
}

// attachCode gives errors of attaching their exit codes.
func attachCode(err error) error {
	for _, known := range []struct {
		is   error
		code int
	}{
		{attach.ErrBadAsk, exit.Usage},
		{attach.ErrOutside, exit.Usage},
		{inside.ErrOwn, exit.Usage},
		{attach.ErrUnknownNetwork, exit.BadData},
		{attach.ErrDamaged, exit.BadData},
		{inside.ErrNoNamespace, exit.NoInput},
		{attach.ErrTaken, exit.Unavailable},
		{attach.ErrInUse, exit.Unavailable},
		{attach.ErrExhausted, exit.Unavailable},
		{attach.ErrDelegated, exit.Unavailable},
		{inside.ErrTaken, exit.Unavailable},
		{attach.ErrNoLease, exit.NotReady},
	} {
		if errors.Is(err, known.is) {
			return exit.With(known.code, err)
		}
	}
	return err
}

// completeNetworks offers the networks of the mesh.
func (c *cli) completeNetworks(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	client, _, err := c.clientQuietly()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	doc, err := client.Status(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, n := range doc.Networks {
		names = append(names, n.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
