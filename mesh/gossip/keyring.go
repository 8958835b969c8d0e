package gossip

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
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

	refused atomic.Uint64 // messages that no key opens
	hungUp  atomic.Uint64 // streams that were ended without an answer, as by who has no such key
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

// gaveUp tells whether a key was in the keyring until a moment ago.
func (s *sealer) gaveUp(id trust.KeyID) bool {
	return slices.ContainsFunc(s.keys.Load().open, func(k *sealKey) bool { return k.id == id && !k.ends.IsZero() })
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

// seal appends a message, sealed for who uses the key that we do.
func (s *sealer) seal(out, message, additional []byte) []byte {
	return s.keys.Load().send.seal(out, message, additional)
}

// seal appends a sealed message.
func (k *sealKey) seal(out, message, additional []byte) []byte {
	var nonce [nonceBytes]byte
	_, _ = rand.Read(nonce[:]) // never fails since Go 1.24
	out = append(append(out, sealVersion), nonce[:]...)
	return k.Seal(out, nonce[:], message, additional)
}

// open gives the message that is sealed, and the key. It may use the same memory.
func (s *sealer) open(sealed, additional []byte) ([]byte, *sealKey, error) {
	if len(sealed) < sealOverhead || sealed[0] != sealVersion {
		return nil, nil, errSealed
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
			return message, key, nil
		}
	}
	s.refused.Add(1)
	return nil, nil, errSealed
}

// habits are the keys that members seal with who use another than we do: some have
// just come with a token, or were away while the others went over. They are told what
// we say with theirs, as long as we keep that.
type habits struct {
	any atomic.Bool // there are some
	mu  sync.Mutex
	of  map[string]habit // guarded by mu; by address
}

type habit struct {
	key trust.KeyID
	at  time.Time // when it was seen last
}

const (
	// habitFor is how long a habit lasts: members hear of each other far more often.
	habitFor = time.Minute
	// maxHabits bounds what hosts with an old key can fill: 1 MB.
	maxHabits = 8192
)

// note takes notice of the key that came from an address.
func (h *habits) note(from net.Addr, key, ours *sealKey, now time.Time) {
	if key.id == ours.id && !h.any.Load() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if key.id == ours.id {
		delete(h.of, from.String())
	} else {
		if h.of == nil {
			h.of = map[string]habit{}
		}
		if len(h.of) >= maxHabits {
			maps.DeleteFunc(h.of, func(_ string, o habit) bool { return now.Sub(o.at) >= habitFor })
		}
		if len(h.of) < maxHabits {
			h.of[from.String()] = habit{key.id, now}
		}
	}
	h.any.Store(len(h.of) > 0)
}

// key is the one of our keys with which to seal for an address.
func (h *habits) key(to string, keys *sealKeys, now time.Time) *sealKey {
	if !h.any.Load() {
		return keys.send
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	o, ok := h.of[to]
	if !ok {
		return keys.send
	}
	i := slices.IndexFunc(keys.open, func(k *sealKey) bool { return k.id == o.key && k.ends.IsZero() })
	if i < 0 || now.Sub(o.at) >= habitFor {
		delete(h.of, to)
		return keys.send
	}
	return keys.open[i]
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
