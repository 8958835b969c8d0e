package member

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"meshd/mesh/trust"
)

// However many keys are sealed to a node, it keeps so many: those that everybody can
// go over to, and the one that it sends with.
func TestTooManyKeys(t *testing.T) {
	now := start
	var sealed []GossipKey
	for n := range maxKeys + 4 {
		sealed = append(sealed, GossipKey{Generation: uint64(n + 1), Key: keyOf(byte(n + 1)), Made: now, Grace: time.Hour})
	}
	k, _ := NewKeyring(keyOf(100)).Next(now, sealed, []trust.Generations{{}}) // somebody has none of them
	if len(k.Keys) != maxKeys || k.Send != 0 || !bytes.Equal(k.Sending().Key, keyOf(100)) {
		t.Errorf("it is a %v, and sends with %x", k, k.Sending().Key)
	}
	if k.Newest() != maxKeys-1 {
		t.Errorf("the newest one is %d: not the newest ones have made room", k.Newest())
	}
}

func keyOf(n byte) []byte {
	k := make([]byte, trust.GossipKeySize)
	k[0] = n
	return k
}

// TestRotationLeavesNothing: who has left gets no key, and of a key that is dropped
// what it was kept in is overwritten.
func TestRotationLeavesNothing(t *testing.T) {
	s := newSim(t, narrow)
	s.seals, s.rights = true, map[string][]string{"a": {trust.CapRotate}}
	token := s.token(nil)
	a, b, c := s.host("a", nil), s.host("b", token), s.host("c", token)
	s.syncing(20 * time.Second)
	for i, h := range s.hosts {
		h.keyring = NewKeyring(keyOf(1))
		s.start(h, s.hosts[max(0, i-1)])
	}
	s.run(30 * time.Second)
	b.m.Leave(s.now)
	s.step(b)
	s.run(30 * time.Second)
	if err := a.m.RotateGossip(s.now, keyOf(2), 0); err != nil {
		t.Fatal(err)
	}
	s.step(a)
	rekeys := a.m.reg.Rekeys()
	sealedTo := func(h *host) bool {
		return slices.ContainsFunc(rekeys, func(r *trust.Rekey) bool { return r.For(h.id()) })
	}
	if !sealedTo(c) || sealedTo(b) {
		t.Errorf("the key is sealed to c: %t; to b, who has left: %t", sealedTo(c), sealedTo(b))
	}
	var old []byte // the memory of the first key, as long as it is there
	for range 300 {
		if keys := a.m.cfg.Keyring.Keys; len(keys) == 2 {
			old = keys[1].Key
		}
		s.run(time.Second)
	}
	if k := a.m.cfg.Keyring; len(k.Keys) != 1 || k.Send != 1 || old == nil {
		t.Fatalf("a has a %v, and had two keys: %t", k, old != nil)
	}
	if !bytes.Equal(old, make([]byte, trust.GossipKeySize)) {
		t.Errorf("a still has %x in memory", old)
	}
}
