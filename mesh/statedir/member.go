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
	return member.Config{
		Identity: d.keys.Identity, TunnelKey: d.keys.Tunnel.Public(),
		Charter: d.membership.Charter, Certificate: d.membership.Certificate,
		Founder: d.membership.Founder, HasSeeds: len(d.membership.Seeds) > 0,
		Nonce: binary.BigEndian.Uint64(nonce[:]),
	}
}
