//go:build linux

package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/overlay/e2e/cluster"
)

// notices are what a daemon tells systemd.
type notices chan notice

type notice struct {
	text string // lines of KEY=value
	at   time.Time
}

// listenNotify makes a node's daemons believe that systemd starts them, from the
// next one on.
func listenNotify(t *testing.T, n *cluster.Node) notices {
	t.Helper()
	path := filepath.Join(n.Dir, "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(t, err)
	t.Cleanup(func() { socket.Close() })
	must(t, os.Chmod(path, 0o666))
	all := make(notices, 1000)
	go func() {
		message := make([]byte, 4096)
		for {
			length, err := socket.Read(message)
			if err != nil {
				return
			}
			all <- notice{string(message[:length]), time.Now()}
		}
	}()
	wrap := n.Wrap
	n.Wrap = func(cmd *exec.Cmd) error {
		cmd.Env = append(cmd.Environ(), "NOTIFY_SOCKET="+path)
		if wrap == nil {
			return nil
		}
		return wrap(cmd)
	}
	return all
}

// next gives the next one, which must begin as told.
func (all notices) next(t *testing.T, want string) string {
	t.Helper()
	select {
	case got := <-all:
		if !strings.HasPrefix(got.text, want) {
			t.Errorf("systemd is told %q, want %q", got.text, want)
		}
		return got.text
	case <-bounded(t).Done():
		t.Fatalf("systemd is told nothing, want %q", want)
		return ""
	}
}

// ready waits until a daemon says that it is, and gives the time at which it did.
func (all notices) ready(t *testing.T) time.Time {
	t.Helper()
	ctx := bounded(t)
	for {
		select {
		case got := <-all:
			if slices.Contains(strings.Split(got.text, "\n"), "READY=1") {
				return got.at
			}
		case <-ctx.Done():
			t.Fatal("the daemon never told that it is ready")
		}
	}
}

// drain forgets what has been said.
func (all notices) drain() {
	for {
		select {
		case <-all:
		default:
			return
		}
	}
}
