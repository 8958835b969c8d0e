// Package status is how a running daemon is seen and asked: the status
// document, the server that offers it, the client that reads it, and its text
// form.
//
//	meshctl ──HTTP over the unix socket──> Server ──> Daemon (the assembled node)
//	Prometheus, load balancers ──TCP──────────┘
//
// The document is versioned and only ever grows: fields are added, never renamed
// or removed. What was not measured is null, a list is never null, times are
// RFC 3339, loss is 0 to 1.
//
// The owner of a [Server] runs [Server.Run] and gives it a [Daemon] whose methods
// may be called from any goroutine. The socket's permissions are the only access
// control: root and the group meshd. The TCP listener offers nothing that changes
// anything.
package status

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"meshd/mesh"
	"meshd/overlay/attach"
)

// Version is that of the status document.
const Version = 1

// Document is what a node says of itself and its peers.
type Document struct {
	Version  int        `json:"version"`
	Mesh     Mesh       `json:"mesh"`
	State    mesh.State `json:"state"` // by the lease in the network "default"
	Networks []Network  `json:"networks"`
	Node     Node       `json:"node"`
	Engine   Engine     `json:"engine"`
	Peers    []Peer     `json:"peers"` // every other member, sorted by name and ID
	Health   []Finding  `json:"health"`
	// Attachments counts what is attached on this host, sorted by network and state.
	Attachments []AttachmentCount `json:"attachments"`
}

// AttachmentCount is how many containers have one state in a network.
type AttachmentCount struct {
	Network string       `json:"network"`
	State   attach.State `json:"state"`
	Count   int          `json:"count"`
}

// CountAttachments gives the document's form of what is attached.
func CountAttachments(all []attach.Attachment) []AttachmentCount {
	counts := map[AttachmentCount]int{}
	for _, a := range all {
		counts[AttachmentCount{Network: a.Network, State: a.State}]++
	}
	var out []AttachmentCount
	for c, n := range counts {
		c.Count = n
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b AttachmentCount) int {
		return cmp.Or(cmp.Compare(a.Network, b.Network), cmp.Compare(a.State, b.State))
	})
	return out
}

// Mesh names the mesh.
type Mesh struct {
	ID          mesh.ID `json:"id"`
	Name        string  `json:"name"`
	Revocations int     `json:"revocations"` // that this node knows: of nodes and tokens
}

// Network is one address plan of the mesh.
type Network struct {
	Name    string  `json:"name"`
	Ranges  []Range `json:"ranges"`  // one per address family, IPv4 first
	Subnets int     `json:"subnets"` // for so many nodes there is room
}

// Range is one of a network's ranges, cut into a subnet for each node.
type Range struct {
	Prefix    netip.Prefix `json:"prefix"`
	SubnetLen int          `json:"subnet_len"`
}

// NewNetwork gives the document's form of a network.
func NewNetwork(n mesh.Network) Network {
	out := Network{Name: n.Name, Subnets: n.Slots()}
	for _, r := range []Range{{n.IPv4, n.IPv4Len}, {n.IPv6, n.IPv6Len}} {
		if r.Prefix.IsValid() {
			out.Ranges = append(out.Ranges, r)
		}
	}
	return out
}

// Node is the node that speaks.
type Node struct {
	ID      mesh.NodeID       `json:"id"`
	Name    string            `json:"name"`
	Epoch   uint64            `json:"epoch"`
	Control *netip.Addr       `json:"control"` // its fixed address in the mesh
	Leases  []Lease           `json:"leases"`
	Labels  map[string]string `json:"labels,omitempty"`
	// CertificateEnds is when it is no member any more, unless it is renewed.
	CertificateEnds *time.Time   `json:"certificate_ends"`
	GossipKey       *Generations `json:"gossip_key"`
	GossipKeyMade   *time.Time   `json:"gossip_key_made"` // the one that it seals with
}

// Generations are those of the gossip key that a node works with.
type Generations struct {
	Newest uint64 `json:"newest"` // that it has
	Sends  uint64 `json:"sends"`  // that it seals with
}

