package trust

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"meshd/mesh"
)

// Charter is the constitution of a mesh, signed by its CA. Of two charters the
// one with the higher (Version, Hash) wins.
type Charter struct {
	Object
	Name     string
	CA       ed25519.PublicKey
	Version  uint64
	Previous Hash // of the charter before; zero for the first
	Networks []mesh.Network
	Reserved []netip.Prefix // subnets that nobody leases but who is pinned to them
	Created  time.Time
}

type charterBody struct {
	Name     string            `cbor:"1,keyasint"`
	CA       ed25519.PublicKey `cbor:"2,keyasint"`
	Version  uint64            `cbor:"3,keyasint"`
	Previous Hash              `cbor:"4,keyasint"`
	Networks []networkBody     `cbor:"5,keyasint"`
	Created  time.Time         `cbor:"6,keyasint"`
	Reserved []netip.Prefix    `cbor:"7,keyasint,omitempty"`
}

type networkBody struct {
	Name    string       `cbor:"1,keyasint"`
	IPv4    netip.Prefix `cbor:"2,keyasint"`
	IPv4Len int          `cbor:"3,keyasint"`
	IPv6    netip.Prefix `cbor:"4,keyasint"`
	IPv6Len int          `cbor:"5,keyasint"`
}

// maxReserved leaves a charter with all of its networks below [MaxObject].
const maxReserved = 128

// maxNetworks bounds a charter: one lease per network must fit a record.
const maxNetworks = 64

// ID is the mesh's identity: that of its CA key.
func (c *Charter) ID() mesh.ID { return IdentityOf(c.CA) }

// Control is the range of the members' control addresses.
func (c *Charter) Control() netip.Prefix { return mesh.ControlRange(c.ID()) }

// Ranges lists every range of the mesh, the control range first.
func (c *Charter) Ranges() []netip.Prefix {
	ranges := []netip.Prefix{c.Control()}
	for _, n := range c.Networks {
		ranges = append(ranges, n.Ranges()...)
	}
	return ranges
}

// Network finds a network by its name.
func (c *Charter) Network(name string) (mesh.Network, bool) {
	for _, n := range c.Networks {
		if n.Name == name {
			return n, true
		}
	}
	return mesh.Network{}, false
}

// Newer tells whether c replaces old; nil is older than any.
func (c *Charter) Newer(old *Charter) bool {
	if old == nil || c.Version != old.Version {
		return old == nil || c.Version > old.Version
	}
	return c.Hash.Compare(old.Hash) > 0
}

// ErrNotNext says that a charter is not the one after another.
var ErrNotNext = errors.New("charter does not follow the newest one")

// Next is the charter after c, to be signed, with other networks. What is reserved
// in networks that are no longer there is left out.
func (c *Charter) Next(now time.Time, networks []mesh.Network) *Charter {
	next := &Charter{Name: c.Name, Version: c.Version + 1, Previous: c.Hash, Networks: networks, Created: now}
	for _, p := range c.Reserved {
		if isSubnet(networks, p) {
			next.Reserved = append(next.Reserved, p)
		}
	}
	return next
}

// isSubnet tells whether p is a subnet of one of the networks.
func isSubnet(networks []mesh.Network, p netip.Prefix) bool {
	return slices.ContainsFunc(networks, func(n mesh.Network) bool { _, err := n.SlotOf(p); return err == nil })
}

// IsReserved tells whether one of the prefixes is kept for who is pinned to it.
func (c *Charter) IsReserved(prefixes []netip.Prefix) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return slices.Contains(c.Reserved, p) })
}

// Follows verifies that c is a next charter of old. A network that both have must
// be the same: its ranges never change, since leases are cut from them. Gossip asks
// for less, since nobody hears every charter.
func (c *Charter) Follows(old *Charter) error {
	if c.Version != old.Version+1 || c.Previous != old.Hash {
		return fmt.Errorf("%w: it is version %d, after %s; the newest is version %d, %s", ErrNotNext, c.Version, c.Previous, old.Version, old.Hash)
	}
	if c.Name != old.Name {
		return fmt.Errorf("charter: %w: mesh %s becomes %s", ErrForbidden, old.Name, c.Name)
	}
	for _, n := range c.Networks {
		if before, ok := old.Network(n.Name); ok && before != n {
			return fmt.Errorf("charter: %w: network %s gets other ranges: delete it, and make it anew", ErrForbidden, n.Name)
		}
	}
	return nil
}

