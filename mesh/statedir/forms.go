package statedir

import (
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"time"

	"meshd/mesh"
	"meshd/mesh/member"
)

// The files' JSON. Byte strings are base64.

type keysFile struct {
	Identity []byte `json:"identity"` // Ed25519 seed
	Seal     []byte `json:"seal"`     // X25519
	Tunnel   []byte `json:"tunnel"`   // X25519
}

func (k Keys) file() keysFile { return keysFile{k.Identity.Seed(), k.Seal[:], k.Tunnel[:]} }

func (f keysFile) keys() (Keys, error) {
	if len(f.Identity) != ed25519.SeedSize || len(f.Seal) != len(Secret{}) || len(f.Tunnel) != len(Secret{}) {
		return Keys{}, fmt.Errorf("its keys have %d, %d and %d bytes", len(f.Identity), len(f.Seal), len(f.Tunnel))
	}
	return Keys{ed25519.NewKeyFromSeed(f.Identity), Secret(f.Seal), Secret(f.Tunnel)}, nil
}

type membershipFile struct {
	Charter     []byte   `json:"charter"`
	Certificate []byte   `json:"certificate"`
	GossipKeys  [][]byte `json:"gossip_keys"`
	Seeds       []string `json:"seeds,omitempty"`
	Founder     bool     `json:"founder,omitempty"`
}

type nodeFile struct {
	Epoch  uint64      `json:"epoch"`
	Leases []leaseFile `json:"leases,omitempty"`
	Left   bool        `json:"left,omitempty"`

	// Neither was there from the first day on.
	Node    string `json:"node,omitempty"`    // ID; the files of two nodes do not mix
	Machine string `json:"machine,omitempty"` // see thisMachine
}

type leaseFile struct {
	Network    string         `json:"network"`
	Prefixes   []netip.Prefix `json:"prefixes"`
	State      string         `json:"state"`
	Since      time.Time      `json:"since"`
	ClaimEpoch uint64         `json:"claim_epoch"`
}

func nodeFileOf(s member.State) nodeFile {
	f := nodeFile{Epoch: s.Epoch, Left: s.Left}
	for _, l := range s.Leases {
		f.Leases = append(f.Leases, leaseFile{l.Network, l.Prefixes, l.State.String(), l.Since, l.ClaimEpoch})
	}
	return f
}

func (f nodeFile) state() (member.State, error) {
	s := member.State{Epoch: f.Epoch, Left: f.Left}
	for _, l := range f.Leases {
		state := mesh.Pending
		for state <= mesh.Released && state.String() != l.State {
			state++
		}
		if state > mesh.Released {
			return s, fmt.Errorf("a lease is %q", l.State)
		}
		s.Leases = append(s.Leases, mesh.Lease{
			Network: l.Network, Prefixes: l.Prefixes, State: state, Since: l.Since, ClaimEpoch: l.ClaimEpoch,
		})
	}
	return s, nil
}

type tableFile struct {
	Objects [][]byte `json:"objects"`
}

type stampFile struct {
	Newest time.Time `json:"newest"`
}

type peersFile struct {
	Addresses []netip.AddrPort `json:"addresses"`
}
