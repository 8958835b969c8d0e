package trust

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/nacl/box"

	"meshd/mesh"
)

// Rekey hands a new gossip key to members, sealed to each of them. A mesh of more
// than [MaxBoxes] members takes several of them for one key, and one that joins
// later gets one more.
//
//	KeyID = SHA-256("meshd gossip key" 0 key), 16 bytes
//	box   = ephemeral public key, 32 bytes │ tag, 16 bytes │ sealed key, 32 bytes
//
// A box is libsodium's crypto_box_seal (X25519, XSalsa20-Poly1305) to the seal key
// of the member's certificate. Two keys of one generation come from two members
// that rotated at once: the one with the larger KeyID is used.
type Rekey struct {
	Object
	Generation uint64 // of the key: one more than the one before; the first key has 0
	KeyID      KeyID
	Boxes      []Box         // sorted by node
	Grace      time.Duration // for how long the keys before it are kept at least; in seconds
	At         time.Time
	Signer     Hash // certificate of the member that rotates
	env        envelope
}

// KeyID tells gossip keys apart without giving them away.
type KeyID [16]byte

// String gives the first 8 hexadecimal digits, for people.
func (k KeyID) String() string { return fmt.Sprintf("%x", k[:4]) }

// KeyIDOf names a gossip key.
func KeyIDOf(key []byte) KeyID {
	sum := sha256.Sum256(append([]byte("meshd gossip key\x00"), key...))
	return KeyID(sum[:])
}

// Box is the key for one member.
type Box struct {
	Node   mesh.NodeID
	Sealed []byte
}

type rekeyBody struct {
	Generation uint64    `cbor:"1,keyasint"`
	KeyID      KeyID     `cbor:"2,keyasint"`
	Boxes      []boxBody `cbor:"3,keyasint"`
	At         time.Time `cbor:"4,keyasint"`
	Signer     Hash      `cbor:"5,keyasint"`
	Grace      uint64    `cbor:"6,keyasint,omitempty"` // seconds
}

type boxBody struct {
	_      struct{} `cbor:",toarray"`
	Node   []byte
	Sealed []byte
}

const (
	// MaxBoxes fills seven eighths of the largest object: each takes 105 bytes.
	MaxBoxes = 64
	// MaxGeneration leaves room for a next one, always.
	MaxGeneration = 1 << 62

	sealedKey = GossipKeySize + box.AnonymousOverhead
)

// SealKey makes the box with the gossip key for the holder of a certificate.
func SealKey(key []byte, c *Certificate) (Box, error) {
	to := [32]byte(c.SealKey)
	sealed, err := box.SealAnonymous(nil, key, &to, rand.Reader)
	if err != nil {
		return Box{}, fmt.Errorf("seal gossip key for %s: %w", c.Name, err)
	}
	return Box{c.ID(), sealed}, nil
}

// Sign makes the rekey's bytes with the signer's identity key.
func (r *Rekey) Sign(identity ed25519.PrivateKey) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("rekey: %w", err)
	}
	b := rekeyBody{
		Generation: r.Generation, KeyID: r.KeyID, At: r.At.Truncate(time.Second), Signer: r.Signer, Grace: uint64(r.Grace / time.Second),
	}
	for _, x := range r.Boxes {
		b.Boxes = append(b.Boxes, boxBody{Node: x.Node[:], Sealed: x.Sealed})
	}
	return sign(identity, KindRekey, b), nil
}

// ParseRekey reads a rekey; [Rekey.Verify] decides on it.
func ParseRekey(raw []byte) (*Rekey, error) {
	var b rekeyBody
	e, err := parse(raw, KindRekey, &b)
	if err != nil {
		return nil, fmt.Errorf("rekey: %w", err)
	}
	r := &Rekey{Object: e.Object, Generation: b.Generation, KeyID: b.KeyID, At: b.At, Signer: b.Signer, env: e}
	r.Grace = time.Duration(min(b.Grace, uint64(maxLife/time.Second))) * time.Second
	for _, x := range b.Boxes {
		if len(x.Node) != len(mesh.NodeID{}) {
			return nil, fmt.Errorf("rekey: %w: an identity of %d bytes", ErrMalformed, len(x.Node))
		}
		r.Boxes = append(r.Boxes, Box{mesh.NodeID(x.Node), x.Sealed})
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("rekey: %w", err)
	}
	return r, nil
}

