//go:build linux

package nft

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"

	"meshd/tun"
)

// forward is a chain FORWARD of iptables, which says what passes this host. Its
// policy is DROP where Docker or a person set it so.
type forward struct {
	chain *nftables.Chain
	ours  []*nftables.Rule // by their comment, in their order
}

// comment marks our rules in chains of others.
const comment = "meshd"

// iptables is where the program of that name keeps what it filters.
var iptables = map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6"}

func isForward(c *nftables.Chain) bool {
	_, ok := iptables[c.Table.Family]
	return ok && c.Table.Name == "filter" && c.Name == "FORWARD" && isForwarding(c)
}

// isForwarding tells whether the kernel enters the chain with packets that pass.
func isForwarding(c *nftables.Chain) bool {
	return c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward
}

func readForwards(c *nftables.Conn, chains []*nftables.Chain) ([]forward, error) {
	var all []forward
	for _, ch := range chains {
		if !isForward(ch) {
			continue
		}
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return nil, fmt.Errorf("list rules of %s: %w", forward{chain: ch}, err)
		}
		all = append(all, forward{ch, slices.DeleteFunc(rules, func(r *nftables.Rule) bool { return !isOurs(r) })})
	}
	return all, nil
}

func isOurs(r *nftables.Rule) bool {
	text, ok := userdata.GetString(r.UserData, userdata.TypeComment)
	return ok && text == comment
}

// String names the chain as nft does.
func (f forward) String() string {
	return fmt.Sprintf("%s %s %s", iptables[f.chain.Table.Family], f.chain.Table.Name, f.chain.Name)
}

// diff lists what opens the chain for some links, or closes it again. Our rules may
// be anywhere in it: whoever puts a rule before them had a reason.
func (f forward) diff(open []match) []op {
	want := make([][]expr.Any, len(open))
	for i, m := range open {
		want[i] = append(m.exprs(), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept})
	}
	if slices.EqualFunc(f.ours, want, func(r *nftables.Rule, e []expr.Any) bool { return exprsText(r.Exprs) == exprsText(e) }) {
		return nil
	}
	var ops []op
	for _, r := range f.ours {
		ops = append(ops, op{
			text: fmt.Sprintf("nft delete rule %s handle %d", f, r.Handle),
			add:  func(c *nftables.Conn) error { r.Table = f.chain.Table; return c.DelRule(r) },
		})
	}
	for i, m := range slices.Backward(open) { // each goes to the head
		r := &nftables.Rule{Table: f.chain.Table, Chain: f.chain, Exprs: want[i], UserData: userdata.AppendString(nil, userdata.TypeComment, comment)}
		ops = append(ops, op{
			text: fmt.Sprintf("nft insert rule %s %s accept", f, m),
			add:  func(c *nftables.Conn) error { c.InsertRule(r); return nil },
		})
	}
	return ops
}

// opening accepts whatever comes from our links or goes there: our own table has
// decided on it before. The rules are such as iptables understands, or it would
// refuse to touch the table any more. Containers behind links of others get
// there by the TUN device.
func opening(want tun.Rules) []match {
	if !want.HasLinks() {
		return nil
	}
	names := slices.Clone(ours)
	if slices.ContainsFunc(want.Segments, func(s tun.Segment) bool { return s.Delegated }) {
		names = append(names, want.Link)
	}
	var all []match
	for _, name := range names {
		all = append(all, in(name), out(name))
	}
	return all
}

// obstacle tells what a chain of others does to packets that pass, if it is one
// that we cannot open: a verdict of ours ends no chain but our own.
func obstacle(c *nftables.Chain) string {
	if !isForwarding(c) || isForward(c) || c.Table.Name == TableName || c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop {
		return ""
	}
	return fmt.Sprintf("the firewall's chain %q of table %q drops what it does not know: let it accept what comes from and goes to interfaces %s and %s",
		c.Name, c.Table.Name, ours[0], ours[1])
}
