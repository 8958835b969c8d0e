package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"meshd/mesh"
	"meshd/overlay/status"
)

const keysHelp = `Show this node's keys, never their secrets, and change them.

identity  signs what the node says; it is the node, and is not changed
tunnel    of the tunnels to the other nodes
gossip    one for the whole mesh: hides gossip from strangers, and grants nothing`

func (c *cli) keys() *cobra.Command {
	cmd := &cobra.Command{Use: "keys", Short: "Show keys, and rotate them", Long: keysHelp}
	rotate := &cobra.Command{Use: "rotate", Short: "Change a key"}
	rotate.AddCommand(c.rotateGossip(), c.rotateTunnel())
	group(rotate)
	cmd.AddCommand(c.keysList(), rotate)
	return cmd
}

// keysDocument is what `keys list` shows.
type keysDocument struct {
	Identity mesh.NodeID `json:"identity"`
	Tunnel   string      `json:"tunnel"` // public half
	Gossip   []gossipRow `json:"gossip"` // newest first
}

// gossipRow is a gossip key, and which members work with it.
type gossipRow struct {
	status.GossipKey
	Members int      `json:"members"` // there are, this node included
	Have    int      `json:"have"`    // have it, or a newer one
	Use     int      `json:"use"`     // send with it
	Lack    []string `json:"lack"`    // have neither it nor a newer one
	Down    []string `json:"down"`    // do not send with it, and cannot be reached
}

// lacking names who lacks the key, for people.
func (g gossipRow) lacking() string {
	names := slices.Clone(g.Lack)
	for i, name := range names {
		if slices.Contains(g.Down, name) {
			names[i] += " (down)"
		}
	}
	return someOf(names)
}

func (c *cli) keysList() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "list", Short: "Show this node's keys, and who has which gossip key", Args: exactly(),
		Long:    "Show this node's keys, never their secrets: the public halves of its own, and of each\ngossip key when it was made, whether this node sends with it, and how many members have\nit and send with it.",
		Example: "  meshctl keys list\n  meshctl keys list -f '{{(index .gossip 0).generation}}'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			client, _, err := c.client()
			if err != nil {
				return err
			}
			doc, err := readKeys(cmd.Context(), client)
			if err != nil {
				return c.unanswered(err)
			}
			return o.print(c.stdout, doc, doc.writeText)
		},
	}
	o.addFlags(cmd, "{{(index .gossip 0).generation}}")
	return cmd
}

func readKeys(ctx context.Context, client *status.Client) (*keysDocument, error) {
	reply, err := client.Keys(ctx)
	if err != nil {
		return nil, err
	}
	doc, err := client.Status(ctx)
	if err != nil {
		return nil, err
	}
	out := &keysDocument{Identity: doc.Node.ID, Tunnel: reply.Tunnel, Gossip: []gossipRow{}}
	for _, key := range reply.Gossip {
		row := gossipRow{GossipKey: key, Members: 1, Have: 1, Lack: []string{}, Down: []string{}}
		if key.Sends {
			row.Use = 1
		}
		for _, p := range doc.Peers {
			if p.State == status.PeerLeft || p.GossipKey == nil {
				continue
			}
			row.Members++
			switch {
			case p.GossipKey.Sends == key.Generation:
				row.Use++
			case p.State == status.PeerDown:
				row.Down = append(row.Down, p.Name)
			}
			if p.GossipKey.Newest >= key.Generation {
				row.Have++
			} else {
				row.Lack = append(row.Lack, p.Name)
			}
		}
		out.Gossip = append(out.Gossip, row)
	}
	return out, nil
}

func (d *keysDocument) writeText(w io.Writer, _ bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "Identity\t%s\n", d.Identity)
	fmt.Fprintf(t, "Tunnel\t%s\n", d.Tunnel)
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	fmt.Fprintln(t, "GOSSIP\tKEY\tMADE\tINSTALLED\tSENDS\tHAVE IT\tSEND WITH IT\tLACK IT")
	for _, g := range d.Gossip {
		sends := "-"
		if g.Sends {
			sends = "yes"
		}
		lack := "-"
		if len(g.Lack) > 0 {
			lack = g.lacking()
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%d of %d\t%d of %d\t%s\n", g.Generation, g.ID, timeOr(g.Made, "unknown"), timeOr(g.Installed, "from the start"),
			sends, g.Have, g.Members, g.Use, g.Members, lack)
	}
	return t.Flush()
}

const rotateGossipHelp = `Make a new gossip key and hand it to all members, sealed to each of them.

They install it, send with it when all have it, and then drop the one before: that one
is kept for a day, since tokens that were made before carry it. No packet is lost. A
node that is off gets the new key through its tunnel when it is back.

The first node does this by itself every 30 days; any node may whose certificate has
the right (` + "`meshctl cert renew NODE --rotate`" + `). With --now the keys before are dropped as
soon as nobody sends with them, and after two minutes whoever is down, as is wanted when
they are in the wrong hands: tokens made before are then useless.`

