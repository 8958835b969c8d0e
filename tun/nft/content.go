//go:build linux

package nft

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// content is what a table has, in a form that compares: the same for what we want
// and for what the kernel says.
type content struct {
	lines    []string            // of all but the elements, in order
	elements map[string][]string // keys by set, in order
}

func contentOf(s ruleset) *content {
	if len(s.chains) == 0 {
		return nil
	}
	out := &content{lines: []string{tableText(s.table)}, elements: map[string][]string{}}
	for _, c := range s.chains {
		out.lines = append(out.lines, chainText(c.kernel(s.table)))
		for i, r := range c.rules {
			out.lines = append(out.lines, ruleText(c.name, i, r.exprs()))
		}
	}
	for _, m := range s.sets {
		out.lines = append(out.lines, setText(m.kernel(s.table)))
		out.elements[m.name] = m.keys()
	}
	slices.Sort(out.lines)
	return out
}

// change lists what makes a table as wanted: its elements alone if nothing else is
// amiss, for these come and go with every container.
func (s ruleset) change(have *content) []op {
	want := s.content
	switch {
	case want == nil && have == nil:
		return nil
	case want == nil:
		return []op{{text: "nft delete table " + tableName(s.table), add: func(c *nftables.Conn) error { c.DelTable(s.table); return nil }}}
	case have == nil || !slices.Equal(have.lines, want.lines):
		return []op{{text: "nft replace table " + tableName(s.table), add: s.add}}
	}
	var ops []op
	for _, m := range s.sets {
		ops = append(ops, m.change(s.table, have.elements[m.name], want.elements[m.name])...)
	}
	return ops
}

// readContent tells what a table of ours has; nil if it is not there.
func readContent(c *nftables.Conn, table *nftables.Table, chains []*nftables.Chain) (*content, error) {
	tables, err := c.ListTablesOfFamily(table.Family)
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == table.Name })
	if i < 0 {
		return nil, nil
	}
	out := &content{lines: []string{tableText(tables[i])}, elements: map[string][]string{}}
	for _, ch := range chains {
		if ch.Table.Family != table.Family || ch.Table.Name != table.Name {
			continue
		}
		out.lines = append(out.lines, chainText(ch))
		rules, err := c.GetRules(table, ch)
		if err != nil {
			return nil, fmt.Errorf("list rules of %s: %w", ch.Name, err)
		}
		for i, r := range rules {
			out.lines = append(out.lines, ruleText(ch.Name, i, r.Exprs))
		}
	}
	sets, err := c.GetSets(table)
	if err != nil {
		return nil, fmt.Errorf("list sets: %w", err)
	}
	for _, s := range sets {
		out.lines = append(out.lines, setText(s))
		elements, err := c.GetSetElements(s)
		if err != nil {
			return nil, fmt.Errorf("list elements of %s: %w", s.Name, err)
		}
		keys := map[string]bool{}
		for _, e := range elements {
			keys[string(e.Key)] = true
		}
		out.elements[s.Name] = slices.Sorted(maps.Keys(keys))
	}
	slices.Sort(out.lines)
	return out, nil
}

func tableText(t *nftables.Table) string { return fmt.Sprintf("table %s flags %d", t.Name, t.Flags) }

func setText(s *nftables.Set) string {
	return fmt.Sprintf("set %s type %s map %t interval %t", s.Name, s.KeyType.Name, s.IsMap, s.Interval)
}

func chainText(c *nftables.Chain) string {
	if c.Hooknum == nil {
		return "chain " + c.Name
	}
	policy := nftables.ChainPolicyAccept
	if c.Policy != nil {
		policy = *c.Policy
	}
	return fmt.Sprintf("chain %s %s hook %d priority %d policy %d", c.Name, c.Type, *c.Hooknum, *c.Priority, policy)
}

func ruleText(chain string, i int, exprs []expr.Any) string {
	return fmt.Sprintf("rule %s %d %s", chain, i, exprsText(exprs))
}

func exprsText(exprs []expr.Any) string {
	var b strings.Builder
	for _, e := range exprs {
		switch v := e.(type) {
		case *expr.Counter: // it counts
			b.WriteString("counter;")
			continue
		case *expr.Lookup:
			named := *v
			named.SetID = 0 // valid within a batch
			e = &named
		}
		fmt.Fprintf(&b, "%T%+v;", e, e)
	}
	return b.String()
}
