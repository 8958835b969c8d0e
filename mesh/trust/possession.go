package trust

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha512"
	"fmt"
	"io"
	"math/big"
	"slices"

	"meshd/mesh"
)

// A record names the tunnel key of its member, and anybody can copy that from a
// record into another. So a member shows that it has the private half, by a signature
// that everybody can check from the record alone:
//
//	seed ──SHA-512, clamped──► scalar ──X25519───► tunnel key, the u of a point
//	                              └────Ed25519───► the y of the same point
//
// An Ed25519 key and an X25519 key of one scalar are one point of one curve in two
// forms (RFC 7748, section 4.1): y = (u-1)/(u+1). So whoever knows the tunnel key can
// check a signature of the Ed25519 key. What u does not tell is the sign of x; seeds
// are drawn until it is positive, which XEdDSA brings about by negating the scalar.
//
// The signed text names the identity and nothing that changes: what is signed once is
// good for all records of the member, and for those of nobody else. Signatures and
// handshakes of WireGuard have no input in common: one hashes the scalar's other
// half and a text of ours, the other is Diffie-Hellman.

// PossessionSize is the length of a proof in bytes.
const PossessionSize = ed25519.SignatureSize

const possessionContext = "meshd v1 tunnel key of\x00"

// TunnelKey is a private key of the tunnel that can be proved.
type TunnelKey struct {
	Seed   [32]byte
	Scalar [32]byte // the X25519 private key
	Public mesh.Key
}

// Format implements [fmt.Formatter] without the private key.
func (k TunnelKey) Format(s fmt.State, _ rune) {
	_, _ = io.WriteString(s, "tunnel key "+k.Public.String())
}

// MarshalText implements [encoding.TextMarshaler] without the private key.
func (k TunnelKey) MarshalText() ([]byte, error) {
	return []byte("tunnel key " + k.Public.String()), nil
}

// DrawTunnelKey makes a key out of random bytes.
func DrawTunnelKey(random io.Reader) (TunnelKey, error) {
	for {
		var seed [32]byte
		if _, err := io.ReadFull(random, seed[:]); err != nil {
			return TunnelKey{}, fmt.Errorf("draw tunnel key: %w", err)
		}
		if k, err := TunnelKeyOf(seed); err == nil {
			return k, nil
		} // every other one does not
	}
}

// TunnelKeyOf gives the key of a seed. Half of all seeds have none.
func TunnelKeyOf(seed [32]byte) (TunnelKey, error) {
	point := ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey)
	public, ok := montgomery(point)
	if !ok || point[31]&0x80 != 0 {
		return TunnelKey{}, fmt.Errorf("%w: a seed without a tunnel key", ErrMalformed)
	}
	wide := sha512.Sum512(seed[:])
	scalar := [32]byte(wide[:32])
	scalar[0] &= 248
	scalar[31] = scalar[31]&127 | 64
	clear(wide[:])
	return TunnelKey{Seed: seed, Scalar: scalar, Public: public}, nil
}

// Prove says that the key is that of a member.
func (k TunnelKey) Prove(id mesh.NodeID) []byte {
	return ed25519.Sign(ed25519.NewKeyFromSeed(k.Seed[:]), possessionText(id))
}

// CheckPossession tells whether the member has shown that it has the private half of
// a tunnel key.
func CheckPossession(id mesh.NodeID, key mesh.Key, proof []byte) bool {
	point, ok := edwards(key)
	return ok && len(proof) == PossessionSize && ed25519.Verify(point, possessionText(id), proof)
}

func possessionText(id mesh.NodeID) []byte { return append([]byte(possessionContext), id[:]...) }

var (
	one   = big.NewInt(1)
	prime = new(big.Int).Sub(new(big.Int).Lsh(one, 255), big.NewInt(19)) // of the field
)

// montgomery gives the u of an Ed25519 key: (1+y)/(1-y).
func montgomery(point ed25519.PublicKey) (mesh.Key, bool) {
	y := bytes.Clone(point)
	y[31] &= 0x7f
	return ratio(y, func(y *big.Int) (num, den *big.Int) {
		return new(big.Int).Add(one, y), new(big.Int).Sub(one, y)
	})
}

// edwards gives the Ed25519 key, with a positive x, of a u. It takes only the one
// form of u that X25519 gives out.
func edwards(u mesh.Key) (ed25519.PublicKey, bool) {
	y, ok := ratio(u[:], func(u *big.Int) (num, den *big.Int) {
		return new(big.Int).Sub(u, one), new(big.Int).Add(u, one)
	})
	return y[:], ok
}

// ratio computes with a field element in little-endian bytes. It is for public keys
// only: how long it takes depends on them.
func ratio(element []byte, of func(*big.Int) (num, den *big.Int)) (out mesh.Key, ok bool) {
	element = bytes.Clone(element)
	slices.Reverse(element)
	x := new(big.Int).SetBytes(element)
	if x.Cmp(prime) >= 0 {
		return out, false
	}
	num, den := of(x)
	if den.Mod(den, prime).Sign() == 0 {
		return out, false
	}
	num.Mul(num, den.ModInverse(den, prime)).Mod(num, prime).FillBytes(out[:])
	slices.Reverse(out[:])
	return out, true
}