// Sign makes the charter's bytes. CA is set from the key.
func (c *Charter) Sign(ca ed25519.PrivateKey) ([]byte, error) {
	c.CA = ca.Public().(ed25519.PublicKey)
	if err := c.check(); err != nil {
		return nil, err
	}
	body := charterBody{Name: c.Name, CA: c.CA, Version: c.Version, Previous: c.Previous, Reserved: c.Reserved, Created: c.Created.Truncate(time.Second)}
	for _, n := range c.Networks {
		body.Networks = append(body.Networks, networkBody(n))
	}
	return sign(ca, KindCharter, body), nil
}

// ParseCharter verifies a charter of the mesh with the given ID; a zero ID
// accepts any mesh, for the first contact by token.
func ParseCharter(raw []byte, id mesh.ID) (*Charter, error) {
	var body charterBody
	e, err := parse(raw, KindCharter, &body)
	if err != nil {
		return nil, fmt.Errorf("charter: %w", err)
	}
	c := &Charter{
		Object: e.Object, Name: body.Name, CA: body.CA, Version: body.Version,
		Previous: body.Previous, Reserved: body.Reserved, Created: body.Created,
	}
	for _, n := range body.Networks {
		c.Networks = append(c.Networks, mesh.Network(n))
	}
	if err := e.verify(c.CA); err != nil {
		return nil, fmt.Errorf("charter: %w", err)
	}
	if !id.IsZero() && c.ID() != id {
		return nil, fmt.Errorf("charter: %w: mesh %s, not %s", ErrForbidden, c.ID(), id)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("charter: %w", err)
	}
	return c, nil
}

// check verifies the bounds of every field.
func (c *Charter) check() error {
	if err := CheckName(c.Name); err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	if err := checkTime(c.Created); err != nil {
		return err
	}
	if c.Version == 0 {
		return fmt.Errorf("%w: version 0", ErrMalformed)
	}
	if len(c.Networks) == 0 || len(c.Networks) > maxNetworks {
		return fmt.Errorf("%w: %d networks, 1 to %d", ErrMalformed, len(c.Networks), maxNetworks)
	}
	names, ranges := map[string]bool{}, []netip.Prefix{c.Control()}
	for _, n := range c.Networks {
		if err := CheckNetwork(n); err != nil {
			return err
		}
		if names[n.Name] {
			return fmt.Errorf("%w: network %s appears twice", ErrMalformed, n.Name)
		}
		names[n.Name] = true
		for _, r := range n.Ranges() {
			for _, other := range ranges {
				if r.Overlaps(other) {
					return fmt.Errorf("%w: range %s of network %s overlaps %s", ErrMalformed, r, n.Name, other)
				}
			}
			ranges = append(ranges, r)
		}
	}
	if len(c.Reserved) > maxReserved {
		return fmt.Errorf("%w: %d subnets are reserved, at most %d", ErrMalformed, len(c.Reserved), maxReserved)
	}
	for i, p := range c.Reserved {
		if slices.Contains(c.Reserved[:i], p) || !isSubnet(c.Networks, p) {
			return fmt.Errorf("%w: reserved %s is no subnet of a network, or appears twice", ErrMalformed, p)
		}
	}
	return nil
}

// CheckNetwork verifies that a network's ranges can be cut into subnets.
func CheckNetwork(n mesh.Network) error {
	if err := CheckName(n.Name); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if len(n.Ranges()) == 0 {
		return fmt.Errorf("%w: network %s has no range", ErrMalformed, n.Name)
	}
	if err := checkRange(n.IPv4, n.IPv4Len, 30, netip.Addr.Is4); err != nil {
		return fmt.Errorf("network %s: IPv4 range: %w", n.Name, err)
	}
	if err := checkRange(n.IPv6, n.IPv6Len, 126, func(a netip.Addr) bool { return a.Is6() && !a.Is4In6() }); err != nil {
		return fmt.Errorf("network %s: IPv6 range: %w", n.Name, err)
	}
	return nil
}

// checkRange verifies one range and the length of its subnets.
func checkRange(p netip.Prefix, bits, longest int, family func(netip.Addr) bool) error {
	switch {
	case !p.IsValid() && bits == 0:
		return nil // the network has none of this family
	case !p.IsValid() || !family(p.Addr()) || p != p.Masked() || p.Bits() < 4:
		return fmt.Errorf("%w: %s is not a range (a prefix without host bits, at least 4 bits long)", ErrMalformed, p)
	case p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() || p.Addr().IsUnspecified():
		return fmt.Errorf("%w: %s is not a unicast range", ErrMalformed, p)
	case bits <= p.Bits() || bits > longest:
		return fmt.Errorf("%w: subnets of /%d do not fit %s (use /%d to /%d)", ErrMalformed, bits, p, p.Bits()+1, longest)
	}
	return nil
}
