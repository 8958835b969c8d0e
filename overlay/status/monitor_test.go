package status_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"meshd/mesh"
	"meshd/overlay/status"
)

func get(h http.Handler, host, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.Host = host
	h.ServeHTTP(w, r)
	return w
}

func TestReadiness(t *testing.T) {
	for state, want := range map[mesh.State]int{mesh.Ready: 200, mesh.WaitingForSeed: 503, mesh.Quarantine: 503} {
		h := status.MonitorHandler(&daemon{doc: status.Document{State: state}})
		w := get(h, "localhost", "/readyz")
		if w.Code != want || strings.TrimSpace(w.Body.String()) != string(state) {
			t.Errorf("%s: %d %q, want %d", state, w.Code, w.Body, want)
		}
		if w := get(h, "localhost", "/healthz"); w.Code != 200 {
			t.Errorf("%s: /healthz %d", state, w.Code)
		}
	}
}

func TestMetrics(t *testing.T) {
	h := status.MonitorHandler(&daemon{doc: *example()})
	w := get(h, "127.0.0.1:9740", "/metrics")
	if w.Code != 200 {
		t.Fatalf("answer %d %s", w.Code, w.Body)
	}
	var ours []string
	for line := range strings.Lines(w.Body.String()) {
		if strings.Contains(line, "meshd_") {
			ours = append(ours, line)
		}
	}
	golden(t, "metrics.txt", strings.Join(ours, ""))
	for _, name := range []string{"go_goroutines", "go_gc_heap_live_bytes", "process_resident_memory_bytes"} {
		if !strings.Contains(w.Body.String(), "\n"+name+" ") {
			t.Errorf("no metric %s", name)
		}
	}
}

// What a peer or a bug may put into the document must not cost all metrics.
func TestMetricsOfStrangeDocuments(t *testing.T) {
	doc := example()
	doc.Peers[0].Name = "\xff\xfe"
	doc.Health = append(doc.Health, doc.Health...)
	doc.Peers = append(doc.Peers, doc.Peers[1])
	w := get(status.MonitorHandler(&daemon{doc: *doc}), "localhost", "/metrics")
	if w.Code != 200 || !strings.Contains(w.Body.String(), `meshd_health_findings{code="clock",level="warning"} 2`) {
		t.Errorf("answer %d\n%.2000s", w.Code, w.Body)
	}
}

func TestMonitorAnswersOnlyLocalNames(t *testing.T) {
	h := status.MonitorHandler(&daemon{})
	for host, want := range map[string]int{
		"localhost": 200, "LOCALHOST:9740": 200, "127.0.0.1": 200, "127.0.0.1:9740": 200, "[::1]:9740": 200, "[::1]": 200, "10.86.17.1:9740": 200,
		"evil.example:9740": 403, "evil.example": 403, "localhost.evil.example": 403, "127.0.0.1.evil.example": 403, "": 403, "[": 403,
	} {
		for _, path := range []string{"/healthz", "/metrics"} {
			if got := get(h, host, path).Code; got != want {
				t.Errorf("Host %q, %s: %d, want %d", host, path, got, want)
			}
		}
	}
}

func TestMonitorChangesNothing(t *testing.T) {
	h := status.MonitorHandler(&daemon{})
	for _, path := range []string{"/v1/leave", "/v1/down", "/v1/status"} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, path, nil)
		r.Host = "localhost"
		h.ServeHTTP(w, r)
		if w.Code != 404 {
			t.Errorf("POST %s: %d, want 404", path, w.Code)
		}
	}
}

func TestServerServesMonitor(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	serve(t, status.Options{Control: filepath.Join(t.TempDir(), "s"), HTTP: addr, Daemon: &daemon{doc: *example()}})
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + addr + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); response.StatusCode != 200 || err != nil {
		t.Errorf("answer %s %s, %v", response.Status, body, err)
	}
}
