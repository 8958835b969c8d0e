package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"meshd/cmd/internal/exit"
	"meshd/mesh"
	"meshd/mesh/registry"
	"meshd/mesh/statedir"
	"meshd/mesh/trust"
	"meshd/overlay/config"
	"meshd/overlay/status"
)

// known is what this host knows of its mesh, verified, and where a change goes:
// the daemon, or the state while none runs.
type known struct {
	charter      *trust.Charter
	reg          *registry.Registry
	certificates []*trust.Certificate // whether they count or not, see reg
	self         mesh.NodeID
	doc          *status.Document   // without a daemon only what the objects say
	gossip       []status.GossipKey // without a daemon; see gossipKeys
	daemon       *status.Client     // nil: none runs
	submit       func(ctx context.Context, raw []byte) error
	release      func()
}

// openKnown asks the daemon, or else reads the state and locks it. The owner calls
// release.
func (c *cli) openKnown(ctx context.Context) (*known, error) {
	client, cfg, err := c.client()
	if err != nil {
		return nil, err
	}
	raw, err := client.Objects(ctx)
	if errors.Is(err, status.ErrNoDaemon) && cfg != nil {
		return lockKnown(cfg)
	}
	if err != nil {
		return nil, c.unanswered(err)
	}
	k := &known{daemon: client, submit: client.Submit, release: func() {}}
	if err := k.read(raw); err != nil {
		return nil, fmt.Errorf("read the daemon's answer: %w", err)
	}
	if k.doc, err = client.Status(ctx); err != nil {
		return nil, err
	}
	k.self = k.doc.Node.ID
	return k, nil
}

// lists makes a command show what this host knows of its mesh, in any form of output.
func (c *cli) lists(cmd *cobra.Command, example string, show func(ctx context.Context, k *known, o *output, args []string) error) *cobra.Command {
	var o output
	o.addFlags(cmd, example)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := o.check(); err != nil {
			return err
		}
		k, err := c.openKnown(cmd.Context())
		if err != nil {
			return err
		}
		defer k.release()
		if k.daemon == nil {
			fmt.Fprintln(c.stderr, "Note: no daemon runs; this is what the state says")
		}
		return show(cmd.Context(), k, &o, args)
	}
	return cmd
}

