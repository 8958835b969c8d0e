package status

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// The control API, HTTP with JSON on the unix socket:
//
//	GET  /v1/status    the document
//	GET  /v1/version   {"version":"..."}
//	POST /v1/ping      PingRequest; answers a PingReply per line
//	GET  /v1/config    a ConfigReply
//	POST /v1/reload    a ReloadReply; 422 if the file is bad, and nothing changed
//	POST /v1/leave     {} when the node has left and cleaned up
//	POST /v1/down      {} when the host is clean
//
//	GET  /v1/objects          {"objects": ["base64", ...]}, what the node believes, the charter first
//	POST /v1/objects          {"object": "base64"} that the CA signed; {} when it is saved, 412 for a charter that is not the next one
//	POST /v1/forget           {"node": ID}; {} when its tombstone is saved
//	POST /v1/leases/renumber  {"network": NAME, "force": false}
//	POST /v1/leases/release   {"network": NAME}
//	GET  /v1/keys             a KeysReply
//	POST /v1/keys/rotate      {"key": "gossip" or "tunnel", "now": false}; {} when the new one is saved
//
//	POST   /v1/attachments        attach.Ask; an attach.Attachment, once its link is there
//	GET    /v1/attachments        {"attachments": [attach.Attachment, ...]}, by ID
//	GET    /v1/attachments/ID     an attach.Attachment
//	DELETE /v1/attachments/ID     {} when there is nothing left of it
//
// An error is {"error":"..."} with a status of 400 or above, and for programs
// a "code" where they may act on it.

// PingRequest asks for probes to one node.
type PingRequest struct {
	Node       string `json:"node"`        // name, ID or mesh address
	Count      int    `json:"count"`       // 0: until the client goes
	IntervalMS int    `json:"interval_ms"` // between two probes; 0: 1000, at least 10
}

// PingReply is the outcome of one probe.
type PingReply struct {
	Seq     int         `json:"seq"`
	Address *netip.Addr `json:"address"` // that answered
	RTTms   *float64    `json:"rtt_ms"`
	Error   string      `json:"error,omitempty"` // no answer
}

// ConfigReply is the configuration in force.
type ConfigReply struct {
	File   string `json:"file"`   // from which it is read
	Config string `json:"config"` // as such a file
}

// ReloadReply is what became of each key that the file has otherwise than what
// is in force.
type ReloadReply struct {
	File    string   `json:"file"`
	Applied []Change `json:"applied"`
	Restart []Change `json:"restart"` // counts when the daemon is restarted
	Rejoin  []Change `json:"rejoin"`  // counts when the host joins a mesh anew
	Failed  []Change `json:"failed"`  // could not be applied: what was in force still is
}

// Change is one key of the configuration. Values are as a file would write them.
type Change struct {
	Key   string `json:"key"`
	Old   string `json:"old"` // in force before
	New   string `json:"new"` // in the file
	Error string `json:"error,omitempty"`
}

// Reasons for which a reload changes nothing.
var (
	ErrBadConfig  = errors.New("the configuration stays as it is")
	ErrUnreadable = errors.New("the daemon may not read its configuration")
)

const (
	minPingInterval = 10 * time.Millisecond // a tool for people, not a load generator
	maxPingInterval = time.Hour
	pingTimeout     = 2 * time.Second // far above the round trip of any usable path
	changeTimeout   = 30 * time.Second
)

type errorReply struct {
	Error string `json:"error"`
	Code  string `json:"code,omitempty"` // see codes
}

type versionReply struct {
	Version string `json:"version"`
}

