//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"slices"

	"meshd/mesh"
)

// ranges are the mesh's, none of which is on the underlay.
func (c *chaos) ranges(ctx context.Context) ([]netip.Prefix, error) {
	d, err := c.Nodes[0].Document(ctx)
	if err != nil {
		return nil, err
	}
	all := []netip.Prefix{mesh.ControlRange(d.Mesh.ID)}
	for _, n := range d.Networks {
		for _, r := range n.Ranges {
			all = append(all, r.Prefix)
		}
	}
	return all, nil
}

// inner finds an address of the mesh where there should be none: in the header of
// a frame's packet, or of a packet that is anywhere in it.
func inner(frame []byte, ranges []netip.Prefix) (netip.Addr, bool) {
	if len(frame) < 14 {
		return netip.Addr{}, false
	}
	ours := func(b []byte) (netip.Addr, bool) {
		a, _ := netip.AddrFromSlice(b)
		return a, slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a) })
	}
	packet := frame[14:]
	var addresses [][]byte
	switch kind := binary.BigEndian.Uint16(frame[12:]); {
	case kind == 0x0800 && len(packet) >= 20:
		addresses = [][]byte{packet[12:16], packet[16:20]}
	case kind == 0x86dd && len(packet) >= 40:
		addresses = [][]byte{packet[8:24], packet[24:40]}
	}
	for _, b := range addresses {
		if a, found := ours(b); found {
			return a, true
		}
	}
	// The IPv6 ranges are long enough to be looked for in whatever is sent.
	for _, r := range ranges {
		if r.Addr().Is6() {
			prefix := r.Addr().As16()
			if i := bytes.Index(packet, prefix[:min(r.Bits()/8, 16)]); i >= 0 && r.Bits() >= 48 && i+16 <= len(packet) && inPacket(packet, i, ours) {
				a, _ := netip.AddrFromSlice(packet[i : i+16])
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

// inPacket tells whether an address at i is the source of an IPv6 packet whose
// destination is in the mesh too: six bytes that are equal are no proof.
func inPacket(b []byte, i int, ours func([]byte) (netip.Addr, bool)) bool {
	if i < 8 || i+32 > len(b) || b[i-8]>>4 != 6 {
		return false
	}
	_, source := ours(b[i : i+16])
	_, destination := ours(b[i+16 : i+32])
	return source && destination
}
