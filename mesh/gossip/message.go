package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"

	"meshd/mesh/exchange"
	"meshd/mesh/trust"
)

// What members send each other, inside memberlist's encryption. The first byte
// is the type, numbers are unsigned varints.
//
//	objects  1 │ { length │ signed object }...
//	want     2 │ length │ instance name │ { hash, 32 bytes }...
//	state    3 │ length │ instance name │ key id, 16 bytes │ { length │ signed object }...
//	digest   4 │ length │ instance name │ digest, 16 bytes
//
// Objects travel by broadcast, one to a message, and by stream in answer to a
// want. A state is the whole table, with the gossip key that its sender uses; two nodes
// exchange theirs when one joins, and the digests of theirs every few minutes.
const (
	msgObjects byte = 1
	msgWant    byte = 2
	msgState   byte = 3
	msgDigest  byte = 4
)

const (
	// maxState is the largest table: 2000 members with 1 KiB each. Members have
	// weighed 730 bytes: a record, a certificate and an admission.
	maxState = 2 << 20
	// maxAnswer bounds the answer to one want: maxHashes certificates, each
	// with its admissions and the witnesses' certificates.
	maxAnswer = 1 << 20
	// maxHashes is the number of certificates in one want.
	maxHashes = 32
	// maxObjects is far above what a full table has: 2000 members with three
	// each. Of tiny ones, memory would take ten times what came.
	maxObjects = 16 << 10
	// maxName is longer than any instance name: 32 + 1 + 8 characters.
	maxName = 64
)

var errMessage = errors.New("malformed message")

// message is any of them.
type message struct {
	kind    byte
	size    int         // in bytes, as it came
	from    string      // instance name; of all but objects
	key     trust.KeyID // of a state
	digest  exchange.Digest
	objects [][]byte
	hashes  []trust.Hash
}

// parseMessage reads a message. What it returns points into raw.
func parseMessage(raw []byte) (message, error) {
	if len(raw) == 0 || len(raw) > maxState {
		return message{}, fmt.Errorf("%w: %d bytes", errMessage, len(raw))
	}
	m, rest := message{kind: raw[0], size: len(raw)}, raw[1:]
	if m.kind == msgWant || m.kind == msgState || m.kind == msgDigest {
		name, after, ok := cut(rest, maxName)
		if !ok {
			return message{}, fmt.Errorf("%w: no instance name", errMessage)
		}
		m.from, rest = string(name), after
	}
	switch m.kind {
	case msgWant:
		if len(rest)%len(trust.Hash{}) != 0 || len(rest)/len(trust.Hash{}) > maxHashes {
			return message{}, fmt.Errorf("%w: hashes of %d bytes", errMessage, len(rest))
		}
		for len(rest) > 0 {
			m.hashes, rest = append(m.hashes, trust.Hash(rest)), rest[len(trust.Hash{}):]
		}
	case msgDigest:
		if len(rest) != len(m.digest) {
			return message{}, fmt.Errorf("%w: digest of %d bytes", errMessage, len(rest))
		}
		m.digest = exchange.Digest(rest)
	case msgObjects, msgState:
		if m.kind == msgState {
			if len(rest) < len(m.key) {
				return message{}, fmt.Errorf("%w: no key", errMessage)
			}
			m.key, rest = trust.KeyID(rest[:len(m.key)]), rest[len(m.key):]
		}
		for len(rest) > 0 {
			object, after, ok := cut(rest, trust.MaxObject)
			if !ok || len(object) == 0 || len(m.objects) == maxObjects {
				return message{}, fmt.Errorf("%w: object %d", errMessage, len(m.objects))
			}
			m.objects, rest = append(m.objects, object), after
		}
	default:
		return message{}, fmt.Errorf("%w: type %d", errMessage, m.kind)
	}
	return m, nil
}

// cut takes one length-prefixed string off.
func cut(raw []byte, most int) (head, rest []byte, ok bool) {
	n, size := binary.Uvarint(raw)
	if size <= 0 || n > uint64(most) || n > uint64(len(raw)-size) {
		return nil, nil, false
	}
	return raw[size : size+int(n)], raw[size+int(n):], true
}

// appendString appends one length-prefixed string.
func appendString[T string | []byte](out []byte, s T) []byte {
	return append(binary.AppendUvarint(out, uint64(len(s))), s...)
}

// encodeObjects writes as many of the objects, from the first on, as fit.
func encodeObjects(most int, objects ...[]byte) []byte {
	return appendObjects([]byte{msgObjects}, most, objects)
}

// encodeState writes a table; what does not fit is left out at its end, and
// spreads by broadcast and want alone.
func encodeState(from string, key trust.KeyID, objects [][]byte) []byte {
	return appendObjects(append(appendString([]byte{msgState}, from), key[:]...), maxState, objects)
}

func appendObjects(out []byte, most int, objects [][]byte) []byte {
	for _, o := range objects {
		if len(out)+binary.MaxVarintLen32+len(o) > most {
			break
		}
		out = appendString(out, o)
	}
	return out
}

func encodeDigest(from string, digest exchange.Digest) []byte {
	return append(appendString([]byte{msgDigest}, from), digest[:]...)
}

func encodeWant(from string, hashes []trust.Hash) []byte {
	out := appendString([]byte{msgWant}, from)
	for _, h := range hashes {
		out = append(out, h[:]...)
	}
	return out
}
