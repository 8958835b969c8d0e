//go:build linux

package e2e

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/blake2s"

	"meshd/mesh"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/tunnel"
	"meshd/overlay/tunnel/wg"
)

// 20 000 initiations a second, as far as this machine gets, from several addresses,
// each with a first MAC that is right and of another sender: as if by somebody who
// has a member's key and repeats himself. What is there goes on, and a newcomer
// gets its handshakes through.
func TestHandshakeFlood(t *testing.T) {
	s := besieged(t)
	const seconds, perSecond, senders = 8, 20_000, 4
	keys, err := s.alpha.Client().Keys(bounded(t))
	must(t, err)
	text, err := s.alpha.Token(t.Context())
	must(t, err)
	raw, err := base64.StdEncoding.DecodeString(keys.Tunnel)
	must(t, err)
	target := net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.alpha.Host.IPv4, tunnelPort))
	var from []net.PacketConn
	for i := range senders {
		a := netip.AddrFrom4([4]byte{198, 18, 0, byte(200 + i)})
		must(t, s.stranger.AddAddress(netip.PrefixFrom(a, 24)))
		conn, err := s.stranger.ListenPacket(t.Context(), "udp4", netip.AddrPortFrom(a, 0).String())
		must(t, err)
		defer conn.Close()
		from = append(from, conn)
	}
	before := refused(t, s.alpha)
	var sent atomic.Int64
	var joined time.Duration
	s.attack(t, 0.2, func(ctx context.Context) {
		flood, cancel := context.WithTimeout(ctx, seconds*time.Second)
		defer cancel()
		var all sync.WaitGroup
		for _, conn := range from {
			msg, sign := initiationTo(t, mesh.Key(raw))
			all.Go(func() {
				begin := time.Now()
				for n := 0; flood.Err() == nil; n++ {
					if n%64 == 0 {
						pause(flood, time.Until(begin.Add(time.Duration(n)*time.Second*senders/perSecond)))
					}
					rand.Read(msg[4:40]) // index, and part of the ephemeral key
					sign(msg)
					if _, err := conn.WriteTo(msg, target); err == nil {
						sent.Add(1)
					}
				}
			})
		}
		pause(flood, time.Second)
		begin := time.Now()
		must(t, s.spare.Join(ctx, text))
		must(t, s.spare.Start())
		must(t, cluster.WaitPairs(ctx, s.alpha, s.spare))
		joined = time.Since(begin)
		if flood.Err() != nil {
			t.Errorf("a newcomer reaches alpha only when the flood is over, after %s", joined)
		}
		all.Wait()
	})
	t.Logf("%d initiations a second; a newcomer reaches alpha after %.2f s", sent.Load()/seconds, joined.Seconds())
	if got := refused(t, s.alpha) - before; got < uint64(sent.Load())/10 {
		t.Errorf("of %d initiations alpha has refused only %d: the flood did not get there", sent.Load(), got)
	}
}

// initiationTo makes a handshake's first message, and gives who signs it again when
// it was changed.
func initiationTo(t *testing.T, key mesh.Key) (msg []byte, sign func([]byte)) {
	t.Helper()
	own, err := ecdh.X25519().GenerateKey(rand.Reader)
	must(t, err)
	m, err := wg.New(wg.Config{PrivateKey: [32]byte(own.Bytes())})
	must(t, err)
	_, err = m.SetPeers(time.Now(), []wg.Peer{{Key: key, Suite: wg.ChaCha20Poly1305}})
	must(t, err)
	for _, a := range m.Want(time.Now(), key) {
		if s, ok := a.(wg.Send); ok {
			msg = s.Packet
		}
	}
	// mac1 is over all before it, with a key that anybody can make of the public
	// one. (WireGuard paper, section 5.4.4.)
	const at, size = 116, 16
	label := blake2s.Sum256(append([]byte("mac1----"), key[:]...))
	sign = func(msg []byte) {
		h, err := blake2s.New128(label[:])
		if err != nil {
			panic(err) // the key's length is right
		}
		h.Write(msg[:at])
		h.Sum(msg[:at])
	}
	again := append([]byte(nil), msg...)
	sign(again)
	if string(again[at:at+size]) != string(msg[at:at+size]) {
		t.Fatalf("we sign as %x, the protocol as %x", again[at:at+size], msg[at:at+size])
	}
	return msg, sign
}

// refused is how many handshake messages a node has refused.
func refused(t *testing.T, n *cluster.Node) uint64 {
	t.Helper()
	return document(t, n).Engine.Drops[tunnel.DropHandshake]
}
