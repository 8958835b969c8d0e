package wg

import (
	"crypto/ecdh"
	"crypto/hmac"
	"encoding/binary"
	"hash"

	"golang.org/x/crypto/blake2s"

	"meshd/mesh"
)

// The handshake is Noise's IKpsk2 with WireGuard's prologue:
//
//	<- s
//	...
//	-> e, es, s, ss, {stamp}
//	<- e, ee, se, psk, {}
//
// Every cipher key serves once, so every nonce is zero.
var zeroNonce [12]byte

// transcript is what both ends agree on so far: Noise's symmetric state.
type transcript struct {
	suite       *suite
	chain, hash [32]byte
}

func (t *transcript) mixHash(data []byte) {
	h := newHash()
	h.Write(t.hash[:])
	h.Write(data)
	h.Sum(t.hash[:0])
}

// mixKey takes a secret or an ephemeral key into the chain.
func (t *transcript) mixKey(data []byte) { kdf(&t.chain, data, &t.chain) }

// seal adds data that only who knows the secret can read.
func (t *transcript) seal(dst, secret, data []byte) {
	var key [32]byte
	kdf(&t.chain, secret, &t.chain, &key)
	t.sealWith(dst, &key, data)
}

func (t *transcript) sealWith(dst []byte, key *[32]byte, data []byte) {
	sealed := t.suite.aead(key).Seal(dst[:0], zeroNonce[:], data, t.hash[:])
	clear(key[:])
	t.mixHash(sealed)
}

// open is seal's other side.
func (t *transcript) open(dst, secret, sealed []byte) error {
	var key [32]byte
	kdf(&t.chain, secret, &t.chain, &key)
	return t.openWith(dst, &key, sealed)
}

func (t *transcript) openWith(dst []byte, key *[32]byte, sealed []byte) error {
	_, err := t.suite.aead(key).Open(dst[:0], zeroNonce[:], sealed, t.hash[:])
	clear(key[:])
	if err != nil {
		return ErrForged
	}
	t.mixHash(sealed)
	return nil
}

// mixPSK takes the preshared key in and gives the key for what follows.
func (t *transcript) mixPSK(psk *[32]byte) (key [32]byte) {
	var tau [32]byte
	kdf(&t.chain, psk[:], &t.chain, &tau, &key)
	t.mixHash(tau[:])
	clear(tau[:])
	return key
}

// split ends the handshake: keys of the initiator's and the responder's messages.
func (t *transcript) split() (ofInitiator, ofResponder [32]byte) {
	kdf(&t.chain, nil, &ofInitiator, &ofResponder)
	clear(t.chain[:])
	clear(t.hash[:])
	return ofInitiator, ofResponder
}

// kdf is HKDF with BLAKE2s: as many keys as there are outs. out[0] may be chain.
func kdf(chain *[32]byte, input []byte, outs ...*[32]byte) {
	var secret [32]byte
	mac := hmac.New(newHash, chain[:])
	mac.Write(input)
	mac.Sum(secret[:0])
	mac = hmac.New(newHash, secret[:])
	var last []byte
	for i, out := range outs {
		mac.Reset()
		mac.Write(last)
		mac.Write([]byte{byte(i + 1)})
		mac.Sum(out[:0])
		last = out[:]
	}
	clear(secret[:])
}

func newHash() hash.Hash {
	h, err := blake2s.New256(nil)
	if err != nil {
		panic(err) // only a key can be wrong
	}
	return h
}

// exchange is Diffie-Hellman. It refuses a shared secret of zeros, which a public
// key of low order yields whatever ours is.
func exchange(private *ecdh.PrivateKey, public []byte) ([]byte, error) {
	p, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		return nil, ErrForged
	}
	shared, err := private.ECDH(p)
	if err != nil {
		return nil, ErrForged
	}
	return shared, nil
}

