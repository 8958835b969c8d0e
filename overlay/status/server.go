package status

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/user"
	"strconv"
	"sync"
	"syscall"
	"time"

	"meshd/mesh"
	"meshd/overlay/unixsock"
)

// ErrInUse says that another process listens there already.
var ErrInUse = unixsock.ErrInUse

// Daemon is what the server asks. Its methods are called from many goroutines.
type Daemon interface {
	Status() Document
	// Ping sends one probe through the tunnel and waits for its answer or ctx.
	// addr is the mesh address that answered.
	Ping(ctx context.Context, node mesh.NodeID) (rtt time.Duration, addr netip.Addr, err error)
	// Leave signs the release, spreads it, and removes everything from the host.
	// The daemon exits after Leave has returned.
	Leave(ctx context.Context) error
	// Down removes everything from the host. The daemon exits after Down has
	// returned.
	Down(ctx context.Context) error
	Version() string
}

// Settings is the owner of the daemon's configuration. Its methods are called
// from many goroutines.
type Settings interface {
	// Config tells what is in force.
	Config() ConfigReply
	// Reload reads the file again and applies what can be applied. It fails with
	// [ErrBadConfig] or [ErrUnreadable], and changes nothing, if the file is bad.
	Reload(ctx context.Context) (ReloadReply, error)
}

// Options of a [Server].
type Options struct {
	Control     string // path of the unix socket
	HTTP        string // host:port of /metrics, /healthz and /readyz, until SetHTTP; empty: none
	Daemon      Daemon
	Settings    Settings    // nil: nobody can ask for the configuration
	Objects     Objects     // nil: nobody can ask for signed objects, nor give any
	Leases      Leases      // nil: nobody can change leases
	Keys        Keys        // nil: nobody can ask for keys, nor rotate them
	Attachments Attachments // nil: nobody can attach containers
	Log         *slog.Logger
}

// Server offers the control socket and, if wanted, the HTTP listener.
type Server struct {
	opt   Options
	web   *web
	ready chan struct{}
}

// NewServer builds a server; it listens when it runs.
func NewServer(opt Options) *Server {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{opt, newWeb(MonitorHandler(opt.Daemon), opt.Log), make(chan struct{})}
}

// SetHTTP moves the HTTP listener of a server that is ready; empty: none. If the
// new address cannot be had, that is an error and the old one stays.
func (s *Server) SetHTTP(ctx context.Context, address string) error { return s.web.Set(ctx, address) }

// Ready is closed as soon as the server listens.
func (s *Server) Ready() <-chan struct{} { return s.ready }

const (
	maxConns      = 128              // per listener; a script per peer of a large mesh still fits
	headerTimeout = 5 * time.Second  // a local client sends its header at once
	idleTimeout   = 30 * time.Second // between two requests of one connection
	readTimeout   = 10 * time.Second // of a whole request
	writeTimeout  = 10 * time.Second // of an answer, or of one line of a stream
	shutdownGrace = 2 * time.Second  // for answers that are on their way when the daemon ends
	maxHeader     = 8 << 10
	maxBody       = 16 << 10 // the largest signed object (8 KiB) in base64, and some
)

// Run listens and serves until ctx ends, then lets running answers finish for a
// moment. It fails with [ErrInUse] when somebody else listens there.
func (s *Server) Run(ctx context.Context) error {
	control, err := listenControl(s.opt.Control, s.opt.Log)
	if err != nil {
		return fmt.Errorf("open control socket: %w", err)
	}
	defer control.Close()

	if err := s.web.Set(ctx, s.opt.HTTP); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	srv := newHTTPServer(controlHandler(ctx, s.opt), s.opt.Log)
	failed := make(chan error, 2)
	var serving sync.WaitGroup
	serving.Go(func() { failed <- srv.Serve(control) })
	serving.Go(func() {
		if err := s.web.Run(ctx); err != nil {
			failed <- err
		}
	})
	close(s.ready)
	select {
	case <-ctx.Done():
		err = nil
	case err = <-failed:
		err = fmt.Errorf("serve status: %w", err)
	}
	cancel()
	shutdown(ctx, srv)
	serving.Wait()
	return err
}

// listenControl opens the control socket to its group, and never any wider.
func listenControl(path string, log *slog.Logger) (net.Listener, error) {
	listener, err := unixsock.Listen(path, "control")
	if err != nil {
		return nil, err
	}
	if err := giveToGroup(path, "meshd"); err != nil {
		log.Warn("control socket stays with this process's group", "path", path, "err", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		listener.Close()
		return nil, err
	}
	return listener, nil
}

// giveToGroup gives a file to a group, if there is one of that name. The service
// runs with that group, and its sandbox has no chown.
func giveToGroup(path, name string) error {
	group, err := user.LookupGroup(name)
	if err != nil {
		return nil // no such group: nobody but root and our own user may come in
	}
	gid, err := strconv.Atoi(group.Gid)
	if err != nil {
		return err
	}
	info, err := os.Lstat(path)
	if err != nil || int(info.Sys().(*syscall.Stat_t).Gid) == gid {
		return err
	}
	return os.Chown(path, -1, gid)
}

func newHTTPServer(handler http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnState:         unixsock.Bound(maxConns),
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}
