package main

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"meshd/cmd/internal/exit"
	"meshd/mesh"
	"meshd/mesh/trust"
)

const tokenRevokeHelp = `End a token before its time. It needs the CA key.

Nobody joins with it any more, on any node within seconds. Nodes that have joined
with it stay, as far as this host knows of them; one whose joining has not come
through to here yet does not. With --nodes those that have joined are thrown out as
well, for good.

TOKEN is the token itself, - to read it from standard input, or the beginning of its
ID (at least 6 characters) as ` + "`meshctl token list`" + ` and ` + "`meshctl token inspect`" + ` show it.`

func (c *cli) tokenRevoke() *cobra.Command {
	var ca string
	var nodes, yes bool
	cmd := &cobra.Command{
		Use: "revoke TOKEN|-", Short: "End a token before its time", Long: tokenRevokeHelp, Args: exactly("TOKEN"),
		Example: "  meshctl token revoke 3f9a02c1d4e5\n  meshctl token revoke 3f9a02c1d4e5 --nodes",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.runTokenRevoke(cmd.Context(), args[0], ca, nodes, yes)
		},
	}
	cmd.Flags().BoolVar(&nodes, "nodes", false, "throw out the nodes that have joined with it, too")
	yesFlag(cmd, &yes)
	caFlag(cmd, &ca)
	return cmd
}

func (c *cli) runTokenRevoke(ctx context.Context, name, ca string, nodes, yes bool) error {
	k, err := c.openKnown(ctx)
	if err != nil {
		return err
	}
	defer k.release()
	serial, err := c.findToken(ctx, k, name, ca)
	if err != nil {
		return err
	}
	key, err := k.loadCA(c, ca)
	if err != nil {
		return err
	}
	if k.ended(serial) && !nodes {
		fmt.Fprintln(c.stdout, "That token was revoked before: nothing is changed.")
		return nil
	}
	r := trust.Revocation{Credential: serial, At: time.Now()}
	var joined []string
	for _, cert := range k.joined() {
		if cert.Credential.Serial == serial {
			r.Except, joined = append(r.Except, cert.ID()), append(joined, cert.Name)
		}
	}
	slices.SortFunc(r.Except, mesh.NodeID.Compare)
	if nodes {
		r.Except = nil
	}
	if nodes && len(joined) > 0 {
		fmt.Fprintf(c.stderr, "Warning: this throws out %s\n", strings.Join(joined, ", "))
	}
	if err := c.confirm(yes, "Revoke token "+serial.String()[:shownSerial]); err != nil {
		return err
	}
	raw, err := r.Sign(key)
	if err != nil {
		return err
	}
	if err := k.submit(ctx, raw); err != nil {
		return err
	}
	if nodes {
		if err := k.revokeRenewed(ctx, serial, key); err != nil {
			return err
		}
	}
	what := "Nobody has joined with it."
	switch {
	case len(joined) > 0 && nodes:
		what = "Thrown out: " + someOf(joined) + "."
	case len(joined) > 0:
		what = "Nodes that have joined with it stay: " + someOf(joined) + "."
	}
	fmt.Fprintf(c.stdout, "Revoked token %s. %s\n%s", serial.String()[:shownSerial], what, k.afterwards())
	return nil
}

// revokeRenewed throws out by name those who joined with a token and have another
// certificate by now, which does not end with the token.
func (k *known) revokeRenewed(ctx context.Context, serial trust.Serial, ca ed25519.PrivateKey) error {
	for _, cert := range k.joined() {
		byOther := func(c *trust.Certificate) bool { return c.Credential == nil || c.Credential.Serial != serial }
		if cert.Credential.Serial != serial || !slices.ContainsFunc(k.reg.Certificates(cert.ID()), byOther) {
			continue
		}
		r := trust.Revocation{Node: cert.ID(), At: time.Now()}
		raw, err := r.Sign(ca)
		if err != nil {
			return err
		}
		if err := k.submit(ctx, raw); err != nil {
			return fmt.Errorf("revoke node %s: %w", cert.Name, err)
		}
	}
	return nil
}

// findToken takes a token for its ID, or the beginning of the ID of one that is
// known. An ID in full need not be known.
func (c *cli) findToken(ctx context.Context, k *known, name, ca string) (trust.Serial, error) {
	var none trust.Serial
	raw, err := hex.DecodeString(name)
	switch {
	case err == nil && len(raw) == len(none) && trust.Serial(raw) != none:
		return trust.Serial(raw), nil
	case name == "-" || strings.HasPrefix(name, "meshd"):
		token, err := c.readToken(name)
		if err != nil {
			return none, err
		}
		if token.Charter.ID() != k.charter.ID() {
			return none, exit.With(exit.BadData, fmt.Errorf("the token is of another mesh, %s (%s)", token.Charter.Name, token.Charter.ID()))
		}
		return token.Credential.Serial, nil
	case len(name) < 6:
		return none, usage("%q: give at least 6 characters of the token's ID: see `%s`", name, c.again("token list"))
	}
	var ids []string
	for _, row := range k.tokens(ctx, c, ca, time.Now()) {
		if strings.HasPrefix(row.ID, name) {
			ids = append(ids, row.ID)
		}
	}
	switch len(ids) {
	case 0:
		return none, exit.With(exit.BadData, fmt.Errorf("no token %.80q is known: see `%s`; its whole ID, from `meshctl token inspect`, will do all the same", name, c.again("token list")))
	case 1:
		raw, err := hex.DecodeString(ids[0])
		if err != nil || len(raw) != len(none) {
			return none, exit.With(exit.BadData, fmt.Errorf("%s has a token with a damaged ID", notesName))
		}
		return trust.Serial(raw), nil
	}
	return none, exit.With(exit.BadData, fmt.Errorf("several tokens match %s: %s", name, strings.Join(ids, ", ")))
}
