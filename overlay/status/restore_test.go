package status

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"
)

// Somebody took the address while it was given up for a move that failed.
func TestLostAddressIsRestored(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	address := other.Addr().String()
	w := newWeb(http.NotFoundHandler(), slog.New(slog.DiscardHandler))
	w.address = address
	w.replace(nil)
	ctx, cancel := context.WithCancel(t.Context())
	if w.restore(ctx) == nil {
		t.Error("it is not to be tried again")
	}
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	other.Close()
	ask, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	for ticker := time.NewTicker(20 * time.Millisecond); ; <-ticker.C {
		conn, err := new(net.Dialer).DialContext(ask, "tcp", address)
		if err == nil {
			conn.Close()
			return
		}
		if ask.Err() != nil {
			t.Fatalf("nobody listens on %s again", address)
		}
	}
}
