package gossip

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"meshd/mesh/member"
	"meshd/mesh/trust"
)

// linger is for how long a key that was given up still opens what comes: what was
// sealed with it may be on the way, or wait in a queue.
const linger = 10 * time.Second

// sealer has the gossip keys. They may be replaced while others seal and open.
type sealer struct {
	keys atomic.Pointer[sealKeys]
	mu   sync.Mutex // one that replaces them
}

// sealKeys are one state of a sealer; it does not change.
type sealKeys struct {
	send *sealKey
	open []*sealKey // the newest first, then those that linger
}

// sealKey is one key. Go's ciphers hide their keys, so that these cannot be
// overwritten: they go with the last reference.
type sealKey struct {
	cipher.AEAD
	id         trust.KeyID
	generation uint64
	ends       time.Time // lingers until then; zero: it is in the keyring
	opened     *atomic.Uint64
}

func newSealer(k member.Keyring) (*sealer, error) {
	s := &sealer{}
	return s, s.set(k, time.Time{})
}

// set takes the keys of a keyring in place of those before, at once. On an error
// nothing changes.
func (s *sealer) set(k member.Keyring, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := &sealKeys{}
	if keys := s.keys.Load(); keys != nil {
		old = keys
	}
	next := &sealKeys{}
	for _, g := range k.Keys {
		key, err := newSealKey(g)
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(old.open, func(o *sealKey) bool { return o.id == key.id }); i >= 0 {
			key.opened = old.open[i].opened
		}
		if g.Generation == k.Send && next.send == nil {
			next.send = key
		}
		next.open = append(next.open, key)
	}
	if next.send == nil {
		return errors.New("no gossip key")
	}
	for _, o := range old.open {
		if slices.ContainsFunc(next.open, func(n *sealKey) bool { return n.id == o.id }) {
			continue
		}
		gone := *o
		if gone.ends.IsZero() {
			gone.ends = now.Add(linger)
		}
		next.open = append(next.open, &gone)
	}
	s.keys.Store(next)
	return nil
}

func newSealKey(g member.GossipKey) (*sealKey, error) {
	block, err := aes.NewCipher(g.Key)
	if err != nil {
		return nil, fmt.Errorf("gossip key of %d bytes: %w", len(g.Key), err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("gossip key: %w", err)
	}
	return &sealKey{AEAD: aead, id: trust.KeyIDOf(g.Key), generation: g.Generation, opened: new(atomic.Uint64)}, nil
}

// sweep forgets keys that have lingered.
func (s *sealer) sweep(now time.Time) {
	over := func(k *sealKey) bool { return !k.ends.IsZero() && !now.Before(k.ends) }
	if !slices.ContainsFunc(s.keys.Load().open, over) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := *s.keys.Load()
	keys.open = slices.DeleteFunc(slices.Clone(keys.open), over)
	s.keys.Store(&keys)
}

// opened counts messages that were opened, by the generation of their key.
func (s *sealer) opened() map[uint64]uint64 {
	count := map[uint64]uint64{}
	for _, k := range s.keys.Load().open {
		count[k.generation] += k.opened.Load()
	}
	return count
}

// seal appends a sealed message.
func (s *sealer) seal(out, message, additional []byte) []byte {
	var nonce [nonceBytes]byte
	_, _ = rand.Read(nonce[:]) // never fails since Go 1.24
	out = append(append(out, sealVersion), nonce[:]...)
	return s.keys.Load().send.Seal(out, nonce[:], message, additional)
}

// open gives the message that is sealed. It may use the same memory.
func (s *sealer) open(sealed, additional []byte) ([]byte, error) {
	if len(sealed) < sealOverhead || sealed[0] != sealVersion {
		return nil, errSealed
	}
	nonce, body := sealed[1:1+nonceBytes], sealed[1+nonceBytes:]
	keys := s.keys.Load().open
	for i, key := range keys {
		var into []byte
		if i == len(keys)-1 {
			into = body[:0] // a failure destroys it
		}
		if message, err := key.Open(into, nonce, body, additional); err == nil {
			key.opened.Add(1)
			return message, nil
		}
	}
	return nil, errSealed
}

// use seals and opens with other keys from now on; it is the core's keyring, and
// is saved.
func (g *Gossip) use(k member.Keyring) {
	if err := g.seals.set(k, time.Now()); err != nil {
		g.opt.Log.Error("gossip keys are not changed", "err", err) // those of the core are good
	}
}

// Opened counts the messages that came since the start, by the generation of the
// gossip key that they were sealed with; those of keys that are gone are left out.
func (g *Gossip) Opened() map[uint64]uint64 { return g.seals.opened() }
