package native

import (
	"errors"
	"flag"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"meshd/overlay/tunnel/tunneltest"
	"meshd/overlay/tunnel/wggo"
	"meshd/tun/device"
	"meshd/tun/packet"
	"meshd/tun/rawio"
)

func TestMain(m *testing.M) {
	// Most of the time tests wait, so more may run than there are processors. Who
	// gives -parallel overrules it.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

func TestContract(t *testing.T) {
	tunneltest.Contract(t, func(t *testing.T, s tunneltest.Setup) tunneltest.Engine {
		return New(Options{TUN: newPipeTUN(t, s.Pipe), PrivateKey: s.PrivateKey, Port: s.Port, Log: s.Log})
	})
}

// Every other host runs wireguard-go, so each test is between the two.
func TestContractWithWireGuardGo(t *testing.T) {
	var hosts sync.Map // how many a test has made, by its name
	tunneltest.Contract(t, func(t *testing.T, s tunneltest.Setup) tunneltest.Engine {
		if strings.Contains(t.Name(), "second endpoint") || strings.Contains(t.Name(), "second_endpoint") {
			t.Skip("it waits for timers, and is our own doing")
		}
		n, _ := hosts.LoadOrStore(t.Name(), new(atomic.Int32))
		if n.(*atomic.Int32).Add(1)%2 == 0 {
			return wggo.New(wggo.Options{TUN: s.Pipe, PrivateKey: s.PrivateKey, Port: s.Port, Log: s.Log})
		}
		return New(Options{TUN: newPipeTUN(t, s.Pipe), PrivateKey: s.PrivateKey, Port: s.Port, Log: s.Log})
	})
}

// pipeTUN makes a pipe look like a TUN device with offloads: a pair of sockets
// keeps packets apart as the device does.
type pipeTUN struct {
	*tunneltest.Pipe
	queue  *device.Queue
	ours   *rawio.File // the engine's end
	theirs *os.File    // the pipe's end
	pumps  sync.WaitGroup
}

func newPipeTUN(t *testing.T, p *tunneltest.Pipe) *pipeTUN {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	file, err := rawio.NewFile(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	d := &pipeTUN{Pipe: p, queue: device.NewQueue(file), ours: file, theirs: os.NewFile(uintptr(fds[1]), "pipe")}
	d.pumps.Go(d.toEngine)
	d.pumps.Go(d.fromEngine)
	t.Cleanup(func() { _ = d.Close() }) // as a rule the engine has done so
	return d
}

func (d *pipeTUN) toEngine() {
	buf := make([]byte, packet.OffloadLen+maxPacket)
	for {
		n, err := d.Pipe.Read(buf[packet.OffloadLen:])
		if err != nil {
			_ = d.theirs.Close() // the engine sees the end
			return
		}
		clear(buf[:packet.OffloadLen])
		if _, err := d.theirs.Write(buf[:packet.OffloadLen+n]); err != nil {
			return
		}
	}
}

func (d *pipeTUN) fromEngine() {
	buf := make([]byte, packet.OffloadLen+maxPacket)
	for {
		n, err := d.theirs.Read(buf)
		if err != nil || n < packet.OffloadLen {
			return
		}
		_, _ = d.Pipe.Write(buf[packet.OffloadLen:n]) // never fails but after the end
	}
}

func (d *pipeTUN) Queues() []*device.Queue { return []*device.Queue{d.queue} }
func (d *pipeTUN) USO() bool               { return false }

func (d *pipeTUN) Close() error {
	_ = d.Pipe.Close()
	err := d.ours.Close()
	d.pumps.Wait()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	return err
}
