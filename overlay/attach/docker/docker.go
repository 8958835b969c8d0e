// Package docker is Docker's door to the mesh: libnetwork's remote network driver
// and remote IPAM driver, on a unix socket.
//
//	docker network create -d meshd --ipam-driver meshd -o network=web web
//
//	dockerd ── POST /IpamDriver.RequestAddress ──────► Core.Reserve
//	        ── POST /NetworkDriver.CreateEndpoint ───► Core.Attach    veth, bridge
//	        ── POST /NetworkDriver.Join ─────────────► Core.Get       "move this link"
//	        ── POST /NetworkDriver.DeleteEndpoint ───► Core.Detach
//	        ── POST /IpamDriver.ReleaseAddress ──────► Core.Release
//
// Docker moves the link into the container and sets addresses and routes there.
// An endpoint is the attachment "docker/<endpoint ID>", so the core remembers it;
// what Docker calls a network is in our [Store], since Docker tells of it once.
// A request that is too large, malformed or impossible is answered with Docker's
// own form of an error, and changes nothing.
//
// The owner runs [Server.Run]; the core has to be loaded by then.
package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"meshd/mesh"
	"meshd/overlay/attach"
	"meshd/overlay/unixsock"
)

// door is our name in the IDs of attachments.
const door = "docker"

// Core gives addresses and links. [attach.Manager] is one. Its methods are called
// from many goroutines.
type Core interface {
	// Use makes sure of a lease in a network until Unuse. Both can be repeated.
	Use(ctx context.Context, id, network string) (attach.Subnet, error)
	Unuse(ctx context.Context, id string) error
	// Reserve holds an address for an attachment to come, until Release. What was
	// not reserved is released already.
	Reserve(ctx context.Context, w attach.Want) (netip.Prefix, error)
	Release(ctx context.Context, door, network string, a netip.Addr) error
	// Attach and Detach can be repeated.
	Attach(ctx context.Context, a attach.Ask) (attach.Attachment, error)
	Detach(ctx context.Context, id string) error
	// Get finds an attachment, or fails with [attach.ErrUnknown].
	Get(id string) (attach.Attachment, error)
}

// Store keeps one document. Its methods are called from many goroutines, by one at
// a time.
type Store interface {
	// LoadDocker gives the document as it was saved, or fails with fs.ErrNotExist.
	LoadDocker() ([]byte, error)
	// SaveDocker replaces the document, which is JSON: durably, and whole or not at
	// all.
	SaveDocker(document []byte) error
}

// Options of a [Server].
type Options struct {
	Socket string // path of the unix socket; Docker finds it by the spec file that is installed
	Store  Store
	Core   Core
	// Networks lists the networks of the mesh. It is called from many goroutines.
	Networks func() []mesh.Network
	Log      *slog.Logger
}

// Server answers Docker.
type Server struct {
	opt   Options
	ready chan struct{}
}

// New builds a server; it listens when it runs.
func New(opt Options) *Server {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{opt, make(chan struct{})}
}

// Ready is closed as soon as the server listens.
func (s *Server) Ready() <-chan struct{} { return s.ready }

const (
	maxConns      = 256              // an engine has one for each container that starts or ends
	readTimeout   = 10 * time.Second // Docker is on this host and sends a request at once
	callTimeout   = 25 * time.Second // a first lease takes some seconds; Docker's users wait no longer
	idleTimeout   = time.Minute
	shutdownGrace = 2 * time.Second
	maxHeader     = 8 << 10
)

