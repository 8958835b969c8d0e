package status

import (
	"context"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
)

type silent struct{ doc Document }

func (d silent) Status() Document { return d.doc }
func (silent) Ping(context.Context, mesh.NodeID) (time.Duration, netip.Addr, error) {
	return 0, netip.Addr{}, nil
}
func (silent) Leave(context.Context) error { return nil }
func (silent) Down(context.Context) error  { return nil }
func (silent) Version() string             { return "test" }

// Whatever is asked, the answer is well-formed and every error is JSON.
func FuzzPingRequest(f *testing.F) {
	for _, seed := range []string{
		`{"node":"beta","count":1}`, `{"node":"aaaaaaaa","count":2,"interval_ms":10}`, `{}`, `[]`, `{"node":"::1%x","count":1}`, "{", "\xff",
	} {
		f.Add(seed)
	}
	doc := Document{Peers: []Peer{{Name: "beta"}, {Name: "gamma", ID: mesh.NodeID{1}}}}
	f.Fuzz(func(t *testing.T, body string) {
		stop, cancel := context.WithCancel(t.Context())
		cancel() // streams end after their first line
		w := httptest.NewRecorder()
		controlHandler(stop, Options{Daemon: silent{doc}}).ServeHTTP(w, httptest.NewRequest("POST", "/v1/ping", strings.NewReader(body)))
		if w.Code != 200 && !strings.HasPrefix(w.Body.String(), `{"error":`) {
			t.Errorf("answer %d %q", w.Code, w.Body)
		}
	})
}
