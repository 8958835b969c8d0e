package docker

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

// listen makes the socket, never wider open than 0660, and replaces one on which
// nobody listens any more. Docker runs as root.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	listener, err := bind(path)
	if errors.Is(err, syscall.EADDRINUSE) {
		if err := removeDead(path); err != nil {
			return nil, err
		}
		listener, err = bind(path)
	}
	if err != nil {
		return nil, err
	}
	own, err := os.Lstat(path)
	if err = errors.Join(err, os.Chmod(path, 0o660)); err != nil {
		listener.Close()
		return nil, err
	}
	return &socket{UnixListener: listener, path: path, own: own}, nil
}

// socket removes its file when it is closed, unless a successor has put its own
// in that place.
type socket struct {
	*net.UnixListener
	path string
	own  os.FileInfo
	once sync.Once
}

func (s *socket) Close() error {
	err := s.UnixListener.Close()
	s.once.Do(func() {
		if now, err := os.Lstat(s.path); err == nil && os.SameFile(s.own, now) {
			os.Remove(s.path)
		}
	})
	return err
}

// bind gives the socket mode 0600 from the first moment: bind takes it from the
// descriptor.
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
	listener := l.(*net.UnixListener)
	listener.SetUnlinkOnClose(false) // see socket
	return listener, nil
}

func removeDead(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and is not a socket", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
		return fmt.Errorf("%s: another process answers there", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}
