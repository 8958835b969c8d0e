package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"meshd/mesh"
	"meshd/mesh/trust"
	"meshd/overlay/config"
	"meshd/tun/hostnet"
)

const tokenCreateHelp = `Make a token with which other hosts join the mesh.

The token alone is printed on standard output. It is a secret: whoever has it can
join until it expires. It needs the CA key, and works whether the daemon runs or
not.

--uses limits how many nodes may join with it. That is no hard limit: members
that do not know of each other yet cannot count together. What limits the damage
of a stolen token is its time, its --subnet and its --name.

--subnet takes one node's subnet, which is then reserved for the node that joins,
or a larger part of the mesh's range, from which it will choose. Given several times
it takes a subnet of each of several networks, or several parts of ranges; the node
leases nothing else.

It holds the mesh's gossip key. When the members drop that, a day after a rotation or
at once with ` + "`meshctl keys rotate gossip --now`" + `, nobody joins with it any more: make
a new one.

What was made is noted, without the secret, in tokens.jsonl beside the CA key: see
` + "`meshctl token list`" + ` and ` + "`meshctl token revoke`" + `.

--seed names members that the new node asks first. By default that is this host,
by its own addresses.`

type tokenFlags struct {
	ttl, certLife time.Duration
	uses          uint
	name          string
	subnets       []string
	seeds         []string
	ca            string
}

func (c *cli) tokenCreate() *cobra.Command {
	var f tokenFlags
	cmd := &cobra.Command{
		Use: "create", Short: "Make a token with which other hosts join", Long: tokenCreateHelp,
		Example: "  meshctl token create\n  meshctl token create --uses 10 --ttl 1h --name 'web-*'\n  meshctl token create --subnet 10.86.17.0/24 --seed mesh.example.org:51881\n  meshctl token create | ssh beta meshctl join -",
		Args:    exactly(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.runTokenCreate(cmd.Context(), f) },
	}
	f.ttl, f.certLife = 24*time.Hour, 365*24*time.Hour
	cmd.Flags().Var((*life)(&f.ttl), "ttl", "`TIME` until it expires, such as 30m, 24h or 7d")
	cmd.Flags().UintVar(&f.uses, "uses", 1, "`NUMBER` of nodes that may join with it; 0: any number")
	cmd.Flags().StringVar(&f.name, "name", "", "`PATTERN` that the nodes' names must match, such as 'web-*'")
	cmd.Flags().StringSliceVar(&f.subnets, "subnet", nil, "`PREFIX` that the node leases, or leases from (repeatable)")
	cmd.Flags().StringSliceVar(&f.seeds, "seed", nil, "`HOST:PORT` of a member's gossip (repeatable)")
	cmd.Flags().Var((*life)(&f.certLife), "cert-life", "`TIME` for which the nodes' certificates are valid")
	caFlag(cmd, &f.ca)
	return cmd
}

func (c *cli) runTokenCreate(ctx context.Context, f tokenFlags) error {
	switch {
	case f.ttl < time.Minute:
		return usage("--ttl %s: at least 1m", f.ttl)
	case f.certLife < time.Hour:
		return usage("--cert-life %s: at least 1h", f.certLife)
	case strings.Trim(f.name, "abcdefghijklmnopqrstuvwxyz0123456789-*?[]^\\") != "":
		return usage("--name %q matches no name: a name has a-z, 0-9 and -, and * stands for any number of them", f.name)
	}
	seeds, err := parseSeeds(f.seeds)
	if err != nil {
		return err
	}
	cfg, err := c.loadConfig()
	if err != nil {
		return err
	}
	membership, charter, err := readMembership(cfg.StateDir)
	if err != nil {
		return err
	}
	rights, err := rightsFor(f, charter)
	if err != nil {
		return err
	}
	ca, err := c.loadCA(f.ca, charter)
	if err != nil {
		return err
	}
	if len(seeds) == 0 {
		if seeds, err = ownSeeds(ctx, cfg, charter.Ranges()); err != nil {
			return err
		}
	}
	token, err := newToken(f, rights, charter, ca)
	if err != nil {
		return err
	}
	key := membership.Keyring.Sending()
	token.GossipKey, token.Seeds = key.Key, seeds
	fmt.Fprintln(c.stdout, token)
	if err := c.noteToken(f.ca, token, key.Generation); err != nil {
		fmt.Fprintf(c.stderr, "Warning: the token was not noted, so `meshctl token list` shows it only once it is used: %v\n", err)
	}
	c.sayToken(token)
	c.warnOfRivals(ctx, f.ca, token)
	return nil
}

