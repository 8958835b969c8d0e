// Package unixsock listens on the unix sockets of the daemon, and bounds how many talk
// to it.
package unixsock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// ErrInUse says that another process listens there already.
var ErrInUse = errors.New("already in use")

// longest is the size of sockaddr_un.sun_path, less its final zero.
const longest = 107

// Listen makes a socket of mode 0600, from the first moment, and replaces one on
// which nobody listens any more. key is the configuration's that errors name.
// Closing the listener removes the socket, unless a successor has put its own in
// that place.
func Listen(path, key string) (net.Listener, error) {
	if len(path) > longest {
		return nil, fmt.Errorf("%s: a path of %d bytes, and a socket's has at most %d: choose a shorter one under `%s`", path, len(path), longest, key)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	l, err := bind(path)
	if errors.Is(err, syscall.EADDRINUSE) {
		if err := removeStale(path, key); err != nil {
			return nil, err
		}
		l, err = bind(path)
	}
	if err != nil {
		return nil, err
	}
	own, err := os.Lstat(path)
	if err != nil {
		l.Close()
		return nil, err
	}
	return &listener{UnixListener: l, path: path, own: own}, nil
}

// listener removes its file when it is closed.
type listener struct {
	*net.UnixListener
	path string
	own  os.FileInfo
	once sync.Once
}

func (l *listener) Close() error {
	err := l.UnixListener.Close()
	l.once.Do(func() {
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(l.own, now) {
			os.Remove(l.path)
		}
	})
	return err
}

// bind binds the socket with mode 0600: on Linux bind takes the mode from the
// socket itself, so there is no moment in which it is wider.
func bind(path string) (*net.UnixListener, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var inner error
		err := raw.Control(func(fd uintptr) { inner = syscall.Fchmod(int(fd), 0o600) })
		return errors.Join(err, inner)
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	unix := l.(*net.UnixListener)
	unix.SetUnlinkOnClose(false) // see listener
	return unix, nil
}

// removeStale removes a socket on which nobody listens.
func removeStale(path, key string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // its owner was just going
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and is not a socket: remove it, or choose another path under `%s`", path, key)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
		return fmt.Errorf("%s: %w: another daemon answers there; stop it, or choose another path under `%s`", path, ErrInUse, key)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%s: %w: another daemon may be there: %w", path, ErrInUse, err)
	}
	return os.Remove(path)
}
