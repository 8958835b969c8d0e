package status

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

// web is the HTTP listener, whose address may change while it serves.
//
//	Set ──binds──► next ──moved──► Run ──serves it, lets the one before finish
type web struct {
	// fixed at construction
	handler http.Handler
	log     *slog.Logger
	moved   chan struct{} // next is to be served; capacity 1

	mu       sync.Mutex // guards all below; one Set after the other
	address  string     // as it was set; empty: off
	listener net.Listener
	replaced bool         // next is what Run shall serve from now on
	next     net.Listener // not served yet; nil: serve nothing
	ended    bool
}

func newWeb(handler http.Handler, log *slog.Logger) *web {
	return &web{handler: handler, log: log, moved: make(chan struct{}, 1)}
}

// Set makes the handler reachable at another address, and no more at the one
// before; empty: nowhere. If it fails, the one before stays.
func (w *web) Set(ctx context.Context, address string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return errors.New("listen for HTTP: the server has stopped")
	}
	if address == w.address {
		return nil
	}
	next, err := w.move(ctx, address)
	if err != nil {
		return err
	}
	w.replace(next)
	w.address = address
	return nil
}

// move binds the new address while the old one is still bound, so that failing
// costs nothing. Only the same port on other addresses of the host has to be
// given up first: then the old listener is put back if that was in vain.
func (w *web) move(ctx context.Context, address string) (net.Listener, error) {
	next, err := listenTCP(ctx, address)
	if !errors.Is(err, ErrInUse) || w.listener == nil || !samePort(address, w.address) {
		return next, err
	}
	w.listener.Close()
	next, err = listenTCP(ctx, address)
	if err == nil {
		return next, nil
	}
	old, errOld := listenTCP(ctx, w.address)
	w.replace(old) // nil if somebody was quicker: see restore
	return nil, errors.Join(err, errOld)
}

// replace hands a listener to Run.
func (w *web) replace(next net.Listener) {
	if w.next != nil {
		w.next.Close() // Run has not come to it
	}
	w.listener, w.next, w.replaced = next, next, true
	select {
	case w.moved <- struct{}{}:
	default:
	}
}

// restore binds the address again that a move in vain has lost. While that does not
// work either, it says when to try anew.
func (w *web) restore(ctx context.Context) <-chan time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.listener != nil || w.address == "" {
		return nil
	}
	listener, err := listenTCP(ctx, w.address)
	if err != nil {
		return time.After(restoreEvery)
	}
	w.replace(listener)
	return nil
}

// restoreEvery costs nothing, and it is for whoever was quicker to go.
const restoreEvery = time.Second

// take gives what is to be served from now on, if that is new: a signal may come
// after what it was for was taken.
func (w *web) take() (next net.Listener, replaced bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	next, replaced = w.next, w.replaced
	w.next, w.replaced = nil, false
	return next, replaced
}

// Run serves until ctx is done, then lets running answers finish for a moment.
func (w *web) Run(ctx context.Context) error {
	var serving sync.WaitGroup
	defer serving.Wait()
	defer w.end()
	failed := make(chan error, 1)
	var current *http.Server
	var lost <-chan time.Time
	finish := func(srv *http.Server) {
		if srv != nil {
			serving.Go(func() { shutdown(ctx, srv) })
		}
	}
	for {
		select {
		case <-ctx.Done():
			finish(current)
			return nil
		case err := <-failed:
			finish(current)
			return fmt.Errorf("serve HTTP: %w", err)
		case <-lost:
			lost = w.restore(ctx)
			continue
		case <-w.moved:
		}
		listener, replaced := w.take()
		if !replaced {
			continue
		}
		finish(current)
		current = nil
		if listener == nil {
			lost = w.restore(ctx)
		} else {
			srv := newHTTPServer(w.handler, w.log)
			current = srv
			serving.Go(func() {
				err := srv.Serve(listener)
				if !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) { // Set closes what is in its way
					select {
					case failed <- err:
					default:
					}
				}
			})
		}
	}
}

// end closes what Run has not come to, and makes later calls of Set fail.
func (w *web) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	if w.next != nil {
		w.next.Close()
	}
}

// shutdown lets running answers finish for a moment.
func shutdown(ctx context.Context, srv *http.Server) {
	grace, done := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer done()
	if srv.Shutdown(grace) != nil {
		srv.Close()
	}
}

// listenTCP binds an address; none for the empty one.
func listenTCP(ctx context.Context, address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen for HTTP on %s: %w: choose another address under `http`, or an empty one", address, ErrInUse)
	case err != nil:
		return nil, fmt.Errorf("listen for HTTP: %w", err)
	}
	return l, nil
}

func samePort(a, b string) bool {
	_, portA, errA := net.SplitHostPort(a)
	_, portB, errB := net.SplitHostPort(b)
	return errA == nil && errB == nil && portA == portB
}