// warnOfRivals says who else is to have a subnet that a token pins, as far as this
// host knows. A pin goes before any claim; of two, that of the older member does.
func (c *cli) warnOfRivals(ctx context.Context, ca string, token *trust.Token) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	pins := token.Credential.Rights.Pins
	if len(pins) == 0 {
		return
	}
	k, err := c.openKnown(ctx)
	if err != nil {
		return // the token is good all the same
	}
	defer k.release()
	inPins := func(p netip.Prefix) bool { return slices.Contains(pins, p) }
	for _, m := range k.members() {
		expired := mesh.NotExpired
		if p := peerOf(k.doc, m); p != nil {
			expired = p.Expired
		}
		if m.Record == nil || m.Record.Left || expired != mesh.NotExpired {
			continue // it has no claim that counts
		}
		at := slices.IndexFunc(m.Leases(), func(l mesh.Lease) bool { return l.State == mesh.Held && slices.ContainsFunc(l.Prefixes, inPins) })
		switch name := m.Certificate.Name; {
		case slices.ContainsFunc(m.Certificate.Rights.Pins, inPins):
			fmt.Fprintf(c.stderr, "Warning: node %s is pinned to %s, too: the new node gets no subnet while %s is a member.\n", name, pins[0], name)
		case at >= 0:
			fmt.Fprintf(c.stderr, "Warning: node %s holds %s now. It has to take another subnet when the new node joins.\n", name, m.Leases()[at].Prefixes[0])
		}
	}
	var others []string
	for _, row := range k.tokens(ctx, c, ca, time.Now()) {
		if row.State == tokenOpen && row.ID != token.Credential.Serial.String() && slices.ContainsFunc(row.Pins, inPins) {
			others = append(others, row.ID[:shownSerial])
		}
	}
	if len(others) > 0 {
		fmt.Fprintf(c.stderr, "Warning: who joins first gets %s: it is pinned by other open tokens, too (%s); `%s` ends one\n", pins[0], someOf(others), c.again("token revoke ID"))
	}
}

func newToken(f tokenFlags, rights trust.Rights, charter *trust.Charter, ca ed25519.PrivateKey) (*trust.Token, error) {
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	now := time.Now()
	credential := trust.Credential{
		Serial: trust.NewSerial(), Key: public, Rights: rights, NamePattern: f.name, Uses: uint64(f.uses),
		NotBefore: now, NotAfter: now.Add(f.ttl), MaxCertLife: f.certLife,
	}
	raw, err := credential.Sign(ca)
	if err != nil {
		return nil, usage("%w", err)
	}
	parsed, err := trust.ParseCredential(raw, charter.CA)
	if err != nil {
		return nil, err
	}
	return &trust.Token{Charter: charter, Credential: parsed, Key: key}, nil
}

// rightsFor reads --subnet: one node's subnet is a pin, a larger prefix a range.
func rightsFor(f tokenFlags, charter *trust.Charter) (trust.Rights, error) {
	var all trust.Rights
	pinned := map[string]bool{} // networks
	for _, subnet := range f.subnets {
		one, network, err := rightFor(subnet, charter)
		if err != nil {
			return all, err
		}
		all.Pins, all.Ranges = append(all.Pins, one.Pins...), append(all.Ranges, one.Ranges...)
		switch {
		case len(one.Pins) == 0:
			continue
		case f.uses != 1:
			return all, usage("--subnet %s is one node's subnet, so only one node can use it: leave out --uses, or give a larger prefix", subnet)
		case pinned[network]:
			return all, usage("--subnet %s: a node has one subnet in network %s, and there is another --subnet of it", subnet, network)
		}
		pinned[network] = true
	}
	switch {
	case len(all.Pins) > 0 && len(all.Ranges) > 0:
		return all, usage("--subnet: one node's subnets and larger prefixes do not go together")
	case len(all.Pins) > maxPrefixes || len(all.Ranges) > maxPrefixes:
		return all, usage("--subnet: a certificate takes %d prefixes, and a subnet with IPv4 and IPv6 is two", maxPrefixes)
	}
	return all, nil
}

