package status

import (
	"context"
	"log/slog"
	"net/http"
	"testing"
	"time"
)

// TestLateSignalServesOn: the signal of a move that Run has already made must not
// end what it serves.
func TestLateSignalServesOn(t *testing.T) {
	w := newWeb(http.NotFoundHandler(), slog.New(slog.DiscardHandler))
	if err := w.Set(t.Context(), "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	address := w.listener.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for range 20 {
		select {
		case w.moved <- struct{}{}:
		default:
		}
		response, err := client.Get("http://" + address)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
