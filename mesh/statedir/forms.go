package statedir

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"meshd/mesh"
	"meshd/mesh/member"
	"meshd/mesh/trust"
)

// The files' JSON. Byte strings are base64.

type keysFile struct {
	Identity []byte `json:"identity"` // Ed25519 seed
	Seal     []byte `json:"seal"`     // X25519
	Tunnel   []byte `json:"tunnel"`   // X25519

	// TunnelSeed was not there from the first day on.
	TunnelSeed []byte `json:"tunnel_seed,omitempty"` // Ed25519
}

func (k Keys) file() keysFile {
	f := keysFile{Identity: k.Identity.Seed(), Seal: k.Seal[:], Tunnel: k.Tunnel[:]}
	if k.TunnelSeed != (Secret{}) {
		f.TunnelSeed = k.TunnelSeed[:]
	}
	return f
}

func (f keysFile) keys() (Keys, error) {
	if len(f.Identity) != ed25519.SeedSize || len(f.Seal) != len(Secret{}) || len(f.Tunnel) != len(Secret{}) {
		return Keys{}, fmt.Errorf("its keys have %d, %d and %d bytes", len(f.Identity), len(f.Seal), len(f.Tunnel))
	}
	k := Keys{Identity: ed25519.NewKeyFromSeed(f.Identity), Seal: Secret(f.Seal), Tunnel: Secret(f.Tunnel)}
	if len(f.TunnelSeed) == 0 {
		return k, nil
	}
	if len(f.TunnelSeed) != len(Secret{}) {
		return Keys{}, fmt.Errorf("its tunnel seed has %d bytes", len(f.TunnelSeed))
	}
	key, err := trust.TunnelKeyOf([32]byte(f.TunnelSeed))
	if err != nil || key.Scalar != k.Tunnel {
		return Keys{}, errors.New("its tunnel key is not that of its seed")
	}
	return k.withTunnel(key), nil
}

type membershipFile struct {
	Charter     []byte   `json:"charter"`
	Certificate []byte   `json:"certificate"`
	GossipKeys  [][]byte `json:"gossip_keys"` // newest first
	Seeds       []string `json:"seeds,omitempty"`
	Founder     bool     `json:"founder,omitempty"`

	// Neither is there before the first rotation: then all keys are of generation 0.
	Generations []generationFile `json:"gossip_generations,omitempty"` // of the keys, in their order
	Sends       uint64           `json:"gossip_sends,omitempty"`       // generation
}

// generationFile is what is known of a gossip key besides its bytes.
type generationFile struct {
	Generation uint64    `json:"generation"`
	Made       time.Time `json:"made,omitzero"`
	Installed  time.Time `json:"installed,omitzero"`
	Grace      string    `json:"grace,omitempty"`
}

func membershipFileOf(m Membership) membershipFile {
	f := membershipFile{Charter: m.Charter, Certificate: m.Certificate, Seeds: m.Seeds, Founder: m.Founder, Sends: m.Keyring.Send}
	for _, k := range m.Keyring.Keys {
		f.GossipKeys = append(f.GossipKeys, k.Key)
		if m.Keyring.Newest() > 0 {
			f.Generations = append(f.Generations, generationFile{k.Generation, k.Made, k.Installed, k.Grace.String()})
		}
	}
	return f
}

func (f membershipFile) membership() (Membership, error) {
	m := Membership{Charter: f.Charter, Certificate: f.Certificate, Seeds: f.Seeds, Founder: f.Founder, Keyring: member.NewKeyring(f.GossipKeys...)}
	if len(f.Generations) == 0 && f.Sends == 0 {
		return m, nil
	}
	if len(f.Generations) != len(f.GossipKeys) {
		return m, fmt.Errorf("it has %d gossip keys and %d generations", len(f.GossipKeys), len(f.Generations))
	}
	m.Keyring.Send = f.Sends
	for i, g := range f.Generations {
		if i > 0 && g.Generation > f.Generations[i-1].Generation {
			return m, errors.New("its gossip keys are not the newest first")
		}
		grace, err := time.ParseDuration(g.Grace)
		if err != nil && g.Grace != "" {
			return m, err
		}
		k := &m.Keyring.Keys[i]
		k.Generation, k.Made, k.Installed, k.Grace = g.Generation, g.Made, g.Installed, grace
	}
	if len(f.Generations) == 0 || m.Keyring.Sending().Key == nil {
		return m, fmt.Errorf("it has no gossip key of generation %d", f.Sends)
	}
	return m, nil
}

type nodeFile struct {
	Epoch  uint64      `json:"epoch"`
	Leases []leaseFile `json:"leases,omitempty"`
	Left   bool        `json:"left,omitempty"`

	Renewed   time.Time    `json:"renewed,omitzero"`
	Addresses []netip.Addr `json:"addresses,omitempty"`

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
	f := nodeFile{Epoch: s.Epoch, Left: s.Left, Renewed: s.Renewed, Addresses: s.Addresses}
	for _, l := range s.Leases {
		f.Leases = append(f.Leases, leaseFile{l.Network, l.Prefixes, l.State.String(), l.Since, l.ClaimEpoch})
	}
	return f
}

func (f nodeFile) state() (member.State, error) {
	s := member.State{Epoch: f.Epoch, Left: f.Left, Renewed: f.Renewed, Addresses: f.Addresses}
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