// controlHandler serves the control API; streams end with stop.
func controlHandler(stop context.Context, opt Options) http.Handler {
	d, s := opt.Daemon, opt.Settings
	mux := http.NewServeMux()
	handle := func(methods, path string, serve http.HandlerFunc) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if !slices.Contains(strings.Split(methods, ", "), r.Method) {
				w.Header().Set("Allow", methods)
				replyError(w, http.StatusMethodNotAllowed, fmt.Sprintf("%s takes %s", path, methods))
				return
			}
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			serve(w, r)
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		replyError(w, http.StatusNotFound, fmt.Sprintf("no %.80q here: this daemon is version %s", r.URL.Path, d.Version()))
	})
	handle(http.MethodGet, "/v1/status", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, d.Status()) })
	handle(http.MethodGet, "/v1/version", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, versionReply{d.Version()})
	})
	handle(http.MethodPost, "/v1/ping", func(w http.ResponseWriter, r *http.Request) { servePing(stop, d, w, r) })
	if s != nil {
		handle(http.MethodGet, "/v1/config", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, s.Config()) })
		handle(http.MethodPost, "/v1/reload", func(w http.ResponseWriter, r *http.Request) { serveReload(s, w, r) })
	}
	if a := opt.Attachments; a != nil {
		handle("GET, POST", attachmentsPath, func(w http.ResponseWriter, r *http.Request) { serveAttachments(a, w, r) })
		handle("GET, DELETE", attachmentsPath+"/{id...}", func(w http.ResponseWriter, r *http.Request) { serveAttachment(a, w, r) })
	}
	operate(opt, handle)
	handle(http.MethodPost, "/v1/leave", change(d.Leave))
	handle(http.MethodPost, "/v1/down", change(d.Down))
	return mux
}

func reply(w http.ResponseWriter, code int, v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		code, raw = http.StatusInternalServerError, []byte(`{"error":"encode answer"}`)
	}
	// On an error here the client has gone; there is nobody to tell.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(raw, '\n'))
}

func replyError(w http.ResponseWriter, code int, message string) {
	reply(w, code, errorReply{Error: message})
}

// decode reads a request, or answers what is wrong with it.
func decode(w http.ResponseWriter, r *http.Request, v any) bool {
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	err := decoder.Decode(v)
	if err == nil {
		if _, err = decoder.Token(); err == io.EOF {
			return true
		}
		err = errors.New("something follows it")
	}
	replyError(w, http.StatusBadRequest, fmt.Sprintf("read request: %v", err))
	return false
}

// change serves a request that changes the daemon. A client that goes away does
// not stop it half-way.
func change(do func(context.Context) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		serveAnswer(w, struct{}{}, whole(r, do))
	}
}

func serveReload(s Settings, w http.ResponseWriter, r *http.Request) {
	var answer ReloadReply
	err := whole(r, func(ctx context.Context) (err error) {
		answer, err = s.Reload(ctx)
		return err
	})
	for _, list := range []*[]Change{&answer.Applied, &answer.Restart, &answer.Rejoin, &answer.Failed} {
		*list = notNil(*list)
	}
	serveAnswer(w, answer, err)
}

func servePing(stop context.Context, d Daemon, w http.ResponseWriter, r *http.Request) {
	var req PingRequest
	if !decode(w, r, &req) {
		return
	}
	interval := time.Duration(cmp.Or(req.IntervalMS, 1000)) * time.Millisecond
	if req.Count < 0 || req.IntervalMS < 0 || req.IntervalMS > int(maxPingInterval/time.Millisecond) || interval < minPingInterval {
		replyError(w, http.StatusBadRequest, fmt.Sprintf("count must not be negative, interval be %s to %s", minPingInterval, maxPingInterval))
		return
	}
	doc := d.Status()
	peer, err := doc.Find(req.Node)
	if err != nil {
		replyFailure(w, err)
		return
	}

	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(stop, cancel)()
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // from here on the client only listens
	w.Header().Set("Content-Type", "application/jsonl")
	w.WriteHeader(http.StatusOK)
	encoder := json.NewEncoder(w)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for seq := 0; req.Count == 0 || seq < req.Count; seq++ {
		if seq > 0 {
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return
		}
		answer := pingOnce(ctx, d, peer, seq)
		_ = control.SetWriteDeadline(time.Now().Add(writeTimeout))
		if encoder.Encode(answer) != nil || control.Flush() != nil {
			return
		}
	}
}

func pingOnce(ctx context.Context, d Daemon, peer *Peer, seq int) PingReply {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	rtt, addr, err := d.Ping(ctx, peer.ID)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return PingReply{Seq: seq, Error: fmt.Sprintf("no answer within %s", pingTimeout)}
	case err != nil:
		return PingReply{Seq: seq, Error: err.Error()}
	}
	ms := float64(rtt) / float64(time.Millisecond)
	return PingReply{Seq: seq, Address: &addr, RTTms: &ms}
}
