package wg

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
)

// Suite is a choice of cipher with the message types and the protocol name that
// go with it, so that nothing made for one suite is ever valid in another.
type Suite uint8

// The suites.
const (
	ChaCha20Poly1305 Suite = iota + 1 // WireGuard, byte for byte
	AES256GCM                         // the same handshake and layout around another cipher
)

// suite is what there is to know of a Suite.
type suite struct {
	name         string
	construction string // as Noise names it
	identifier   string // the prologue, in Noise's words
	types        uint32 // type of its initiation; response, cookie reply, transport follow
	// rekeyMessages is after how many messages a session is renewed.
	rekeyMessages uint64
	bigEndian     bool // the counter in a nonce
	newAEAD       func(key []byte) (cipher.AEAD, error)

	start transcript // before anything is known of the responder
}

var suites = [...]*suite{
	ChaCha20Poly1305: newSuite(suite{
		name:          "chacha20poly1305",
		construction:  "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s",
		identifier:    "WireGuard v1 zx2c4 Jason@zx2c4.com",
		types:         0x01,
		rekeyMessages: 1 << 60,
		newAEAD:       chacha20poly1305.New,
	}),
	AES256GCM: newSuite(suite{
		name:         "aes256gcm",
		construction: "Noise_IKpsk2_25519_AESGCM_BLAKE2s",
		identifier:   "meshd v1 WireGuard with AES-256-GCM",
		types:        0x11,
		// GCM's bound falls with the blocks under one key. RFC 8446, 5.5 allows
		// 2^24.5 records of 2^10 blocks; 2^28 packets of 1500 bytes are as much.
		// Two minutes at two million packets a second stay below.
		rekeyMessages: 1 << 28,
		bigEndian:     true, // as Noise wants it for AESGCM
		newAEAD:       newGCM,
	}),
}

func newSuite(s suite) *suite {
	s.start.chain = blake2s.Sum256([]byte(s.construction))
	s.start.hash = s.start.chain
	s.start.mixHash([]byte(s.identifier))
	s.start.suite = &s
	return &s
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// aead makes the cipher. It can not fail: lengths are fixed, and New has tried.
func (s *suite) aead(key *[32]byte) cipher.AEAD {
	c, err := s.newAEAD(key[:])
	if err != nil {
		panic(fmt.Sprintf("wg: %s: %v", s.name, err))
	}
	return c
}

// nonce writes the counter as the cipher wants it: 12 bytes, the first four zero.
func (s *suite) nonce(b []byte, counter uint64) {
	binary.LittleEndian.PutUint32(b, 0)
	if s.bigEndian {
		binary.BigEndian.PutUint64(b[4:12], counter)
	} else {
		binary.LittleEndian.PutUint64(b[4:12], counter)
	}
}

// ParseSuite reads what [Suite.String] writes.
func ParseSuite(name string) (Suite, error) {
	for s, info := range suites {
		if info != nil && info.name == name {
			return Suite(s), nil
		}
	}
	return 0, fmt.Errorf("%.40q is not a suite", name)
}

// String gives the name that configurations and records use.
func (s Suite) String() string {
	if !s.valid() {
		return fmt.Sprintf("suite(%d)", uint8(s))
	}
	return suites[s].name
}

func (s Suite) valid() bool { return s > 0 && int(s) < len(suites) }
