// Package attach gives containers an address from this node's leases and hangs
// them on this host, for whichever door asks.
//
//	docker ─┐                     ┌─► pool    which address         (pure)
//	cni    ─┼─► Attach, Detach ─► Manager ─► Store   who has it, durable
//	meshctl ┘   views ─► Sync ──► └─► Host    bridges and links
//
// An address is on disk before it is handed out and stays its holder's until
// [Manager.Detach], whatever crashes: it is never given twice, and what is left
// half-made or has lost its container is taken back. A subnet that this node no
// longer holds is not handed out any more; who has an address of it keeps talking
// to its neighbours on this host, until the network is deleted, and
// [Manager.Networks] tells the plan that nothing of it may cross the mesh.
//
// The owner calls [Manager.Load] once, Sync with every view and Collect now and
// then, and makes true what Networks says when [Options].Changed asks for it. The
// door moves Peer into the container and sets addresses, routes and the MTU
// there: the daemon never enters a namespace.
package attach

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"meshd/mesh"
	"meshd/tun"
)

// Mode is how a container hangs on the host.
type Mode = tun.PortKind

// The modes. Bridge is what an [Ask] without a mode gets.
const (
	Bridge  = tun.PortBridge
	PTP     = tun.PortPTP
	MACVLAN = tun.PortMACVLAN
	IPVLAN  = tun.PortIPVLAN
)

// Errors that doors decide by.
var (
	ErrUnknownNetwork = errors.New("the mesh has no such network")
	ErrNoLease        = errors.New("this node holds no subnet in the network")
	ErrTaken          = errors.New("the address is taken")
	ErrOutside        = errors.New("the address is not one for containers of this node")
	ErrExhausted      = errors.New("no address is free")
	ErrInUse          = errors.New("it is attached already, in another way")
	ErrUnknown        = errors.New("nothing is attached by that id")
	ErrBadAsk         = errors.New("the request makes no sense")
	ErrDelegated      = errors.New("others give out its addresses on this host")
	ErrDamaged        = errors.New("the record of attachments is damaged")
)

// Ask is what a door wants.
type Ask struct {
	// ID is the door's own name for it, unique and stable, with the door's name
	// before the first slash: "docker/<endpoint>", "cni/<container>/<ifname>".
	ID      string `json:"id"`
	Network string `json:"network"`          // empty: default
	Mode    Mode   `json:"mode,omitempty"`   // empty: bridge
	Parent  string `json:"parent,omitempty"` // of macvlan and ipvlan: a link of this host
	// Addresses are the ones wished for, at most one of a family; 0.0.0.0 and ::
	// stand for any free one. Empty: a free one of each family that the network
	// has. One that the same door has reserved is used, and stays reserved.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	Internal  bool         `json:"internal,omitempty"`  // it sends to its network and to nowhere else
	MAC       string       `json:"mac,omitempty"`       // empty: one that follows from the address; none for an ipvlan
	Container string       `json:"container,omitempty"` // for people
}

// State says how far packets of an attachment get.
type State string

// The states of attachments, and of this node's subnet in a network.
const (
	Live  State = "live"  // everywhere in the network
	Local State = "local" // on this host only: the lease is not held now, or was lost to another node
	Stale State = "stale" // to neighbours with an address of the same, former subnet: attach anew
)

// Attachment is what an [Ask] got.
type Attachment struct {
	ID        string         `json:"id"`
	Network   string         `json:"network"`
	Mode      Mode           `json:"mode"`
	Parent    string         `json:"parent,omitempty"`
	Container string         `json:"container,omitempty"`
	Addresses []netip.Prefix `json:"addresses"`           // as to be set: with the subnet's length, in ptp alone
	Gateways  []netip.Addr   `json:"gateways"`            // this host, one of a family; on link, in ptp too
	Routes    []netip.Prefix `json:"routes"`              // the network's ranges, by way of the gateways
	HostLink  string         `json:"host_link,omitempty"` // the host's end, if there is one
	Peer      string         `json:"peer"`                // the container's end, in the host's namespace until the door moves it
	MAC       string         `json:"mac"`                 // empty: its parent's, as of every ipvlan
	MTU       int            `json:"mtu"`
	State     State          `json:"state"`
}

// Subnet is this node's part of a network.
type Subnet struct {
	Network  string         `json:"network"`
	Prefixes []netip.Prefix `json:"prefixes"` // one of a family
	Gateways []netip.Addr   `json:"gateways"` // in the order of Prefixes
	Routes   []netip.Prefix `json:"routes"`   // the network's ranges
	MTU      int            `json:"mtu"`
	State    State          `json:"state"`
}

// Want is one address for a door that asks for it before it says what for, as
// Docker does.
type Want struct {
	Door    string // its name, as in the IDs of its asks
	Network string
	Address netip.Addr // 0.0.0.0 and :: stand for any free one
	// Keep the address until it is released. Else [Manager.Collect] takes it back
	// when nothing has been attached with it for a while.
	Keep bool
}

// Network is what the rest of the node has to know of a network that containers
// use, or want to.
type Network struct {
	Name string
	// InUse: somebody has an address. A lease that is lost is kept for local
	// traffic then; see lease.World.
	InUse bool
	// Waiting: somebody waits for a subnet to get an address of.
	Waiting bool
	Bridge  string     // of the containers; empty: none is in bridge mode
	Ports   []tun.Port // of the containers, by Peer
	Subnet  Subnet     // from which addresses are given, held or quarantined; no Prefixes: none now
	// Delegated: others give out the addresses of Subnet, behind links of theirs.
	Delegated bool
	// Former are subnets that this node no longer has and some container still
	// does. They may be another node's: the host must have neither an address nor
	// a route there.
	Former []netip.Prefix
}

