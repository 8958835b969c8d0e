package trust

import (
	"crypto/ed25519"
	"fmt"
	"slices"
	"time"

	"meshd/mesh"
)

// Revocation throws a node out, or ends a token together with the nodes that came
// by it. It is never taken back: who is to return joins anew, as another identity.
//
//	of a node    Node is set: no certificate of that identity counts any more
//	of a token   Credential is set: nobody is admitted by it any more, and no
//	             certificate that it signed counts, but for the nodes in Except
type Revocation struct {
	Object
	Node       mesh.NodeID   // zero: it is of a token
	Credential Serial        // zero: it is of a node
	Except     []mesh.NodeID // nodes that stay, sorted
	At         time.Time
}

type revocationBody struct {
	Node       []byte    `cbor:"1,keyasint,omitempty"`
	Credential []byte    `cbor:"2,keyasint,omitempty"`
	Except     [][]byte  `cbor:"3,keyasint,omitempty"`
	At         time.Time `cbor:"4,keyasint"`
}

// MaxExcept is how many nodes a revocation can spare: as many as a mesh of the
// size that we aim at has. With up to 48 it is small enough for a broadcast.
const MaxExcept = 256

// Sign makes the revocation's bytes with the CA key.
func (r *Revocation) Sign(ca ed25519.PrivateKey) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("revocation: %w", err)
	}
	b := revocationBody{At: r.At.Truncate(time.Second)}
	if !r.Node.IsZero() {
		b.Node = r.Node[:]
	}
	if r.Credential != (Serial{}) {
		b.Credential = r.Credential[:]
	}
	for _, id := range r.Except {
		b.Except = append(b.Except, id[:])
	}
	return sign(ca, KindRevocation, b), nil
}

// ParseRevocation verifies a revocation by the CA whose key is given.
func ParseRevocation(raw []byte, ca ed25519.PublicKey) (*Revocation, error) {
	var b revocationBody
	e, err := parse(raw, KindRevocation, &b)
	if err != nil {
		return nil, fmt.Errorf("revocation: %w", err)
	}
	if err := e.verify(ca); err != nil {
		return nil, fmt.Errorf("revocation: %w", err)
	}
	r := &Revocation{Object: e.Object, At: b.At}
	if len(b.Node) != 0 && len(b.Node) != len(r.Node) || len(b.Credential) != 0 && len(b.Credential) != len(r.Credential) {
		return nil, fmt.Errorf("revocation: %w: an identity of %d or a serial of %d bytes", ErrMalformed, len(b.Node), len(b.Credential))
	}
	copy(r.Node[:], b.Node)
	copy(r.Credential[:], b.Credential)
	for _, id := range b.Except {
		if len(id) != len(mesh.NodeID{}) {
			return nil, fmt.Errorf("revocation: %w: an identity of %d bytes", ErrMalformed, len(id))
		}
		r.Except = append(r.Except, mesh.NodeID(id))
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("revocation: %w", err)
	}
	return r, nil
}

// Covers tells whether the certificate counts no more.
func (r *Revocation) Covers(c *Certificate) bool {
	if !r.Node.IsZero() {
		return c.ID() == r.Node
	}
	_, spared := slices.BinarySearchFunc(r.Except, c.ID(), mesh.NodeID.Compare)
	return r.Ends(c.Credential) && !spared
}

// Ends tells whether nobody is admitted by the credential any more; nil is none.
func (r *Revocation) Ends(c *Credential) bool {
	return c != nil && r.Credential != (Serial{}) && c.Serial == r.Credential
}

func (r *Revocation) check() error {
	switch {
	case r.Node.IsZero() == (r.Credential == Serial{}):
		return fmt.Errorf("%w: it names either a node or a token", ErrMalformed)
	case len(r.Except) > 0 && !r.Node.IsZero():
		return fmt.Errorf("%w: exceptions to the revocation of a node", ErrMalformed)
	case len(r.Except) > MaxExcept:
		return fmt.Errorf("%w: %d exceptions, at most %d", ErrMalformed, len(r.Except), MaxExcept)
	}
	for i := range r.Except {
		if i > 0 && r.Except[i-1].Compare(r.Except[i]) >= 0 {
			return fmt.Errorf("%w: exceptions are not sorted", ErrMalformed)
		}
	}
	return checkTime(r.At)
}
