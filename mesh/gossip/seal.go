package gossip

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

// Everything between members is sealed with AES-GCM, in memberlist's format:
//
//	packet       1 │ nonce, 12 bytes │ sealed message, tag
//	stream  10 │ length, 4 bytes │ 1 │ nonce, 12 bytes │ sealed message, tag
//	        └── additional data ─┘
//
// memberlist could do so itself. But it takes whoever has the key for a friend:
// an empty message ends its process, and a few bytes make it take 100 MB. Here a
// message is opened, looked at (see checkPacket), and only then handed on.
const (
	sealedStream  = 10
	sealVersion   = 1
	nonceBytes    = 12
	sealOverhead  = 1 + nonceBytes + 16
	streamHeader  = 1 + 4
	maxSealedSize = maxStreamBytes - streamHeader
	// maxPacketSize is above what any version sends (UDPBufferSize). memberlist
	// keeps 2048 packets while it is busy.
	maxPacketSize = 2 << 10
)

var errSealed = errors.New("not sealed with a key of this mesh")

// sealedTransport seals what memberlist sends through another transport, and
// opens and checks what comes.
type sealedTransport struct {
	// fixed at construction
	memberlist.Transport
	seals   *sealer
	bounds  *bounds
	self    *standing
	say     *limiter
	packets chan *memberlist.Packet
	streams chan net.Conn
	ctx     context.Context // done on Shutdown
	stop    context.CancelFunc
	tasks   sync.WaitGroup
	habits  habits
}

func newSealedTransport(t memberlist.Transport, seals *sealer, bounds *bounds, self *standing, say *limiter) *sealedTransport {
	s := &sealedTransport{
		Transport: t, seals: seals, bounds: bounds, self: self, say: say, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn),
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.tasks.Go(s.receive)
	s.tasks.Go(s.accept)
	return s
}

// PacketCh implements [memberlist.Transport].
func (t *sealedTransport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh implements [memberlist.Transport].
func (t *sealedTransport) StreamCh() <-chan net.Conn { return t.streams }

// WriteTo implements [memberlist.Transport].
func (t *sealedTransport) WriteTo(message []byte, addr string) (time.Time, error) {
	now := time.Now()
	if to, err := netip.ParseAddrPort(addr); err == nil {
		if message = t.bounds.trim(message, to.Addr(), now); message == nil {
			return now, nil
		}
	}
	return t.Transport.WriteTo(t.keyFor(addr).seal(make([]byte, 0, len(message)+sealOverhead), message, nil), addr)
}

func (t *sealedTransport) keyFor(addr string) *sealKey {
	return t.habits.key(addr, t.seals.keys.Load(), time.Now())
}

// DialTimeout implements [memberlist.Transport].
func (t *sealedTransport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	conn, err := t.Transport.DialTimeout(addr, timeout)
	if err != nil {
		return nil, err
	}
	t.meet(conn)
	c := &sealedConn{Conn: conn, seals: t.seals, self: t.self, say: t.say, asks: true}
	c.key.Store(t.keyFor(addr))
	return c, nil
}

// meet notes where somebody is.
func (t *sealedTransport) meet(conn net.Conn) {
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		t.bounds.meet(a.AddrPort().Addr())
	}
}

// Shutdown implements [memberlist.Transport].
func (t *sealedTransport) Shutdown() error {
	t.stop()
	err := t.Transport.Shutdown()
	t.tasks.Wait()
	return err
}

func (t *sealedTransport) receive() {
	for {
		select {
		case p := <-t.Transport.PacketCh():
			message, err := t.openPacket(p.Buf, p.From)
			if err != nil {
				t.say.junk(err, p.From)
				continue
			}
			p.Buf = message
			select {
			case t.packets <- p:
			case <-t.ctx.Done():
				return
			}
		case <-t.ctx.Done():
			return
		}
	}
}

func (t *sealedTransport) openPacket(sealed []byte, from net.Addr) ([]byte, error) {
	if len(sealed) > maxPacketSize {
		return nil, errSealed
	}
	message, key, err := t.seals.open(sealed, nil)
	if err != nil {
		return nil, err
	}
	t.habits.note(from, key, t.seals.keys.Load().send, time.Now())
	return message, checkPacket(message, t.self)
}

func (t *sealedTransport) accept() {
	for {
		select {
		case conn := <-t.Transport.StreamCh():
			t.meet(conn)
			select {
			case t.streams <- &sealedConn{Conn: conn, seals: t.seals, self: t.self, say: t.say}:
			case <-t.ctx.Done():
				_ = conn.Close()
				return
			}
		case <-t.ctx.Done():
			return
		}
	}
}

// sealedConn is a stream with one message each way, as memberlist uses them. An answer
// is sealed with the key of the question: who has just come with a token, or was away
// while the others went over to another key, has no newer one.
type sealedConn struct {
	// fixed at construction
	net.Conn
	seals *sealer
	self  *standing
	say   *limiter
	asks  bool // this node has begun it

	message *bytes.Reader           // what came; nil: not read yet. Only the reader uses it
	key     atomic.Pointer[sealKey] // to answer with; nil: the one in use
}

// Read implements [net.Conn]. It waits for the whole message, since nothing of
// it counts before its seal is seen to be right.
func (c *sealedConn) Read(b []byte) (int, error) {
	if c.message == nil {
		message, err := c.receive()
		if errors.Is(err, errSealed) || errors.Is(err, errHarmful) { // else it ended early, as that of a member that was killed
			c.say.junk(err, c.RemoteAddr())
		}
		if err != nil {
			return 0, err
		}
		c.message = bytes.NewReader(message)
	}
	return c.message.Read(b)
}

func (c *sealedConn) receive() ([]byte, error) {
	var header [streamHeader]byte
	if _, err := io.ReadFull(c.Conn, header[:]); err != nil {
		if c.asks && err == io.EOF {
			c.seals.hungUp.Add(1)
		}
		return nil, err
	}
	n := binary.BigEndian.Uint32(header[1:])
	if header[0] != sealedStream || n > maxSealedSize {
		return nil, errSealed
	}
	// It grows with what comes, not with what was announced.
	var sealed bytes.Buffer
	if _, err := io.CopyN(&sealed, c.Conn, int64(n)); err != nil {
		return nil, err
	}
	message, key, err := c.seals.open(sealed.Bytes(), header[:])
	if err != nil {
		return nil, err
	}
	if !c.asks && !key.ends.IsZero() {
		// Who begins with a key that was given up has an old token. Nobody would speak with
		// it: it is not to become a member half-way.
		return nil, errSealed
	}
	c.key.Store(key)
	return message, checkStream(message, c.self)
}

// Write implements [net.Conn]. Each call sends one message.
func (c *sealedConn) Write(message []byte) (int, error) {
	if len(message)+sealOverhead > maxSealedSize {
		return 0, fmt.Errorf("message of %d bytes", len(message))
	}
	header := binary.BigEndian.AppendUint32([]byte{sealedStream}, uint32(len(message)+sealOverhead))
	out := append(make([]byte, 0, streamHeader+len(message)+sealOverhead), header...)
	key := c.key.Load()
	if key == nil {
		key = c.seals.keys.Load().send
	}
	if _, err := c.Conn.Write(key.seal(out, message, header)); err != nil {
		return 0, err
	}
	return len(message), nil
}
