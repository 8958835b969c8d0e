package status_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/overlay/attach"
	"meshd/overlay/attach/attachtest"
	"meshd/overlay/status"
)

var _ status.Attachments = (*attach.Manager)(nil)

// startAttachments serves what attaches containers.
func startAttachments(t *testing.T, a status.Attachments) (*status.Client, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "meshd.sock")
	serve(t, status.Options{Control: path, Daemon: &daemon{}, Attachments: a})
	return status.NewClient(path), path
}

func newManager(t *testing.T) *attach.Manager {
	t.Helper()
	m := attach.New(attach.Options{Host: new(attachtest.Host), Store: new(attachtest.Store), Wait: time.Millisecond})
	if err := m.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.Sync(attach.World{View: attachtest.View(attachtest.Lease("default", 7, mesh.Held)), MTU: 1420})
	return m
}

func TestAttachments(t *testing.T) {
	m := newManager(t)
	client, path := startAttachments(t, m)
	if code, body := raw(t, path, "GET", "/v1/attachments", ""); code != 200 || string(body) != `{"attachments":[]}`+"\n" {
		t.Errorf("none: %d %s", code, body)
	}
	ask := attach.Ask{ID: "ctl/one/default", Container: "one", Addresses: []netip.Addr{netip.MustParseAddr("10.86.7.9")}}
	got, err := client.Attach(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	want, err := m.Get(ask.ID)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) || got.Addresses[0] != netip.MustParsePrefix("10.86.7.9/24") {
		t.Errorf("attached %+v\nwant     %+v, %v", got, want, err)
	}
	if again, err := client.Attach(t.Context(), ask); err != nil || fmt.Sprint(again) != fmt.Sprint(got) {
		t.Errorf("again %+v, %v", again, err)
	}
	if one, err := client.Attachment(t.Context(), ask.ID); err != nil || fmt.Sprint(one) != fmt.Sprint(got) {
		t.Errorf("got %+v, %v", one, err)
	}
	if all, err := client.Attachments(t.Context()); err != nil || fmt.Sprint(all) != fmt.Sprint([]attach.Attachment{got}) {
		t.Errorf("list %+v, %v", all, err)
	}
	// As with curl, which escapes nothing.
	if code, body := raw(t, path, "GET", "/v1/attachments/ctl/one/default", ""); code != 200 || !json.Valid(body) {
		t.Errorf("GET by a plain path: %d %s", code, body)
	}
	for range 2 {
		if err := client.Detach(t.Context(), ask.ID); err != nil {
			t.Error(err)
		}
	}
	if all, err := client.Attachments(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("list after all: %+v, %v", all, err)
	}
	if _, err := client.Attachment(t.Context(), ask.ID); !errors.Is(err, attach.ErrUnknown) {
		t.Errorf("get after all: %v", err)
	}
}

// Whatever a door puts into an ID, it is the one that the daemon is asked for.
func TestAttachmentIDs(t *testing.T) {
	m := newManager(t)
	client, _ := startAttachments(t, m)
	for _, id := range []string{"ctl/a/../b", "ctl/.", "cni//x/", "docker/%2F%", "a/b?c#d", "a/;&=+", `a/\"`, "a/" + strings.Repeat("%", 253)} {
		if got, err := client.Attach(t.Context(), attach.Ask{ID: id}); err != nil || got.ID != id {
			t.Errorf("attach %s: %q, %v", id, got.ID, err)
		}
		if got, err := client.Attachment(t.Context(), id); err != nil || got.ID != id {
			t.Errorf("get %s: %q, %v", id, got.ID, err)
		}
		if err := client.Detach(t.Context(), id); err != nil {
			t.Errorf("detach %s: %v", id, err)
		}
		if _, err := m.Get(id); !errors.Is(err, attach.ErrUnknown) {
			t.Errorf("%s is there still: %v", id, err)
		}
	}
	if _, err := client.Attachment(t.Context(), ""); !errors.Is(err, attach.ErrUnknown) {
		t.Errorf("get nothing: %v", err)
	}
	if err := client.Detach(t.Context(), "nodoor"); !errors.Is(err, attach.ErrBadAsk) {
		t.Errorf("detach what cannot be: %v", err)
	}
}

// fails refuses everything for one reason.
type fails struct{ err error }

func (f fails) Attach(context.Context, attach.Ask) (attach.Attachment, error) {
	return attach.Attachment{}, f.err
}
func (f fails) Detach(context.Context, string) error  { return f.err }
func (f fails) Get(string) (attach.Attachment, error) { return attach.Attachment{}, f.err }
func (f fails) List() []attach.Attachment             { return nil }

