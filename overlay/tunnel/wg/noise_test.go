package wg

import (
	"bytes"
	"crypto/ecdh"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/flynn/noise"

	"meshd/mesh"
)

func testKey(tb testing.TB, seed byte) *ecdh.PrivateKey {
	tb.Helper()
	k, err := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{seed}, 32))
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

var ciphers = map[Suite]noise.CipherFunc{ChaCha20Poly1305: noise.CipherChaChaPoly, AES256GCM: noise.CipherAESGCM}

// The handshake is what another implementation of Noise makes of the same keys:
// each message, and the keys and nonces of what follows.
func TestHandshakeAgainstOracle(t *testing.T) {
	for suite, cipher := range ciphers {
		for name, psk := range map[string][32]byte{"no psk": {}, "psk": {1, 2, 3}} {
			t.Run(fmt.Sprint(suite, ", ", name), func(t *testing.T) {
				testOracle(t, suites[suite], cipher, psk)
			})
		}
	}
}

func testOracle(t *testing.T, s *suite, cipher noise.CipherFunc, psk [32]byte) {
	initiator, responder, e1, e2 := testKey(t, 1), testKey(t, 2), testKey(t, 3), testKey(t, 4)
	oracle := func(self, ephemeral, peer *ecdh.PrivateKey, initiates bool) *noise.HandshakeState {
		cfg := noise.Config{
			CipherSuite: noise.NewCipherSuite(noise.DH25519, cipher, noise.HashBLAKE2s), Random: bytes.NewReader(ephemeral.Bytes()),
			Pattern: noise.HandshakeIK, Initiator: initiates, Prologue: []byte(s.identifier), PresharedKey: psk[:], PresharedKeyPlacement: 2,
			StaticKeypair: noise.DHKey{Private: self.Bytes(), Public: self.PublicKey().Bytes()},
		}
		if initiates {
			cfg.PeerStatic = peer.PublicKey().Bytes()
		}
		h, err := noise.NewHandshakeState(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	theirs, answering := oracle(initiator, e1, responder, true), oracle(responder, e2, initiator, false)
	static, err := exchange(initiator, responder.PublicKey().Bytes())
	if err != nil {
		t.Fatal(err)
	}
	at := stampOf(time.Unix(1234567890, 0))

	// -> e, es, s, ss
	msg1, open, err := initiate(s, initiator, e1, mesh.Key(responder.PublicKey().Bytes()), static, at, 7)
	if err != nil {
		t.Fatal(err)
	}
	want1, _, _, err := theirs.WriteMessage(nil, at[:])
	if err != nil || !bytes.Equal(msg1[8:116], want1) {
		t.Fatalf("initiation is\n%x, want\n%x, %v", msg1[8:116], want1, err)
	}
	if payload, _, _, err := answering.ReadMessage(nil, msg1[8:116]); err != nil || !bytes.Equal(payload, at[:]) {
		t.Fatalf("the oracle reads our initiation as %x, %v", payload, err)
	}
	r, err := readInitiation(s, responder, msg1)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.prove(static, msg1); err != nil || r.at != at || r.index != 7 || !bytes.Equal(r.peer[:], initiator.PublicKey().Bytes()) {
		t.Fatalf("read initiation of %s at %x, index %d, %v", r.peer, r.at, r.index, err)
	}

	// <- e, ee, se, psk
	msg2, send2, receive2, err := r.respond(e2, &psk, 8)
	if err != nil {
		t.Fatal(err)
	}
	want2, in2, out2, err := answering.WriteMessage(nil, nil)
	if err != nil || !bytes.Equal(msg2[12:60], want2) {
		t.Fatalf("response is\n%x, want\n%x, %v", msg2[12:60], want2, err)
	}
	if _, _, _, err := theirs.ReadMessage(nil, msg2[12:60]); err != nil {
		t.Fatalf("the oracle does not take our response: %v", err)
	}
	send1, receive1, err := open.finish(&psk, msg2)
	if err != nil {
		t.Fatal(err)
	}
	if send1 != in2.UnsafeKey() || receive2 != send1 || receive1 != out2.UnsafeKey() || send2 != receive1 {
		t.Fatal("keys differ from the oracle's")
	}

	// Transport messages.
	session := &Session{suite: s, remote: 9, send: s.aead(&send1)}
	for counter := range uint64(300) {
		packet := bytes.Repeat([]byte{byte(counter)}, int(counter))
		got := session.Seal(make([]byte, 0, len(packet)+Overhead), counter, packet)
		want, err := in2.Encrypt(nil, nil, packet)
		if err != nil || !bytes.Equal(got[HeaderSize:], want) {
			t.Fatalf("message %d is\n%x, want\n%x, %v", counter, got[HeaderSize:], want, err)
		}
		if binary.LittleEndian.Uint64(got[8:]) != counter || binary.LittleEndian.Uint32(got[4:]) != 9 {
			t.Fatalf("header of message %d: %x", counter, got[:HeaderSize])
		}
	}
}

// A public key of low order gives a shared secret that everybody knows.
func TestSharedSecretOfZeros(t *testing.T) {
	for _, public := range [][]byte{
		make([]byte, 32),
		append([]byte{1}, make([]byte, 31)...),
		// Of order 8, from RFC 7748's references.
		{0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00},
	} {
		if shared, err := exchange(testKey(t, 1), public); err == nil {
			t.Errorf("%x: shared secret %x", public, shared)
		}
	}
}

// Every bit of the authenticated part counts (every fifth is tried), and a wrong response leaves the
// initiation open for the right one.
func TestHandshakeForged(t *testing.T) {
	initiator, responder, e1, e2 := testKey(t, 1), testKey(t, 2), testKey(t, 3), testKey(t, 4)
	static, err := exchange(initiator, responder.PublicKey().Bytes())
	if err != nil {
		t.Fatal(err)
	}
	for suite := range ciphers {
		s := suites[suite]
		msg, open, err := initiate(s, initiator, e1, mesh.Key(responder.PublicKey().Bytes()), static, stamp{1}, 7)
		if err != nil {
			t.Fatal(err)
		}
		read := func(msg []byte) (received, error) {
			r, err := readInitiation(s, responder, msg)
			if err == nil {
				err = r.prove(static, msg)
			}
			return r, err
		}
		for bit := 8 * 8; bit < 116*8; bit += 5 {
			bad := bytes.Clone(msg)
			bad[bit/8] ^= 1 << (bit % 8)
			if _, err := read(bad); err == nil {
				t.Fatalf("%s: initiation with bit %d turned is taken", suite, bit)
			}
		}
		r, err := read(msg)
		if err != nil {
			t.Fatal(err)
		}
		answer, _, _, err := r.respond(e2, &[32]byte{5}, 8)
		if err != nil {
			t.Fatal(err)
		}
		for bit := 12 * 8; bit < 60*8; bit += 5 {
			bad := bytes.Clone(answer)
			bad[bit/8] ^= 1 << (bit % 8)
			if _, _, err := open.finish(&[32]byte{5}, bad); err == nil {
				t.Fatalf("%s: response with bit %d turned is taken", suite, bit)
			}
		}
		if _, _, err := open.finish(&[32]byte{6}, answer); err == nil {
			t.Fatalf("%s: response under another preshared key is taken", suite)
		}
		if _, _, err := open.finish(&[32]byte{5}, answer); err != nil {
			t.Fatalf("%s: %v", suite, err)
		}
	}
}
