// Package tunnel is the vocabulary of the data plane's engine: what it is told
// and what it reports.
//
// An engine takes packets from the TUN device, seals them for the peer that owns
// the destination and sends them over UDP, and the other way round. It upholds
// cryptokey routing in both directions:
//
//	out  source in Config.Own, destination in some peer's AllowedIPs  -> that peer
//	in   source in the sending peer's AllowedIPs, destination in Config.Own -> TUN
//
// Its own datagrams never travel inside the mesh: no peer has an endpoint in
// Config.Inside, neither a configured nor a learned one.
//
// Everything else is dropped and counted by reason.
package tunnel

import (
	"fmt"
	"io"
	"net/netip"
	"time"

	"meshd/mesh"
)

// Suites of the tunnel protocol.
const (
	ChaCha20Poly1305 = "chacha20poly1305" // WireGuard, byte for byte
	AES256GCM        = "aes256gcm"        // the same handshake around AES
)

// Config is everything an engine should do. Applying it twice changes nothing.
type Config struct {
	// Key is this host's from now on; zero: it stays as it is. Sessions go on. For
	// some seconds, in which peers hear of it, handshakes may be made with the one
	// before. And a peer whose PublicKey has changed is the same peer.
	Key   PrivateKey
	Own   []netip.Prefix // inner addresses of this host
	Peers []Peer         // sorted by ID; AllowedIPs of two peers never overlap
	// Inside are the ranges of the mesh. Packets sent to an endpoint in there
	// would come back to the TUN for ever: such endpoints of peers are skipped,
	// and datagrams that come from there are dropped unread.
	Inside []netip.Prefix
	// Renewal, when it is another number than before, has all sessions made anew at
	// once: somebody else may have made some with our key. Those that are good carry on
	// until then.
	Renewal uint64
}

// PrivateKey is an X25519 key. Printing or logging it prints a placeholder.
type PrivateKey [32]byte

const hidden = "(hidden)"

// Format implements [fmt.Formatter]: every verb prints a placeholder.
func (PrivateKey) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, hidden) }

// MarshalText implements [encoding.TextMarshaler] with the placeholder.
func (PrivateKey) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// Peer is another node's end of the tunnel.
type Peer struct {
	ID         mesh.NodeID
	PublicKey  mesh.Key
	Endpoints  []netip.AddrPort // candidates, best first; an engine may learn another from authenticated packets
	AllowedIPs []netip.Prefix   // inner addresses that are behind the peer
	Suite      string
	// MTU is the longest packet, in bytes, that the path to the peer carries, where
	// that is less than the device's; 0: it is not. Routes hold senders to it; an
	// engine that changes TCP's MSS lowers it to what fits.
	MTU int
}

// Stats is a snapshot of the engine's counters since it was started.
type Stats struct {
	Peers map[mesh.NodeID]PeerStats
	Drops map[string]uint64 // packets dropped, by reason
}

// Reasons for which packets are dropped. An engine counts those that it can tell.
const (
	DropSource      = "inner_source"      // leaving, source not ours
	DropDestination = "inner_destination" // arrived, not for us
	DropMalformed   = "malformed"         // neither IPv4 nor IPv6, or not what it claims to be
	DropEndpoint    = "endpoint_in_mesh"  // datagram of a tunnel, come through the mesh

	DropSpoofed    = "inner_spoofed" // arrived, source is not the sending peer's
	DropNoRoute    = "no_route"      // leaving, nobody owns the destination
	DropNoEndpoint = "no_endpoint"   // leaving, nobody knows where the peer is
	DropWaiting    = "no_session"    // leaving, too many wait for the handshake, or it failed
	DropTooBig     = "too_big"       // leaving, longer than the MTU; the sender was told
	DropSend       = "send"          // leaving, refused by the kernel
	DropReceive    = "receive"       // arrived, truncated or not of the protocol
	DropSession    = "unknown"       // arrived, of no session that we have
	DropForged     = "forged"        // arrived, authentication failed
	DropReplayed   = "replayed"      // arrived, seen before or too old
	DropHandshake  = "handshake"     // a handshake message that was refused
	DropECN        = "congestion"    // arrived, marked by a congested network, for a transport that does not listen
	DropTUN        = "tun"           // arrived, refused by the kernel; or the kernel had one for us and failed
)

// PeerStats is what the engine knows of one peer.
type PeerStats struct {
	Endpoint      netip.AddrPort // where the last packet went; zero: none known
	LastHandshake time.Time      // zero: never
	Suite         string
	RxBytes       uint64
	TxBytes       uint64
}
