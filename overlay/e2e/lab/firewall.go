//go:build linux

package lab

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// firewall is a table of the host that forbids it to send anything by its
// network card.
var firewall = &nftables.Table{Name: "lab", Family: nftables.TableFamilyINet}

// ForbidSending has the kernel refuse whatever a program sends by the network
// card, with EPERM, until [Host.PermitSending].
func (h *Host) ForbidSending() error {
	err := h.Do(func() error {
		c := new(nftables.Conn)
		c.AddTable(firewall)
		output := c.AddChain(&nftables.Chain{
			Name: "output", Table: firewall, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
		})
		name := make([]byte, unix.IFNAMSIZ)
		copy(name, nic)
		c.AddRule(&nftables.Rule{Table: firewall, Chain: output, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
		return c.Flush()
	})
	if err != nil {
		return fmt.Errorf("forbid %s to send: %w", h.Name, err)
	}
	return nil
}

// PermitSending undoes [Host.ForbidSending].
func (h *Host) PermitSending() error {
	err := h.Do(func() error {
		c := new(nftables.Conn)
		c.DelTable(firewall)
		return c.Flush()
	})
	if err != nil {
		return fmt.Errorf("permit %s to send: %w", h.Name, err)
	}
	return nil
}
