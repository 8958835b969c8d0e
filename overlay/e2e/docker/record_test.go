//go:build linux

package docker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"meshd/overlay/e2e/cluster"
)

// record stands between Docker and the door and writes down what they say, in the
// form that the door's own test replays.
func record(t *testing.T, n *cluster.Node) (socket string, save func()) {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "meshd"})
	proxy.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", n.DockerSocket())
	}}
	var mu sync.Mutex
	var log bytes.Buffer
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		ask, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(ask))
		answer := &answerCopy{ResponseWriter: w}
		proxy.ServeHTTP(answer, r)
		fmt.Fprintf(&log, "%s\n> %s\n< %s\n\n", r.URL.Path, bytes.TrimSpace(ask), bytes.TrimSpace(answer.body.Bytes()))
	})
	socket = filepath.Join(n.Dir, "record.sock")
	l, err := net.Listen("unix", socket)
	must(t, err)
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	return socket, func() {
		mu.Lock()
		defer mu.Unlock()
		must(t, os.WriteFile(*recording, log.Bytes(), 0o644))
	}
}

type answerCopy struct {
	http.ResponseWriter
	body bytes.Buffer
}

func (a *answerCopy) Write(p []byte) (int, error) {
	a.body.Write(p)
	return a.ResponseWriter.Write(p)
}