// rotateWait is how long the command watches a rotation. A member that is stopped
// holds it up for two minutes at most.
const rotateWait = 3 * time.Minute

func (c *cli) rotateGossip() *cobra.Command {
	var now, noWait bool
	cmd := &cobra.Command{
		Use: "gossip", Short: "Change the gossip key of the mesh", Long: rotateGossipHelp, Args: exactly(),
		Example: "  meshctl keys rotate gossip\n  meshctl keys rotate gossip --now      # a laptop was stolen",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := c.client()
			if err != nil {
				return err
			}
			err = client.RotateGossip(cmd.Context(), now)
			switch {
			case errors.Is(err, status.ErrNotAllowed):
				return fmt.Errorf("%w; with the CA key, `%s` gives a node the right", err, c.again("cert renew NODE --rotate"))
			case err != nil:
				return c.unanswered(err)
			case noWait:
				fmt.Fprintf(c.stdout, "The new key is made, and on its way to the members: see `%s`.\n", c.again("keys list"))
				return nil
			}
			return c.watchRotation(cmd.Context(), client, now)
		},
	}
	cmd.Flags().BoolVar(&now, "now", false, "drop the keys before as soon as nobody sends with them, after two minutes at the latest; tokens made before are then useless")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "do not watch how it goes")
	return cmd
}

// watchRotation says how a rotation goes, until all members that can be reached
// send with the new key, and, if it is wanted now, the keys before are gone.
func (c *cli) watchRotation(ctx context.Context, client *status.Client, now bool) error {
	ctx, cancel := context.WithTimeout(ctx, rotateWait)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	last, told := "", false
	for {
		doc, err := readKeys(ctx, client)
		if err == nil && len(doc.Gossip) > 0 {
			g := doc.Gossip[0]
			line := fmt.Sprintf("Key %s of generation %d: %d of %d members have it, %d send with it.", g.ID, g.Generation, g.Have, g.Members, g.Use)
			if line != last {
				fmt.Fprintln(c.stdout, line)
			}
			last = line
			before := doc.stillRead()
			switch {
			case g.Use+len(g.Down) < g.Members:
			case now && before != "":
				if !told {
					fmt.Fprintln(c.stdout, before)
				}
				told = true
			default:
				c.sayRotated(doc, now)
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("not all members send with the new key yet, or the key before is still read; it goes on by itself: see `%s`", c.again("keys list"))
		}
	}
}

// stillRead says why keys before the newest are still read, and until when; empty:
// they are gone.
func (d *keysDocument) stillRead() string {
	i := slices.IndexFunc(d.Gossip, func(g gossipRow) bool { return g.Generation < d.Gossip[0].Generation })
	if i < 0 {
		return ""
	}
	who, until := "members that may still send with it", ""
	if len(d.Gossip[0].Lack) > 0 {
		who = d.Gossip[0].lacking() + ", which may still send with it"
	}
	if at := d.Gossip[i].DropsBy; at != nil {
		until = ", until " + timeOr(at, "") + " at the latest"
	}
	return fmt.Sprintf("The key before is still read, for %s%s.", who, until)
}

func (c *cli) sayRotated(doc *keysDocument, now bool) {
	done := "Done: all members that can be reached send with the new key."
	if now {
		done = "Done: all members that can be reached send with the new key, and this one reads no key of before."
	}
	fmt.Fprintln(c.stdout, done)
	if len(doc.Gossip[0].Lack) > 0 {
		fmt.Fprintf(c.stdout, "Those that are down get it through their tunnels when they are back: %s.\n", doc.Gossip[0].lacking())
	}
	if !now {
		fmt.Fprintln(c.stdout, "The key before is kept for a day, since tokens carry it.")
	}
}

func (c *cli) rotateTunnel() *cobra.Command {
	return &cobra.Command{
		Use: "tunnel", Short: "Change this node's tunnel key", Args: exactly(),
		Long:    "Make a new key for this node's tunnels. The peers hear of it by gossip, and each makes\na new session; packets on their way meanwhile may be lost.",
		Example: "  meshctl keys rotate tunnel",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := c.client()
			if err != nil {
				return err
			}
			doc, err := client.Status(cmd.Context())
			if err == nil && doc.State == mesh.Revoked {
				return errOutcast
			}
			if err == nil {
				err = client.RotateTunnel(cmd.Context())
			}
			if err != nil {
				return c.unanswered(err)
			}
			keys, err := client.Keys(cmd.Context())
			if err != nil {
				return err
			}
			fmt.Fprintf(c.stdout, "The tunnel key of this node is now %s.\n", keys.Tunnel)
			return nil
		},
	}
}
