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
