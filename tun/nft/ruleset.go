//go:build linux

package nft

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ruleset is the content of one of our tables. It prints as nft would.
type ruleset struct {
	table  *nftables.Table
	sets   []set
	chains []chain
}

// set holds names of interfaces, each with something else unless also is zero.
type set struct {
	name     string
	also     nftables.SetDatatype
	elements []element
}

type element struct {
	name string
	also []byte
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

type match interface {
	fmt.Stringer
	exprs() []expr.Any
}

type (
	// iface compares the name of an interface, up to an asterisk if it ends in one.
	iface struct {
		key  expr.MetaKey
		name string
	}
	// address compares a packet's source or destination.
	address struct {
		src    bool
		prefix netip.Prefix
	}
	// ct tells whether one of the bits of a connection's attribute is set.
	ct struct {
		key  expr.CtKey
		bits uint32
		text string
	}
	// member looks an interface up in a set.
	member struct {
		key expr.MetaKey
		set string
	}
	// holder looks the arriving interface up in a set, with a field of its packet.
	holder struct {
		field
		set string
	}
	// is compares a field of a packet.
	is struct {
		field
		value []byte
		text  string
	}
	// protocol compares what an Ethernet frame carries.
	protocol uint16
	// carries compares what an IP packet carries.
	carries byte
	// both is two matches.
	both [2]match
)

func in(name string) match         { return iface{expr.MetaKeyIIFNAME, name} }
func out(name string) match        { return iface{expr.MetaKeyOIFNAME, name} }
func from(p netip.Prefix) match    { return address{true, p.Masked()} }
func to(p netip.Prefix) match      { return address{false, p.Masked()} }
func accept(matches ...match) rule { return rule{matches, &expr.Verdict{Kind: expr.VerdictAccept}} }
func drop(matches ...match) rule   { return rule{matches, &expr.Verdict{Kind: expr.VerdictDrop}} }
func masquerade(m ...match) rule   { return rule{m, &expr.Masq{}} }
func jump(to string, m match) rule {
	return rule{[]match{m}, &expr.Verdict{Kind: expr.VerdictGoto, Chain: to}}
}
func call(chain string, m match) rule {
	return rule{[]match{m}, &expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}
func back(matches ...match) rule { return rule{matches, &expr.Verdict{Kind: expr.VerdictReturn}} }

// field is a part of a packet.
type field struct {
	base   expr.PayloadBase
	offset uint32
	size   uint32
	text   string
}

var (
	answered  = ct{expr.CtKeySTATE, expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED, "ct state established,related"}
	published = ct{expr.CtKeySTATUS, 1 << 5, "ct status dnat"} // IPS_DST_NAT
)

var direction = map[expr.MetaKey]string{expr.MetaKeyIIFNAME: "iifname", expr.MetaKeyOIFNAME: "oifname"}

func (m iface) String() string    { return fmt.Sprintf("%s %q", direction[m.key], m.name) }
func (m ct) String() string       { return m.text }
func (m holder) String() string   { return "iifname . " + m.text + " @" + m.set }
func (m is) String() string       { return m.field.text + " " + m.text }
func (m protocol) String() string { return "meta protocol " + protocols[m] }
func (m both) String() string     { return m[0].String() + " " + m[1].String() }
func (m carries) String() string  { return "meta l4proto ipv6-icmp" }
func (m member) String() string   { return direction[m.key] + " @" + m.set }

func (m address) String() string {
	family, side := "ip", "daddr"
	if m.prefix.Addr().Is6() {
		family = "ip6"
	}
	if m.src {
		side = "saddr"
	}
	text := m.prefix.String()
	if m.prefix.IsSingleIP() {
		text = m.prefix.Addr().String()
	}
	return family + " " + side + " " + text
}

func (m iface) exprs() []expr.Any {
	name, isPrefix := strings.CutSuffix(m.name, "*")
	data := []byte(name)
	if !isPrefix {
		data = ifname(name)
	}
	return []expr.Any{
		&expr.Meta{Key: m.key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data},
	}
}

// ifname gives a name as the kernel holds it.
func ifname(name string) []byte {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return data
}

func (m address) exprs() []expr.Any {
	a := m.prefix.Addr()
	family, offset := byte(unix.NFPROTO_IPV4), uint32(16) // of the destination; RFC 791
	if a.Is6() {
		family, offset = unix.NFPROTO_IPV6, 24 // RFC 8200
	}
	size := uint32(a.BitLen() / 8)
	if m.src {
		offset -= size // it is before
	}
	e := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{Base: expr.PayloadBaseNetworkHeader, DestRegister: 1, Offset: offset, Len: size},
	}
	if !m.prefix.IsSingleIP() {
		mask := make([]byte, size)
		for i := range m.prefix.Bits() {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		e = append(e, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)})
	}
	return append(e, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()})
}

func (m ct) exprs() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: m.key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, m.bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func (m member) exprs() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: m.key, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: m.set},
	}
}

