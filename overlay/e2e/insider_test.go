//go:build linux

package e2e

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"meshd/mesh"
	"meshd/mesh/trust"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
)

// insider has the key of a mesh's gossip, as every token has it, and says what
// it likes. It knows the wire format by docs/protocol.md and memberlist's source,
// not by our code.
type insider struct {
	host  *lab.Host
	seals cipher.AEAD
	to    netip.AddrPort // a member's gossip
	udp   net.PacketConn
}

func newInsider(t *testing.T, on *lab.Host, token *trust.Token, victim *cluster.Node) *insider {
	t.Helper()
	block, err := aes.NewCipher(token.GossipKey)
	must(t, err)
	seals, err := cipher.NewGCM(block)
	must(t, err)
	udp, err := on.ListenPacket(t.Context(), "udp", ":0")
	must(t, err)
	t.Cleanup(func() { _ = udp.Close() })
	return &insider{on, seals, netip.AddrPortFrom(victim.Host.IPv4, gossipPort), udp}
}

func (i *insider) seal(message, additional []byte) []byte {
	out := append([]byte{1}, randomBytes(12)...)
	return i.seals.Seal(out, out[1:], message, additional)
}

// packet sends one message of memberlist's by UDP.
func (i *insider) packet(message []byte) error {
	_, err := i.udp.WriteTo(i.seal(message, nil), net.UDPAddrFromAddrPort(i.to))
	return err
}

// stream sends one by TCP, and reads what comes back. That the other end closes
// on it is no error.
func (i *insider) stream(ctx context.Context, message []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := i.host.Dial(ctx, "tcp", i.to.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	header := binary.BigEndian.AppendUint32([]byte{10}, uint32(len(message)+12+1+16))
	if _, err := conn.Write(append(header, i.seal(message, header)...)); err == nil {
		_, _ = io.Copy(io.Discard, conn)
	}
	return nil
}

// memberlist's messages.

// userPacket is one of ours in a packet.
func userPacket(message []byte) []byte { return append([]byte{8}, message...) }

// userStream is one of ours in a stream.
func userStream(message []byte) []byte {
	return append(append([]byte{8, 0x81}, mpField("UserMsgLen", mpUint(uint32(len(message))))...), message...)
}

// pushPull gives a whole table, and memberlist's own list.
func pushPull(nodes [][]byte, state []byte) []byte {
	out := []byte{6, 0x83}
	out = append(out, mpField("Nodes", mpUint(uint32(len(nodes))))...)
	out = append(out, mpField("UserStateLen", mpUint(uint32(len(state))))...)
	out = append(out, mpField("Join", []byte{0xc3})...)
	return append(append(out, bytes.Join(nodes, nil)...), state...)
}

// aliveMessage says that a name is live.
func aliveMessage(name string, at netip.AddrPort) []byte {
	out := append([]byte{4, 0x86}, mpField("Node", mpString(name))...)
	return append(out, liveFields(at)...)
}

// listedNode says the same in a list.
func listedNode(name string, at netip.AddrPort) []byte {
	out := append([]byte{0x87}, mpField("Name", mpString(name))...)
	out = append(out, mpField("State", []byte{0})...)
	return append(out, liveFields(at)...)
}

// versions of the protocol, least, last and spoken, and the same of the delegate's.
const versions = "\x01\x05\x02\x00\x00\x00"

func liveFields(at netip.AddrPort) []byte {
	return bytes.Join([][]byte{
		mpField("Addr", mpString(string(at.Addr().AsSlice()))), mpField("Port", mpUint(uint32(at.Port()))),
		mpField("Meta", []byte{0xc0}), mpField("Incarnation", []byte{1}), mpField("Vsn", mpString(versions)),
	}, nil)
}

func mpField(name string, value []byte) []byte { return append(mpString(name), value...) }

func mpUint(n uint32) []byte { return binary.BigEndian.AppendUint32([]byte{0xce}, n) }

func mpString(s string) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{0xda}, uint16(len(s))), s...)
}

// instanceName is one that nobody has, of a node that nobody knows.
func instanceName() string {
	const digits = "0123456789abcdef"
	nonce := randomBytes(8)
	for i := range nonce {
		nonce[i] = digits[nonce[i]%16]
	}
	return mesh.NodeID(randomBytes(len(mesh.NodeID{}))).String() + "." + string(nonce)
}

// Our own messages.

func objectsMessage(objects ...[]byte) []byte { return appendObjects([]byte{1}, objects) }

func stateMessage(from string, objects ...[]byte) []byte {
	return appendObjects(append(binary.AppendUvarint([]byte{3}, uint64(len(from))), from...), objects)
}

func wantMessage(from string, hashes int) []byte {
	out := append(binary.AppendUvarint([]byte{2}, uint64(len(from))), from...)
	return append(out, randomBytes(32*hashes)...)
}

func appendObjects(out []byte, objects [][]byte) []byte {
	for _, o := range objects {
		out = append(binary.AppendUvarint(out, uint64(len(o))), o...)
	}
	return out
}

// Objects that are well-formed, signed, and worth nothing.

// unadmitted makes a certificate with a token and a record of it.
func unadmitted(t *testing.T, token *trust.Token) (certificate, record []byte) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	must(t, err)
	c, err := token.Certify(key.Public().(ed25519.PublicKey), mesh.Key(randomBytes(32)), "junk", time.Now())
	must(t, err)
	return c.Raw, recordOf(t, key, c.Hash)
}

// orphanRecord makes a record whose certificate does not exist.
func orphanRecord(t *testing.T) []byte {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	must(t, err)
	return recordOf(t, key, trust.Hash(randomBytes(32)))
}

func recordOf(t *testing.T, key ed25519.PrivateKey, certificate trust.Hash) []byte {
	t.Helper()
	r := trust.Record{
		Version: mesh.Version{Epoch: 1, Seq: 1}, Certificate: certificate, Nonce: 1, Key: mesh.Key(randomBytes(32)),
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("198.18.0.250:51880")}, Suites: []string{"x"},
	}
	raw, err := r.Sign(key)
	must(t, err)
	return raw
}

// forged changes what a signed object says, as our own code refuses to, and
// signs that. The context is the one of its kind.
func forged(t *testing.T, raw []byte, context string, key ed25519.PrivateKey, change func(body map[uint64]any)) []byte {
	t.Helper()
	mode, err := cbor.CoreDetEncOptions().EncMode()
	must(t, err)
	var parts []any
	must(t, cbor.Unmarshal(raw, &parts))
	var body map[uint64]any
	must(t, cbor.Unmarshal(parts[1].([]byte), &body))
	change(body)
	inner, err := mode.Marshal(body)
	must(t, err)
	out, err := mode.Marshal([]any{parts[0], inner, ed25519.Sign(key, append([]byte(context), inner...))})
	must(t, err)
	return out
}

// junkObjects are bytes that are no objects.
func junkObjects(n, size int) [][]byte {
	block := randomBytes(n * size)
	out := make([][]byte, n)
	for i := range out {
		out[i] = block[i*size : (i+1)*size]
	}
	return out
}