// Run listens and serves until ctx ends, then lets running requests finish for a
// moment. It fails when another process listens there, or what was stored is damaged.
func (s *Server) Run(ctx context.Context) error {
	store, err := openStore(s.opt.Store)
	if err != nil {
		return err
	}
	listener, err := unixsock.Listen(s.opt.Socket, "docker.socket") // Docker runs as root
	if err != nil {
		return fmt.Errorf(`open socket for Docker: %w; without Docker set docker.socket to ""`, err)
	}
	defer listener.Close() // removes the socket, unless a successor put its own there

	d := newDriver(s.opt.Core, s.opt.Networks, store)
	srv := &http.Server{
		Handler:     newHandler(d, s.opt.Log),
		ReadTimeout: readTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ConnState: unixsock.Bound(maxConns), ErrorLog: slog.NewLogLogger(s.opt.Log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	var serving sync.WaitGroup
	serving.Go(func() { failed <- srv.Serve(listener) })
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	serving.Go(func() { s.tend(ctx, d) })
	close(s.ready)
	select {
	case <-ctx.Done():
		err = nil
	case err = <-failed:
		err = fmt.Errorf("serve Docker: %w", err)
	}
	stop()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if srv.Shutdown(grace) != nil {
		srv.Close()
	}
	serving.Wait()
	return err
}

// tend gives back, until ctx is done, what Docker has asked for and left.
func (s *Server) tend(ctx context.Context, d *driver) {
	ticker := time.NewTicker(poolUse)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		once, cancel := context.WithTimeout(ctx, callTimeout)
		if err := d.lapse(once); err != nil && ctx.Err() == nil {
			s.opt.Log.Warn("what Docker has left is not given back, will be tried again", "err", err)
		}
		cancel()
	}
}

// newHandler serves both drivers.
func newHandler(d *driver, log *slog.Logger) http.Handler {
	methods := d.methods()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		call, ok := methods[r.URL.Path]
		if !ok {
			refuse(w, http.StatusNotFound, fmt.Errorf("meshd has no %.80q", r.URL.Path))
			return
		}
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			refuse(w, http.StatusMethodNotAllowed, fmt.Errorf("%s takes POST", r.URL.Path))
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if large, ok := errors.AsType[*http.MaxBytesError](err); ok {
			refuse(w, http.StatusRequestEntityTooLarge, fmt.Errorf("a request of more than %d bytes", large.Limit))
			return
		}
		if err != nil {
			refuse(w, http.StatusBadRequest, fmt.Errorf("read request: %w", err))
			return
		}
		// Whoever goes away in the middle leaves nothing half-made.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), callTimeout)
		defer cancel()
		answer, err := call(ctx, body)
		if err == nil {
			reply(w, http.StatusOK, answer)
			return
		}
		log.Warn("request of Docker refused", "method", r.URL.Path, "err", err)
		code := http.StatusOK // it was understood: Docker looks at the answer alone
		if _, ok := errors.AsType[malformedError](err); ok {
			code = http.StatusBadRequest
		}
		refuse(w, code, err)
	})
}

// malformedError is a request that nobody would understand.
type malformedError struct{ err error }

func (e malformedError) Error() string { return e.err.Error() }
func (e malformedError) Unwrap() error { return e.err }

// method answers a request's body.
type method func(ctx context.Context, body []byte) (any, error)

// on makes a method of a function that takes a decoded request.
func on[R request](do func(context.Context, R) (any, error)) method {
	return func(ctx context.Context, body []byte) (any, error) {
		r, err := decode[R](body)
		if err != nil {
			return nil, malformedError{err}
		}
		return do(ctx, r)
	}
}

// say makes a method whose answer is always the same.
func say(answer any) method {
	return on(func(context.Context, none) (any, error) { return answer, nil })
}

// errorResponse is an error for either driver: the network driver's has Err, the
// IPAM driver's has Error.
type errorResponse struct{ Err, Error string }

func refuse(w http.ResponseWriter, code int, err error) {
	reply(w, code, errorResponse{err.Error(), err.Error()})
}

func reply(w http.ResponseWriter, code int, answer any) {
	raw, err := json.Marshal(answer)
	if err != nil {
		code, raw = http.StatusInternalServerError, []byte(`{"Err":"encode answer","Error":"encode answer"}`)
	}
	w.Header().Set("Content-Type", "application/vnd.docker.plugins.v1+json")
	w.WriteHeader(code)
	_, _ = w.Write(append(raw, '\n')) // on an error there is nobody to tell any more
}