// Host makes links. hostnet.Net is one.
type Host interface {
	// AddPort makes a port, and a bare bridge for it if need be, so; what is right
	// already stays as it is, wherever Peer has gone.
	AddPort(ctx context.Context, p tun.Port) error
	// DelPort removes a port, wherever Peer has gone. If there is none, that is
	// fine. Only Name and Peer matter, and one of them will do.
	DelPort(ctx context.Context, p tun.Port) error
	// Ports lists what there is of ours, by tun.PortPrefix and tun.PeerPrefix:
	// Name where the host end is there, with the Parent that it is on and whether it
	// is Down, and Peer where that is in the host's namespace yet. Nothing else is filled in.
	Ports(ctx context.Context) ([]tun.Port, error)
}

// Store keeps a document for each network. Its methods may be called from any
// goroutine, for one network by one at a time. statedir.Dir is one.
type Store interface {
	// AttachmentNetworks lists the networks that have a document, a damaged one
	// too.
	AttachmentNetworks() ([]string, error)
	// LoadAttachments gives a network's document as it was saved.
	LoadAttachments(network string) ([]byte, error)
	// SaveAttachments replaces a network's document, which is JSON: durably, and
	// whole or not at all.
	SaveAttachments(network string, document []byte) error
}

// Limits of what doors may say.
const (
	maxID        = 255
	maxContainer = 255
)

// normal gives the ask with what was left out filled in, or says what is wrong
// with it.
func (a Ask) normal() (Ask, error) {
	if a.Network == "" {
		a.Network = mesh.DefaultNetwork
	}
	if a.Mode == "" {
		a.Mode = Bridge
	}
	bad := func(format string, args ...any) (Ask, error) {
		return a, fmt.Errorf("%w: %s", ErrBadAsk, fmt.Sprintf(format, args...))
	}
	if err := checkID(a.ID); err != nil {
		return a, err
	}
	if mesh.CheckName(a.Network) != nil {
		return a, fmt.Errorf("%w: %.70q", ErrUnknownNetwork, a.Network)
	}
	if len(a.Container) > maxContainer || !mesh.IsWord(a.Container) {
		return bad("container %.70q: at most %d printable ASCII characters, no space", a.Container, maxContainer)
	}
	switch a.Mode {
	case Bridge, PTP:
		if a.Parent != "" {
			return bad("mode %s has no parent", a.Mode)
		}
	case MACVLAN, IPVLAN:
		if !tun.IsLinkName(a.Parent) {
			return bad("parent of a %s: %.40q is no name of a network link", a.Mode, a.Parent)
		}
		for _, ours := range []string{tun.BridgePrefix, tun.PortPrefix, tun.PeerPrefix} {
			if strings.HasPrefix(a.Parent, ours) {
				return bad("parent of a %s: %s is a link of containers, and nothing would check what hangs on it", a.Mode, a.Parent)
			}
		}
	default:
		return bad("mode %.20q: bridge, ptp, macvlan or ipvlan", a.Mode)
	}
	if a.MAC != "" {
		mac, err := net.ParseMAC(a.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return bad("%.40q is no MAC address of a host", a.MAC)
		}
		if a.Mode == IPVLAN {
			return bad("an ipvlan has the MAC address of %s, and no other: ask without one, or for a macvlan", a.Parent)
		}
		a.MAC = mac.String()
	}
	var families [2]int
	for _, addr := range a.Addresses {
		if !addr.IsValid() || addr.Is4In6() || addr.Zone() != "" {
			return bad("address %s", addr)
		}
		families[family(addr)]++
	}
	if max(families[0], families[1]) > 1 {
		return bad("two addresses of one family")
	}
	return a, nil
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// checkID verifies a door's name for something.
func checkID(id string) error {
	if name := door(id); name == "" || len(id) > maxID || len(name) == len(id) || !mesh.IsWord(id) {
		return fmt.Errorf("%w: id %.70q: DOOR/NAME, at most %d printable ASCII characters, no space", ErrBadAsk, id, maxID)
	}
	return nil
}

// door is the part of an ID that says whose it is.
func door(id string) string {
	name, _, _ := strings.Cut(id, "/")
	return name
}

var lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// short gives n characters that stand for s.
func short(s string, n int) string {
	sum := sha256.Sum256([]byte(s))
	return lower.EncodeToString(sum[:])[:n]
}

// BridgeName is the name of a network's bridge: mbr-web, or for a long name
// its beginning and a hash.
func BridgeName(network string) string {
	name := tun.BridgePrefix + network
	if len(name) <= tun.MaxLinkName {
		return name
	}
	return name[:8] + "-" + short(network, tun.MaxLinkName-9)
}

// PeerName gives the Peer of what is attached by an ID, or was: a door finds it in
// a container when there is no daemon to ask.
func PeerName(id string) string {
	_, peer := links(id, Bridge) // the same for every mode
	return peer
}

// links names both ends for an ID.
func links(id string, mode Mode) (host, peer string) {
	hash := short(id, 10)
	if mode.IsLAN() {
		return "", tun.PeerPrefix + hash
	}
	return tun.PortPrefix + hash, tun.PeerPrefix + hash
}

// macOf follows from an address, so whoever has the address next is found
// without asking anew. It is locally administered.
func macOf(a netip.Addr) string {
	sum := sha256.Sum256(a.AsSlice())
	return net.HardwareAddr{0x02, sum[0], sum[1], sum[2], sum[3], sum[4]}.String()
}