func lockKnown(cfg *config.Config) (*known, error) {
	if _, _, err := readMembership(cfg.StateDir); err != nil {
		return nil, err // before the lock, which would make a directory
	}
	release, err := statedir.Lock(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	k, err := readKnown(cfg.StateDir)
	if err != nil {
		release()
		return nil, err
	}
	k.release = release
	return k, nil
}

// readKnown reads the state, which is locked.
func readKnown(path string) (*known, error) {
	m, charter, err := readMembership(path)
	if err != nil {
		return nil, err
	}
	dir, err := statedir.Open(path)
	if err != nil {
		return nil, err
	}
	table, err := dir.LoadTable()
	if err != nil {
		return nil, fmt.Errorf("%w: start the daemon, which fetches it anew", err)
	}
	k := &known{self: dir.Keys().ID()}
	if err := k.read(append([][]byte{charter.Raw, m.Certificate}, table...)); err != nil {
		return nil, err
	}
	for _, key := range m.Keyring.Keys {
		k.gossip = append(k.gossip, status.GossipKey{Generation: key.Generation, ID: trust.KeyIDOf(key.Key).String()})
	}
	k.submit = func(_ context.Context, raw []byte) error {
		if _, err := trust.ParseCharter(raw, charter.ID()); err == nil {
			return dir.SaveCharter(raw)
		}
		if cert, err := trust.ParseCertificate(raw, charter.CA); err == nil && cert.ID() == k.self {
			if err := dir.SaveCertificate(raw); err != nil {
				return err
			}
		}
		table = append(table, raw) // the daemon tells the others when it starts
		return dir.SaveTable(table)
	}
	k.describe()
	return k, nil
}

// read verifies objects, of which the first is the charter.
func (k *known) read(objects [][]byte) error {
	if len(objects) == 0 {
		return errors.New("there is no charter")
	}
	var err error
	if k.charter, err = trust.ParseCharter(objects[0], mesh.ID{}); err != nil {
		return err
	}
	k.reg = registry.New(k.charter)
	k.reg.Restore(objects[1:])
	for _, raw := range objects[1:] {
		if c, err := trust.ParseCertificate(raw, k.charter.CA); err == nil {
			k.certificates = append(k.certificates, c)
		}
	}
	return nil
}

// describe makes the document of what the objects say.
func (k *known) describe() {
	k.doc = &status.Document{State: mesh.Unreachable, Mesh: status.Mesh{ID: k.charter.ID(), Name: k.charter.Name}}
	for _, n := range k.charter.Networks {
		k.doc.Networks = append(k.doc.Networks, status.NewNetwork(n))
	}
	for _, m := range k.members() {
		control := mesh.ControlAddr(k.charter.ID(), m.ID)
		leases, expired := k.leasesOf(m)
		if m.ID == k.self {
			k.doc.Node = status.Node{ID: m.ID, Name: m.Certificate.Name, Control: &control, Leases: leases}
			continue
		}
		p := status.Peer{ID: m.ID, Name: m.Certificate.Name, Control: &control, State: status.PeerIdle, Leases: leases, Expired: expired}
		if m.Record != nil && m.Record.Left {
			p.State = status.PeerLeft
		}
		k.doc.Peers = append(k.doc.Peers, p)
	}
}

// leasesOf lists a member's leases, and tells whether they are void.
func (k *known) leasesOf(m registry.Member) (leases []status.Lease, expired mesh.Expiry) {
	for _, l := range m.Leases() {
		leases = append(leases, status.NewLease(l))
	}
	return leases, m.Expired()
}

// certificate is the one of a member's that ends last. Its record names it as soon
// as the node has it.
func (k *known) certificate(m registry.Member) *trust.Certificate {
	if all := k.reg.Certificates(m.ID); len(all) > 0 {
		return all[0]
	}
	return m.Certificate
}

// members lists who is a member, also those whose certificate has ended, by name.
func (k *known) members() []registry.Member {
	all := k.reg.Members(func(*trust.Certificate) bool { return true })
	slices.SortStableFunc(all, func(a, b registry.Member) int { return cmp.Compare(a.Certificate.Name, b.Certificate.Name) })
	return all
}

// find looks up a member as a person names it, this node included.
func (k *known) find(name string) (registry.Member, error) {
	doc := &status.Document{}
	for _, m := range k.members() {
		p := status.Peer{ID: m.ID, Name: m.Certificate.Name, Control: new(mesh.ControlAddr(k.charter.ID(), m.ID))}
		if m.Record != nil && m.Record.Left {
			p.State = status.PeerLeft
		}
		p.Leases, _ = k.leasesOf(m) // of two namesakes, who is void is not less likely to be meant
		doc.Peers = append(doc.Peers, p)
	}
	peer, err := doc.Find(name)
	if errors.Is(err, status.ErrAmbiguousNode) {
		err = fmt.Errorf("%w: %s", err, strings.Join(k.alive(err.Error(), time.Now()), "; "))
	}
	if err != nil {
		return registry.Member{}, exit.With(exit.BadData, err)
	}
	all := k.members()
	return all[slices.IndexFunc(all, func(m registry.Member) bool { return m.ID == peer.ID })], nil
}

// alive tells of each member that a text names by its ID whether it lives: of a dead
// host and the one in its place, which have one name and one subnet, a person must not
// throw out the wrong one.
func (k *known) alive(text string, now time.Time) (states []string) {
	for _, m := range k.members() {
		if !strings.Contains(text, m.ID.String()) {
			continue
		}
		var words []string
		switch p := peerOf(k.doc, m); {
		case m.ID == k.self:
			words = []string{"this node"}
		case p != nil:
			words = peerWords(p, now)
		}
		if len(words) > 0 {
			states = append(states, m.ID.Short()+" is "+strings.Join(words, ", "))
		}
	}
	return states
}

// peerWords says of a peer what is known of its life. It was heard of by probes, or by what
// others say of its lease.
func peerWords(p *status.Peer, now time.Time) []string {
	words := []string{string(p.State)}
	if p.Expired != mesh.NotExpired {
		words = append(words, string(p.Expired))
	}
	var heard time.Time
	if p.LastSeen != nil {
		heard = *p.LastSeen
	}
	for _, l := range p.Leases {
		if l.Renewed != nil && l.Renewed.After(heard) {
			heard = *l.Renewed
		}
	}
	if !heard.IsZero() {
		words = append(words, "last heard of "+remaining(heard, now)+" ago")
	}
	return words
}

// errOutcast says that this node can do nothing for itself any more.
var errOutcast = exit.With(exit.BadData, errors.New("this node was revoked: no member talks to it any more; to make this host a member again, remove the state directory and join with a new token"))

// outcast tells whether this node was revoked.
func (k *known) outcast() bool { return k.doc.State == mesh.Revoked || k.throwsOut(k.self) != nil }

// throwsOut is the revocation of a node; nil: it was not revoked.
func (k *known) throwsOut(id mesh.NodeID) *trust.Revocation {
	all := k.reg.Revocations()
	if i := slices.IndexFunc(all, func(r *trust.Revocation) bool { return r.Node == id }); i >= 0 {
		return all[i]
	}
	return nil
}

// ended tells whether a token was revoked.
func (k *known) ended(serial trust.Serial) bool {
	return slices.ContainsFunc(k.reg.Revocations(), func(r *trust.Revocation) bool { return r.Credential == serial })
}

// loadCA reads the CA key that signs for this mesh.
func (k *known) loadCA(c *cli, flag string) (ed25519.PrivateKey, error) {
	return c.loadCA(flag, k.charter)
}

// afterwards tells who knows of a change.
func (k *known) afterwards() string {
	if k.daemon == nil {
		return "No daemon runs: it tells the other nodes when it is started.\n"
	}
	return "It is saved here, and the other nodes hear of it within seconds.\n"
}

// needDaemon fails where only a running daemon can do something.
func (k *known) needDaemon(c *cli) error {
	if k.daemon != nil {
		return nil
	}
	return exit.With(exit.NotReady, fmt.Errorf("no daemon runs, and this takes one: start it with `%s`", c.daemonCommand()))
}

// confirm asks before something that cannot be undone. What happens is said
// before. Where nobody can be asked, it takes --yes.
func (c *cli) confirm(yes bool, what string) error {
	if yes {
		return nil
	}
	fmt.Fprintf(c.stderr, "Note: this cannot be undone. %s? [y/N] ", what)
	line, err := bufio.NewReader(io.LimitReader(c.stdin, 100)).ReadString('\n')
	fmt.Fprintln(c.stderr)
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	case "":
		if err != nil {
			return usage("nobody answered, so nothing is changed: use --yes where nobody can be asked")
		}
	}
	return exit.With(exit.Failed, errors.New("nothing is changed"))
}

// readMembership reads what this node knows of its mesh.
func readMembership(path string) (statedir.Membership, *trust.Charter, error) {
	var none statedir.Membership
	dir, err := statedir.Open(path)
	if err != nil {
		return none, nil, err
	}
	state, err := dir.State()
	if err != nil {
		return none, nil, err
	}
	if state.Left {
		return none, nil, exit.With(exit.BadData, fmt.Errorf("%s: this node has left its mesh: ask on a member", path))
	}
	m := dir.Membership()
	charter, err := trust.ParseCharter(m.Charter, mesh.ID{})
	if err == nil && len(m.Keyring.Sending().Key) != trust.GossipKeySize {
		err = errors.New("no gossip key")
	}
	if err != nil {
		return none, nil, fmt.Errorf("%w: %s: %w", statedir.ErrDamaged, path, err)
	}
	return m, charter, nil
}
