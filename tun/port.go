package tun

import (
	"net/netip"
	"strings"
)

// PortKind says how a container hangs on its host.
type PortKind string

// The kinds of ports.
const (
	PortBridge  PortKind = "bridge"  // a pair of links, the host end on a bridge
	PortPTP     PortKind = "ptp"     // a pair of links, with routes to the host end
	PortMACVLAN PortKind = "macvlan" // a link with a MAC address of its own on a physical one
	PortIPVLAN  PortKind = "ipvlan"  // a link that shares the MAC address of a physical one
)

// IsLAN tells whether such ports are on a physical link, and have no end on the host.
func (k PortKind) IsLAN() bool { return k == PortMACVLAN || k == PortIPVLAN }

// These start the names of both ends, which is how ours are told from anybody
// else's links.
const (
	PortPrefix = "mv-" // of the host's
	PeerPrefix = "mc-" // of the container's, until it is moved and renamed
)

// LANPrefix starts the names of the host's links on physical ones; no port has such
// a name.
const LANPrefix = PortPrefix + "lan-"

// IsLinkName tells whether the kernel takes s for the name of a link: at most 15
// printable ASCII characters (IFNAMSIZ, less its zero byte), and not of a path.
func IsLinkName(s string) bool {
	return s != "" && len(s) <= MaxLinkName && s != "." && s != ".." && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune("/:%", r)
	})
}

// MaxLinkName is the length of the longest name of a link.
const MaxLinkName = 15

// Port is the link by which one container hangs on this host.
//
//	bridge            ptp                      macvlan, ipvlan
//
//	Parent ── Name    Name ◄── Addresses       Parent
//	            │       │                        │
//	~~~~~~~~~~~~│~~~~~~~│~~~~~~~~~~~~~~~~~~~~~~~~│~~~ namespace of the container
//	           Peer    Peer                     Peer
type Port struct {
	Kind   PortKind
	Name   string // of the host end, starts with PortPrefix; empty for macvlan and ipvlan, which have none
	Peer   string // the container's end, for as long as it is in the host's namespace
	Parent string // the bridge, made if it is missing; for macvlan and ipvlan the physical link, never made; empty for ptp
	MAC    string // of Peer, such as "02:2b:4c:00:1f:9a"; an ipvlan takes its parent's
	MTU    int    // of both ends, in bytes
	// Addresses are those that the container will have: for ptp the host routes
	// them to Name, and nothing else may be believed to come from there. A ptp
	// without any is down: it is for a container whose addresses are void.
	Addresses []netip.Addr
	// Internal: it sends to its own segment and to nowhere else.
	Internal bool
	// Down tells of a host end that is there and not up; nobody wants one so.
	Down bool
	// Gateways are, for ptp, the host's own addresses by which the container finds
	// it on the link, though no subnet is there.
	Gateways []netip.Addr
}
