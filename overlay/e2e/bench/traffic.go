//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// traffic is what an agent has under way.
type traffic struct {
	trial    atomic.Uint32 // that received packets must carry to count
	received atomic.Int64  // of that trial
	counter  atomic.Int32  // the number of the receiver that counts; others end
}

const (
	// batch is how many packets go into one system call, as in programs that
	// care for speed.
	batch = 64
	// leastBatch is how many are due before the sender wakes up, so that at high
	// rates it does not sleep for each.
	leastBatch = 16
	// mostBehind is how many packets the sender makes up for after it was kept
	// from running: more in one burst would be another measurement.
	mostBehind = 256
	// look is how often a receiver looks for packets. bigBuffer has room for what
	// comes in many times that.
	look      = time.Millisecond
	bigBuffer = 4 << 20
	// pingPatience is how long an echo may take until it counts as lost.
	pingPatience = 200 * time.Millisecond
)

func (t *traffic) carryOut(o order) (answer, error) {
	switch o.Do {
	case "listen":
		number := t.counter.Add(1)
		return serve(o.At, func(fd int) { t.count(fd, number) })
	case "silence":
		t.counter.Add(1)
		return answer{}, nil
	case "expect":
		t.trial.Store(o.Trial)
		t.received.Store(0)
		return answer{}, nil
	case "count":
		return answer{Packets: t.received.Load()}, nil
	case "send":
		return send(o)
	case "echo":
		return serve(o.At, echo)
	case "ping":
		return ping(o)
	}
	return answer{}, fmt.Errorf("there is no order %q", o.Do)
}

// serve opens a socket and has work use it on a thread of its own.
func serve(at netip.AddrPort, work func(fd int)) (answer, error) {
	fd, err := socket()
	if err != nil {
		return answer{}, err
	}
	err = unix.Bind(fd, sockaddr(at))
	if err != nil {
		unix.Close(fd)
		return answer{}, fmt.Errorf("bind %s: %w", at, err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		unix.Close(fd)
		return answer{}, err
	}
	go func() {
		runtime.LockOSThread()
		work(fd)
	}()
	return answer{Port: uint16(name.(*unix.SockaddrInet4).Port)}, nil
}

// count counts the packets of the trial that is on. It looks now and then instead
// of being woken for each: that would be most of what is measured.
func (t *traffic) count(fd int, number int32) {
	defer unix.Close(fd)
	m := newMessages(batch, 2048)
	pause := unix.NsecToTimespec(int64(look))
	for t.counter.Load() == number {
		n, err := m.receive(fd)
		if err != nil { // nothing there, or an ICMP error
			_ = unix.Nanosleep(&pause, nil) // cut short, it looks sooner
			continue
		}
		trial, mine := t.trial.Load(), int64(0)
		for i := range n {
			if b := m.payload(i); len(b) >= 4 && binary.BigEndian.Uint32(b) == trial {
				mine++
			}
		}
		t.received.Add(mine)
	}
}

// echo sends back whatever comes.
func echo(fd int) {
	buf := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if err == nil {
			_ = unix.Sendto(fd, buf[:n], 0, from) // what is lost, the other end counts
		}
	}
}

// send sends at a rate, for a time.
func send(o order) (answer, error) {
	if len(o.To) == 0 || o.Flows < 1 || o.Size < 4 {
		return answer{}, fmt.Errorf("send: bad order %+v", o)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Sleep as long as asked, not 50 us longer.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return answer{}, err
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for i := range o.Flows {
		fd, err := connected(o.To[i%len(o.To)])
		if err != nil {
			return answer{}, err
		}
		fds = append(fds, fd)
	}
	m := newMessages(batch, o.Size)
	for i := range batch {
		binary.BigEndian.PutUint32(m.buffer(i), o.Trial)
	}

	var sent, forgiven int64
	flow := 0
	start := time.Now()
	for {
		at := time.Since(start)
		if at >= o.For {
			return answer{Packets: sent, Took: at}, nil
		}
		n := batch
		if o.Rate > 0 {
			due := int64(o.Rate*at.Seconds()) - sent - forgiven
			if due < leastBatch {
				nap := time.Duration(float64(leastBatch-due) / o.Rate * float64(time.Second))
				pause := unix.NsecToTimespec(int64(min(nap, o.For-at)))
				_ = unix.Nanosleep(&pause, nil) // one that is cut short goes round again
				continue
			}
			if due > mostBehind {
				forgiven += due - mostBehind
			}
			n = int(min(due, batch))
		}
		var err error
		if len(fds) == 1 {
			n, err = m.send(fds[0], n)
		} else {
			want := n
			for n = 0; n < want && err == nil; n++ {
				_, err = unix.Write(fds[flow], m.buffer(0))
				flow = (flow + 1) % len(fds)
			}
		}
		switch {
		case errors.Is(err, unix.ENOBUFS): // a queue is full: offered, and lost
			n = max(n, 1)
		case err != nil:
			return answer{}, fmt.Errorf("send: %w", err)
		}
		sent += int64(n)
	}
}

// ping sends a packet when the one before came back.
func ping(o order) (answer, error) {
	if len(o.To) != 1 || o.Size < 8 {
		return answer{}, fmt.Errorf("ping: bad order %+v", o)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fd, err := connected(o.To[0])
	if err != nil {
		return answer{}, err
	}
	defer unix.Close(fd)
	patience := unix.NsecToTimeval(int64(pingPatience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return answer{}, err
	}
	out, in := make([]byte, o.Size), make([]byte, o.Size)
	var a answer
	start := time.Now()
	for seq := 1; (o.Count == 0 || len(a.RTT) < o.Count) && time.Since(start) < o.For; seq++ {
		binary.BigEndian.PutUint64(out, uint64(seq))
		at := time.Now()
		if _, err := unix.Write(fd, out); err != nil {
			return a, fmt.Errorf("ping: %w", err)
		}
		for {
			n, err := unix.Read(fd, in)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				a.Lost++
				break
			}
			// An echo that was given up can still come.
			if n == len(out) && binary.BigEndian.Uint64(in) == uint64(seq) {
				a.RTT = append(a.RTT, time.Since(at))
				break
			}
		}
	}
	return a, nil
}

func socket() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bigBuffer)
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("enlarge receive buffer: %w", err)
	}
	return fd, nil
}

func connected(to netip.AddrPort) (int, error) {
	fd, err := socket()
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", to, err)
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}
