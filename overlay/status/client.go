package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"
)

// ErrNoDaemon says that nobody listens on the control socket.
var ErrNoDaemon = errors.New("no daemon answers")

// ErrHangs says that a daemon is there and does not answer in time.
var ErrHangs = errors.New("the daemon hangs")

// maxDocument bounds what a client reads: 100 000 peers fit.
const maxDocument = 128 << 20

// maxError bounds the text of an error: every mistake in a long file.
const maxError = 1 << 20

// Client asks a daemon through its control socket. All methods fail with
// [ErrNoDaemon] when there is none, with [ErrHangs] when it takes too long, and with
// [fs.ErrPermission] when the socket may not be used.
type Client struct {
	socket string
	http   http.Client
}

// NewClient builds a client; it connects with each request.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: 2 * time.Second}).DialContext(ctx, "unix", socket)
	}
	return &Client{socket, http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Status fetches the document.
func (c *Client) Status(ctx context.Context) (*Document, error) {
	d, err := ask[Document](ctx, c, http.MethodGet, "/v1/status", nil)
	return &d, err
}

// Version fetches the daemon's version.
func (c *Client) Version(ctx context.Context) (string, error) {
	v, err := ask[versionReply](ctx, c, http.MethodGet, "/v1/version", nil)
	return v.Version, err
}

// Config fetches the configuration in force.
func (c *Client) Config(ctx context.Context) (ConfigReply, error) {
	return ask[ConfigReply](ctx, c, http.MethodGet, "/v1/config", nil)
}

// Reload makes the daemon read its configuration again. It fails with
// [ErrBadConfig], whose text has a line per mistake, if the file is bad, and with
// [ErrUnreadable] if the daemon may not read it.
func (c *Client) Reload(ctx context.Context) (ReloadReply, error) {
	return ask[ReloadReply](ctx, c, http.MethodPost, "/v1/reload", struct{}{})
}

// Leave makes the node sign that it leaves, clean the host and end.
func (c *Client) Leave(ctx context.Context) error { return c.post(ctx, "/v1/leave", struct{}{}) }

// Down makes the daemon clean the host and end.
func (c *Client) Down(ctx context.Context) error { return c.post(ctx, "/v1/down", struct{}{}) }

// Ping hands each reply to each as it comes, until all have come or ctx ends.
func (c *Client) Ping(ctx context.Context, req PingRequest, each func(PingReply)) error {
	if _, err := c.Version(ctx); err != nil {
		return err // one that hangs would be waited for without end
	}
	response, err := c.do(ctx, http.MethodPost, "/v1/ping", req)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	decoder := json.NewDecoder(response.Body)
	for {
		var r PingReply
		switch err := decoder.Decode(&r); {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("read answer of %s: %w", c.socket, err)
		}
		each(r)
	}
}

// post makes a change of which there is nothing to tell but that it was made.
func (c *Client) post(ctx context.Context, path string, body any) error {
	_, err := ask[struct{}](ctx, c, http.MethodPost, path, body)
	return err
}

// ask sends a request and reads the answer to it.
func ask[T any](ctx context.Context, c *Client, method, path string, body any) (answer T, err error) {
	limit := readTimeout
	if method != http.MethodGet {
		limit = changeTimeout + writeTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	response, err := c.do(ctx, method, path, body)
	if err != nil {
		return answer, err
	}
	defer response.Body.Close()
	if err := json.NewDecoder(io.LimitReader(response.Body, maxDocument)).Decode(&answer); err != nil {
		return answer, fmt.Errorf("read answer of %s: %w", c.socket, err)
	}
	return answer, nil
}

// do sends a request and turns an error that the daemon answers into ours.
func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var payload io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		payload = bytes.NewReader(raw)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://meshd"+path, payload)
	if err != nil {
		return nil, fmt.Errorf("build request: %w", err)
	}
	response, err := c.http.Do(request)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w on %s", ErrNoDaemon, c.socket)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.EAGAIN): // with it, the kernel's queue is full
		return nil, fmt.Errorf("%w on %s: see `journalctl -u meshd`, and restart it", ErrHangs, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("connect to %s: %w", c.socket, fs.ErrPermission)
	case err != nil:
		return nil, fmt.Errorf("ask the daemon on %s: %w", c.socket, errors.Unwrap(err))
	}
	if response.StatusCode == http.StatusOK {
		return response, nil
	}
	defer response.Body.Close()
	var e errorReply
	if err := json.NewDecoder(io.LimitReader(response.Body, maxError)).Decode(&e); err != nil || e.Error == "" {
		return nil, fmt.Errorf("ask the daemon on %s: it answers %s", c.socket, response.Status)
	}
	text := strings.Join(cleaned(strings.Split(e.Error, "\n")), "\n")
	if kind := codedError(e.Code); kind != nil {
		return nil, refusal{text, kind}
	}
	return nil, errors.New(text)
}

// refusal is the daemon's word on why it does not do something.
type refusal struct {
	text string
	kind error
}

func (e refusal) Error() string { return e.text }
func (e refusal) Unwrap() error { return e.kind }
