package wggo

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"meshd/mesh"
	"meshd/overlay/tunnel"
)

func TestReceiverSurvivesErrors(t *testing.T) {
	errs := []error{
		&net.OpError{Op: "read", Err: syscall.ENETDOWN}, // not Temporary: the device would stop at once
		syscall.ENOBUFS,
		errors.New("splitting coalesced packet resulted in overflow"),
		nil,
		net.ErrClosed,
	}
	calls := 0
	receive := newBind(nil).keepReceiving(func(_ [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		err := errs[calls]
		calls++
		sizes[0], eps[0] = 1, &conn.StdNetEndpoint{}
		return 1, err
	}, make(chan struct{}))
	bufs, sizes, eps := [][]byte{make([]byte, 1)}, make([]int, 1), make([]conn.Endpoint, 1)
	if n, err := receive(bufs, sizes, eps); n != 1 || err != nil {
		t.Fatalf("received %d, %v; want a packet after the errors", n, err)
	}
	if calls != 4 {
		t.Errorf("received after %d calls, want 4", calls)
	}
	if _, err := receive(bufs, sizes, eps); !errors.Is(err, net.ErrClosed) {
		t.Errorf("received from a closed socket: %v, want %v", err, net.ErrClosed)
	}
}

func TestReceiverDropsWhatComesThroughTheMesh(t *testing.T) {
	b := newBind(nil)
	b.setInside([]netip.Prefix{netip.MustParsePrefix("10.99.0.0/16"), netip.MustParsePrefix("fd99::/48")})
	from := []conn.Endpoint{
		&conn.StdNetEndpoint{AddrPort: netip.MustParseAddrPort("192.0.2.1:9")},
		&conn.StdNetEndpoint{AddrPort: netip.MustParseAddrPort("10.99.2.1:9")},
		nil, // where the socket got nothing
		&conn.StdNetEndpoint{AddrPort: netip.MustParseAddrPort("[fd99:0:0:2::1]:9")},
		&conn.StdNetEndpoint{AddrPort: netip.MustParseAddrPort("[::ffff:10.99.2.1]:9")},
		&conn.StdNetEndpoint{AddrPort: netip.MustParseAddrPort("[2001:db8::1]:9")},
	}
	got, want := []int{148, 148, 0, 32, 148, 148}, []int{148, 0, 0, 0, 0, 148}
	sizes := make([]int, len(got))
	receive := b.keepReceiving(func(_ [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		copy(eps, from)
		return copy(sizes, got), nil
	}, make(chan struct{}))
	bufs, eps := slices.Repeat([][]byte{make([]byte, 148)}, len(got)), make([]conn.Endpoint, len(got))
	if n, err := receive(bufs, sizes, eps); n != len(got) || err != nil || !slices.Equal(sizes, want) {
		t.Errorf("received %d with sizes %v, %v; want %v", n, sizes, err, want)
	}
	if n := b.dropEndpoint.Load(); n != 3 {
		t.Errorf("counted %d drops, want 3", n)
	}
	if allocs := testing.AllocsPerRun(10, func() { _, _ = receive(bufs, sizes, eps) }); allocs != 0 {
		t.Errorf("%v allocations per batch, want none", allocs)
	}
}

func TestReceiverEndsWhileItPauses(t *testing.T) {
	closed := make(chan struct{})
	failing := make(chan struct{}, 1)
	receive := newBind(nil).keepReceiving(func([][]byte, []int, []conn.Endpoint) (int, error) {
		select {
		case failing <- struct{}{}:
		default:
		}
		return 0, syscall.ENETDOWN
	}, closed)
	ended := make(chan error)
	go func() {
		_, err := receive(nil, nil, nil)
		ended <- err
	}()
	<-failing
	close(closed)
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("ended with %v, want %v", err, net.ErrClosed)
	}
}

func TestBindReopens(t *testing.T) {
	b := newBind(nil)
	_, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		receivers, again, err := b.Open(port)
		if err != nil {
			t.Fatal(err)
		}
		if again != port || len(receivers) == 0 || b.port.Load() != uint32(port) {
			t.Fatalf("reopened on port %d with %d receivers, want %d", again, len(receivers), port)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

func TestTriesAreForgotten(t *testing.T) {
	b := newBind(nil)
	ep, err := b.ParseEndpoint("127.0.0.1:9")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort("127.0.0.1:9")
	initiation := make([]byte, device.MessageInitiationSize)
	initiation[0] = device.MessageInitiationType
	// The socket is not open: a try counts, whether or not it gets out.
	_ = b.Send([][]byte{make([]byte, 32)}, ep)
	if at := b.tries.last(addr); !at.IsZero() {
		t.Error("a keepalive counts as a try")
	}
	_ = b.Send([][]byte{initiation}, ep)
	at := b.tries.last(addr)
	if at.IsZero() {
		t.Fatal("an initiation does not count as a try")
	}
	b.tries.forget(at)
	if b.tries.last(addr).IsZero() {
		t.Error("forgotten too early")
	}
	b.tries.forget(at.Add(time.Nanosecond))
	if !b.tries.last(addr).IsZero() {
		t.Error("not forgotten")
	}
}

// sentAt is a socket that notes when packets leave.
type sentAt struct {
	conn.Bind
	at chan time.Time
}

func (s sentAt) Send([][]byte, conn.Endpoint) error {
	s.at <- time.Now()
	return nil
}

func TestGreaterKeyGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBind(nil)
		socket := sentAt{b.Bind, make(chan time.Time, 1)}
		b.Bind = socket
		first, second := netip.MustParseAddrPort("192.0.2.1:9"), netip.MustParseAddrPort("192.0.2.2:9")
		b.yield(mesh.Key{5}, map[mesh.Key]*peer{
			{9}: {want: tunnel.Peer{Endpoints: []netip.AddrPort{first}}},
			{1}: {want: tunnel.Peer{Endpoints: []netip.AddrPort{second}}},
		})
		initiation := make([]byte, device.MessageInitiationSize)
		initiation[0] = device.MessageInitiationType
		other := make([]byte, device.MessageResponseSize)
		other[0] = device.MessageResponseType
		for _, tt := range []struct {
			name        string
			packet      []byte
			to          netip.AddrPort
			least, most time.Duration
		}{
			{"initiation to a greater key", initiation, first, minYield, maxYield},
			{"initiation to a smaller key", initiation, second, 0, 0},
			{"initiation to a stranger", initiation, netip.MustParseAddrPort("192.0.2.3:9"), 0, 0},
			{"response to a greater key", other, first, 0, 0},
		} {
			start := time.Now()
			if err := b.Send([][]byte{tt.packet}, &conn.StdNetEndpoint{AddrPort: tt.to}); err != nil {
				t.Fatal(err)
			}
			if after := (<-socket.at).Sub(start); after < tt.least || after > tt.most {
				t.Errorf("%s leaves after %s, want %s to %s", tt.name, after, tt.least, tt.most)
			}
		}
	})
}
