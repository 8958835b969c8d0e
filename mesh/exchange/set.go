package exchange

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"meshd/mesh/trust"
)

// Set is what one node says that it has: the objects on which all nodes agree that
// have heard the same. It is immutable.
type Set struct {
	digest Digest
	hashes []trust.Hash // in the order of NewSet, each once
	has    map[trust.Hash]bool
}

// Digest tells sets apart, whoever has signed what is in them: it is cut from the
// SHA-256 of their objects' hashes, which are sorted.
type Digest [16]byte

// NewSet makes the set of the objects with these hashes.
func NewSet(hashes []trust.Hash) *Set {
	s := &Set{hashes: make([]trust.Hash, 0, len(hashes)), has: make(map[trust.Hash]bool, len(hashes))}
	for _, h := range hashes {
		if !s.has[h] {
			s.hashes, s.has[h] = append(s.hashes, h), true
		}
	}
	sum := sha256.New()
	for _, h := range slices.SortedFunc(slices.Values(s.hashes), trust.Hash.Compare) {
		sum.Write(h[:])
	}
	s.digest = Digest(sum.Sum(nil)[:len(Digest{})])
	return s
}

// Digest tells whether another set is the same.
func (s *Set) Digest() Digest { return s.digest }

// salt makes the keys of one exchange. Keys are short, so whoever signs could prepare
// two objects of one key; but not for a salt that is drawn later, by somebody else.
type salt [8]byte

func newSalt() (s salt) {
	_, _ = rand.Read(s[:]) // it never fails
	return s
}

// key is what an object is called in the exchange.
func (s salt) key(h trust.Hash) uint64 {
	sum := sha256.Sum256(append(s[:], h[:]...))
	return binary.BigEndian.Uint64(sum[:])
}

func (s salt) keys(hashes []trust.Hash) []uint64 {
	keys := make([]uint64, len(hashes))
	for i, h := range hashes {
		keys[i] = s.key(h)
	}
	return keys
}

// among gives the hashes of those objects that the keys name.
func (s salt) among(keys []uint64, objects [][]byte) []trust.Hash {
	named := setOf(keys)
	var out []trust.Hash
	for _, o := range objects {
		if h := trust.Hash(sha256.Sum256(o)); named[s.key(h)] {
			out = append(out, h)
		}
	}
	return out
}

// keyed is a set by the keys of one exchange. Of two objects with one key the second
// is left for the next exchange, which has another salt.
type keyed struct {
	keys   []uint64 // in the set's order
	hashes map[uint64]trust.Hash
}

func (s *Set) keyed(by salt) keyed {
	k := keyed{make([]uint64, 0, len(s.hashes)), make(map[uint64]trust.Hash, len(s.hashes))}
	for _, h := range s.hashes {
		key := by.key(h)
		if _, twice := k.hashes[key]; !twice {
			k.keys, k.hashes[key] = append(k.keys, key), h
		}
	}
	return k
}

// named gives the hashes of those keys that the set has.
func (k keyed) named(keys []uint64) []trust.Hash {
	var out []trust.Hash
	for _, key := range keys {
		if h, ok := k.hashes[key]; ok {
			out = append(out, h)
		}
	}
	return out
}

// without lists the keys of the set that are not among others.
func (k keyed) without(others ...[]uint64) []uint64 {
	return except(k.keys, slices.Concat(others...))
}

// lacking lists those of keys that the set has not.
func (k keyed) lacking(keys []uint64) []uint64 { return except(keys, k.keys) }

func except(keys, others []uint64) []uint64 {
	has := setOf(others)
	return slices.DeleteFunc(slices.Clone(keys), func(key uint64) bool { return has[key] })
}

func setOf(keys []uint64) map[uint64]bool {
	out := make(map[uint64]bool, len(keys))
	for _, k := range keys {
		out[k] = true
	}
	return out
}
