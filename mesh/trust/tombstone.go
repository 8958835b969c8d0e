package trust

import (
	"crypto/ed25519"
	"fmt"
	"math"
	"time"

	"meshd/mesh"
)

// Tombstone says that a node is gone: nobody has heard from it for as long as a
// lease lasts, or an operator says so. It frees the node's leases for others; the
// node stays a member.
//
//	record            (3,1) ── (3,2) ── (3,3)          (4,1) ── (4,2)
//	tombstone (3,2)    void     void     counts         a lease counts that was
//	                                                    claimed in epoch 4
//
// So a node that was cut off, and went on in its epoch, keeps its subnet; one that
// was off has to claim anew, though its next start outruns the tombstone.
type Tombstone struct {
	Object
	Node    mesh.NodeID
	Version mesh.Version // the newest that it voids
	Reason  Reason
	At      time.Time
	Issuer  Hash // certificate of the member that says so; zero: the CA does
	env     envelope
}

// Reason says why there is a tombstone.
type Reason uint8

// The reasons. Numbers are part of the wire format.
const (
	Expired   Reason = 1 // nothing newer was heard for as long as a lease lasts
	Forgotten Reason = 2 // an operator said so
)

type tombstoneBody struct {
	Node   []byte    `cbor:"1,keyasint"`
	Epoch  uint64    `cbor:"2,keyasint"`
	Seq    uint64    `cbor:"3,keyasint"`
	Reason Reason    `cbor:"4,keyasint"`
	At     time.Time `cbor:"5,keyasint"`
	Issuer Hash      `cbor:"6,keyasint"`
}

// WholeEpoch is the Seq of a tombstone that voids an epoch, whatever the node
// still says in it. Only the CA issues such.
const WholeEpoch = math.MaxUint64

// Sign makes the tombstone's bytes, with the identity key of the issuer or, if
// there is none, with the CA key.
func (t *Tombstone) Sign(key ed25519.PrivateKey) ([]byte, error) {
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("tombstone: %w", err)
	}
	return sign(key, KindTombstone, tombstoneBody{
		t.Node[:], t.Version.Epoch, t.Version.Seq, t.Reason, t.At.Truncate(time.Second), t.Issuer,
	}), nil
}

// ParseTombstone reads a tombstone; [Tombstone.Verify] decides on it.
func ParseTombstone(raw []byte) (*Tombstone, error) {
	if len(raw) > MaxBroadcast {
		return nil, fmt.Errorf("tombstone: %w: %d bytes, at most %d", ErrMalformed, len(raw), MaxBroadcast)
	}
	var b tombstoneBody
	e, err := parse(raw, KindTombstone, &b)
	if err != nil {
		return nil, fmt.Errorf("tombstone: %w", err)
	}
	if len(b.Node) != len(mesh.NodeID{}) {
		return nil, fmt.Errorf("tombstone: %w: an identity of %d bytes", ErrMalformed, len(b.Node))
	}
	t := &Tombstone{
		Object: e.Object, Node: mesh.NodeID(b.Node), Version: mesh.Version{Epoch: b.Epoch, Seq: b.Seq},
		Reason: b.Reason, At: b.At, Issuer: b.Issuer, env: e,
	}
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("tombstone: %w", err)
	}
	return t, nil
}

// ByCA tells whether it claims to be the CA's.
func (t *Tombstone) ByCA() bool { return t.Issuer == Hash{} }

// Verify checks that the issuer signed it while its certificate was valid, and
// not about itself: who leaves says so in a record. issuer is nil for one by the
// CA. That the issuer is itself admitted is for the caller to see.
func (t *Tombstone) Verify(issuer *Certificate, ca ed25519.PublicKey) error {
	key := ca
	if !t.ByCA() {
		if issuer == nil || issuer.Hash != t.Issuer {
			return fmt.Errorf("tombstone: %w: another certificate's", ErrForbidden)
		}
		key = issuer.Identity
	}
	if err := t.env.verify(key); err != nil {
		return fmt.Errorf("tombstone: %w", err)
	}
	switch {
	case t.ByCA():
		return nil
	case issuer.ID() == t.Node:
		return fmt.Errorf("tombstone: %w: a node's own", ErrForbidden)
	case !issuer.ValidAt(t.At):
		return fmt.Errorf("tombstone: %w: the issuer's certificate was not valid then", ErrForbidden)
	}
	return nil
}

// Voids tells whether a lease counts no more that stands in a record of this
// version.
func (t *Tombstone) Voids(v mesh.Version, l mesh.Lease) bool {
	if v.Compare(t.Version) <= 0 {
		return true
	}
	return v.Epoch > t.Version.Epoch && l.ClaimEpoch <= t.Version.Epoch
}

func (t *Tombstone) check() error {
	switch {
	case t.Node.IsZero():
		return fmt.Errorf("%w: of nobody", ErrMalformed)
	case t.Version.Epoch == 0 || t.Version.Epoch > MaxEpoch:
		return fmt.Errorf("%w: epoch %d, 1 to %d", ErrMalformed, t.Version.Epoch, uint64(MaxEpoch))
	case t.Version.Seq == WholeEpoch && !t.ByCA():
		return fmt.Errorf("%w: a whole epoch ends by the CA's word alone", ErrForbidden)
	case t.Reason != Expired && t.Reason != Forgotten:
		return fmt.Errorf("%w: reason %d", ErrMalformed, t.Reason)
	}
	return checkTime(t.At)
}
