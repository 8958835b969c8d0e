package attach

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"meshd/mesh"
)

// pool gives out the addresses of one subnet:
//
//	.0        .1     .2 ..... next ..... .254   .255
//	network   host   ◄──── containers ─────►    broadcast
//
// They are given in turn, round and round, but the last ones that were freed
// wait in a line: who still sends to an address after its container has gone
// shall reach nobody for as long as possible. A step skips only what is held or
// waits, so the size of the subnet does not matter.
type pool struct {
	prefix netip.Prefix
	first  uint64              // offset of the first one for containers
	size   uint64              // how many there are
	known  map[netip.Addr]bool // true: held, false: waits in line
	next   uint64              // offset from first at which to go on
	line   []netip.Addr        // freed ones, the longest free first
}

// poolState is what a restart should know of a pool. Without it no address is
// given twice either, but a freed one perhaps too soon.
type poolState struct {
	Prefix netip.Prefix `json:"prefix"`
	Next   uint64       `json:"next"`
	Line   []netip.Addr `json:"line,omitempty"`
}

// maxLine is more than a /24 has. The line is written at each change.
const maxLine = 256

// newPool makes the pool of a subnet of which some addresses are held already.
// It believes nothing that is not for this subnet.
func newPool(prefix netip.Prefix, held []netip.Addr, s poolState) *pool {
	p := &pool{prefix: prefix, first: 2, known: map[netip.Addr]bool{}}
	switch bits := prefix.Addr().BitLen() - prefix.Bits(); bits {
	case 0: // the host's own
	case 1: // as in RFC 3021, without a broadcast
		p.first, p.size = 1, 1
	default:
		p.size = 1<<min(bits, 63) - 3
	}
	for _, a := range held {
		if p.usable(a) {
			p.known[a] = true
		}
	}
	if s.Prefix != prefix || p.size == 0 {
		return p
	}
	p.next = s.Next % p.size
	for _, a := range s.Line[max(0, len(s.Line)-maxLine):] {
		if _, twice := p.known[a]; !twice && p.usable(a) {
			p.known[a] = false
			p.line = append(p.line, a)
		}
	}
	return p
}

func (p *pool) state() poolState {
	return poolState{Prefix: p.prefix, Next: p.next, Line: slices.Clone(p.line)}
}

// take holds a free address.
func (p *pool) take() (netip.Addr, error) {
	if uint64(len(p.known)) < p.size {
		for {
			a := p.at(p.next)
			p.next = (p.next + 1) % p.size
			if _, not := p.known[a]; !not {
				p.known[a] = true
				return a, nil
			}
		}
	}
	if len(p.line) > 0 {
		a := p.line[0]
		p.line = p.line[1:]
		p.known[a] = true
		return a, nil
	}
	return netip.Addr{}, fmt.Errorf("%w in %s", ErrExhausted, p.prefix)
}

// wish holds a certain address.
func (p *pool) wish(a netip.Addr) error {
	switch {
	case a == mesh.FirstHost(p.prefix):
		return fmt.Errorf("%w: %s is this host's own", ErrTaken, a)
	case !p.usable(a):
		return fmt.Errorf("%w: %s, of %s", ErrOutside, a, p.prefix)
	case p.known[a]:
		return fmt.Errorf("%w: %s", ErrTaken, a)
	}
	p.line = slices.DeleteFunc(p.line, func(l netip.Addr) bool { return l == a })
	p.known[a] = true
	return nil
}

// free takes an address back. One that is not held changes nothing.
func (p *pool) free(a netip.Addr) {
	if !p.known[a] {
		return
	}
	p.known[a] = false
	p.line = append(p.line, a)
	if len(p.line) > maxLine {
		delete(p.known, p.line[0])
		p.line = slices.Delete(p.line, 0, 1)
	}
}

// at gives the i-th address for containers, i < size. What is given lies in the
// first 2^63 of a subnet that is larger.
func (p *pool) at(i uint64) netip.Addr {
	base := p.prefix.Masked().Addr()
	if base.Is4() {
		raw := base.As4()
		binary.BigEndian.PutUint32(raw[:], binary.BigEndian.Uint32(raw[:])+uint32(p.first+i))
		return netip.AddrFrom4(raw)
	}
	raw := base.As16()
	binary.BigEndian.PutUint64(raw[8:], binary.BigEndian.Uint64(raw[8:])|(p.first+i))
	return netip.AddrFrom16(raw)
}

// usable tells whether an address is one for containers.
func (p *pool) usable(a netip.Addr) bool {
	if p.size == 0 || !p.prefix.Contains(a) || a == p.prefix.Masked().Addr() || a == mesh.FirstHost(p.prefix) {
		return false
	}
	bits := p.prefix.Bits()
	return p.prefix.Addr().BitLen()-bits == 1 || p.prefix.Contains(a.Next()) // not the last one
}
