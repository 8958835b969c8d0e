//go:build linux

package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// match is a condition on a packet. It prints as nft would.
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
	// plain is one that there is once.
	plain struct {
		text string
		of   []expr.Any
	}
	// all is some matches as one.
	all []match
)

func in(name string) match      { return iface{expr.MetaKeyIIFNAME, name} }
func out(name string) match     { return iface{expr.MetaKeyOIFNAME, name} }
func from(p netip.Prefix) match { return address{true, p.Masked()} }
func to(p netip.Prefix) match   { return address{false, p.Masked()} }

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

var (
	// fragment tells that a packet of IPv6 is a part of one; RFC 8200, 4.5.
	fragment = plain{"exthdr frag exists", []expr.Any{
		&expr.Exthdr{DestRegister: 1, Type: unix.IPPROTO_FRAGMENT, Len: 1, Flags: unix.NFT_EXTHDR_F_PRESENT, Op: expr.ExthdrOpIpv6},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{1}},
	}}
	// found tells that there is a transport protocol behind all headers; 255 is none.
	found = plain{"meta l4proto != 255", []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{255}},
	}}
)

var direction = map[expr.MetaKey]string{expr.MetaKeyIIFNAME: "iifname", expr.MetaKeyOIFNAME: "oifname"}

func (m iface) String() string    { return fmt.Sprintf("%s %q", direction[m.key], m.name) }
func (m ct) String() string       { return m.text }
func (m holder) String() string   { return "iifname . " + m.text + " @" + m.set }
func (m is) String() string       { return m.field.text + " " + m.text }
func (m protocol) String() string { return "meta protocol " + protocols[m] }
func (m carries) String() string  { return "meta l4proto " + transports[m] }
func (m plain) String() string    { return m.text }
func (m member) String() string   { return direction[m.key] + " @" + m.set }

func (m all) String() string {
	var words []string
	for _, one := range m {
		words = append(words, one.String())
	}
	return strings.Join(words, " ")
}

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

func (m plain) exprs() []expr.Any { return m.of }

func (m all) exprs() []expr.Any {
	var exprs []expr.Any
	for _, one := range m {
		exprs = append(exprs, one.exprs()...)
	}
	return exprs
}

func (m carries) exprs() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(m)}},
	}
}
