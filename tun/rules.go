package tun

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// BridgePrefix starts the name of every network's bridge. With [PortPrefix] it is
// how the firewall knows our links: one that is named so and belongs to no
// segment carries nothing.
const BridgePrefix = "mbr-"

// Rules is what the firewall should do for the mesh. The zero value wants
// nothing: applying it removes whatever is ours.
//
//   - From the TUN device comes only what stays within one segment.
//   - From a segment's links comes only what has an address of ours in it, and
//     goes to no other segment.
//   - Addresses of the mesh come from nowhere else.
//
// And where any segment has links, or containers behind those of others:
//
//   - To a segment's links goes what comes from the same segment, what is
//     answered, and what was sent to a published port.
//   - Into the TUN device is forwarded what comes from our addresses in the same
//     segment; what belongs to others of this host is not the mesh's.
//   - From our links to Others goes what is answered, and what was sent to a
//     published port.
//   - With Masquerade, what leaves the mesh from behind our links takes the host's
//     address. Without, whoever is outside must know the way back.
//   - What was sent from such a segment to a port that Docker publishes on its
//     docker_gwbridge takes the host's address there, and so comes back that way.
//
// In any case nothing is forwarded from Others into the TUN device, but answers.
type Rules struct {
	Link       string // name of the TUN device
	Segments   []Segment
	Masquerade bool
	Others     []string // interfaces that lead to containers that are not on the mesh
	// Ports are those of containers, Name being the link by which their packets come;
	// those on a physical link share one. Each sends with its own MAC address and
	// Addresses and with no others, to its neighbours as well; with none at all one
	// sends nothing.
	Ports []Port
}

// Segment is a part of the mesh whose members may talk to each other, and to
// nobody else in the mesh: a network, or the control addresses.
type Segment struct {
	Name   string
	Ranges []netip.Prefix
	Own    []netip.Prefix // this host's part of the ranges
	Links  []string       // interfaces that lead to its containers, and to nobody else
	// Former parts of this host may be somebody else's now. Containers that still
	// have addresses there talk to each other, and get no further than their bridge.
	Former []netip.Prefix
	// Delegated: containers with addresses of Own are behind links of others.
	Delegated bool
}

// IsZero tells whether nothing is wanted.
func (r Rules) IsZero() bool { return r.Link == "" && len(r.Segments) == 0 && len(r.Ports) == 0 }

// HasLinks tells whether this host has containers in any segment, behind whosever
// links.
func (r Rules) HasLinks() bool {
	return slices.ContainsFunc(r.Segments, func(s Segment) bool { return len(s.Links) > 0 || s.Delegated })
}

// Normal gives the same rules in one canonical order, so that rules compare and
// print alike.
func (r Rules) Normal() Rules {
	r.Segments = slices.Clone(r.Segments)
	for i := range r.Segments {
		s := &r.Segments[i]
		s.Ranges, s.Own, s.Links, s.Former = slices.Clone(s.Ranges), slices.Clone(s.Own), slices.Clone(s.Links), slices.Clone(s.Former)
		slices.SortFunc(s.Ranges, netip.Prefix.Compare)
		slices.SortFunc(s.Former, netip.Prefix.Compare)
		slices.SortFunc(s.Own, netip.Prefix.Compare)
		slices.Sort(s.Links)
	}
	r.Others = slices.Clone(r.Others)
	slices.Sort(r.Others)
	r.Ports = slices.Clone(r.Ports)
	slices.SortFunc(r.Ports, func(a, b Port) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Peer, b.Peer)) })
	slices.SortFunc(r.Segments, func(a, b Segment) int { return cmp.Compare(a.Name, b.Name) })
	return r
}

// String prints a line for each segment, for people.
func (r Rules) String() string {
	var b strings.Builder
	for _, s := range r.Normal().Segments {
		b.WriteString("isolate " + s.Name + list(" in", s.Ranges, netip.Prefix.String) + list(", ours", s.Own, netip.Prefix.String))
		if s.Delegated {
			b.WriteString(", behind links of others")
		}
		b.WriteString(list(" behind", s.Links, strings.Clone) + list(", formerly", s.Former, netip.Prefix.String) + ", via " + r.Link + "\n")
	}
	if len(r.Others) > 0 {
		b.WriteString("keep out" + list("", r.Others, strings.Clone) + "\n")
	}
	if r.Masquerade && r.HasLinks() {
		b.WriteString("masquerade what leaves the mesh\n")
	}
	for _, p := range r.Normal().Ports {
		line := "check " + p.Name + ": " + p.MAC + list("", p.Addresses, netip.Addr.String)
		if p.Internal {
			line += ", internal"
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

func list[T any](what string, all []T, text func(T) string) string {
	if len(all) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString(what)
	for _, v := range all {
		b.WriteString(" " + text(v))
	}
	return b.String()
}
