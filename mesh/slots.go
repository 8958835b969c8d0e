package mesh

import (
	"crypto/sha256"
	"net/netip"
)

// Slots tells into how many subnets the network is cut: the smallest number
// that any of its ranges yields, at most 2^24.
func (n Network) Slots() int {
	bits := 24
	if n.IPv4.IsValid() {
		bits = min(bits, n.IPv4Len-n.IPv4.Bits())
	}
	if n.IPv6.IsValid() {
		bits = min(bits, n.IPv6Len-n.IPv6.Bits())
	}
	return 1 << bits
}

// Slot gives the subnets of slot i, one per range, 0 <= i < Slots().
//
//	10.86.0.0/16 cut into /24   slot 17 = 10.86.17.0/24
//	fd12:3456:789a::/48 into /64          fd12:3456:789a:11::/64
func (n Network) Slot(i int) []netip.Prefix {
	var out []netip.Prefix
	if n.IPv4.IsValid() {
		out = append(out, subnet(n.IPv4, n.IPv4Len, i))
	}
	if n.IPv6.IsValid() {
		out = append(out, subnet(n.IPv6, n.IPv6Len, i))
	}
	return out
}

// SlotOf finds the slot whose subnets include p, or fails with [ErrNoSlot].
func (n Network) SlotOf(p netip.Prefix) (int, error) {
	for _, r := range []struct {
		prefix netip.Prefix
		bits   int
	}{{n.IPv4, n.IPv4Len}, {n.IPv6, n.IPv6Len}} {
		if !r.prefix.IsValid() || p.Bits() != r.bits || p != p.Masked() || !r.prefix.Contains(p.Addr()) {
			continue
		}
		i := slotIndex(r.prefix, r.bits, p.Addr())
		if i < n.Slots() {
			return i, nil
		}
	}
	return 0, ErrNoSlot
}

// SlotsIn gives the slots first <= i < end whose subnet of p's family lies in p.
func (n Network) SlotsIn(p netip.Prefix) (first, end int) {
	r, bits := n.IPv4, n.IPv4Len
	if p.Addr().Is6() {
		r, bits = n.IPv6, n.IPv6Len
	}
	switch {
	case !r.IsValid() || !r.Overlaps(p) || p.Bits() > bits:
		return 0, 0
	case p.Bits() <= r.Bits():
		return 0, n.Slots()
	}
	first = slotIndex(r, bits, p.Masked().Addr())
	return min(first, n.Slots()), min(first+1<<min(bits-p.Bits(), 24), n.Slots())
}

// subnet gives the i-th subnet of the given length in range r.
func subnet(r netip.Prefix, bits, i int) netip.Prefix {
	addr := r.Masked().Addr().AsSlice()
	for b := bits - 1; b >= r.Bits() && i > 0; b-- {
		addr[b/8] |= byte(i&1) << (7 - b%8)
		i >>= 1
	}
	a, _ := netip.AddrFromSlice(addr)
	return netip.PrefixFrom(a, bits)
}

// slotIndex reads the bits between the range's length and the subnet's.
func slotIndex(r netip.Prefix, bits int, a netip.Addr) int {
	raw, index := a.AsSlice(), 0
	for b := r.Bits(); b < bits; b++ {
		if index >= 1<<24 {
			return index // beyond every slot, whatever follows
		}
		index = index<<1 | int(raw[b/8]>>(7-b%8)&1)
	}
	return index
}

// FirstHost gives the first usable address of a subnet: the one that the node
// itself takes. In a /31, /32, /127 or /128 that is the first address.
func FirstHost(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr()
	if p.Bits() >= a.BitLen()-1 {
		return a
	}
	return a.Next()
}

// ControlRange is the /48 in which every member of a mesh has its control
// address. It is a unique local range (RFC 4193) whose 40 random bits come from
// the mesh's ID, so it needs no configuration and never changes.
func ControlRange(id ID) netip.Prefix {
	sum := sha256.Sum256(append([]byte("meshd control range\x00"), id[:]...))
	addr := [16]byte{0xfd}
	copy(addr[1:6], sum[:5])
	return netip.PrefixFrom(netip.AddrFrom16(addr), 48)
}

// DefaultIPv6 is the /48 that `init --ipv6 auto` gives to the default network.
func DefaultIPv6(id ID) netip.Prefix {
	sum := sha256.Sum256(append([]byte("meshd default network\x00"), id[:]...))
	addr := [16]byte{0xfd}
	copy(addr[1:6], sum[:5])
	return netip.PrefixFrom(netip.AddrFrom16(addr), 48)
}

// ControlAddr is a node's address in the control range: the range, then 80 bits
// of the node's ID. It is there before the node has a lease and outlives every
// change of it.
func ControlAddr(meshID ID, node NodeID) netip.Addr {
	addr := ControlRange(meshID).Addr().As16()
	copy(addr[6:], node[:10])
	return netip.AddrFrom16(addr)
}
