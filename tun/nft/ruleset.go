//go:build linux

package nft

import (
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// ruleset is the content of one of our tables; without chains the table is not
// wanted. It prints as nft would.
type ruleset struct {
	table   *nftables.Table
	sets    []set
	chains  []chain
	content *content // of the table then, as compile found
}

type chain struct {
	name  string
	hook  *hook // nil: other chains lead here
	rules []rule
}

// hook is where the kernel enters a chain.
type hook struct {
	kind     nftables.ChainType
	num      *nftables.ChainHook
	priority nftables.ChainPriority
	text     string // the priority as nft names it
}

// rule has a verdict for packets that match all.
type rule struct {
	matches []match
	verdict expr.Any
}

func accept(matches ...match) rule { return rule{matches, &expr.Verdict{Kind: expr.VerdictAccept}} }
func drop(matches ...match) rule   { return rule{matches, &expr.Verdict{Kind: expr.VerdictDrop}} }
func back(matches ...match) rule   { return rule{matches, &expr.Verdict{Kind: expr.VerdictReturn}} }
func masquerade(m ...match) rule   { return rule{m, &expr.Masq{}} }
func jump(to string, matches ...match) rule {
	return rule{matches, &expr.Verdict{Kind: expr.VerdictGoto, Chain: to}}
}
func call(chain string, m match) rule {
	return rule{[]match{m}, &expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

// add puts the table into the batch, anew.
func (s ruleset) add(c *nftables.Conn) error {
	c.AddTable(s.table) // deleting one that is not there is an error
	c.DelTable(s.table)
	c.AddTable(s.table)
	// Rules name chains and sets, which may not be there yet.
	for _, ch := range s.chains {
		c.AddChain(ch.kernel(s.table))
	}
	for _, m := range s.sets {
		if err := m.add(c, s.table); err != nil {
			return fmt.Errorf("add set %s: %w", m.name, err)
		}
	}
	for _, ch := range s.chains {
		for _, r := range ch.rules {
			c.AddRule(&nftables.Rule{Table: s.table, Chain: ch.kernel(s.table), Exprs: r.exprs()})
		}
	}
	return nil
}

func (c chain) kernel(table *nftables.Table) *nftables.Chain {
	k := &nftables.Chain{Name: c.name, Table: table}
	if c.hook != nil {
		policy := nftables.ChainPolicyAccept
		k.Type, k.Hooknum, k.Priority, k.Policy = c.hook.kind, c.hook.num, &c.hook.priority, &policy
	}
	return k
}

func (r rule) exprs() []expr.Any {
	var all []expr.Any
	for _, m := range r.matches {
		all = append(all, m.exprs()...)
	}
	return append(all, r.verdict)
}

func (r rule) String() string {
	var words []string
	for _, m := range r.matches {
		words = append(words, m.String())
	}
	switch v := r.verdict.(type) {
	case *expr.Verdict:
		words = append(words, strings.TrimSpace(verdicts[v.Kind]+" "+v.Chain))
	case *expr.Masq:
		words = append(words, "masquerade")
	}
	return strings.Join(words, " ")
}

var verdicts = map[expr.VerdictKind]string{
	expr.VerdictAccept: "accept", expr.VerdictDrop: "drop", expr.VerdictGoto: "goto", expr.VerdictJump: "jump", expr.VerdictReturn: "return",
}

func (s ruleset) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table %s {\n", tableName(s.table))
	for _, m := range s.sets {
		b.WriteString(m.String())
	}
	for _, c := range s.chains {
		fmt.Fprintf(&b, "\tchain %s {\n", c.name)
		if h := c.hook; h != nil {
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %s; policy accept;\n", h.kind, hookNames[*h.num], h.text)
		}
		for _, r := range c.rules {
			b.WriteString("\t\t" + r.String() + "\n")
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

var hookNames = map[nftables.ChainHook]string{
	*nftables.ChainHookPrerouting: "prerouting", *nftables.ChainHookForward: "forward", *nftables.ChainHookPostrouting: "postrouting",
}

var families = map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyBridge: "bridge"}

func tableName(t *nftables.Table) string { return families[t.Family] + " " + t.Name }
