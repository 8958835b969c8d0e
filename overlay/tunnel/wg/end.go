package wg

import (
	"crypto/ecdh"
	"errors"
	"fmt"
	"io"
	"time"

	"meshd/mesh"
)

// end is this end under one of its keys.
type end struct {
	private *ecdh.PrivateKey
	public  mesh.Key
	checker checker
}

func newEnd(key [32]byte, rand io.Reader) (end, error) {
	private, err := ecdh.X25519().NewPrivateKey(key[:])
	if err != nil {
		return end{}, fmt.Errorf("read private key: %w", err)
	}
	public := mesh.Key(private.PublicKey().Bytes())
	return end{private, public, checker{macKeys: macKeysOf(public), rand: rand}}, nil
}

// CheckKey tells whether a key can be a peer's: there are a few points that make
// every secret the same.
func CheckKey(key mesh.Key) error {
	var one [32]byte
	one[0] = 1
	private, err := ecdh.X25519().NewPrivateKey(one[:])
	if err == nil {
		_, err = exchange(private, key[:])
	}
	if err != nil {
		return errors.New("not a public key")
	}
	return nil
}

// PublicKey gives the key by which peers know this end.
func (m *Machine) PublicKey() mesh.Key { return m.self.public }

// SetKey gives this end another key. Sessions go on. For some seconds, in which
// peers hear of the new key, handshakes are made with the one before; and for some
// minutes messages to that are still taken.
func (m *Machine) SetKey(now time.Time, key [32]byte) error {
	next, err := newEnd(key, m.rand)
	if err != nil || next.public == m.self.public {
		return err
	}
	for _, p := range m.order {
		static, err := exchange(next.private, p.Key[:])
		if err != nil {
			return err // it was tried when the peer was added
		}
		p.static = [32]byte(static)
		clear(static)
	}
	if m.former == nil || !now.Before(m.goOverAt) { // else nobody was shown the one in between
		former := m.self
		m.former = &former
	}
	m.self = next
	m.goOverAt, m.formerEnds = now.Add(goOverAfter), now.Add(formerFor)
	return nil
}

// shown is the end that peers are shown in an initiation.
func (m *Machine) shown(now time.Time) *end {
	if m.former != nil && now.Before(m.goOverAt) {
		return m.former
	}
	return &m.self
}

// addressed is the end that a handshake message is for; nil: neither.
func (m *Machine) addressed(now time.Time, msg []byte) *end {
	switch {
	case m.self.checker.valid1(msg):
		return &m.self
	case m.former != nil && now.Before(m.formerEnds) && m.former.checker.valid1(msg):
		return m.former
	}
	return nil
}

func (m *Machine) newKey() *ecdh.PrivateKey {
	var b [32]byte
	read(m.rand, b[:])
	key, err := ecdh.X25519().NewPrivateKey(b[:])
	if err != nil {
		panic(err) // the length is right, and every key is valid
	}
	clear(b[:])
	return key
}
