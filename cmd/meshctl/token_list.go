package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"meshd/cmd/internal/exit"
	"meshd/mesh"
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

// notesName is the file beside the CA key in which tokens are noted, a line of JSON
// each, without secrets.
const notesName = "tokens.jsonl"

// tokenNote is such a line.
type tokenNote struct {
	Mesh mesh.ID `json:"mesh"`
	tokenRow
}

func (c *cli) notesPath(ca string) string {
	return filepath.Join(filepath.Dir(c.caPath(ca)), notesName)
}

// noteToken remembers a token that was made. A line goes into the file whole.
func (c *cli) noteToken(ca string, t *trust.Token, generation uint64) error {
	note := tokenNote{t.Charter.ID(), tokenRowOf(t.Credential)}
	note.State, note.Key, note.Generation = tokenOpen, trust.KeyIDOf(t.GossipKey).String(), generation
	line, err := json.Marshal(note)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(c.notesPath(ca), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// readNotes reads the tokens that were made for a mesh. Whoever may not read them,
// or has none, knows those that were used.
func (c *cli) readNotes(ca string, id mesh.ID) []tokenNote {
	raw, err := os.ReadFile(c.notesPath(ca))
	if err != nil {
		fmt.Fprintf(c.stderr, "Note: %v: tokens that nobody used are not known; the file is beside the CA key, which --ca names\n", err)
		return nil
	}
	var notes []tokenNote
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		var n tokenNote
		if json.Unmarshal(lines.Bytes(), &n) == nil && n.Mesh == id && len(n.ID) == 2*len(trust.Serial{}) && n.NotBefore != nil && n.NotAfter != nil {
			notes = append(notes, n)
		}
	}
	return notes
}