// opened is an initiation of ours that waits for its response. The Go library
// keeps its ephemeral key; it goes with the last reference.
type opened struct {
	transcript
	self      *ecdh.PrivateKey // our key that it shows
	ephemeral *ecdh.PrivateKey
	index     uint32 // our index; zero: there is none
}

// initiate writes an initiation up to its MACs.
func initiate(s *suite, self *ecdh.PrivateKey, ephemeral *ecdh.PrivateKey, peer mesh.Key, static []byte, at stamp, index uint32) ([]byte, opened, error) {
	msg := make([]byte, initiationSize)
	binary.LittleEndian.PutUint32(msg, s.types+uint32(initiation))
	binary.LittleEndian.PutUint32(msg[4:], index)
	t := s.start
	t.mixHash(peer[:])
	e := msg[8:40]
	copy(e, ephemeral.PublicKey().Bytes())
	t.mixHash(e)
	t.mixKey(e)
	es, err := exchange(ephemeral, peer[:])
	if err != nil {
		return nil, opened{}, err
	}
	t.seal(msg[40:88], es, self.PublicKey().Bytes())
	t.seal(msg[88:116], static, at[:])
	clear(es)
	return msg, opened{t, self, ephemeral, index}, nil
}

// received is an initiation of a peer, not yet answered.
type received struct {
	transcript
	peer      mesh.Key
	index     uint32 // the peer's
	ephemeral [32]byte
	at        stamp
}

// readInitiation reads one until it is known who claims to have sent it.
func readInitiation(s *suite, self *ecdh.PrivateKey, msg []byte) (received, error) {
	r := received{transcript: s.start, index: binary.LittleEndian.Uint32(msg[4:]), ephemeral: [32]byte(msg[8:40])}
	r.mixHash(self.PublicKey().Bytes())
	r.mixHash(r.ephemeral[:])
	r.mixKey(r.ephemeral[:])
	es, err := exchange(self, r.ephemeral[:])
	if err != nil {
		return received{}, err
	}
	defer clear(es)
	return r, r.open(r.peer[:], es, msg[40:88])
}

// prove reads the rest, with the secret that only that peer shares with us.
func (r *received) prove(static, msg []byte) error { return r.open(r.at[:], static, msg[88:116]) }

// respond writes a response up to its MACs, and the keys to send and to receive.
func (r *received) respond(ephemeral *ecdh.PrivateKey, psk *[32]byte, index uint32) (msg []byte, send, receive [32]byte, err error) {
	msg = make([]byte, responseSize)
	binary.LittleEndian.PutUint32(msg, r.suite.types+uint32(response))
	binary.LittleEndian.PutUint32(msg[4:], index)
	binary.LittleEndian.PutUint32(msg[8:], r.index)
	e := msg[12:44]
	copy(e, ephemeral.PublicKey().Bytes())
	r.mixHash(e)
	r.mixKey(e)
	for _, public := range [][]byte{r.ephemeral[:], r.peer[:]} {
		shared, err := exchange(ephemeral, public)
		if err != nil {
			return nil, send, receive, err
		}
		r.mixKey(shared)
		clear(shared)
	}
	key := r.mixPSK(psk)
	r.sealWith(msg[44:60], &key, nil)
	receive, send = r.split()
	return msg, send, receive, nil
}

// finish reads the response to an initiation. A wrong one leaves o as it was.
func (o *opened) finish(psk *[32]byte, msg []byte) (send, receive [32]byte, err error) {
	t := o.transcript
	e := msg[12:44]
	t.mixHash(e)
	t.mixKey(e)
	for _, private := range []*ecdh.PrivateKey{o.ephemeral, o.self} {
		shared, err := exchange(private, e)
		if err != nil {
			return send, receive, err
		}
		t.mixKey(shared)
		clear(shared)
	}
	key := t.mixPSK(psk)
	if err := t.openWith(nil, &key, msg[44:60]); err != nil {
		return send, receive, err
	}
	send, receive = t.split()
	return send, receive, nil
}
