// Package trust defines the signed objects of a mesh and decides which of them
// to believe. Nothing that gossip delivers counts before it passed here.
//
//	CA key ──signs──> Charter                 the mesh: its name, id, networks
//	   │
//	   ├──signs──> Certificate                a member (the first node, renewals)
//	   │                ▲
//	   └──signs──> Credential (in a Token)    a narrow right to make certificates
//	                    └──signs──> Certificate ◄──admits── Admission, by a member
//	                                    ▲
//	   │                             Record   what the member says of itself
//	   │                             Tombstone  a member: another one is gone
//	   │                             Rekey    a member that may: the next gossip key
//	   └──signs──> Revocation                 a node or a token counts no more
//
// Every object is one CBOR array in core deterministic encoding (RFC 8949,
// section 4.2.1):
//
//	[ kind, body (byte string, itself a CBOR map with integer keys), signature ]
//
// The Ed25519 signature covers a context string that names the kind, then the
// body as sent. Received bytes are kept and relayed as they are, so fields that
// a newer version adds survive older nodes. An object is referred to by the
// SHA-256 of its bytes.
package trust

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"

	"meshd/mesh"
)

// Limits of foreign input, in bytes of the whole signed object.
const (
	MaxObject    = 8192 // any object
	maxRecord    = 1000 // a record, so that it fits one gossip packet with room for memberlist's own framing
	MaxBroadcast = 1200 // what gossip spreads by broadcast; larger objects are fetched
)

// Kind is the type of a signed object.
type Kind uint8

// The kinds. Numbers are part of the wire format.
const (
	KindCharter     Kind = 1
	KindCredential  Kind = 2
	KindCertificate Kind = 3
	KindAdmission   Kind = 4
	KindRecord      Kind = 5
	KindRevocation  Kind = 6
	KindTombstone   Kind = 7
	KindRekey       Kind = 8
)

// contexts keep a signature over one kind from counting for another.
var contexts = map[Kind]string{
	KindCharter:     "meshd v1 charter\x00",
	KindCredential:  "meshd v1 credential\x00",
	KindCertificate: "meshd v1 certificate\x00",
	KindAdmission:   "meshd v1 admission\x00",
	KindRecord:      "meshd v1 record\x00",
	KindRevocation:  "meshd v1 revocation\x00",
	KindTombstone:   "meshd v1 tombstone\x00",
	KindRekey:       "meshd v1 rekey\x00",
}

// Errors that callers decide by.
var (
	ErrMalformed = errors.New("malformed object")         // not an object in our encoding, or a field out of bounds
	ErrSignature = errors.New("signature does not match") // well-formed, but not signed by whom it claims
	ErrForbidden = errors.New("not permitted")            // signed, but beyond what the signer may say
)

// Hash names a signed object: the SHA-256 of its bytes.
type Hash [32]byte

// String gives the first 16 hexadecimal digits, for people.
func (h Hash) String() string { return fmt.Sprintf("%x", h[:8]) }

// Compare orders hashes by their bytes.
func (h Hash) Compare(o Hash) int { return bytes.Compare(h[:], o[:]) }

// Object is what every parsed object carries along: its bytes as received, and
// their hash.
type Object struct {
	Raw  []byte
	Hash Hash
}

// IdentityOf derives the ID of a node from its identity key, and that of a mesh
// from its CA key.
func IdentityOf(key ed25519.PublicKey) mesh.ID {
	sum := sha256.Sum256(append([]byte("meshd identity\x00"), key...))
	return mesh.ID(sum[:len(mesh.ID{})])
}

// KindOf tells what kind of object raw claims to be. It looks at nothing else.
func KindOf(raw []byte) (Kind, error) {
	const array3, small = 0x80 | 3, 24 // how an object of a small kind begins
	if len(raw) > MaxObject || len(raw) < 2 || raw[0] != array3 || raw[1] >= small {
		return 0, fmt.Errorf("%w: no object of a kind below %d", ErrMalformed, small)
	}
	return Kind(raw[1]), nil
}

// envelope is a signed object taken apart.
type envelope struct {
	Object
	kind Kind
	body []byte
	sig  []byte
	by   ed25519.PublicKey // whose signature it was found to be; nil: not verified yet
}

var (
	encMode, decMode = codec()
	errNotCanonical  = fmt.Errorf("%w: not in deterministic encoding", ErrMalformed)
)

