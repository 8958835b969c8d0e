package wg

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

// soon is time enough for what should happen at once.
const soon = 10 * time.Second

// wire is the socket of a wireguard-go device in memory. What the device sends
// goes to its far end.
type wire struct {
	far func(datagram []byte, to netip.AddrPort)

	mu   sync.Mutex // guards in
	in   chan arrival
	done chan struct{}
}

type arrival struct {
	datagram []byte
	from     netip.AddrPort
}

type endpoint struct{ netip.AddrPort }

func (endpoint) ClearSrc()             {}
func (endpoint) SrcToString() string   { return "" }
func (e endpoint) DstToString() string { return e.String() }
func (e endpoint) DstIP() netip.Addr   { return e.Addr() }
func (endpoint) SrcIP() netip.Addr     { return netip.Addr{} }
func (e endpoint) DstToBytes() []byte {
	b, err := e.MarshalBinary()
	if err != nil {
		panic(err)
	}
	return b
}

func (w *wire) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	in, done := make(chan arrival, 8192), make(chan struct{})
	w.mu.Lock()
	w.in, w.done = in, done
	w.mu.Unlock()
	receive := func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case a := <-in:
			sizes[0], eps[0] = copy(packets[0], a.datagram), endpoint{a.from}
			return 1, nil
		case <-done:
			return 0, net.ErrClosed
		}
	}
	return []conn.ReceiveFunc{receive}, port, nil
}

func (w *wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done != nil {
		close(w.done)
		w.done = nil
	}
	return nil
}

func (w *wire) Send(bufs [][]byte, ep conn.Endpoint) error {
	for _, b := range bufs {
		w.far(bytes.Clone(b), ep.(endpoint).AddrPort)
	}
	return nil
}

func (w *wire) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	return endpoint{a}, err
}

func (*wire) SetMark(uint32) error { return nil }
func (*wire) BatchSize() int       { return 1 }

func (w *wire) deliver(datagram []byte, from netip.AddrPort) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.in <- arrival{bytes.Clone(datagram), from}
}

// interop is a machine of ours and a device of wireguard-go's, that are peers.
type interop struct {
	t    *testing.T
	dev  *device.Device
	peer *device.Peer // us, to the device
	tun  *tuntest.ChannelTUN
	wire *wire
	got  chan []byte // packets that came to us

	mu                       sync.Mutex // guards all below
	machine                  *Machine
	theirs                   Peer
	skew                     time.Duration // our clock is ahead
	session                  *Session
	staged                   [][]byte
	ourAddr                  netip.AddrPort
	theirAddr                netip.AddrPort // where the device is
	at                       netip.AddrPort // where we believe it to be
	handshakes               int            // sessions that we used
	keepalives               int            // that came
	held                     [][]byte       // what the device sent, while holding
	holding                  bool
	cookiesSeen, cookiesSent int
}

var ourIP, theirIP = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")

