package wg

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

// What a parser says of foreign bytes holds: those that index into them rely on it.
func FuzzClassify(f *testing.F) {
	for _, s := range suites[1:] {
		for k, n := range []int{initiationSize, responseSize, cookieReplySize, Overhead} {
			b := make([]byte, n)
			binary.LittleEndian.PutUint32(b, s.types+uint32(k))
			f.Add(b)
		}
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, k, ok := classify(b)
		_, isTransport := SessionIndex(b)
		if IsHandshake(b) && isTransport || ok != (IsHandshake(b) || isTransport) {
			t.Fatalf("%x is a handshake: %t, a transport message: %t", b, IsHandshake(b), isTransport)
		}
		if !ok {
			return
		}
		if got := binary.LittleEndian.Uint32(b); got != s.types+uint32(k) {
			t.Fatalf("type %x is taken for %s of %s", got, describe(b), s.name)
		}
		if want := map[kind]int{initiation: 148, response: 92, cookieReply: 64}[k]; want != 0 && len(b) != want || len(b) < 32 {
			t.Fatalf("%s of %d bytes", describe(b), len(b))
		}
	})
}

// fuzzed is two machines in the middle of everything, and real messages to b.
type fuzzed struct {
	a, b     *Machine
	session  *Session // of b
	messages [][]byte // of each kind; the transport message last
}

func newFuzzed(t testing.TB, suite Suite) *fuzzed {
	ours, ourKey := keyPair(t, 1)
	theirs, theirKey := keyPair(t, 2)
	x := &fuzzed{}
	var err error
	if x.a, err = New(Config{PrivateKey: ours, Rand: &counting{1}}); err != nil {
		t.Fatal(err)
	}
	if x.b, err = New(Config{PrivateKey: theirs, Rand: &counting{2}}); err != nil {
		t.Fatal(err)
	}
	for m, key := range map[*Machine]Peer{x.a: {Key: theirKey, Suite: suite}, x.b: {Key: ourKey, Suite: suite}} {
		if _, err := m.SetPeers(start, []Peer{key}); err != nil {
			t.Fatal(err)
		}
	}
	sent := func(actions []Action) (messages [][]byte) {
		for _, a := range actions {
			switch a := a.(type) {
			case Send:
				messages = append(messages, bytes.Clone(a.Packet))
			case Reply:
				messages = append(messages, bytes.Clone(a.Packet))
			}
		}
		return messages
	}
	receive := func(m *Machine, now time.Time, message []byte) [][]byte {
		actions, _ := m.Receive(now, bytes.Clone(message), netip.AddrPort{})
		return sent(actions)
	}
	// a's handshake is done, but not confirmed, and b's is open.
	initiation := sent(x.a.Want(start, theirKey))[0]
	done := receive(x.b, start, initiation)[0]
	keepalive := receive(x.a, start, done)[0]
	now := start.Add(RekeyTry)
	open := sent(x.b.Want(now, ourKey))[0]
	answer := receive(x.a, now, open)[0]
	x.a.UnderLoad(true)
	cookie := receive(x.a, now, open)[0]
	x.a.UnderLoad(false)
	later := sent(x.a.Want(now.Add(RekeyAfter), theirKey))
	x.messages = [][]byte{initiation, later[0], answer, cookie, keepalive}
	index, _ := SessionIndex(keepalive)
	x.session = x.b.Table().Lookup(index)
	return x
}

// A real message of which some bytes are changed changes nothing. Two places are
// open to whoever knows the public key, as in WireGuard: mac2, at which nobody
// looks without load, and the sender's index, which is below no cipher. A wrong
// index makes a session that nobody can use.
func FuzzReceive(f *testing.F) {
	for suite := range byte(2) {
		for which := range byte(4) {
			f.Add(suite, which, []byte{}, false)
			f.Add(suite, which, []byte{0, 1, 20, 7, 130, 1}, true)
		}
	}
	f.Fuzz(func(t *testing.T, suite, which byte, changes []byte, sign bool) {
		x := newFuzzed(t, bothSuites[int(suite)%2])
		original := x.messages[int(which)%4]
		msg := bytes.Clone(original)
		for ; len(changes) >= 2; changes = changes[2:] {
			msg[int(changes[0])%len(msg)] ^= changes[1]
		}
		if _, k, ok := classify(msg); sign && ok && k != cookieReply { // so that it gets beyond the first check
			forger := signer{macKeys: macKeysOf(x.b.PublicKey())}
			forger.sign(start, msg)
		}
		changed := !bytes.Equal(covered(msg, sign), covered(original, sign))
		now := start.Add(RekeyAfter + time.Minute)
		used, stale := x.b.table.used, x.b.order[0].latest
		actions, err := x.b.Receive(now, msg, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 66}), 66))
		switch {
		case changed && err == nil:
			t.Fatalf("%s is taken though %x was changed to %x", describe(original), original, msg)
		case changed && (len(actions) != 0 || x.b.table.used != used || x.b.order[0].latest != stale):
			t.Fatalf("refused with %v, but: %v", err, actions)
		case !changed && which%4 == 0 && err != ErrCopy:
			t.Fatalf("the last initiation again: %v", err)
		case !changed && which%4 != 0 && err != nil:
			t.Fatalf("%s is refused: %v", describe(original), err)
		}
		x.b.Step(now)
		x.b.Next()
	})
}

// covered is what is authenticated of a message: all before mac2, but for the
// sender's index if the MAC over it is made again.
func covered(msg []byte, signed bool) []byte {
	switch _, k, ok := classify(msg); {
	case !ok || k == cookieReply:
		return msg
	case signed:
		return append(bytes.Clone(msg[:4]), msg[8:len(msg)-2*macSize]...)
	default:
		return msg[:len(msg)-macSize]
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(byte(0), []byte("packet"), []byte{}, 0)
	f.Add(byte(1), []byte{}, []byte{31, 1}, 0)
	f.Add(byte(1), make([]byte, 1420), []byte{8, 1}, 3)
	f.Fuzz(func(t *testing.T, suite byte, packet, changes []byte, cut int) {
		if len(packet) > 1<<16 {
			return
		}
		cipher := suites[bothSuites[int(suite)%2]]
		key := [32]byte{1, 2, 3}
		s := &Session{suite: cipher, remote: 7, send: cipher.aead(&key)}
		r := &Session{suite: cipher, local: 7, receive: cipher.aead(&key)}
		counter, _ := s.Reserve(1)
		sealed := s.Seal(make([]byte, 0, len(packet)+Overhead), counter, packet)
		bad := bytes.Clone(sealed)
		for ; len(changes) >= 2; changes = changes[2:] {
			bad[int(changes[0])%len(bad)] ^= changes[1]
		}
		bad = bad[:len(bad)-min(len(bad), max(0, cut))]
		if !bytes.Equal(bad, sealed) {
			if got, err := r.Open(bad); err == nil {
				t.Fatalf("opened %x", got)
			}
		}
		if got, err := r.Open(sealed); err != nil || !bytes.Equal(got, packet) {
			t.Fatalf("opened %x, %v, want %x", got, err, packet)
		}
	})
}
