package status

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"meshd/overlay/attach"
)

// slow attaches only after the time in which a request has to be read.
type slow struct {
	Attachments
	takes time.Duration
}

func (s slow) Attach(ctx context.Context, ask attach.Ask) (attach.Attachment, error) {
	select {
	case <-ctx.Done():
	case <-time.After(s.takes):
	}
	return attach.Attachment{ID: ask.ID}, ctx.Err()
}

// A first lease takes longer than any request may take to read, and a client
// that waits for it has not gone away.
func TestAttachMayTakeLongerThanReading(t *testing.T) {
	const limit = 20 * time.Millisecond
	server := newHTTPServer(controlHandler(t.Context(), Options{Daemon: silent{}, Attachments: slow{takes: 5 * limit}}), slog.New(slog.DiscardHandler))
	server.ReadTimeout = limit
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	defer serving.Wait()
	defer server.Close()
	if got, err := NewClient(path).Attach(t.Context(), attach.Ask{ID: "ctl/x"}); err != nil || got.ID != "ctl/x" {
		t.Errorf("attached %q, %v", got.ID, err)
	}
}