func codec() (cbor.EncMode, cbor.DecMode) {
	encOptions := cbor.CoreDetEncOptions()
	encOptions.Time = cbor.TimeUnix
	enc, err := encOptions.EncMode()
	if err != nil {
		panic(err)
	}
	dec, err := cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		UTF8:             cbor.UTF8RejectInvalid,
		MaxNestedLevels:  8,
		MaxArrayElements: 256,
		MaxMapPairs:      256,
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return enc, dec
}

// encode never fails on the types of this package.
func encode(v any) []byte {
	raw, err := encMode.Marshal(v)
	if err != nil {
		panic(err)
	}
	return raw
}

// decode reads one CBOR item that must be in deterministic encoding. Those fields
// that v knows must be there in exactly the form that we write: the decoder by
// itself would pad a short key, cut a long one, or take a text for a time.
func decode(raw []byte, v any) error {
	err := decMode.Unmarshal(raw, v)
	if err == nil {
		if again, err := encMode.Marshal(v); err == nil && bytes.Equal(raw, again) {
			return nil // it is what we would write, to the last byte
		}
	}
	return decodeNewer(raw, v, err)
}

// decodeNewer checks what was decoded into v, and may hold fields that v does not
// know, on the generic tree.
func decodeNewer(raw []byte, v any, decoded error) error {
	var tree any
	if err := decMode.Unmarshal(raw, &tree); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	again, err := encMode.Marshal(tree)
	if err != nil || !bytes.Equal(raw, again) {
		return errNotCanonical
	}
	if decoded != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, decoded)
	}
	var known any
	if again, err = encMode.Marshal(v); err == nil {
		err = decMode.Unmarshal(again, &known)
	}
	if err != nil || !covers(tree, known) {
		return fmt.Errorf("%w: a field is missing or of another form", ErrMalformed)
	}
	return nil
}

// covers tells whether tree holds everything that known holds, in the same form;
// only maps may hold more.
func covers(tree, known any) bool {
	switch known := known.(type) {
	case map[any]any:
		tree, ok := tree.(map[any]any)
		for k, v := range known {
			field, there := tree[k]
			ok = ok && there && covers(field, v)
		}
		return ok
	case []any:
		tree, ok := tree.([]any)
		return ok && slices.EqualFunc(tree, known, covers)
	}
	return reflect.DeepEqual(tree, known)
}

// checkTime accepts the years 1970 to 9999, in which sums and differences of
// times hold, and the zero time.
func checkTime(times ...time.Time) error {
	for _, t := range times {
		if !t.IsZero() && (t.Unix() < 0 || t.Year() > 9999) {
			return fmt.Errorf("%w: a time outside the years 1970 to 9999", ErrMalformed)
		}
	}
	return nil
}

// open takes an object apart; it says nothing yet about its signature.
func open(raw []byte) (envelope, error) {
	if len(raw) > MaxObject {
		return envelope{}, fmt.Errorf("%w: %d bytes, at most %d", ErrMalformed, len(raw), MaxObject)
	}
	var parts struct {
		_    struct{} `cbor:",toarray"`
		Kind uint8
		Body []byte
		Sig  []byte
	}
	if err := decode(raw, &parts); err != nil {
		return envelope{}, err
	}
	if len(parts.Sig) != ed25519.SignatureSize {
		return envelope{}, fmt.Errorf("%w: signature of %d bytes", ErrMalformed, len(parts.Sig))
	}
	raw = bytes.Clone(raw)
	return envelope{
		Object: Object{Raw: raw, Hash: sha256.Sum256(raw)},
		kind:   Kind(parts.Kind), body: parts.Body, sig: parts.Sig,
	}, nil
}

// parse opens an object of the wanted kind and decodes its body into v.
func parse(raw []byte, want Kind, v any) (envelope, error) {
	e, err := open(raw)
	if err != nil {
		return e, err
	}
	if e.kind != want {
		return e, fmt.Errorf("%w: kind %d, not %d", ErrMalformed, e.kind, want)
	}
	return e, decode(e.body, v)
}

// verify checks the signature, once for a key: what had to wait is verified again.
func (e *envelope) verify(key ed25519.PublicKey) error {
	if len(e.by) > 0 && e.by.Equal(key) {
		return nil
	}
	if len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, append([]byte(contexts[e.kind]), e.body...), e.sig) {
		return ErrSignature
	}
	e.by = key
	return nil
}

// sign makes a signed object.
func sign(key ed25519.PrivateKey, kind Kind, body any) []byte {
	raw := encode(body)
	sig := ed25519.Sign(key, append([]byte(contexts[kind]), raw...))
	return encode([]any{uint8(kind), raw, sig})
}
