package main

import (
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"meshd/cmd/internal/exit"
	"meshd/mesh/registry"
	"meshd/mesh/trust"
)

const certRenewHelp = `Renew certificates of members: the same name, identity, rights and seniority, and a
later end. It needs the CA key.

The new certificate goes to its node by gossip, and counts there at once; nothing is
restarted and no packet is lost. A node that was off meanwhile gets it when it is
back, as long as its old one has not ended; else take it there by hand.

Where the CA key is on a machine that is not in the mesh:

  node#  meshctl cert renew --request > request
  ca$    meshctl cert renew --sign request --ca ca.key > certificate
  node#  meshctl cert renew --install certificate

A certificate that ends later than --life from now stays as it is. With --rotate and
without --life the new one ends no earlier than the old one.

The machine with the key does not know who was revoked: sign for those you know. A
node that was revoked by name stays out all the same.`

type renewFlags struct {
	all, yes, rotate, request bool
	sign, install, ca         string
	life                      time.Duration
	given                     func(flag string) bool // on the command line
}

func (c *cli) certRenew() *cobra.Command {
	f := renewFlags{life: firstLife}
	cmd := &cobra.Command{
		Use: "renew [NODE...]", Short: "Renew certificates", Long: certRenewHelp,
		Example: "  meshctl cert renew beta\n  meshctl cert renew --all --life 730d\n  meshctl cert renew beta --rotate   # it may rotate the gossip key, too",
		RunE: func(cmd *cobra.Command, args []string) error {
			f.given = cmd.Flags().Changed
			return c.runCertRenew(cmd.Context(), args, f)
		},
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
			return c.completeNodes(cmd, nil, word)
		},
	}
	cmd.Flags().BoolVar(&f.all, "all", false, "renew those of all members")
	cmd.Flags().Var((*life)(&f.life), "life", "`TIME` for which they are valid from now on, such as 365d")
	cmd.Flags().BoolVar(&f.rotate, "rotate", false, "let the nodes rotate the gossip key, too")
	cmd.Flags().BoolVar(&f.request, "request", false, "print this node's certificate, to be signed elsewhere")
	cmd.Flags().StringVar(&f.sign, "sign", "", "sign the request in `FILE`, and print the certificate; - is standard input")
	cmd.Flags().StringVar(&f.install, "install", "", "take the certificate in `FILE` up; - is standard input")
	yesFlag(cmd, &f.yes)
	caFlag(cmd, &f.ca)
	return cmd
}

func (c *cli) runCertRenew(ctx context.Context, names []string, f renewFlags) error {
	ways := 0
	for _, way := range []bool{len(names) > 0, f.all, f.request, f.sign != "", f.install != ""} {
		if way {
			ways++
		}
	}
	switch {
	case ways == 0:
		return usage("name the NODEs, or use --all, --request, --sign or --install: see `meshctl cert renew --help`")
	case ways > 1:
		return usage("NODEs, --all, --request, --sign and --install do not go together: give one of them")
	case f.life < time.Hour:
		return usage("--life %s: at least 1h", f.life)
	case f.given("yes") && f.sign == "":
		return usage("--yes goes with --sign, which asks; nothing else here does")
	}
	for _, flag := range []string{"life", "rotate", "ca"} {
		if f.given(flag) && (f.request || f.install != "") {
			return usage("--%s does not go with --request and --install, which sign nothing: give it to --sign", flag)
		}
	}
	switch {
	case f.sign != "":
		return c.signRequest(f)
	}
	k, err := c.openKnown(ctx)
	if err != nil {
		return err
	}
	defer k.release()
	switch {
	case f.request:
		if k.outcast() {
			return errOutcast
		}
		own, err := k.find(k.self.String())
		if err != nil {
			return err
		}
		return pem.Encode(c.stdout, &pem.Block{Type: pemRequest, Bytes: k.certificate(own).Raw})
	case f.install != "":
		return c.installCertificate(ctx, k, f.install)
	}
	return c.renew(ctx, k, names, f)
}

// The forms in which a certificate travels by hand.
const (
	pemRequest     = "MESHD CERTIFICATE REQUEST"
	pemCertificate = "MESHD CERTIFICATE"
)

