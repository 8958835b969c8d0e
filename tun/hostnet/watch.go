//go:build linux

package hostnet

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Pauses between attempts to look again after the socket broke.
const (
	firstPause = 100 * time.Millisecond // most breaks are over at once
	lastPause  = 5 * time.Second        // a broken host is not kept busy, a mended one soon repaired
	logEvery   = time.Minute
)

// Watch sends to changed whenever a link, an address or a route has changed,
// by us or by anybody, and once when it has begun to look. It never waits for
// the receiver: give the channel a capacity of 1, and any number of changes
// that come before the receiver looks are one. Watch blocks until ctx is done
// and then returns nil. It fails only if it cannot begin; once it has, it
// begins again as often as it must.
func (n *Net) Watch(ctx context.Context, changed chan<- struct{}) error {
	return n.watch(ctx, changed, func() (s socket, err error) {
		err = n.in(func() (err error) {
			s, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK,
				unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
				unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
			return err
		})
		return s, err
	})
}

// socket is what watch needs of a netlink socket.
type socket interface {
	Receive() ([]syscall.NetlinkMessage, *unix.SockaddrNetlink, error)
	Close()
}

func (n *Net) watch(ctx context.Context, changed chan<- struct{}, subscribe func() (socket, error)) error {
	pause := firstPause
	var logged time.Time
	for first := true; ; first = false {
		begun := time.Now()
		s, err := subscribe()
		switch {
		case err == nil:
			stop := context.AfterFunc(ctx, s.Close)
			err = receive(s, changed)
			if stop() {
				s.Close()
			}
		case first:
			return fmt.Errorf("subscribe to network changes: %w", err)
		}
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(begun) > lastPause {
			pause = firstPause
		}
		if time.Since(logged) >= logEvery {
			n.log.Warn("network changes are not watched for a moment", "err", err, "in", pause)
			logged = time.Now()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// receive signals once, and then for each message until the socket breaks.
func receive(s socket, changed chan<- struct{}) error {
	for {
		// The messages themselves do not matter: Apply looks at everything.
		select {
		case changed <- struct{}{}:
		default:
		}
		_, _, err := s.Receive()
		// When messages come faster than they are read, the kernel drops some,
		// says so, and goes on.
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("receive network changes: %w", err)
		}
	}
}