// Verify checks that the signer signed it while its certificate was valid, and
// that the certificate lets it. That the signer is admitted is for the caller to
// see.
func (r *Rekey) Verify(signer *Certificate) error {
	if signer.Hash != r.Signer {
		return fmt.Errorf("rekey: %w: another certificate's", ErrForbidden)
	}
	if err := r.env.verify(signer.Identity); err != nil {
		return fmt.Errorf("rekey: %w", err)
	}
	if !slices.Contains(signer.Capabilities, CapRotate) {
		return fmt.Errorf("rekey: %w: its signer may not rotate keys", ErrForbidden)
	}
	if !signer.ValidAt(r.At) {
		return fmt.Errorf("rekey: %w: the signer's certificate was not valid then", ErrForbidden)
	}
	return nil
}

// For tells whether there is a box for a node.
func (r *Rekey) For(id mesh.NodeID) bool {
	_, ok := r.find(id)
	return ok
}

// Open gives the gossip key to the node whose private seal key that is. It fails
// with [ErrForbidden] if there is no box for the node, or another key in it.
func (r *Rekey) Open(id mesh.NodeID, seal [32]byte) ([]byte, error) {
	i, ok := r.find(id)
	if !ok {
		return nil, fmt.Errorf("rekey: %w: no box for this node", ErrForbidden)
	}
	private, err := ecdh.X25519().NewPrivateKey(seal[:])
	if err != nil {
		return nil, fmt.Errorf("rekey: %w", err)
	}
	public := [32]byte(private.PublicKey().Bytes())
	key, ok := box.OpenAnonymous(nil, r.Boxes[i].Sealed, &public, &seal)
	if !ok || KeyIDOf(key) != r.KeyID {
		return nil, fmt.Errorf("rekey: %w: the box for this node does not hold the key", ErrForbidden)
	}
	return key, nil
}

// Newer orders keys: by generation, then by KeyID.
func (r *Rekey) Newer(o *Rekey) bool {
	if r.Generation != o.Generation {
		return r.Generation > o.Generation
	}
	return bytes.Compare(r.KeyID[:], o.KeyID[:]) > 0
}

func (r *Rekey) find(id mesh.NodeID) (int, bool) {
	return slices.BinarySearchFunc(r.Boxes, id, func(b Box, id mesh.NodeID) int { return b.Node.Compare(id) })
}

func (r *Rekey) check() error {
	if r.Generation == 0 || r.Generation > MaxGeneration {
		return fmt.Errorf("%w: generation %d, 1 to %d", ErrMalformed, r.Generation, uint64(MaxGeneration))
	}
	if r.Grace < 0 || r.Grace > maxLife {
		return fmt.Errorf("%w: keys before it are kept for %s", ErrMalformed, r.Grace)
	}
	if len(r.Boxes) == 0 || len(r.Boxes) > MaxBoxes {
		return fmt.Errorf("%w: %d boxes, 1 to %d", ErrMalformed, len(r.Boxes), MaxBoxes)
	}
	for i, b := range r.Boxes {
		if len(b.Sealed) != sealedKey {
			return fmt.Errorf("%w: a box of %d bytes, not %d", ErrMalformed, len(b.Sealed), sealedKey)
		}
		if i > 0 && r.Boxes[i-1].Node.Compare(b.Node) >= 0 {
			return fmt.Errorf("%w: boxes are not sorted", ErrMalformed)
		}
	}
	return checkTime(r.At)
}