func (f field) load(register uint32) expr.Any {
	return &expr.Payload{Base: f.base, DestRegister: register, Offset: f.offset, Len: f.size}
}

func (m holder) exprs() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		m.load(2), // right behind it
		&expr.Lookup{SourceRegister: 1, SetName: m.set},
	}
}

func (m is) exprs() []expr.Any {
	return []expr.Any{m.load(1), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: m.value}}
}

func (m protocol) exprs() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, uint16(m))},
	}
}

func (m both) exprs() []expr.Any { return append(m[0].exprs(), m[1].exprs()...) }

func (m carries) exprs() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(m)}},
	}
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
		words = append(words, strings.TrimSpace(map[expr.VerdictKind]string{
			expr.VerdictAccept: "accept", expr.VerdictDrop: "drop", expr.VerdictGoto: "goto", expr.VerdictJump: "jump", expr.VerdictReturn: "return",
		}[v.Kind]+" "+v.Chain))
	case *expr.Masq:
		words = append(words, "masquerade")
	}
	return strings.Join(words, " ")
}

func (s ruleset) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s {\n", tableName(s.table))
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

func tableName(t *nftables.Table) string { return "table " + families[t.Family] + " " + t.Name }

func (m set) String() string {
	kind := "ifname"
	if m.also.Name != "" {
		kind += " . " + m.also.Name
	}
	var elements []string
	for _, e := range m.elements {
		text := fmt.Sprintf("%q", e.name)
		switch {
		case m.also.Name == nftables.TypeEtherAddr.Name:
			text += " . " + net.HardwareAddr(e.also).String()
		case m.also.Name != "":
			addr, _ := netip.AddrFromSlice(e.also)
			text += " . " + addr.String()
		}
		elements = append(elements, text)
	}
	if len(elements) == 0 {
		return fmt.Sprintf("\tset %s {\n\t\ttype %s\n\t}\n", m.name, kind)
	}
	return fmt.Sprintf("\tset %s {\n\t\ttype %s\n\t\telements = { %s }\n\t}\n", m.name, kind, strings.Join(elements, ", "))
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
		if err := c.AddSet(m.kernel(s.table)); err != nil {
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

func (m set) kernel(table *nftables.Table) (*nftables.Set, []nftables.SetElement) {
	// The byte order is for nft, which would else list names backwards.
	k := &nftables.Set{Table: table, Name: m.name, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
	if m.also.Name != "" {
		k.KeyType, k.Concatenation = nftables.MustConcatSetType(nftables.TypeIFName, m.also), true
	}
	var elements []nftables.SetElement
	for _, e := range m.elements {
		key := append(ifname(e.name), e.also...)
		for len(key)%4 != 0 { // the parts of a key fill registers
			key = append(key, 0)
		}
		elements = append(elements, nftables.SetElement{Key: key})
	}
	return k, elements
}

// content is what a table has, as text that compares: the same for what we want
// and for what the kernel says.
type content []string

func (s ruleset) content() content {
	lines := content{tableText(s.table)}
	for _, c := range s.chains {
		lines = append(lines, chainText(c.kernel(s.table)))
		for i, r := range c.rules {
			lines = append(lines, ruleText(c.name, i, r.exprs()))
		}
	}
	for _, m := range s.sets {
		_, elements := m.kernel(s.table)
		lines = append(lines, "set "+m.name)
		for _, e := range elements {
			lines = append(lines, elementText(m.name, e))
		}
	}
	slices.Sort(lines)
	return lines
}

// readContent tells what a table of ours has; nothing if it is not there.
func readContent(c *nftables.Conn, table *nftables.Table, chains []*nftables.Chain) (content, error) {
	tables, err := c.ListTablesOfFamily(table.Family)
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == table.Name })
	if i < 0 {
		return nil, nil
	}
	lines := content{tableText(tables[i])}
	for _, ch := range chains {
		if ch.Table.Family != table.Family || ch.Table.Name != table.Name {
			continue
		}
		lines = append(lines, chainText(ch))
		rules, err := c.GetRules(table, ch)
		if err != nil {
			return nil, fmt.Errorf("list rules of %s: %w", ch.Name, err)
		}
		for i, r := range rules {
			lines = append(lines, ruleText(ch.Name, i, r.Exprs))
		}
	}
	sets, err := c.GetSets(table)
	if err != nil {
		return nil, fmt.Errorf("list sets: %w", err)
	}
	for _, s := range sets {
		lines = append(lines, "set "+s.Name)
		elements, err := c.GetSetElements(s)
		if err != nil {
			return nil, fmt.Errorf("list elements of %s: %w", s.Name, err)
		}
		for _, e := range elements {
			lines = append(lines, elementText(s.Name, e))
		}
	}
	slices.Sort(lines)
	return lines, nil
}

func tableText(t *nftables.Table) string { return fmt.Sprintf("table %s flags %d", t.Name, t.Flags) }

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

func elementText(name string, e nftables.SetElement) string {
	return fmt.Sprintf("element %s %q", name, e.Key)
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
