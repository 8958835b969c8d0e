//go:build linux

package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// pause is how long a broken socket rests before the next one: what happened
// meanwhile is noticed then.
const pause = time.Second

// Watch sends to changed whenever a table, a chain or a rule has changed, or an
// element of a set of ours, by us or by anybody, and once when it has begun to
// look. It never waits for the receiver: give the channel a capacity of 1, and any
// number of changes before the receiver looks are one. A reload of a firewall is
// thousands: wait a moment before repairing. Watch blocks until ctx is done and then
// returns nil. It fails only if it cannot begin.
func (f *Firewall) Watch(ctx context.Context, changed chan<- struct{}) error {
	for first := true; ; first = false {
		socket, err := f.subscribe()
		switch {
		case err == nil:
			stop := context.AfterFunc(ctx, func() { socket.Close() })
			err = receive(socket, changed)
			if stop() {
				socket.Close()
			}
		case first:
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		f.log.Warn("firewall changes are not watched for a moment", "err", err, "in", pause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// subscribe opens a socket that hears of changes.
func (f *Firewall) subscribe() (socket *os.File, err error) {
	err = f.in(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		const group = 1 << (unix.NFNLGRP_NFTABLES - 1)
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: group}); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		socket = os.NewFile(uintptr(fd), "nf_tables events") // waits in Go's poller, so Close ends a read
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to firewall changes: %w", withAdvice(err))
	}
	return socket, nil
}

// receive signals once, and then for each message that matters until the socket
// breaks.
func receive(socket *os.File, changed chan<- struct{}) error {
	buffer := make([]byte, 64<<10)
	for matter := true; ; {
		if matter {
			select {
			case changed <- struct{}{}:
			default:
			}
		}
		n, err := socket.Read(buffer)
		switch {
		// When messages come faster than they are read, the kernel drops some,
		// says so, and goes on.
		case errors.Is(err, unix.ENOBUFS):
			matter = true
		case err != nil:
			return fmt.Errorf("receive firewall changes: %w", err)
		default:
			matter = matters(buffer[:n])
		}
	}
}

// interesting are the kinds of messages about what we look at.
var interesting = []uint16{
	unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN,
	unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE,
}

// elements are the kinds that interest us if the set is ours: on some hosts those
// of others come and go in great numbers.
var elements = []uint16{unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM}

// matters tells whether one of the messages may concern us.
func matters(messages []byte) bool {
	for len(messages) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(messages))
		if size < unix.NLMSG_HDRLEN || size > len(messages) {
			return true // not understood
		}
		kind := binary.NativeEndian.Uint16(messages[4:]) & 0xff // the rest is the subsystem
		if slices.Contains(interesting, kind) || slices.Contains(elements, kind) && tableOf(messages[:size]) == TableName {
			return true
		}
		messages = messages[min(len(messages), (size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
	return false
}

// tableOf gives the name of the table that a message about elements is about.
func tableOf(message []byte) string {
	attrs := message[min(len(message), generalHeader):]
	for len(attrs) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(attrs))
		if size < unix.SizeofNlAttr || size > len(attrs) {
			break
		}
		if binary.NativeEndian.Uint16(attrs[2:]) == unix.NFTA_SET_ELEM_LIST_TABLE {
			return unix.ByteSliceToString(attrs[unix.SizeofNlAttr:size])
		}
		attrs = attrs[min(len(attrs), (size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1)):]
	}
	return ""
}

// Obstacles tells, for people, what else on this host drops packets of
// containers and is not ours to change.
func (f *Firewall) Obstacles(ctx context.Context) ([]string, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	var all []string
	err := f.with(func(c *nftables.Conn) error {
		chains, err := c.ListChains()
		if err != nil {
			return fmt.Errorf("list chains: %w", withAdvice(err))
		}
		for _, ch := range chains {
			if o := obstacle(ch); o != "" {
				all = append(all, o)
			}
		}
		// Readable by root alone, and missing where nobody uses it.
		if raw, err := os.ReadFile(f.legacy); err == nil && slices.Contains(strings.Fields(string(raw)), "filter") {
			all = append(all, "the old iptables (iptables-legacy) filters packets: if its chain FORWARD has the policy DROP, run `iptables-legacy -I FORWARD -i "+inIptables(ours[0])+" -j ACCEPT`, the same with -o, and both for "+inIptables(ours[1]))
		}
		return nil
	})
	return all, err
}

// inIptables writes a pattern as iptables does.
func inIptables(pattern string) string { return strings.TrimSuffix(pattern, "*") + "+" }
