//go:build linux

package hostnet

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// quiet is a netlink socket that waits for its end.
type quiet chan struct{}

func (q quiet) Receive() ([]syscall.NetlinkMessage, *unix.SockaddrNetlink, error) {
	<-q
	return nil, nil, os.ErrClosed
}

func (q quiet) Close() { close(q) }

// TestWatchBeginsAgain breaks each socket at once, or refuses it, for an hour.
func TestWatchBeginsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		n := New(Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
		begun, calls := time.Now(), 0
		subscribe := func() (socket, error) {
			calls++
			switch {
			case time.Since(begun) > time.Hour:
				return make(quiet), nil
			case calls%2 == 0:
				return nil, unix.EMFILE
			}
			return &script{os.ErrClosed}, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		changed, ended := make(chan struct{}, 1), make(chan error, 1)
		go func() { ended <- n.watch(ctx, changed, subscribe) }()
		time.Sleep(time.Hour)
		<-changed
		time.Sleep(2 * lastPause)
		select {
		case <-changed:
		default:
			t.Error("no signal after it began again")
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("watch = %v, want nil", err)
		}
		if calls < 700 || calls > 740 {
			t.Errorf("began %d times in an hour, want about every %s", calls, lastPause)
		}
		if lines := strings.Count(log.String(), "\n"); lines < 50 || lines > 61 {
			t.Errorf("logged %d lines in an hour, want at most one a minute:\n%s", lines, log.String())
		}
	})
}

func TestWatchPausesShortlyAfterOneBreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sockets := []quiet{make(quiet), make(quiet)}
		next := make(chan time.Time)
		calls := 0
		subscribe := func() (socket, error) {
			next <- time.Now()
			if calls == len(sockets) {
				return nil, unix.EMFILE
			}
			calls++
			return sockets[calls-1], nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- New(Options{}).watch(ctx, make(chan struct{}), subscribe) }()
		<-next
		for i := range 2 {
			time.Sleep(time.Minute)
			broke := time.Now()
			sockets[i] <- struct{}{}
			if pause := (<-next).Sub(broke); pause != firstPause {
				t.Errorf("break %d: began again after %s, want %s", i+1, pause, firstPause)
			}
		}
		synctest.Wait()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("watch = %v, want nil", err)
		}
	})
}

func TestWatchFailsIfItCannotBegin(t *testing.T) {
	err := New(Options{}).watch(t.Context(), nil, func() (socket, error) { return nil, unix.EMFILE })
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("watch = %v, want %v", err, unix.EMFILE)
	}
}

// script is a netlink socket whose Receive returns the errors in turn, and
// without an error a change of an address.
type script []error

func (s *script) Receive() ([]syscall.NetlinkMessage, *unix.SockaddrNetlink, error) {
	err := (*s)[0]
	*s = (*s)[1:]
	if err != nil {
		return nil, nil, err
	}
	return []syscall.NetlinkMessage{{Header: syscall.NlMsghdr{Type: unix.RTM_NEWADDR}}}, nil, nil
}

func (s *script) Close() {}

func TestReceive(t *testing.T) {
	n := New(Options{})
	changed := make(chan struct{}, 10)
	err := n.receive(&script{nil, unix.ENOBUFS, nil, os.ErrClosed}, changed)
	if !errors.Is(err, os.ErrClosed) {
		t.Errorf("receive = %v, want os.ErrClosed", err)
	}
	if len(changed) != 4 { // the start, two messages, one overflow
		t.Errorf("%d signals, want 4", len(changed))
	}
	// A receiver that does not look must not hold it up.
	if err := n.receive(&script{nil, nil, os.ErrClosed}, make(chan struct{})); !errors.Is(err, os.ErrClosed) {
		t.Errorf("receive = %v, want os.ErrClosed", err)
	}
}

func TestWhatMatters(t *testing.T) {
	link := func(family uint8, flags, change uint32) syscall.NetlinkMessage {
		m := nl.IfInfomsg{IfInfomsg: unix.IfInfomsg{Family: family, Flags: flags, Change: change}}
		return syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWLINK}, Data: m.Serialize()}
	}
	route := func(table, protocol uint8, flags uint32, attrs ...*nl.RtAttr) syscall.NetlinkMessage {
		m := nl.RtMsg{RtMsg: unix.RtMsg{Table: table, Protocol: protocol, Flags: flags}}
		data := m.Serialize()
		for _, a := range attrs {
			data = append(data, a.Serialize()...)
		}
		return syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWROUTE}, Data: data}
	}
	inTable := func(table uint32) *nl.RtAttr { return nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(table)) }
	const up, bird = unix.IFF_UP, 12
	for _, c := range []struct {
		name    string
		m       syscall.NetlinkMessage
		matters bool
	}{
		{"a link that is up", link(0, up, 0), true},
		{"a link that goes down", link(0, 0, up), true},
		{"a new link that is down", link(0, 0, 0), false},
		{"a port of a bridge", link(unix.AF_BRIDGE, up, up), false},
		{"a route", route(unix.RT_TABLE_MAIN, bird, 0, inTable(unix.RT_TABLE_MAIN)), true},
		{"a route of a table that a rule names", route(52, bird, 0), true},
		{"a route of a table with a great number", route(unix.RT_TABLE_COMPAT, bird, 0, inTable(1000)), true},
		{"a route of a table that no rule names", route(53, bird, 0, inTable(53)), false},
		{"the same with a great number", route(unix.RT_TABLE_COMPAT, bird, 0, inTable(1001)), false},
		{"ours, in whichever table", route(53, RouteProtocol, 0, inTable(53)), true},
		{"an address as a route", route(unix.RT_TABLE_LOCAL, 2, 0, inTable(unix.RT_TABLE_LOCAL)), false},
		{"a path MTU", route(unix.RT_TABLE_MAIN, bird, unix.RTM_F_CLONED), false},
		{"a rule", syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWRULE}}, true},
		{"half a route", syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWROUTE}, Data: []byte{2}}, true},
	} {
		n := New(Options{})
		n.tables.Store(&[]int{unix.RT_TABLE_MAIN, 52, 1000, unix.RT_TABLE_LOCAL})
		if got := n.matters(c.m); got != c.matters {
			t.Errorf("%s matters: %v, want %v", c.name, got, c.matters)
		}
	}
}
