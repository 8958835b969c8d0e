package wg

import (
	"crypto/subtle"
	"encoding/binary"
	"io"
	"net/netip"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"

	"meshd/mesh"
)

// Each handshake message ends in two MACs:
//
//	mac1  keyed by the receiver's public key: who does not know it gets no answer
//	mac2  keyed by a cookie, which proves that the sender gets what is sent to its
//	      address; needed while the receiver is under load, zero otherwise

// mac is keyed BLAKE2s of 16 bytes.
func mac(key []byte, data ...[]byte) (sum [macSize]byte) {
	h, err := blake2s.New128(key)
	if err != nil {
		panic(err) // a key that is too long
	}
	for _, d := range data {
		h.Write(d)
	}
	h.Sum(sum[:0])
	return sum
}

// mac1 is the first one of a handshake message.
func mac1(msg []byte) [macSize]byte { return [macSize]byte(msg[len(msg)-2*macSize:]) }

// macKeys are the two keys that are known of whoever has a public key.
type macKeys struct{ mac1, cookie [32]byte }

func macKeysOf(public mesh.Key) macKeys {
	return macKeys{
		mac1:   blake2s.Sum256(append([]byte("mac1----"), public[:]...)),
		cookie: blake2s.Sum256(append([]byte("cookie--"), public[:]...)),
	}
}

// checker verifies the MACs of messages to us, and makes cookies.
type checker struct {
	macKeys
	rand   io.Reader
	secret [32]byte
	since  time.Time // when secret was drawn; zero: never
}

func (c *checker) valid1(msg []byte) bool {
	body := len(msg) - 2*macSize
	want := mac(c.mac1[:], msg[:body])
	return subtle.ConstantTimeCompare(want[:], msg[body:body+macSize]) == 1
}

// valid2 tells whether the message proves that it comes from that address.
func (c *checker) valid2(now time.Time, msg []byte, from netip.AddrPort) bool {
	if !c.fresh(now) {
		return false
	}
	body := len(msg) - macSize
	cookie := c.bake(from)
	want := mac(cookie[:], msg[:body])
	return subtle.ConstantTimeCompare(want[:], msg[body:]) == 1
}

func (c *checker) fresh(now time.Time) bool {
	age := now.Sub(c.since)
	return !c.since.IsZero() && age >= 0 && age < cookieAge
}

func (c *checker) bake(from netip.AddrPort) [macSize]byte {
	addr := from.Addr().As16()
	return mac(c.secret[:], addr[:], binary.BigEndian.AppendUint16(nil, from.Port()))
}

// reply makes the cookie reply to a handshake message.
func (c *checker) reply(now time.Time, s *suite, msg []byte, from netip.AddrPort) []byte {
	if !c.fresh(now) {
		read(c.rand, c.secret[:])
		c.since = now
	}
	out := make([]byte, 32, cookieReplySize)
	binary.LittleEndian.PutUint32(out, s.types+uint32(cookieReply))
	copy(out[4:8], msg[4:8]) // its sender is our receiver
	nonce := out[8:32]
	read(c.rand, nonce)
	cookie := c.bake(from)
	body := len(msg) - 2*macSize
	return (*cookieCipher)(&c.macKeys.cookie).seal(out, nonce, cookie[:], msg[body:body+macSize])
}

// cookieCipher is XChaCha20-Poly1305 in both suites: its nonce is long enough to
// be drawn at random.
type cookieCipher [32]byte

func (key *cookieCipher) seal(dst, nonce, data, with []byte) []byte {
	aead, err := chacha20poly1305.NewX(key[:])
	if err != nil {
		panic(err) // the length is right, and New has tried
	}
	return aead.Seal(dst, nonce, data, with)
}

func (key *cookieCipher) open(nonce, sealed, with []byte) ([]byte, error) {
	aead, err := chacha20poly1305.NewX(key[:])
	if err != nil {
		panic(err)
	}
	return aead.Open(nil, nonce, sealed, with)
}

// signer puts the MACs on messages to one peer.
type signer struct {
	macKeys
	last   [macSize]byte // mac1 of the last message, to which a cookie reply refers
	signed bool          // there is one, and no cookie came for it
	cookie [macSize]byte
	since  time.Time // when cookie came; zero: none
}

func (s *signer) sign(now time.Time, msg []byte) {
	body := len(msg) - 2*macSize
	s.last = mac(s.mac1[:], msg[:body])
	s.signed = true
	copy(msg[body:], s.last[:])
	if age := now.Sub(s.since); !s.since.IsZero() && age >= 0 && age < cookieUse {
		mac2 := mac(s.cookie[:], msg[:body+macSize])
		copy(msg[body+macSize:], mac2[:])
	}
}

// take reads a cookie reply to the last message.
func (s *signer) take(now time.Time, msg []byte) error {
	if !s.signed {
		return ErrUnknown
	}
	cookie, err := (*cookieCipher)(&s.macKeys.cookie).open(msg[8:32], msg[32:], s.last[:])
	if err != nil {
		return ErrForged
	}
	s.signed = false // one reply per message: what is sent twice shall not make it last
	s.cookie, s.since = [macSize]byte(cookie), now
	return nil
}

// limiter bounds the handshakes from each address: a bucket of burst that fills
// at one per cost. IPv6 counts by /64, which is what a host has at will.
type limiter struct {
	buckets map[netip.Addr]bucket
	swept   time.Time
}

type bucket struct {
	full time.Time // when it is, or was, full again
}

const (
	handshakeCost  = time.Second / 20
	handshakeBurst = 5 * handshakeCost
	maxBuckets     = 8192 // about 1 MB
	sweepEvery     = time.Second
)

func (l *limiter) allow(now time.Time, addr netip.Addr) bool {
	if addr.Is6() && !addr.Is4In6() {
		if p, err := addr.WithZone("").Prefix(64); err == nil {
			addr = p.Addr()
		}
	}
	b, known := l.buckets[addr]
	if !known && len(l.buckets) >= maxBuckets && !l.sweep(now) {
		return false // as many hosts as that, all within a second: new ones have to wait
	}
	if d := b.full.Sub(now); d < 0 || d > handshakeBurst { // the latter: the clock went back
		b.full = now
	}
	if b.full = b.full.Add(handshakeCost); b.full.Sub(now) > handshakeBurst {
		return false
	}
	l.buckets[addr] = b
	return true
}

// sweep forgets full buckets, and tells whether there is room.
func (l *limiter) sweep(now time.Time) bool {
	if age := now.Sub(l.swept); age >= 0 && age < sweepEvery {
		return false
	}
	l.swept = now
	for addr, b := range l.buckets {
		if d := b.full.Sub(now); d <= 0 || d > handshakeBurst {
			delete(l.buckets, addr)
		}
	}
	return len(l.buckets) < maxBuckets
}
