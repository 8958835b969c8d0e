//go:build linux

package hostnet

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Watch sends to changed whenever a link, an address or a route has changed,
// by us or by anybody, and once when it has begun to look. It never waits for
// the receiver: give the channel a capacity of 1, and any number of changes
// that come before the receiver looks are one. Watch blocks until ctx is done
// and then returns nil.
func (n *Net) Watch(ctx context.Context, changed chan<- struct{}) error {
	for {
		var s *nl.NetlinkSocket
		err := n.in(func() (err error) {
			s, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK,
				unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
				unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
			return err
		})
		if err != nil {
			return fmt.Errorf("subscribe to network changes: %w", err)
		}
		stop := context.AfterFunc(ctx, s.Close)
		err = receive(s, changed)
		if stop() {
			s.Close()
		}
		if ctx.Err() != nil {
			return nil
		}
		n.log.Warn("network changes are watched afresh", "err", err)
	}
}

// receiver is the part of a netlink socket that receive needs.
type receiver interface {
	Receive() ([]syscall.NetlinkMessage, *unix.SockaddrNetlink, error)
}

// receive signals once, and then for each message until the socket breaks.
func receive(s receiver, changed chan<- struct{}) error {
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
