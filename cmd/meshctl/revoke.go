package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"meshd/cmd/internal/exit"
	"meshd/mesh/registry"
	"meshd/mesh/trust"
	"meshd/overlay/status"
)

const revokeHelp = `Throw a node out of the mesh, for good. It needs the CA key.

Every node drops its tunnel to it on hearing of that, within a second or two, and
refuses it from then on, over restarts too. Its subnets become free. Nodes that it
vouched for stay. It comes back only as another node: with new keys and a new token.

NODE is a name, an ID or its first 8 characters, or a mesh address.

It has the gossip key still, and so can listen to gossip until that is rotated:

  meshctl keys rotate gossip --now

If it also holds a token, end that with ` + "`meshctl token revoke`" + `.`

func (c *cli) revoke() *cobra.Command {
	var ca string
	var yes bool
	cmd := &cobra.Command{
		Use: "revoke NODE", Short: "Throw a node out of the mesh", Long: revokeHelp, Args: exactly("NODE"),
		Example: "  meshctl revoke laptop\n  meshctl revoke 10.86.80.1 --yes --ca /mnt/key/ca.key",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.runRevoke(cmd.Context(), args[0], ca, yes)
		},
		ValidArgsFunction: c.completeNodes,
	}
	yesFlag(cmd, &yes)
	caFlag(cmd, &ca)
	return cmd
}

func yesFlag(cmd *cobra.Command, to *bool) {
	cmd.Flags().BoolVarP(to, "yes", "y", false, "do not ask")
}

func (c *cli) runRevoke(ctx context.Context, name, ca string, yes bool) error {
	k, err := c.openKnown(ctx)
	if err != nil {
		return err
	}
	defer k.release()
	node, err := k.find(name)
	if gone, was := revokedAs(k.revokedRows(time.Now()), name); err != nil && was {
		fmt.Fprintf(c.stdout, "%s was revoked before, at %s: nothing is changed.\n", cmp.Or(gone.Node, gone.ID.Short()), timeText(*gone.Revoked))
		return nil
	}
	if err != nil {
		return err
	}
	key, err := k.loadCA(c, ca)
	if err != nil {
		return err
	}
	c.warnOfRevoking(k, node)
	if err := c.confirm(yes, fmt.Sprintf("Throw out %s", nodeText(node))); err != nil {
		return err
	}
	r := trust.Revocation{Node: node.ID, At: time.Now()}
	raw, err := r.Sign(key)
	if err != nil {
		return err
	}
	if err := k.submit(ctx, raw); err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "Revoked %s. %s", nodeText(node), k.afterwards())
	fmt.Fprintf(c.stderr, "Note: it has the gossip key still: `%s` on a node that may, once all know of this\n", c.again("keys rotate gossip --now"))
	return nil
}

// warnOfRevoking says what a person may not have thought of.
func (c *cli) warnOfRevoking(k *known, node registry.Member) {
	if node.ID == k.self {
		fmt.Fprintln(c.stderr, "Warning: that is this node itself: it loses the mesh. `meshctl leave` is how a node goes in peace.")
	}
	if mayRotate(node) && !slices.ContainsFunc(k.members(), func(m registry.Member) bool { return m.ID != node.ID && mayRotate(m) }) {
		fmt.Fprintf(c.stderr, "Warning: no other node may rotate the gossip key: give one the right with `%s`\n", c.again("cert renew NODE --rotate"))
	}
	byCA := func(m registry.Member) bool { return m.ID != node.ID && m.Certificate.Credential == nil }
	if !slices.ContainsFunc(k.members(), byCA) {
		fmt.Fprintf(c.stderr, "Warning: no other node has a certificate by the CA, so who joins later can believe nobody: give the oldest node one with `%s`\n", c.again("cert renew NODE"))
	}
}

func mayRotate(m registry.Member) bool {
	return slices.Contains(m.Certificate.Capabilities, trust.CapRotate)
}

// nodeText names a node so that nobody takes it for another.
func nodeText(m registry.Member) string {
	words := []string{m.ID.String()}
	for _, l := range m.Leases() {
		words = append(words, prefixes(l.Prefixes))
	}
	return fmt.Sprintf("%s (%s)", m.Certificate.Name, strings.Join(words, ", "))
}

const forgetHelp = `Strike a node off that is gone for good: its subnets become free for others.

With the CA key that counts at once. Without it, any member may say so once the node
was not heard of for as long as a lease lasts (24 hours). It counts when another member
says so too, which comes by itself, as the mesh forgets such nodes without being told.
If the node comes back after all, it is still a member, and claims a subnet anew; to keep it out, use ` + "`meshctl revoke`" + `.

NODE is a name, an ID or its first 8 characters, or a mesh address.`

func (c *cli) forget() *cobra.Command {
	var ca string
	var yes bool
	cmd := &cobra.Command{
		Use: "forget NODE", Short: "Free the subnets of a node that is gone", Long: forgetHelp, Args: exactly("NODE"),
		Example: "  meshctl forget old-server\n  meshctl forget old-server --yes --ca /mnt/key/ca.key",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.runForget(cmd.Context(), args[0], ca, yes)
		},
		ValidArgsFunction: c.completeNodes,
	}
	yesFlag(cmd, &yes)
	caFlag(cmd, &ca)
	return cmd
}

func (c *cli) runForget(ctx context.Context, name, ca string, yes bool) error {
	k, err := c.openKnown(ctx)
	if err != nil {
		return err
	}
	defer k.release()
	node, err := k.find(name)
	switch {
	case err != nil:
		return err
	case node.ID == k.self:
		return usage("that is this node itself: use `%s`", c.again("leave"))
	case node.Record == nil:
		return exit.With(exit.BadData, fmt.Errorf("%s has never said anything, so it has no subnet to be freed", node.Certificate.Name))
	}
	key, err := k.loadCA(c, ca)
	byMember := ca == "" && (exit.Code(err) == exit.NoInput || errors.Is(err, fs.ErrPermission))
	if err != nil && !byMember {
		return err
	}
	if byMember {
		if err := k.needDaemon(c); err != nil {
			return err
		}
	}
	if p := peerOf(k.doc, node); p != nil && p.State == status.PeerUp {
		fmt.Fprintf(c.stderr, "Warning: %s answers: it will claim a subnet anew, perhaps another one.\n", p.Name)
	}
	if err := c.confirm(yes, fmt.Sprintf("Forget %s", nodeText(node))); err != nil {
		return err
	}
	free := "its subnets are free"
	if byMember {
		free += " when another member says so too, which comes by itself"
		if err := k.daemon.Forget(ctx, node.ID); err != nil {
			return err
		}
	} else {
		t := trust.Tombstone{Node: node.ID, Reason: trust.Forgotten, At: time.Now()}
		t.Version.Epoch, t.Version.Seq = node.Record.Version.Epoch, trust.WholeEpoch
		raw, err := t.Sign(key)
		if err != nil {
			return err
		}
		if err := k.submit(ctx, raw); err != nil {
			return err
		}
	}
	fmt.Fprintf(c.stdout, "Forgot %s: %s. %s", nodeText(node), free, k.afterwards())
	return nil
}

// peerOf finds a member in the document; nil: it is this node, or not there.
func peerOf(doc *status.Document, m registry.Member) *status.Peer {
	if i := slices.IndexFunc(doc.Peers, func(p status.Peer) bool { return p.ID == m.ID }); i >= 0 {
		return &doc.Peers[i]
	}
	return nil
}
