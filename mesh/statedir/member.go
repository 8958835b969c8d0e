package statedir

import (
	"crypto/rand"
	"encoding/binary"

	"meshd/mesh/member"
)

// Member is what the state says of the member that it is of. The nonce is that of
// a new start; all that the state does not know, the owner adds.
func (d *Dir) Member() member.Config {
	var nonce [8]byte
	_, _ = rand.Read(nonce[:]) // never fails since Go 1.24
	return d.Membership().Member(d.Keys(), binary.BigEndian.Uint64(nonce[:]))
}

// Member is what a membership says of the member that has the keys.
func (m Membership) Member(keys Keys, nonce uint64) member.Config {
	return member.Config{
		Identity: keys.Identity, TunnelKey: keys.Tunnel.Public(), Possession: keys.Possession(), SealKey: keys.Seal, Keyring: m.Keyring.Clone(),
		Charter: m.Charter, Certificate: m.Certificate,
		Founder: m.Founder, HasSeeds: len(m.Seeds) > 0,
		Nonce: nonce,
	}
}
