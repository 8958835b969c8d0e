package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"meshd/mesh/trust"
	"meshd/overlay/status"
)

// shownSerial is how much of a token's ID is shown, and enough to name it by.
const shownSerial = 12

// tokenRow is a token as `token list` shows it.
type tokenRow struct {
	ID          string         `json:"id"`
	State       string         `json:"state"`
	NotBefore   *time.Time     `json:"not_before"` // null: not known, but for the ID nothing is
	NotAfter    *time.Time     `json:"not_after"`
	Uses        uint64         `json:"uses"` // 0: any number
	NamePattern string         `json:"name_pattern"`
	Ranges      []netip.Prefix `json:"ranges"`
	Pins        []netip.Prefix `json:"pins"`
	Key         string         `json:"key"`        // first digits of the gossip key's hash; empty: not known
	Generation  uint64         `json:"generation"` // of that key
	Nodes       []string       `json:"nodes"`      // that have joined with it
}

// The states of a token.
const (
	tokenOpen     = "open"     // a node can join with it
	tokenUsed     = "used"     // as many have joined as may
	tokenExpired  = "expired"  // its time is over
	tokenOutdated = "outdated" // the members have dropped the gossip key in it
	tokenRevoked  = "revoked"
)

const tokenListHelp = `List the tokens of the mesh, without their secrets.

Tokens are known from the certificates of the nodes that joined with them, and from
the file tokens.jsonl beside the CA key, where ` + "`meshctl token create`" + ` notes what it
makes. One that was made with the CA key elsewhere, and that nobody used, is known
neither way.

A token holds the gossip key of when it was made. When the members have dropped that,
a day after a rotation or at once with --now, the token is outdated: nobody joins with
it any more.`

func (c *cli) tokenList() *cobra.Command {
	var ca string
	cmd := &cobra.Command{
		Use: "list", Short: "List the tokens", Long: tokenListHelp, Args: exactly(),
		Example: "  meshctl token list\n  meshctl token list -f '{{range .}}{{.id}} {{.state}} {{end}}'",
	}
	caFlag(cmd, &ca)
	return c.lists(cmd, "{{range .}}{{.id}} {{end}}", func(ctx context.Context, k *known, o *output, _ []string) error {
		now := time.Now()
		rows := k.tokens(ctx, c, ca, now)
		return o.print(c.stdout, rows, func(w io.Writer, wide bool) error { return writeTokens(w, rows, wide, now) })
	})
}

// tokens lists what is known, those that end last at the top.
func (k *known) tokens(ctx context.Context, c *cli, ca string, now time.Time) []tokenRow {
	rows := map[string]*tokenRow{}
	for _, note := range c.readNotes(ca, k.charter.ID()) {
		note.tokenRow.Nodes = []string{}
		rows[note.ID] = &note.tokenRow
	}
	for _, cert := range k.admitted() {
		id := cert.Credential.Serial.String()
		if rows[id] == nil {
			rows[id] = new(tokenRowOf(cert.Credential))
		}
		name := cert.Name
		if _, revoked := k.reg.Revoked(cert); revoked {
			name += " (revoked)" // a use is a use
		}
		rows[id].Nodes = append(rows[id].Nodes, name)
	}
	for _, r := range k.reg.Revocations() {
		if id := r.Credential.String(); r.Credential != (trust.Serial{}) && rows[id] == nil {
			rows[id] = &tokenRow{ID: id, Ranges: []netip.Prefix{}, Pins: []netip.Prefix{}, Nodes: []string{}}
		}
	}
	out, keys := []tokenRow{}, k.gossipKeys(ctx)
	for _, row := range rows {
		serial, err := hex.DecodeString(row.ID)
		switch {
		case err == nil && len(serial) == len(trust.Serial{}) && k.ended(trust.Serial(serial)):
			row.State = tokenRevoked
		case row.NotAfter == nil || now.After(*row.NotAfter):
			row.State = tokenExpired
		case row.Uses > 0 && len(row.Nodes) >= int(row.Uses):
			row.State = tokenUsed
		case dropped(keys, row):
			row.State = tokenOutdated
		default:
			row.State = tokenOpen
		}
		slices.Sort(row.Nodes)
		out = append(out, *row)
	}
	slices.SortFunc(out, func(a, b tokenRow) int {
		return cmp.Or(orZero(b.NotAfter).Compare(orZero(a.NotAfter)), cmp.Compare(a.ID, b.ID))
	})
	return out
}

func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

// gossipKeys lists those that this node opens messages with; none: not known.
func (k *known) gossipKeys(ctx context.Context) []status.GossipKey {
	if k.daemon == nil {
		return k.gossip
	}
	reply, err := k.daemon.Keys(ctx)
	if err != nil {
		return nil // whoever may not see them sees the tokens all the same
	}
	return reply.Gossip
}

// dropped tells whether the key in a token is gone, which is older than one that is
// there: a node that was away may lack a newer one.
func dropped(keys []status.GossipKey, row *tokenRow) bool {
	if row.Key == "" || len(keys) == 0 {
		return false
	}
	newest := slices.MaxFunc(keys, func(a, b status.GossipKey) int { return cmp.Compare(a.Generation, b.Generation) })
	return row.Generation < newest.Generation && !slices.ContainsFunc(keys, func(g status.GossipKey) bool { return g.ID == row.Key })
}

// joined lists one certificate for each node and token by which it is a member.
func (k *known) joined() []*trust.Certificate {
	return slices.DeleteFunc(k.admitted(), func(cert *trust.Certificate) bool {
		_, revoked := k.reg.Revoked(cert)
		return revoked
	})
}

// admitted lists one certificate for each node and token by which it was admitted,
// those of nodes that were revoked since among them.
func (k *known) admitted() []*trust.Certificate {
	var out []*trust.Certificate
	for _, cert := range k.certificates {
		if cert.Credential == nil || !k.reg.Admitted(cert.Hash) {
			continue
		}
		same := func(x *trust.Certificate) bool {
			return x.ID() == cert.ID() && x.Credential.Serial == cert.Credential.Serial
		}
		if !slices.ContainsFunc(out, same) {
			out = append(out, cert)
		}
	}
	return out
}

func tokenRowOf(c *trust.Credential) tokenRow {
	return tokenRow{
		ID: c.Serial.String(), NotBefore: new(c.NotBefore.UTC()), NotAfter: new(c.NotAfter.UTC()), Uses: c.Uses, NamePattern: c.NamePattern,
		Ranges: append([]netip.Prefix{}, c.Rights.Ranges...), Pins: append([]netip.Prefix{}, c.Rights.Pins...), Nodes: []string{},
	}
}

func writeTokens(w io.Writer, rows []tokenRow, wide bool, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "TOKEN\tSTATE\tMADE\tENDS\tUSED\tNAME\tSUBNET\tNODES")
	for _, r := range rows {
		id := r.ID
		if !wide && len(id) > shownSerial {
			id = id[:shownSerial]
		}
		used := fmt.Sprint(len(r.Nodes))
		if r.Uses > 0 {
			used += fmt.Sprintf(" of %d", r.Uses)
		}
		subnet := cmp.Or(prefixes(append(slices.Clone(r.Pins), r.Ranges...)), "any")
		name, ends := cmp.Or(r.NamePattern, "any"), "-"
		if r.NotAfter != nil {
			ends = remaining(now, *r.NotAfter)
		} else {
			used, name, subnet = "-", "-", "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", id, r.State, timeOr(r.NotBefore, "-"), ends, used, name, subnet, cmp.Or(someOf(r.Nodes), "-"))
	}
	return t.Flush()
}
