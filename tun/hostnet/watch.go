//go:build linux

package hostnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
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

// Watch sends to changed whenever a link, an address, a route or a rule has
// changed that may concern us, by us or by anybody, and once when it has begun
// to look. It never waits for the receiver: give the channel a capacity of 1,
// and any number of changes that come before the receiver looks are one. Watch
// blocks until ctx is done and then returns nil. It fails only if it cannot
// begin; once it has, it begins again as often as it must.
func (n *Net) Watch(ctx context.Context, changed chan<- struct{}) error {
	return n.watch(ctx, changed, func() (s socket, err error) {
		err = n.in(func() (err error) {
			s, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK,
				unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
				unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
				unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
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
			err = n.receive(s, changed)
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

// receive signals once, and then for each message that may matter until the
// socket breaks.
func (n *Net) receive(s socket, changed chan<- struct{}) error {
	for matters := true; ; {
		if matters {
			select {
			case changed <- struct{}{}:
			default:
			}
		}
		messages, _, err := s.Receive()
		switch {
		// When messages come faster than they are read, the kernel drops some,
		// says so, and goes on.
		case errors.Is(err, unix.ENOBUFS):
			matters = true
		case err != nil:
			return fmt.Errorf("receive network changes: %w", err)
		default:
			matters = slices.ContainsFunc(messages, n.matters)
		}
	}
}

// matters tells whether a change may concern us. It leaves out what comes in
// great numbers on some hosts; what it does not understand matters.
func (n *Net) matters(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if len(m.Data) < unix.SizeofIfInfomsg {
			return true
		}
		i := nl.DeserializeIfInfomsg(m.Data)
		// Ports of bridges have a family. A link that was down and stays down, such
		// as one half of a new pair, carries nothing; one that is renamed is down.
		return i.Family == unix.AF_UNSPEC && (i.Flags|i.Change)&unix.IFF_UP != 0
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if len(m.Data) < unix.SizeofRtMsg {
			return true
		}
		r := nl.DeserializeRtMsg(m.Data)
		if r.Flags&unix.RTM_F_CLONED != 0 {
			return false // what the kernel has learned of one destination
		}
		return r.Protocol == RouteProtocol || n.looksInto(tableOf(r, m.Data))
	}
	return true
}

// tableOf gives the table that a message about a route is about.
func tableOf(r *nl.RtMsg, data []byte) int {
	attrs, err := nl.ParseRouteAttr(data[r.Len():])
	if err == nil {
		for _, a := range attrs {
			if a.Attr.Type == unix.RTA_TABLE && len(a.Value) == 4 {
				return int(binary.NativeEndian.Uint32(a.Value))
			}
		}
	}
	return int(r.Table)
}
