// Package mesh is the vocabulary of membership: who is there, and who owns
// which subnet.
//
// Everything here is a plain value. A [View] is what one node knows of the
// whole mesh at one moment, verified and with conflicts already decided; it is
// never changed after it was published, so it may be read from any goroutine.
package mesh

import (
	"bytes"
	"cmp"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// ID is the identity of a mesh or of a node: the first 160 bits of the SHA-256
// of its Ed25519 public key. Making a key for a given ID takes 2^160 tries.
type ID [20]byte

// NodeID names a node by its identity key, for as long as it is a member.
type NodeID = ID

// 160 bits are exactly 32 characters, so an ID needs no padding.
var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// String gives 32 characters of lower-case base32.
func (id ID) String() string { return idEncoding.EncodeToString(id[:]) }

// Short gives the first 8 characters, for people; it is not unique.
func (id ID) Short() string { return id.String()[:8] }

// IsZero tells whether the ID was never set.
func (id ID) IsZero() bool { return id == ID{} }

// Compare orders IDs by their bytes.
func (id ID) Compare(other ID) int { return bytes.Compare(id[:], other[:]) }

// MarshalText implements [encoding.TextMarshaler].
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (id *ID) UnmarshalText(text []byte) error {
	parsed, err := ParseID(string(text))
	*id = parsed
	return err
}

// ParseID reads what [ID.String] writes.
func ParseID(s string) (ID, error) {
	raw, err := idEncoding.DecodeString(s) // ignores line breaks, hence both lengths
	if err != nil || len(s) != 32 || len(raw) != len(ID{}) {
		return ID{}, fmt.Errorf("%q is not an identity (32 characters of a-z and 2-7)", s)
	}
	return ID(raw), nil
}

// Key is an X25519 public key, as WireGuard uses it.
type Key [32]byte

// String gives standard base64, as the wg tool prints keys.
func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// IsZero tells whether the key was never set.
func (k Key) IsZero() bool { return k == Key{} }

// Version orders what one node says of itself. Epoch grows by one at each start
// of its daemon, Seq with each record within an epoch.
type Version struct {
	Epoch uint64
	Seq   uint64
}

// Compare orders versions: by epoch, then by seq.
func (v Version) Compare(o Version) int {
	switch {
	case v.Epoch != o.Epoch && v.Epoch < o.Epoch, v.Epoch == o.Epoch && v.Seq < o.Seq:
		return -1
	case v == o:
		return 0
	}
	return 1
}

// DefaultNetwork is the network that every mesh has and every node leases from.
const DefaultNetwork = "default"

// Network is one address plan of the mesh: ranges that are cut into equal
// subnets, one per node. Slot i of the network is the i-th subnet of each
// range, so a node's IPv4 and IPv6 subnets always go together.
type Network struct {
	Name    string
	IPv4    netip.Prefix // zero: no IPv4
	IPv4Len int          // length of a node's IPv4 subnet, for example 24
	IPv6    netip.Prefix // zero: no IPv6
	IPv6Len int          // length of a node's IPv6 subnet, for example 64
}

// Ranges lists the ranges that the network has.
func (n Network) Ranges() []netip.Prefix {
	return slices.DeleteFunc([]netip.Prefix{n.IPv4, n.IPv6}, func(p netip.Prefix) bool { return !p.IsValid() })
}

// LeaseState says how firmly a node holds a lease.
type LeaseState uint8

// The states in which a lease is published.
const (
	Pending     LeaseState = iota + 1 // announced, waits for objections; never routed
	Held                              // owned and routed
	Quarantined                       // lost a conflict while in use: local traffic only
	Released                          // given back by its owner
)

var leaseStates = [...]string{Pending: "pending", Held: "held", Quarantined: "quarantined", Released: "released"}

// String gives the state's lower-case name.
func (s LeaseState) String() string {
	if s == 0 || int(s) >= len(leaseStates) {
		return fmt.Sprintf("state(%d)", uint8(s))
	}
	return leaseStates[s]
}

// Lease is a node's subnet in one network.
type Lease struct {
	Network    string
	Prefixes   []netip.Prefix // one per address family
	State      LeaseState
	Since      time.Time // when it was claimed; the earlier one wins a conflict
	ClaimEpoch uint64    // the owner's epoch in which it was claimed
}

// Node is a member: its certificate is valid, admitted and not revoked.
type Node struct {
	ID       NodeID
	Name     string
	Control  netip.Addr     // its fixed address in the mesh, derived from ID
	Pins     []netip.Prefix // the only subnets its certificate lets it lease; empty: any
	Admitted time.Time
	Ends     time.Time // of its certificate

	// From its newest record; zero while none was seen.
	Version   Version
	Key       Key
	Proven    bool // it has shown that it has the private half of Key
	Endpoints []netip.AddrPort
	Leases    []Lease // with State Held only those that won every conflict
	Suites    []string
	Labels    map[string]string
	Left      bool        // it signed that it has left
	Keys      Generations // of the gossip key, as it says
	Heard     time.Time   // when that record came, by our clock

	// Expired: a tombstone voids leases of its record. They are listed as they were:
	// others may take the subnets, and until one holds them the routes stay.
	Expired Expiry
}

// Generations of the gossip key that a member works with.
type Generations struct {
	Newest uint64 // that it has and opens messages with
	Sends  uint64 // that it seals messages with
}

// Expiry says why a member's leases are void.
type Expiry string

// The reasons for which leases are void.
const (
	NotExpired Expiry = ""          // they are not
	NotHeard   Expiry = "expired"   // the member was not heard of for as long as a lease lasts
	Forgotten  Expiry = "forgotten" // an operator said so
)

// State is what a node is doing, as `meshctl status` shows it.
type State string

// The states of a node.
const (
	Ready          State = "ready"            // holds its lease, forwards traffic
	WaitingForSeed State = "waiting_for_seed" // no other member was reached, or none has admitted us yet
	Probing        State = "probing"          // has announced a lease, waits for objections
	Conflict       State = "conflict"         // its pinned subnet belongs to another
	Renumbering    State = "renumbering"      // lost a conflict, looks for another subnet
	Quarantine     State = "quarantined"      // lost a conflict, keeps the subnet for local traffic
	NoFreeSubnets  State = "no_free_subnets"  // every subnet is taken
	Left           State = "left"             // has left the mesh
	Revoked        State = "revoked"          // was thrown out: it reaches nobody any more
	Unreachable    State = "unreachable"      // no daemon answered; only `meshctl` says this
)

// Finding is one entry of the health report.
type Finding struct {
	Level   string // "info", "warning" or "error"; an info degrades nothing
	Code    string // stable, for machines: "clock", "no_admission", ...
	Message string // for people: what is wrong, and what to do
}

// View is what one node knows of the mesh. It is immutable.
type View struct {
	Mesh        ID
	MeshName    string
	Control     netip.Prefix // range of the control addresses
	Networks    []Network
	Reserved    []netip.Prefix // subnets that nobody takes but who is pinned to them
	TTL         time.Duration  // of leases: who is not heard of for so long may lose them
	Revocations int            // known: of nodes and of tokens
	Self        NodeID
	Epoch       uint64
	State       State
	Nodes       []Node // members, this node included, sorted by ID
	Health      []Finding

	// Withheld: this daemon may run on a copy of another one's state. It has no tunnels
	// until it is known that it does not.
	Withheld bool
	// Contested grows whenever another daemon was found to speak with this node's
	// identity, and when that one is gone: peers may have taken its tunnels for ours.
	Contested uint64
}

// Node finds a member by its ID.
func (v *View) Node(id NodeID) (Node, bool) {
	i, ok := slices.BinarySearchFunc(v.Nodes, id, func(n Node, id NodeID) int { return n.ID.Compare(id) })
	if !ok {
		return Node{}, false
	}
	return v.Nodes[i], true
}

// Elders lists the other members, those first that were admitted first: all nodes that
// know the same have them in the same order.
func (v *View) Elders() []NodeID {
	nodes := slices.DeleteFunc(slices.Clone(v.Nodes), func(n Node) bool { return n.Left || n.ID == v.Self })
	slices.SortFunc(nodes, func(a, b Node) int { return cmp.Or(a.Admitted.Compare(b.Admitted), a.ID.Compare(b.ID)) })
	ids := make([]NodeID, len(nodes))
	for i, n := range nodes {
		ids[i] = n.ID
	}
	return ids
}

// Ranges lists every range of the mesh: the control range first, then those of
// the networks.
func (v *View) Ranges() []netip.Prefix {
	ranges := []netip.Prefix{v.Control}
	for _, n := range v.Networks {
		ranges = append(ranges, n.Ranges()...)
	}
	return ranges
}

// ErrNoSlot says that a prefix is not one of a network's subnets.
var ErrNoSlot = errors.New("not a subnet of the network")
