package unixsock_test

import (
	"net"
	"net/http"
	"testing"

	"meshd/overlay/unixsock"
)

// Of too many connections the one goes that has been idle for longest, and where all
// are busy, the newcomer.
func TestBound(t *testing.T) {
	changed := unixsock.Bound(2)
	conns := map[string]*conn{}
	for _, step := range []struct {
		name   string
		state  http.ConnState
		closed string
	}{
		{"a", http.StateNew, ""},
		{"b", http.StateNew, ""},
		{"a", http.StateActive, ""},
		{"a", http.StateIdle, ""},
		{"c", http.StateNew, "b"},
		{"a", http.StateActive, ""},
		{"c", http.StateActive, ""},
		{"d", http.StateNew, "d"},
		{"d", http.StateClosed, ""},
		{"a", http.StateClosed, ""},
		{"e", http.StateNew, ""},
		{"c", http.StateIdle, ""},
		{"f", http.StateNew, "e"},
	} {
		if conns[step.name] == nil {
			conns[step.name] = new(conn)
		}
		changed(conns[step.name], step.state)
		for name, c := range conns {
			if c.closed != (name == step.closed) {
				t.Fatalf("%s becomes %s: %s is closed: %t, want %q closed", step.name, step.state, name, c.closed, step.closed)
			}
			c.closed = false
		}
	}
}

// conn is nothing but open or closed.
type conn struct {
	net.Conn
	closed bool
}

func (c *conn) Close() error {
	c.closed = true
	return nil
}