// Lease is a subnet that a node holds.
type Lease struct {
	Network   string         `json:"network"`
	Prefixes  []netip.Prefix `json:"prefixes"`  // one per address family, IPv4 first
	Addresses []netip.Addr   `json:"addresses"` // the node's own, one per prefix
	State     string         `json:"state"`     // pending, held, quarantined or released
	Since     *time.Time     `json:"since"`
	Renewed   *time.Time     `json:"renewed"` // when this node last heard that it is still there
	Expires   *time.Time     `json:"expires"` // when others may take it, unless it is renewed
}

// NewLease gives the document's form of a lease.
func NewLease(l mesh.Lease) Lease {
	out := Lease{Network: l.Network, Prefixes: slices.Clone(l.Prefixes), State: l.State.String()}
	for _, p := range l.Prefixes {
		out.Addresses = append(out.Addresses, mesh.FirstHost(p))
	}
	if !l.Since.IsZero() {
		out.Since = &l.Since
	}
	return out
}

// Engine is the data plane.
type Engine struct {
	Name  string            `json:"name"`
	MTU   int               `json:"mtu"`   // of the TUN device, in bytes
	Drops map[string]uint64 `json:"drops"` // packets since the start, by reason
}

// PeerState is how a peer is doing.
type PeerState string

// The states of a peer.
const (
	PeerUp   PeerState = "up"   // a handshake younger than 180 s, or a probe answered
	PeerIdle PeerState = "idle" // nothing was sent, so nothing is known
	PeerDown PeerState = "down" // does not answer
	PeerLeft PeerState = "left" // signed that it has left
)

// The paths to a peer.
const (
	PathDirect = "direct" // packets go to its endpoint
	PathIdle   = "idle"   // an endpoint is known, and was not used lately
	PathNone   = "none"   // no endpoint is known
)

// Peer is another member.
type Peer struct {
	ID            mesh.NodeID       `json:"id"`
	Name          string            `json:"name"`
	Control       *netip.Addr       `json:"control"` // its fixed address in the mesh
	State         PeerState         `json:"state"`
	Path          string            `json:"path"`
	Endpoint      *netip.AddrPort   `json:"endpoint"`
	PathMTU       *int              `json:"path_mtu"` // in bytes, where the path carries less than the engine's MTU
	Suite         string            `json:"suite"`
	Leases        []Lease           `json:"leases"`
	RTTms         *float64          `json:"rtt_ms"` // through the tunnel
	Loss          *float64          `json:"loss"`   // of probes through the tunnel
	RxBytes       *uint64           `json:"rx_bytes"`
	TxBytes       *uint64           `json:"tx_bytes"`
	LastHandshake *time.Time        `json:"last_handshake"`
	LastSeen      *time.Time        `json:"last_seen"` // last answer to a probe
	Labels        map[string]string `json:"labels,omitempty"`
	// Expired says why its leases are void; empty: they are not.
	Expired         mesh.Expiry  `json:"expired"`
	CertificateEnds *time.Time   `json:"certificate_ends"`
	GossipKey       *Generations `json:"gossip_key"`
}

// Finding is one entry of the health report.
type Finding struct {
	Level   string `json:"level"` // "info", "warning" or "error"; an info degrades nothing
	Code    string `json:"code"`
	Message string `json:"message"`
}

// MarshalJSON writes lists as [] when they are empty.
func (d Document) MarshalJSON() ([]byte, error) {
	type plain Document // without this method
	d.Networks, d.Peers, d.Health, d.Attachments = notNil(d.Networks), notNil(d.Peers), notNil(d.Health), notNil(d.Attachments)
	return json.Marshal(plain(d))
}

// MarshalJSON writes an ID that is not known as null.
func (m Mesh) MarshalJSON() ([]byte, error) {
	type plain Mesh
	return json.Marshal(struct {
		ID *mesh.ID `json:"id"`
		plain
	}{known(m.ID), plain(m)})
}

// MarshalJSON writes an ID that is not known as null, and lists as [].
func (n Node) MarshalJSON() ([]byte, error) {
	type plain Node
	n.Leases = notNil(n.Leases)
	return json.Marshal(struct {
		ID *mesh.NodeID `json:"id"`
		plain
	}{known(n.ID), plain(n)})
}

// MarshalJSON writes lists as [] when they are empty.
func (n Network) MarshalJSON() ([]byte, error) {
	type plain Network
	n.Ranges = notNil(n.Ranges)
	return json.Marshal(plain(n))
}