func TestAttachErrors(t *testing.T) {
	reasons := map[string]error{
		"unknown_network": attach.ErrUnknownNetwork, "no_lease": attach.ErrNoLease, "taken": attach.ErrTaken, "outside": attach.ErrOutside,
		"exhausted": attach.ErrExhausted, "in_use": attach.ErrInUse, "unknown": attach.ErrUnknown, "bad_ask": attach.ErrBadAsk,
		"damaged": attach.ErrDamaged, "delegated": attach.ErrDelegated, "": errors.New("disk full"),
	}
	for code, reason := range reasons {
		t.Run(code, func(t *testing.T) {
			client, path := startAttachments(t, fails{fmt.Errorf("do it: %w \x1b[2J", reason)})
			_, attached := client.Attach(t.Context(), attach.Ask{ID: "ctl/x"})
			_, got := client.Attachment(t.Context(), "ctl/x")
			for what, err := range map[string]error{"attach": attached, "get": got, "detach": client.Detach(t.Context(), "ctl/x")} {
				if err == nil || err.Error() != "do it: "+reason.Error()+` \x1b[2J` {
					t.Errorf("%s: %v, want the daemon's words", what, err)
				}
				for _, other := range reasons {
					if errors.Is(err, other) != (other == reason && code != "") {
						t.Errorf("%s: %v, and that it is %q is %v", what, err, other, errors.Is(err, other))
					}
				}
			}
			_, body := raw(t, path, "DELETE", "/v1/attachments/ctl/x", "")
			var e struct{ Error, Code string }
			if err := json.Unmarshal(body, &e); err != nil || e.Code != code {
				t.Errorf("answer %s, want the code %s", body, code)
			}
		})
	}
	// One that is not here would lose its meaning on the way.
	source, err := os.ReadFile("../attach/attach.go")
	if err != nil {
		t.Fatal(err)
	}
	if all := regexp.MustCompile(`(?m)^\tErr\w+ += errors\.New`).FindAll(source, -1); len(all) != len(reasons)-1 {
		t.Errorf("package attach has %d errors, and %d are tested", len(all), len(reasons)-1)
	}
}

func TestBadAttachRequests(t *testing.T) {
	_, path := startAttachments(t, newManager(t))
	for _, tt := range []struct {
		method, path, body string
		want               int
	}{
		{"PUT", "/v1/attachments", "{}", 405},
		{"DELETE", "/v1/attachments", "", 405},
		{"POST", "/v1/attachments/ctl/x", "{}", 405},
		{"GET", "/v1/attachments/", "", 404},
		{"DELETE", "/v1/attachments/", "", 400},
		{"POST", "/v1/attachments", "", 400},
		{"POST", "/v1/attachments", "{", 400},
		{"POST", "/v1/attachments", "[]", 400},
		{"POST", "/v1/attachments", "{}", 400},
		{"POST", "/v1/attachments", `{"id":"ctl/x"}{"id":"ctl/y"}`, 400},
		{"POST", "/v1/attachments", `{"id":"ctl/x","color":"red"}`, 400},
		{"POST", "/v1/attachments", `{"id":"ctl/x","addresses":["10.86.7.300"]}`, 400},
		{"POST", "/v1/attachments", `{"id":"ctl/x","mode":"bond"}`, 400},
		{"POST", "/v1/attachments", `{"id":"` + strings.Repeat("x", 20<<10) + `"}`, 400},
		{"POST", "/v1/attachments", `{"id":"ctl/x","network":"nothing"}`, 404},
		{"POST", "/v1/attachments", `{"id":"ctl/x","network":"web"}`, 503},
		{"POST", "/v1/attachments", `{"id":"ctl/x","addresses":["10.86.9.1"]}`, 400},
		{"GET", "/v1/attachments/ctl/x", "", 404},
	} {
		t.Run(fmt.Sprintf("%s %s %.40s", tt.method, tt.path, tt.body), func(t *testing.T) {
			code, body := raw(t, path, tt.method, tt.path, tt.body)
			var e struct{ Error string }
			if err := json.Unmarshal(body, &e); err != nil || e.Error == "" || code != tt.want {
				t.Errorf("answer %d %q, want %d and an error in JSON", code, body, tt.want)
			}
		})
	}
}

func TestNoAttachmentsHere(t *testing.T) {
	client, _ := startAttachments(t, nil)
	if _, err := client.Attach(t.Context(), attach.Ask{ID: "ctl/x"}); err == nil {
		t.Error("attached")
	}
	if err := client.Detach(t.Context(), "ctl/x"); err == nil {
		t.Error("detached")
	}
}

// waits takes its time.
type waits struct {
	fails
	began chan bool
	do    func(ctx context.Context) error
}

func (w waits) Attach(ctx context.Context, _ attach.Ask) (attach.Attachment, error) {
	close(w.began)
	return attach.Attachment{}, w.do(ctx)
}

func (w waits) Detach(ctx context.Context, _ string) error {
	close(w.began)
	return w.do(ctx)
}

// Nobody would move the link into the container.
func TestAttachEndsWithItsClient(t *testing.T) {
	ended := make(chan error, 1)
	w := waits{began: make(chan bool), do: func(ctx context.Context) error {
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}}
	client, _ := startAttachments(t, w)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-w.began; cancel() }()
	if _, err := client.Attach(ctx, attach.Ask{ID: "ctl/x"}); !errors.Is(err, context.Canceled) {
		t.Errorf("Attach: %v", err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the daemon ended with %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the daemon goes on although its client has gone")
	}
}

func TestDetachOutlivesItsClient(t *testing.T) {
	finished := make(chan error, 1)
	w := waits{began: make(chan bool), do: func(ctx context.Context) error {
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
		finished <- ctx.Err()
		return nil
	}}
	client, _ := startAttachments(t, w)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-w.began; cancel() }()
	if err := client.Detach(ctx, "ctl/x"); !errors.Is(err, context.Canceled) {
		t.Errorf("Detach: %v", err)
	}
	if err := <-finished; err != nil {
		t.Errorf("the daemon was interrupted: %v", err)
	}
}