const maxPrefixes = 4 // of a kind in a certificate

// rightFor reads one --subnet; network is that of a pin.
func rightFor(subnet string, charter *trust.Charter) (r trust.Rights, network string, err error) {
	p, err := parseSubnet("--subnet", subnet)
	if err != nil {
		return r, "", err
	}
	for _, n := range charter.Networks {
		if slot, err := n.SlotOf(p); err == nil {
			return trust.Rights{Pins: n.Slot(slot)}, n.Name, nil
		}
		for _, r := range []struct {
			prefix netip.Prefix
			bits   int
		}{{n.IPv4, n.IPv4Len}, {n.IPv6, n.IPv6Len}} {
			if r.prefix.IsValid() && r.prefix.Contains(p.Addr()) && p.Bits() >= r.prefix.Bits() && p.Bits() < r.bits {
				return trust.Rights{Ranges: []netip.Prefix{p}}, "", nil
			}
		}
	}
	var have []string
	for _, n := range charter.Networks {
		have = append(have, networkText(n))
	}
	return r, "", usage("--subnet %s is neither one node's subnet nor a part of a range of the mesh (%s)", p, strings.Join(have, "; "))
}

const maxSeeds = 16 // what a token takes

func parseSeeds(flags []string) ([]string, error) {
	var seeds []string
	for _, s := range flags {
		seed, err := config.ParseSeed(s)
		if err != nil {
			return nil, usage("--seed %s: %w", s, err)
		}
		seeds = append(seeds, seed)
	}
	if len(seeds) > maxSeeds {
		return nil, usage("%d seeds, at most %d", len(seeds), maxSeeds)
	}
	return seeds, nil
}

// ownSeeds are the addresses at which this node's gossip can be reached.
func ownSeeds(ctx context.Context, cfg *config.Config, exclude []netip.Prefix) ([]string, error) {
	var addresses []netip.Addr
	for _, a := range cfg.Advertise {
		addresses = append(addresses, a.Addr())
	}
	if bound := cfg.Listen.Gossip.Addr(); len(addresses) == 0 && bound.IsValid() && !bound.IsUnspecified() {
		addresses = append(addresses, bound)
	}
	if len(addresses) == 0 {
		underlay, err := hostnet.New(hostnet.Options{}).Underlay(ctx, exclude...)
		if err != nil {
			return nil, fmt.Errorf("find this host's addresses: %w", err)
		}
		addresses = underlay.Addresses
	}
	if len(addresses) == 0 {
		return nil, errors.New("this host has no address by which others could reach it: name a member with --seed HOST:PORT")
	}
	var seeds []string
	for _, a := range addresses {
		seed := netip.AddrPortFrom(a.Unmap(), cfg.Listen.Gossip.Port()).String()
		if !slices.Contains(seeds, seed) && len(seeds) < maxSeeds {
			seeds = append(seeds, seed)
		}
	}
	return seeds, nil
}

func (c *cli) sayToken(t *trust.Token) {
	w := c.stderr
	if onlyPrivate(t.Seeds) {
		fmt.Fprintf(w, "Warning: the new node will look for this mesh at %s only, which is private: from another network it finds nobody. Use --seed HOST:PORT to name an address that it can reach.\n", strings.Join(t.Seeds, ", "))
	}
	fmt.Fprintf(w, "The token is a secret. It is for %s and expires at %s.\n", usesText(t.Credential.Uses), t.Credential.NotAfter.UTC().Format(time.RFC3339))
	fmt.Fprintf(w, "On the new host:  meshctl join -   (and paste it)\n")
}

func usesText(n uint64) string {
	switch n {
	case 0:
		return "any number of nodes"
	case 1:
		return "one node"
	}
	return fmt.Sprintf("%d nodes", n)
}

// shared is the range of carrier-grade NAT (RFC 6598).
var shared = netip.MustParsePrefix("100.64.0.0/10")

// onlyPrivate tells whether no seed can be reached from another network. What a
// name stands for is not known here, so it counts as public.
func onlyPrivate(seeds []string) bool {
	return !slices.ContainsFunc(seeds, func(s string) bool {
		seed, err := netip.ParseAddrPort(s)
		a := seed.Addr()
		return err != nil || !a.IsPrivate() && !shared.Contains(a) && !a.IsLoopback() && !a.IsLinkLocalUnicast()
	})
}
