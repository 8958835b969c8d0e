package udp

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTransient(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{unix.EAGAIN, true},
		{unix.EPERM, true},
		{unix.ENOBUFS, true},
		{unix.ENETDOWN, true},
		{unix.EMSGSIZE, true},
		{unix.ESRCH, true}, // of a firewall that we do not know
		{ErrSource, true},
		{fmt.Errorf("send: %w", unix.EHOSTUNREACH), true},
		{unix.EBADF, false},
		{unix.ENOTSOCK, false},
		{unix.EFAULT, false},
		{os.ErrClosed, false},
		{nil, false},
	} {
		if got := Transient(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}
