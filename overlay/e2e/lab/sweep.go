//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Sweep asks again whoever is silent after pauses that grow: what is there
// already is found at once, and 200 hosts which wait for each other do not drown
// the machine.
const (
	firstSweep = 20 * time.Millisecond
	lastSweep  = 500 * time.Millisecond
	// betweenAsks is between two requests: nobody speaks to all others in one
	// moment, which would be a handshake with each.
	betweenAsks = 2 * time.Millisecond
)

// Sweep sends ICMP echo requests from the host to all addresses, again and again
// to those that are silent, until each has answered. It takes one socket for each
// family, whatever the number of addresses. Each one's first answer is told to
// heard, unless that is nil. The error names some of the silent.
func (h *Host) Sweep(ctx context.Context, to []netip.Addr, heard func(netip.Addr)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var four, six []netip.Addr
	for _, a := range to {
		if a.Is4() {
			four = append(four, a)
		} else {
			six = append(six, a)
		}
	}
	var errs [2]error
	var wait sync.WaitGroup
	for i, part := range [][]netip.Addr{four, six} {
		if len(part) > 0 {
			wait.Go(func() { errs[i] = h.sweep(ctx, part, heard) })
		}
	}
	wait.Wait()
	return errors.Join(errs[:]...)
}

// sweep is Sweep in one family.
func (h *Host) sweep(ctx context.Context, to []netip.Addr, heard func(netip.Addr)) error {
	f := familyOf(to[0])
	c, err := h.ListenPacket(ctx, f.network, "")
	if err == nil {
		err = onlyReplies(c.(*net.IPConn), f)
	}
	if err != nil {
		return fmt.Errorf("sweep from %s: %w", h.Name, err)
	}
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()

	var mu sync.Mutex
	id, silent := rand.Uint64(), map[netip.Addr]bool{}
	for _, a := range to {
		silent[a] = true
	}
	all := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			if _, ok := echoSeq(buf[:n], f.reply, id); !ok {
				continue
			}
			a, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP)
			a = a.Unmap()
			mu.Lock()
			news := silent[a]
			delete(silent, a)
			done := len(silent) == 0
			mu.Unlock()
			if news && heard != nil {
				heard(a)
			}
			if done {
				close(all)
				return
			}
		}
	})
	defer reader.Wait()
	defer c.Close()
	var sendErr error
	for seq, pause := 0, firstSweep; ; seq, pause = seq+1, min(2*pause, lastSweep) {
		mu.Lock()
		left := slices.Collect(maps.Keys(silent))
		mu.Unlock()
		for _, a := range left {
			_, sendErr = c.WriteTo(echoMessage(f.request, id, seq), &net.IPAddr{IP: a.AsSlice()})
			time.Sleep(betweenAsks)
		}
		select {
		case <-all:
			return nil
		case <-time.After(pause):
		case <-ctx.Done():
			mu.Lock()
			left := slices.SortedFunc(maps.Keys(silent), netip.Addr.Compare)
			mu.Unlock()
			return fmt.Errorf("sweep from %s: %w: %d of %d are silent, such as %s", h.Name,
				errors.Join(context.Cause(ctx), sendErr), len(left), len(to), left[:min(len(left), 4)])
		}
	}
}

// icmpFilter is the socket option ICMP_FILTER of linux/icmp.h: a set bit keeps
// that type of message out.
const icmpFilter = 1

// onlyReplies keeps from a socket all that is not an echo reply: where everybody
// asks everybody it would else get as many requests.
func onlyReplies(c syscall.Conn, f family) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = raw.Control(func(fd uintptr) {
		if f == icmp4 {
			setErr = unix.SetsockoptInt(int(fd), unix.SOL_RAW, icmpFilter, ^(1 << int(f.reply)))
			return
		}
		var filter unix.ICMPv6Filter
		for i := range filter.Data {
			filter.Data[i] = ^uint32(0)
		}
		filter.Data[f.reply/32] &^= 1 << (f.reply % 32)
		setErr = unix.SetsockoptICMPv6Filter(int(fd), unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &filter)
	})
	return errors.Join(err, setErr)
}
