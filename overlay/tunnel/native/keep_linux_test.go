package native

import (
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"meshd/overlay/tunnel"
	"meshd/overlay/tunnel/tunneltest"
	"meshd/overlay/tunnel/wg"
	"meshd/tun/packet"
)

// A disk that hangs delays the first handshake a little, and nothing else.
func TestDiskHangs(t *testing.T) {
	t.Parallel()
	hangs, calls := make(chan struct{}), new(atomic.Int32)
	defer close(hangs)
	b := newEnd(t, 2, setup{})
	a := newEnd(t, 1, setup{saveStamp: func(time.Time) error {
		calls.Add(1)
		<-hangs
		return nil
	}})
	a.know(t, b.peer())
	b.know(t, a.peer())
	begin := time.Now()
	a.send(t, packet.Offload{}, tunneltest.Packet(a.addr(4), b.addr(4), nil))
	b.expect(t)
	if d := time.Since(begin); d < stampWait/2 || d > stampWait+wg.RekeyTry-time.Second {
		t.Errorf("the first packet took %s, want about %s", d, stampWait)
	}
	begin = time.Now()
	a.apply(t, tunnel.Config{Own: a.own, Peers: []tunnel.Peer{b.peer()}})
	if d := time.Since(begin); d > stampWait {
		t.Errorf("applying a configuration took %s", d)
	}
	begin = time.Now()
	a.stop()
	if d := time.Since(begin); d > lastWait+2*time.Second {
		t.Errorf("the engine took %s to end", d)
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("%d savings at a time", n)
	}
}

// Only the newest of what has come while the disk was busy is saved.
func TestStampKeeper(t *testing.T) {
	at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	begun, busy := make(chan time.Time), make(chan struct{})
	k := stampKeeper{log: New(Options{}).log, save: func(s time.Time) error {
		begun <- s
		<-busy
		return nil
	}}
	first, was := k.start(at)
	if was || !(<-begun).Equal(at) {
		t.Fatal("the first is not saved at once")
	}
	for i := range 5 {
		if _, was := k.start(at.Add(time.Duration(i))); !was {
			t.Error("two are saved at a time")
		}
	}
	close(busy)
	if got := <-begun; !got.Equal(at.Add(4)) {
		t.Errorf("then %v is saved", got)
	}
	<-first
	next, was := k.start(at.Add(time.Hour))
	if was || !(<-begun).Equal(at.Add(time.Hour)) {
		t.Error("the next one is not saved at once")
	}
	<-next
}

// After a suspend of minutes the session is too old, although the clock of timers has
// hardly moved: nothing more is sent with it, and the next packet makes another.
func TestHostSleeps(t *testing.T) {
	t.Parallel()
	var slept atomic.Int64
	a, b := pair(t, setup{asleep: func() time.Duration { return time.Duration(slept.Load()) }})
	send := func() {
		t.Helper()
		a.send(t, packet.Offload{}, tunneltest.Packet(a.addr(4), b.addr(4), nil))
		b.expect(t)
	}
	send()
	before := a.Stats().Peers[b.id].LastHandshake
	slept.Store(int64(wg.RejectAfter))
	for end := time.Now().Add(arrival); ; {
		send()
		if a.Stats().Peers[b.id].LastHandshake.After(before) {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the session of before is used still")
		}
		<-time.After(100 * time.Millisecond)
	}
}

func TestAsleep(t *testing.T) {
	var uptime unix.Sysinfo_t
	if err := unix.Sysinfo(&uptime); err != nil {
		t.Fatal(err)
	}
	if d := asleep(); d < -leastSleep || d > time.Duration(uptime.Uptime+1)*time.Second {
		t.Errorf("the host has slept for %s of %d s", d, uptime.Uptime)
	}
}
