//go:build linux

package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Filter says what of that which was sent to a host does not arrive. Nobody is
// told: it is as if the network had lost it. The zero value lets all arrive.
type Filter struct {
	From  []netip.Addr // what comes from these
	Ports []uint16     // what comes from or goes to these, of UDP and TCP
	Loss  float64      // this share of all, at random
}

// filters is the table of the host's firewall that filters.
var filters = &nftables.Table{Name: "lab-filter", Family: nftables.TableFamilyINet}

// lossUnit is what random numbers are drawn from.
const lossUnit = 1 << 16

// Filter has the host's network card filter from now on, instead of what it did
// before.
func (h *Host) Filter(f Filter) error {
	err := h.Do(func() error {
		c := new(nftables.Conn)
		c.AddTable(filters) // there is one to delete
		c.DelTable(filters)
		if len(f.From) == 0 && len(f.Ports) == 0 && f.Loss == 0 {
			return c.Flush()
		}
		c.AddTable(filters)
		input := c.AddChain(&nftables.Chain{
			Name: "input", Table: filters, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
		})
		for _, match := range f.matches() {
			name := make([]byte, unix.IFNAMSIZ)
			copy(name, nic)
			rule := append([]expr.Any{
				&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
			}, match...)
			c.AddRule(&nftables.Rule{Table: filters, Chain: input, Exprs: append(rule, &expr.Verdict{Kind: expr.VerdictDrop})})
		}
		return c.Flush()
	})
	if err != nil {
		return fmt.Errorf("filter what arrives at %s: %w", h.Name, err)
	}
	return nil
}

// matches gives what each rule looks for.
func (f Filter) matches() (rules [][]expr.Any) {
	for _, a := range f.From {
		protocol, offset := byte(unix.NFPROTO_IPV4), uint32(12) // of the source address
		if a.Is6() {
			protocol, offset = unix.NFPROTO_IPV6, 8
		}
		rules = append(rules, []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(a.BitLen() / 8)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
		})
	}
	for _, port := range f.Ports {
		for _, protocol := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			for _, offset := range []uint32{0, 2} { // from, to
				rules = append(rules, []expr.Any{
					&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
					&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
					&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
				})
			}
		}
	}
	if f.Loss > 0 {
		rules = append(rules, []expr.Any{
			&expr.Numgen{Register: 1, Modulus: lossUnit, Type: unix.NFT_NG_RANDOM},
			&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
			&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binary.BigEndian.AppendUint32(nil, uint32(f.Loss*lossUnit))},
		})
	}
	return rules
}
