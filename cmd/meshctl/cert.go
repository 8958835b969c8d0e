package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"meshd/mesh"
	"meshd/mesh/registry"
	"meshd/mesh/trust"
)

const certHelp = `Show the nodes' certificates, and renew them.

A certificate makes a node a member until it ends: a year after the node joined,
unless the token said otherwise. A node warns 14 days before its own ends.`

func (c *cli) cert() *cobra.Command {
	cmd := &cobra.Command{Use: "cert", Short: "Show certificates, and renew them", Long: certHelp}
	cmd.AddCommand(c.certShow(), c.certRenew())
	return cmd
}

// certRow is a certificate as `cert show` shows it.
type certRow struct {
	Node         string         `json:"node"` // empty: not known, of a node that was revoked
	ID           mesh.NodeID    `json:"id"`
	Revoked      *time.Time     `json:"revoked"`    // when its node was; null: it is a member
	Serial       string         `json:"serial"`     // empty: not known
	Token        string         `json:"token"`      // by which it was made; empty: the CA signed it
	NotBefore    *time.Time     `json:"not_before"` // null: not known
	NotAfter     *time.Time     `json:"not_after"`
	Valid        bool           `json:"valid"`    // at this time
	InUse        bool           `json:"in_use"`   // its node has it and goes by it
	Admitted     *time.Time     `json:"admitted"` // when the node joined
	Ranges       []netip.Prefix `json:"ranges"`   // from which it may lease; empty: any
	Pins         []netip.Prefix `json:"pins"`     // which it leases, and nothing else
	Capabilities []string       `json:"capabilities"`
}

func certRowOf(cert *trust.Certificate, now time.Time) certRow {
	row := certRow{
		Node: cert.Name, ID: cert.ID(), Serial: cert.Serial.String(), NotBefore: new(cert.NotBefore.UTC()), NotAfter: new(cert.NotAfter.UTC()),
		Valid: cert.ValidAt(now), Admitted: new(cert.Admitted.UTC()), Ranges: append([]netip.Prefix{}, cert.Rights.Ranges...),
		Pins: append([]netip.Prefix{}, cert.Rights.Pins...), Capabilities: append([]string{}, cert.Capabilities...),
	}
	if cert.Credential != nil {
		row.Token = cert.Credential.Serial.String()
	}
	return row
}

// revokedRows lists the nodes that were revoked, the last one first.
func (k *known) revokedRows(now time.Time) []certRow {
	rows := []certRow{}
	at := map[mesh.NodeID]time.Time{}
	for _, r := range k.reg.Revocations() {
		if !r.Node.IsZero() {
			at[r.Node] = r.At
		}
	}
	for _, r := range k.reg.Revocations() { // who came by a token that was revoked
		for _, cert := range k.certificates {
			_, named := at[cert.ID()]
			if id := cert.ID(); !named && r.Covers(cert) && len(k.reg.Certificates(id)) == 0 {
				at[id] = r.At
			}
		}
	}
	for id, when := range at {
		row := certRow{ID: id, Ranges: []netip.Prefix{}, Pins: []netip.Prefix{}, Capabilities: []string{}}
		for _, cert := range k.certificates {
			if cert.ID() == id && (row.NotBefore == nil || cert.NotBefore.After(*row.NotBefore)) {
				row = certRowOf(cert, now)
			}
		}
		row.Revoked, row.Valid = new(when.UTC()), false
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b certRow) int { return cmp.Or(b.Revoked.Compare(*a.Revoked), a.ID.Compare(b.ID)) })
	return rows
}

// shownRevoked is how many nodes that were revoked a table shows unasked.
const shownRevoked = 10

func (c *cli) certShow() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "show [NODE]", Short: "Show the certificates",
		Args: func(cmd *cobra.Command, args []string) error {
			if all && len(args) > 0 {
				return usage("--all does not go with a NODE")
			}
			return atMostOne(cmd, args)
		},
		Long:              "Show the newest certificate of a node, or of all nodes: those that end first at the\ntop, and below them nodes that were revoked, the last one first.",
		Example:           "  meshctl cert show\n  meshctl cert show beta\n  meshctl cert show -f '{{range .}}{{.node}} {{.not_after}} {{end}}'",
		ValidArgsFunction: c.completeNodes,
	}
	cmd.Flags().BoolVar(&all, "all", false, "show all nodes that were revoked, however many")
	return c.lists(cmd, "{{range .}}{{.node}} {{.not_after}} {{end}}", func(_ context.Context, k *known, o *output, args []string) error {
		now, rows := time.Now(), []certRow{}
		nodes, revoked := k.members(), k.revokedRows(now)
		if len(args) > 0 {
			one, err := k.find(args[0])
			gone, was := revokedAs(revoked, args[0])
			switch {
			case err == nil:
				nodes, revoked = []registry.Member{one}, nil
			case was:
				nodes, revoked = nil, []certRow{gone}
			default:
				return err
			}
		}
		for _, m := range nodes {
			row := certRowOf(k.certificate(m), now)
			row.InUse = m.Record != nil && m.Record.Certificate == k.certificate(m).Hash
			rows = append(rows, row)
		}
		slices.SortStableFunc(rows, func(a, b certRow) int { return a.NotAfter.Compare(*b.NotAfter) })
		if left := len(revoked) - shownRevoked; left > 0 && !all && o.isText() {
			revoked = revoked[:shownRevoked]
			fmt.Fprintf(c.stderr, "Note: %d more were revoked before: --all shows them\n", left)
		}
		rows = append(rows, revoked...)
		return o.print(c.stdout, rows, func(w io.Writer, wide bool) error { return writeCerts(w, rows, wide, now) })
	})
}

// revokedAs finds a node that was revoked by its ID, the first 8 characters of it, or
// a name that one of them has.
func revokedAs(revoked []certRow, name string) (certRow, bool) {
	var found []certRow
	for _, r := range revoked {
		if r.Node == name && name != "" || len(name) >= 8 && strings.HasPrefix(r.ID.String(), name) {
			found = append(found, r)
		}
	}
	if len(found) != 1 {
		return certRow{}, false
	}
	return found[0], true
}

func writeCerts(w io.Writer, rows []certRow, wide bool, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	head := "NODE\tENDS\tLEFT\tSIGNED BY\tSUBNET\tRIGHTS"
	if wide {
		head += "\tIN USE\tJOINED\tSERIAL\tID"
	}
	fmt.Fprintln(t, head)
	for _, r := range rows {
		signed, ends, left := "CA", timeOr(r.NotAfter, "-"), "-"
		switch {
		case r.Serial == "":
			signed = "-"
		case r.Token != "":
			signed = "token " + r.Token[:shownSerial]
		}
		subnet := "any"
		switch {
		case r.Revoked != nil:
			ends, left, subnet = timeText(*r.Revoked), "revoked", "-" // that was its end
		case r.NotAfter != nil:
			left = remaining(now, *r.NotAfter)
		}
		switch {
		case r.Revoked != nil: // it leases nothing
		case len(r.Pins) > 0:
			subnet = "exactly " + prefixes(r.Pins)
		case len(r.Ranges) > 0:
			subnet = "from " + prefixes(r.Ranges)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s", cmp.Or(r.Node, r.ID.Short()), ends, left, signed, subnet, cmp.Or(strings.Join(r.Capabilities, ", "), "-"))
		if wide {
			inUse := "no"
			if r.InUse {
				inUse = "yes"
			}
			fmt.Fprintf(t, "\t%s\t%s\t%s\t%s", inUse, timeOr(r.Admitted, "-"), cmp.Or(r.Serial, "-"), r.ID)
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}