// newInterop makes both ends. The device is told to send keepalives if that is
// said.
func newInterop(t *testing.T, psk [32]byte, more ...string) *interop {
	t.Helper()
	ourKey, ourPublic := keyPair(t, 1)
	theirKey, theirPublic := keyPair(t, 2)
	x := &interop{
		t: t, tun: tuntest.NewChannelTUN(), got: make(chan []byte, 100),
		theirs:  Peer{Key: theirPublic, PSK: psk, Suite: ChaCha20Poly1305},
		ourAddr: netip.MustParseAddrPort("192.0.2.1:1"), theirAddr: netip.MustParseAddrPort("192.0.2.2:2"),
	}
	x.at = x.theirAddr
	x.wire = &wire{far: func(datagram []byte, to netip.AddrPort) {
		x.mu.Lock()
		defer x.mu.Unlock()
		if to != x.ourAddr {
			return
		}
		if x.holding {
			x.held = append(x.held, datagram)
			return
		}
		x.receive(datagram)
	}}
	var err error
	if x.machine, err = New(Config{PrivateKey: ourKey}); err != nil {
		t.Fatal(err)
	}
	if _, err := x.machine.SetPeers(x.now(), []Peer{x.theirs}); err != nil {
		t.Fatal(err)
	}
	x.dev = device.NewDevice(x.tun.TUN(), x.wire, device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(x.dev.Close)
	config := append([]string{
		"private_key=" + hex.EncodeToString(theirKey[:]), "listen_port=2",
		"public_key=" + hex.EncodeToString(ourPublic[:]), "preshared_key=" + hex.EncodeToString(psk[:]),
		"allowed_ip=10.0.0.1/32", "endpoint=" + x.ourAddr.String(),
	}, more...)
	if err := x.dev.IpcSet(strings.Join(config, "\n") + "\n"); err != nil {
		t.Fatal(err)
	}
	if err := x.dev.Up(); err != nil {
		t.Fatal(err)
	}
	x.peer = x.dev.LookupPeer(device.NoisePublicKey(ourPublic))
	return x
}

// now is our clock.
func (x *interop) now() time.Time { return time.Now().Add(x.skew) }

// receive takes what the device sent.
func (x *interop) receive(datagram []byte) {
	now := x.now()
	index, ok := SessionIndex(datagram)
	if !ok {
		if describe(datagram) == "cookie reply" {
			x.cookiesSeen++
		}
		actions, _ := x.machine.Receive(now, datagram, x.theirAddr)
		x.carryOut(actions)
		return
	}
	s := x.machine.Table().Lookup(index)
	if s == nil {
		return
	}
	packet, err := s.Open(datagram)
	if err != nil {
		return
	}
	if len(packet) > 0 {
		x.got <- packet
	} else {
		x.keepalives++
	}
	if s.NoteReceived(now, len(packet) > 0, x.theirAddr) {
		x.carryOut(x.machine.Step(now))
	}
}

func (x *interop) carryOut(actions []Action) {
	for _, a := range actions {
		switch a := a.(type) {
		case Send:
			x.transmit(a.Packet)
		case Reply:
			x.cookiesSent++
			x.wire.deliver(a.Packet, x.ourAddr)
		case Use:
			if x.session = a.Session; x.session != nil {
				x.handshakes++
			}
			staged := x.staged
			x.staged = nil
			for _, p := range staged {
				x.send(p)
			}
		case Move:
			x.at = a.Endpoint
		}
	}
}

func (x *interop) transmit(datagram []byte) {
	if x.at == x.theirAddr {
		x.wire.deliver(datagram, x.ourAddr)
	}
}

func (x *interop) send(packet []byte) {
	if x.session == nil {
		x.staged = append(x.staged, packet)
		x.carryOut(x.machine.Want(x.now(), x.theirs.Key))
		return
	}
	counter, ok := x.session.Reserve(1)
	if !ok {
		x.t.Error("no counter left")
		return
	}
	x.transmit(x.session.SealPadded(make([]byte, 0, 2000), counter, packet, Padded(len(packet), 1420)))
	if x.session.NoteSent(x.now(), true) {
		x.carryOut(x.machine.Want(x.now(), x.theirs.Key))
	}
}

// do runs f as the owner of the machine.
func (x *interop) do(f func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	f()
}

// jump sets our clock forward.
func (x *interop) jump(d time.Duration) {
	x.do(func() {
		x.skew += d
		x.carryOut(x.machine.Step(x.now()))
	})
}

// there sends a packet to the device, and waits for it to come out.
func (x *interop) there() {
	x.t.Helper()
	packet := tuntest.Ping(theirIP, ourIP)
	x.do(func() { x.send(packet) })
	x.arrives(packet)
}

func (x *interop) arrives(packet []byte) {
	x.t.Helper()
	select {
	case got := <-x.tun.Inbound:
		if !bytes.Equal(got, packet) {
			x.t.Fatalf("the device wrote %x, want %x", got, packet)
		}
	case <-time.After(soon):
		x.t.Fatal("the device wrote nothing")
	}
}

// back has the device send a packet, and waits for it.
func (x *interop) back() {
	x.t.Helper()
	packet := tuntest.Ping(ourIP, theirIP)
	x.tun.Outbound <- packet
	x.comesBack(packet)
}

func (x *interop) comesBack(packet []byte) {
	x.t.Helper()
	select {
	case got := <-x.got:
		if !bytes.Equal(got[:len(packet)], packet) {
			x.t.Fatalf("got %x, want %x", got, packet)
		}
	case <-time.After(soon):
		x.t.Fatal("the device sent nothing that we can read")
	}
}

// until waits for something that takes the device a moment.
func (x *interop) until(what string, done func() bool) {
	x.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(soon); time.Now().Before(end); <-tick.C {
		ok := false
		if x.do(func() { ok = done() }); ok {
			return
		}
	}
	x.t.Fatalf("waited in vain until %s", what)
}

// pause lets so much time pass that another initiation has another stamp, and is
// no flood.
func (x *interop) pause() {
	x.t.Helper()
	began := time.Now()
	x.until("time has passed", func() bool { return time.Since(began) > 2*floodGap })
}

func (x *interop) count(n *int) (got int) {
	x.do(func() { got = *n })
	return got
}

func TestInterop(t *testing.T) {
	for name, psk := range map[string][32]byte{"no psk": {}, "psk": {9, 8, 7}} {
		t.Run("initiator, "+name, func(t *testing.T) {
			x := newInterop(t, psk)
			for range 3 {
				x.there()
				x.back()
			}
		})
		t.Run("responder, "+name, func(t *testing.T) {
			x := newInterop(t, psk)
			for range 3 {
				x.back()
				x.there()
			}
			if n := x.count(&x.handshakes); n != 1 {
				t.Errorf("%d sessions were used, want 1", n)
			}
		})
	}
}

func TestInteropOtherPSK(t *testing.T) {
	x := newInterop(t, [32]byte{1})
	x.theirs.PSK = [32]byte{2}
	if _, err := x.machine.SetPeers(x.now(), []Peer{x.theirs}); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	x.wire.far = func(datagram []byte, _ netip.AddrPort) {
		_, err := x.machine.Receive(time.Now(), datagram, x.theirAddr)
		answered <- err
	}
	x.do(func() { x.send([]byte("x")) })
	select {
	case err := <-answered:
		if err != ErrForged {
			t.Errorf("response under another key: %v", err)
		}
	case <-time.After(soon):
		t.Error("no response")
	}
}

func TestInteropRekey(t *testing.T) {
	t.Run("ours", func(t *testing.T) {
		x := newInterop(t, [32]byte{})
		for n := range 4 {
			x.there() // asks for another session, when it is old
			x.until("another session is used", func() bool { return x.handshakes == n+1 })
			x.there()
			x.back()
			x.pause()
			x.jump(RekeyAfter)
		}
	})
	t.Run("theirs", func(t *testing.T) {
		x := newInterop(t, [32]byte{})
		for n := range 4 {
			x.back()
			x.there()
			if got := x.count(&x.handshakes); got != n+1 {
				t.Fatalf("%d sessions were used, want %d", got, n+1)
			}
			x.pause()
			x.peer.ExpireCurrentKeypairs()
		}
	})
}

func TestInteropRoaming(t *testing.T) {
	x := newInterop(t, [32]byte{})
	x.there()
	x.back()
	x.do(func() { x.ourAddr = netip.MustParseAddrPort("198.51.100.1:1") })
	x.there()
	x.back()
	x.do(func() { x.theirAddr = netip.MustParseAddrPort("198.51.100.2:2") })
	x.back()
	x.there()
	if x.at != x.theirAddr {
		t.Errorf("the device is at %s, we believe at %s", x.theirAddr, x.at)
	}
}

func TestInteropCookie(t *testing.T) {
	t.Run("we are under load", func(t *testing.T) {
		x := newInterop(t, [32]byte{})
		x.do(func() { x.machine.UnderLoad(true) })
		packet := tuntest.Ping(ourIP, theirIP)
		x.tun.Outbound <- packet
		x.until("a cookie is sent", func() bool { return x.cookiesSent == 1 })
		x.pause()                      // for the device to read it
		x.peer.ExpireCurrentKeypairs() // so that it tries again now, not after 5 s
		if err := x.peer.SendHandshakeInitiation(false); err != nil {
			t.Fatal(err)
		}
		x.comesBack(packet)
		x.there()
	})
	t.Run("the device is", func(t *testing.T) {
		x := newInterop(t, [32]byte{})
		junk := make([]byte, initiationSize)
		junk[0] = 1
		forger := signer{macKeys: macKeysOf(x.theirs.Key)}
		for i := range 5000 { // each costs the device a Diffie-Hellman, so its queue grows
			junk[8], junk[9] = byte(i), byte(i>>8)
			forger.sign(time.Now(), junk)
			x.wire.deliver(junk, netip.MustParseAddrPort("203.0.113.66:66"))
		}
		packet := tuntest.Ping(theirIP, ourIP)
		x.do(func() { x.send(packet) })
		// Its queue may be full, so we try again and again, as fast as our clock
		// lets us, but leave it time to answer.
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for end := time.Now().Add(2 * soon); ; {
			select {
			case got := <-x.tun.Inbound:
				if !bytes.Equal(got, packet) {
					t.Errorf("the device wrote %x, want %x", got, packet)
				}
				if x.count(&x.cookiesSeen) == 0 {
					t.Error("the device asked for no cookie")
				}
				return
			case <-tick.C:
				x.jump(RekeyTry + maxJitter)
				x.do(func() { x.carryOut(x.machine.Want(x.now(), x.theirs.Key)) })
			}
			if time.Now().After(end) {
				t.Fatalf("the device wrote nothing, and sent %d cookies", x.count(&x.cookiesSeen))
			}
		}
	})
}

func TestInteropKeepalive(t *testing.T) {
	t.Run("ours", func(t *testing.T) {
		x := newInterop(t, [32]byte{})
		x.there()
		x.there() // what confirmed the session was counted before
		x.back()
		before := x.received()
		x.jump(KeepAlive)
		x.until("the device has got a keepalive", func() bool { return x.received() == before+Overhead })
	})
	t.Run("theirs", func(t *testing.T) {
		x := newInterop(t, [32]byte{}, "persistent_keepalive_interval=1")
		x.until("two keepalives have come", func() bool { return x.keepalives >= 2 })
	})
}

// received tells how many bytes the device has got of us.
func (x *interop) received() (n int) {
	x.t.Helper()
	status, err := x.dev.IpcGet()
	if err != nil {
		x.t.Error(err)
		return 0
	}
	_, after, _ := strings.Cut(status, "rx_bytes=")
	if _, err := fmt.Sscan(after, &n); err != nil {
		x.t.Error(err)
	}
	return n
}

// Both initiate at once. The device forgets its own handshake when it answers
// ours, so ours has to be completed, whatever comes first.
func TestInteropCrossing(t *testing.T) {
	for _, first := range []string{"initiation", "response"} {
		t.Run(first+" first", func(t *testing.T) {
			x := newInterop(t, [32]byte{})
			x.do(func() { x.holding = true })
			theirs := tuntest.Ping(ourIP, theirIP)
			x.tun.Outbound <- theirs
			x.until("the device has sent an initiation", func() bool { return len(x.held) == 1 })
			ours := tuntest.Ping(theirIP, ourIP)
			x.do(func() { x.send(ours) })
			x.until("the device has sent a response", func() bool { return len(x.held) == 2 })
			x.do(func() {
				x.holding = false
				held := x.held
				if first == "response" {
					held[0], held[1] = held[1], held[0]
				}
				for _, d := range held {
					x.receive(d)
				}
			})
			began := time.Now()
			x.arrives(ours)
			x.comesBack(theirs)
			for range 3 {
				x.there()
				x.back()
			}
			if d := time.Since(began); d > RekeyTry-time.Second {
				t.Errorf("it took %s: a handshake was repeated", d)
			}
		})
	}
}