func (c *cli) renew(ctx context.Context, k *known, names []string, f renewFlags) error {
	var nodes []registry.Member
	if f.all {
		nodes = slices.DeleteFunc(k.members(), func(m registry.Member) bool { return m.Record != nil && m.Record.Left })
	}
	for _, name := range names {
		m, err := k.find(name)
		if err != nil {
			return err
		}
		nodes = append(nodes, m)
	}
	key, err := k.loadCA(c, f.ca)
	if err != nil {
		return err
	}
	now, done := time.Now(), 0
	for _, m := range nodes {
		raw, next, err := renewed(k.certificate(m), key, f, now)
		if late, ok := errors.AsType[*lateError](err); ok && f.all {
			fmt.Fprintf(c.stderr, "Note: %v; it stays as it is\n", late)
			continue
		}
		if err != nil {
			return err
		}
		if err := k.submit(ctx, raw); err != nil {
			return fmt.Errorf("renew certificate of %s: %w", m.Certificate.Name, err)
		}
		fmt.Fprintf(c.stdout, "Renewed the certificate of %s until %s.\n", m.Certificate.Name, timeText(next.NotAfter))
		done++
	}
	switch {
	case done == 0:
		fmt.Fprintln(c.stdout, "Nothing is changed.")
	case k.daemon == nil:
		fmt.Fprint(c.stdout, k.afterwards())
	}
	return nil
}

// lateError says that a certificate ends later than the one that was to follow it.
type lateError struct {
	name string
	end  time.Time
	life time.Duration
	now  time.Time
}

func (e *lateError) Error() string {
	days := e.end.Sub(e.now)/(24*time.Hour) + 1
	return fmt.Sprintf("the certificate of %s ends at %s, later than --life %s from now: for a later end use --life %dd", e.name, timeText(e.end), (*life)(&e.life), days)
}

// renewed signs the certificate that follows another one. It begins when that did,
// so its holder can vouch for those who came meanwhile, if their witness is revoked.
func renewed(old *trust.Certificate, ca ed25519.PrivateKey, f renewFlags, now time.Time) ([]byte, *trust.Certificate, error) {
	next := trust.Certificate{
		Serial: trust.NewSerial(), Identity: old.Identity, Name: old.Name, SealKey: old.SealKey, Rights: old.Rights,
		Capabilities: slices.Clone(old.Capabilities), NotBefore: old.NotBefore, NotAfter: now.Add(f.life), Admitted: old.Admitted,
	}
	if f.rotate && !slices.Contains(next.Capabilities, trust.CapRotate) {
		next.Capabilities = append(next.Capabilities, trust.CapRotate)
	}
	if !next.NotAfter.After(old.NotAfter) {
		if !f.rotate || f.given("life") {
			return nil, nil, exit.With(exit.Usage, &lateError{old.Name, old.NotAfter, f.life, now})
		}
		next.NotAfter = old.NotAfter.Add(time.Second) // the node goes by the one that ends last
	}
	raw, err := next.Sign(ca)
	return raw, &next, err
}

// signRequest works without state: the machine with the CA key need not be a node.
func (c *cli) signRequest(f renewFlags) error {
	raw, err := c.readPEM(f.sign, pemRequest)
	if err != nil {
		return err
	}
	key, err := c.openCA(f.ca)
	if err != nil {
		return err
	}
	old, err := trust.ParseCertificate(raw, key.Public().(ed25519.PublicKey))
	if err != nil {
		return exit.With(exit.BadData, fmt.Errorf("read request %s: %w: it must be of the mesh whose CA key this is", f.sign, err))
	}
	now := time.Now()
	signed, next, err := renewed(old, key, f, now)
	if err != nil {
		return err
	}
	row := certRowOf(next, now)
	fmt.Fprintln(c.stderr, "Note: whether the node was ever admitted, or is revoked, is not known here.")
	if err := c.confirm(f.yes, fmt.Sprintf("Sign for node %s (%s) until %s", row.Node, row.ID, timeText(*row.NotAfter))); err != nil {
		return err
	}
	return pem.Encode(c.stdout, &pem.Block{Type: pemCertificate, Bytes: signed})
}

func (c *cli) installCertificate(ctx context.Context, k *known, path string) error {
	raw, err := c.readPEM(path, pemCertificate)
	if err != nil {
		return err
	}
	cert, err := trust.ParseCertificate(raw, k.charter.CA)
	if err != nil {
		return exit.With(exit.BadData, fmt.Errorf("read certificate %s: %w", path, err))
	}
	if cert.ID() != k.self {
		return exit.With(exit.BadData, fmt.Errorf("the certificate is for %s (%s), and this node is %s", cert.Name, cert.ID(), k.self))
	}
	if err := k.submit(ctx, raw); err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "This node's certificate is valid until %s. %s", timeText(cert.NotAfter), k.afterwards())
	return nil
}

// readPEM reads a block of one type from a file or, for -, from standard input.
func (c *cli) readPEM(path, kind string) ([]byte, error) {
	in := c.stdin
	if path != "-" {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil, exit.With(exit.NoInput, err)
		}
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, 1<<16))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != kind {
		return nil, exit.With(exit.BadData, fmt.Errorf("read %s: it holds no %s", path, kind))
	}
	return block.Bytes, nil
}
