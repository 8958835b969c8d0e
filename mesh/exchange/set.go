package exchange

import (
	"crypto/sha256"
	"encoding/binary"

	"meshd/mesh/trust"
)

// Set is what one node says that it has: the objects on which all nodes agree that
// have heard the same. It is immutable.
//
// An object is known by the first 8 bytes of its SHA-256. That is short, so whoever
// signs may make two of one key; only those of its own suffer by that.
type Set struct {
	digest uint64
	keys   []uint64 // in the order of NewSet
	hashes map[uint64]trust.Hash
}

// NewSet makes the set of the objects with these hashes.
func NewSet(hashes []trust.Hash) *Set {
	s := &Set{keys: make([]uint64, 0, len(hashes)), hashes: make(map[uint64]trust.Hash, len(hashes))}
	for _, h := range hashes {
		k := binary.BigEndian.Uint64(h[:])
		if _, twice := s.hashes[k]; !twice {
			s.keys, s.hashes[k] = append(s.keys, k), h
			s.digest ^= k
		}
	}
	return s
}

// Digest tells sets apart: the exclusive or of the keys.
func (s *Set) Digest() uint64 { return s.digest }

// named gives the hashes of those keys that the set has.
func (s *Set) named(keys []uint64) []trust.Hash {
	var out []trust.Hash
	for _, k := range keys {
		if h, ok := s.hashes[k]; ok {
			out = append(out, h)
		}
	}
	return out
}

// without lists the keys of the set that are not among others.
func (s *Set) without(others ...[]uint64) []uint64 {
	has := map[uint64]bool{}
	for _, keys := range others {
		for _, k := range keys {
			has[k] = true
		}
	}
	var out []uint64
	for _, k := range s.keys {
		if !has[k] {
			out = append(out, k)
		}
	}
	return out
}

// lacking lists those of keys that the set has not.
func (s *Set) lacking(keys []uint64) []uint64 {
	var out []uint64
	for _, k := range keys {
		if _, ok := s.hashes[k]; !ok {
			out = append(out, k)
		}
	}
	return out
}

func keyOf(object []byte) uint64 {
	sum := sha256.Sum256(object)
	return binary.BigEndian.Uint64(sum[:])
}
