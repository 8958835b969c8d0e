package exchange

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"meshd/mesh/trust"
)

// Key is what stands for an object in a digest and on the wire: the first 8 bytes
// of its SHA-256. Admissions of one certificate have one key in common: of many
// witnesses each node keeps the first few that it heard, and one is enough.
//
// It is short, so whoever signs may make two objects of one key; only those of its
// own suffer by that.
func Key(object []byte) uint64 {
	if kind, err := trust.KindOf(object); err == nil && kind == trust.KindAdmission {
		if a, err := trust.ParseAdmission(object); err == nil {
			sum := sha256.Sum256(append([]byte("meshd admitted\x00"), a.Certificate[:]...))
			return binary.BigEndian.Uint64(sum[:])
		}
	}
	sum := sha256.Sum256(object)
	return binary.BigEndian.Uint64(sum[:])
}

// Set is everything that a node believes at one moment, in an order in which each
// object can be decided at once. It is immutable.
type Set struct {
	digest  uint64
	keys    []uint64 // different ones, in the order of the objects
	of      []uint64 // the key of each object
	objects [][]byte
}

// NewSet makes a set of objects and their keys. The set keeps both.
func NewSet(objects [][]byte, keys []uint64) *Set {
	s := &Set{of: keys, objects: objects, keys: make([]uint64, 0, len(keys))}
	seen := make(map[uint64]bool, len(keys))
	for _, k := range keys {
		if !seen[k] {
			seen[k] = true
			s.keys = append(s.keys, k)
			s.digest ^= k
		}
	}
	return s
}

// Digest tells sets apart: the exclusive or of their keys.
func (s *Set) Digest() uint64 { return s.digest }

// Objects lists all, in order. It must not be changed.
func (s *Set) Objects() [][]byte { return s.objects }

// pick gives the objects whose keys are wanted, in order.
func (s *Set) pick(wanted func(uint64) bool) [][]byte {
	var out [][]byte
	for i, o := range s.objects {
		if wanted(s.of[i]) {
			out = append(out, o)
		}
	}
	return out
}

// lacking lists those of keys that the set has not, in their order.
func (s *Set) lacking(keys []uint64) []uint64 {
	own := index(s.keys)
	return slices.DeleteFunc(slices.Clone(keys), func(k uint64) bool { return own[k] })
}

func index(keys []uint64) map[uint64]bool {
	m := make(map[uint64]bool, len(keys))
	for _, k := range keys {
		m[k] = true
	}
	return m
}
