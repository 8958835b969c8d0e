package attach

import (
	"fmt"
	"net/netip"
)

// take holds an address in the subnet: any if the wish is 0.0.0.0 or ::.
func (n *network) take(wish netip.Addr) (netip.Prefix, error) {
	p := n.pool(wish)
	if p == nil {
		family := "IPv6"
		if wish.Is4() {
			family = "IPv4"
		}
		return netip.Prefix{}, fmt.Errorf("%w: the network %s has no %s", ErrOutside, n.name, family)
	}
	if !wish.IsUnspecified() {
		return netip.PrefixFrom(wish, p.prefix.Bits()), p.wish(wish)
	}
	a, err := p.take()
	return netip.PrefixFrom(a, p.prefix.Bits()), err
}

// untake frees an address that nobody holds any more.
func (n *network) untake(a netip.Addr) {
	if p := n.pool(a); p != nil && n.holder[a] == nil && n.reserved[a] == nil {
		p.free(a)
	}
}

// admit makes the entry for an ask.
func (n *network) admit(ask Ask, mtu int) (*entry, error) {
	wishes := ask.Addresses
	if len(wishes) == 0 {
		for _, p := range n.pools {
			any := netip.IPv6Unspecified()
			if p.prefix.Addr().Is4() {
				any = netip.IPv4Unspecified()
			}
			wishes = append(wishes, any)
		}
	}
	if other := n.withMAC(ask.MAC); other != nil {
		return nil, fmt.Errorf("%w: the MAC address %s is that of %s", ErrTaken, ask.MAC, other.ID)
	}
	e := &entry{ID: ask.ID, Mode: ask.Mode, Parent: ask.Parent, Container: ask.Container, Internal: ask.Internal, MAC: ask.MAC, MTU: mtu, making: true}
	for _, wish := range wishes {
		a, err := n.takeFor(ask.ID, wish)
		if err != nil {
			for _, a := range e.Addresses {
				n.untake(a.Addr())
			}
			return nil, err
		}
		e.Addresses = append(e.Addresses, a)
	}
	if e.MAC == "" {
		e.MAC = macOf(e.Addresses[0].Addr())
	}
	n.add(e)
	return e, nil
}

// withMAC finds who has a MAC address; "" is nobody's.
func (n *network) withMAC(mac string) *entry {
	for _, e := range n.entries {
		if mac != "" && e.MAC == mac {
			return e
		}
	}
	return nil
}

// takeFor holds an address for an attachment, a reserved one too.
func (n *network) takeFor(id string, wish netip.Addr) (netip.Prefix, error) {
	r, p := n.reserved[wish], n.pool(wish)
	if r != nil && r.Door == door(id) && n.holder[wish] == nil && p != nil && p.usable(wish) {
		return r.Address, nil
	}
	return n.take(wish)
}

func (n *network) add(e *entry) {
	n.entries[e.ID] = e
	for _, a := range e.Addresses {
		n.holder[a.Addr()] = e
	}
}

// drop forgets an attachment and frees its addresses.
func (n *network) drop(e *entry) {
	delete(n.entries, e.ID)
	delete(n.missing, e.ID)
	for _, a := range e.Addresses {
		delete(n.holder, a.Addr())
		n.untake(a.Addr())
	}
	n.changes++
}

func (n *network) reserve(r *reservation) {
	n.reserved[r.Address.Addr()] = r
	n.changes++
}

func (n *network) release(a netip.Addr) {
	delete(n.reserved, a)
	delete(n.idle, a)
	n.untake(a)
	n.changes++
}