// MarshalJSON writes maps as {} when they are empty.
func (e Engine) MarshalJSON() ([]byte, error) {
	type plain Engine
	if e.Drops == nil {
		e.Drops = map[string]uint64{}
	}
	return json.Marshal(plain(e))
}

// MarshalJSON writes lists as [] when they are empty.
func (p Peer) MarshalJSON() ([]byte, error) {
	type plain Peer
	p.Leases = notNil(p.Leases)
	return json.Marshal(plain(p))
}

// MarshalJSON writes lists as [] when they are empty.
func (l Lease) MarshalJSON() ([]byte, error) {
	type plain Lease
	l.Prefixes, l.Addresses = notNil(l.Prefixes), notNil(l.Addresses)
	return json.Marshal(plain(l))
}

func known(id mesh.ID) *mesh.ID {
	if id.IsZero() {
		return nil
	}
	return &id
}

func notNil[S ~[]E, E any](s S) S {
	if s == nil {
		return S{}
	}
	return s
}

// Healthy tells whether the node is ready, nothing is wrong with it and every
// peer that has neither left nor been forgotten can be reached.
func (d *Document) Healthy() bool { return d.ExitCode() == 0 }

// ExitCode is that of `meshctl status`: 0 ready and healthy, 1 degraded, 3 not
// ready or no daemon.
func (d *Document) ExitCode() int {
	switch {
	case d.State != mesh.Ready:
		return 3
	case slices.ContainsFunc(d.Health, func(f Finding) bool { return f.Level != "info" }), slices.ContainsFunc(d.Peers, func(p Peer) bool { return p.State == PeerDown && p.Expired != mesh.Forgotten }):
		return 1
	}
	return 0
}

// Errors of [Document.Find]. The text of what Find returns also says which nodes
// there are.
var (
	ErrUnknownNode   = errors.New("no such node")
	ErrAmbiguousNode = errors.New("several nodes match")
)

// Find looks up a peer as a person names it: by name, by a mesh address, by ID
// or by at least 8 characters of its beginning.
func (d *Document) Find(node string) (*Peer, error) {
	addr, _ := netip.ParseAddr(node)
	matchers := []func(*Peer) bool{
		func(p *Peer) bool { return p.Name == node && p.State != PeerLeft && p.Expired == mesh.NotExpired },
		func(p *Peer) bool { return p.Name == node && p.State != PeerLeft },
		func(p *Peer) bool { return p.Name == node },
		func(p *Peer) bool { return addr.IsValid() && p.has(addr) },
		func(p *Peer) bool { return len(node) >= 8 && strings.HasPrefix(p.ID.String(), node) },
	}
	for _, match := range matchers {
		var found []*Peer
		for i := range d.Peers {
			if match(&d.Peers[i]) {
				found = append(found, &d.Peers[i])
			}
		}
		switch len(found) {
		case 0:
			continue
		case 1:
			return found[0], nil
		}
		which := make([]string, len(found))
		for i, p := range found {
			which[i] = p.whole()
		}
		return nil, fmt.Errorf("%w %s: name one by its ID: %s", ErrAmbiguousNode, clean(node), listed(which))
	}
	if node == d.Node.Name || node == d.Node.ID.String() {
		return nil, fmt.Errorf("%w among the peers: %s is this node itself", ErrUnknownNode, clean(node))
	}
	var names []string
	for _, p := range d.Peers {
		names = append(names, clean(p.Name))
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%w: %.80s: this node knows no other yet", ErrUnknownNode, clean(node))
	}
	return nil, fmt.Errorf("%w: %.80s: there are %s", ErrUnknownNode, clean(node), listed(names))
}

// whole names a peer so that nobody takes it for a namesake.
func (p *Peer) whole() string {
	words := []string{clean(p.Name), p.ID.String()}
	for _, l := range p.Leases {
		if l.State != mesh.Released.String() && len(l.Prefixes) > 0 {
			words = append(words, l.Prefixes[0].String())
		}
	}
	return strings.Join(words, " ")
}

// has tells whether an address is the peer's own.
func (p *Peer) has(addr netip.Addr) bool {
	return p.Control != nil && *p.Control == addr ||
		slices.ContainsFunc(p.Leases, func(l Lease) bool { return slices.Contains(l.Addresses, addr) })
}

// listed joins names into one line of bounded length.
func listed(names []string) string {
	const most = 20
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
