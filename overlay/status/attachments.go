package status

import (
	"context"
	"net/http"
	"net/url"

	"meshd/overlay/attach"
)

// Attachments gives containers their place in the mesh. Its methods are called
// from many goroutines. attach.Manager is one.
type Attachments interface {
	Attach(ctx context.Context, ask attach.Ask) (attach.Attachment, error)
	Detach(ctx context.Context, id string) error
	Get(id string) (attach.Attachment, error)
	List() []attach.Attachment
}

// attachmentsReply is what is attached on this host.
type attachmentsReply struct {
	Attachments []attach.Attachment `json:"attachments"` // by ID
}

const attachmentsPath = "/v1/attachments"

func serveAttachments(a Attachments, w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		reply(w, http.StatusOK, attachmentsReply{notNil(a.List())})
	} else {
		serveAttach(a, w, r)
	}
}

// serveAttach attaches a container. If the client goes away before it has its
// answer, what was begun is undone: nobody would move the link.
func serveAttach(a Attachments, w http.ResponseWriter, r *http.Request) {
	var ask attach.Ask
	if !decode(w, r, &ask) {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), changeTimeout)
	defer cancel()
	got, err := a.Attach(ctx, ask)
	serveAnswer(w, got, err)
}

func serveAttachment(a Attachments, w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	var got any = struct{}{}
	var err error
	if r.Method == http.MethodGet {
		got, err = a.Get(id)
	} else {
		err = whole(r, func(ctx context.Context) error { return a.Detach(ctx, id) })
	}
	serveAnswer(w, got, err)
}

// attachmentPath keeps whatever is in an ID within one segment.
func attachmentPath(id string) string { return attachmentsPath + "/" + url.PathEscape(id) }

// Attach gives a container an address and makes its link; see the package attach
// for what the caller does then. Its errors are those of that package. A first
// attachment to a network may take 20 seconds. If ctx ends before the answer is
// there, the daemon undoes what it began.
func (c *Client) Attach(ctx context.Context, wish attach.Ask) (attach.Attachment, error) {
	return ask[attach.Attachment](ctx, c, http.MethodPost, attachmentsPath, wish)
}

// Detach undoes an attachment. There is none by that ID: fine.
func (c *Client) Detach(ctx context.Context, id string) error {
	_, err := ask[struct{}](ctx, c, http.MethodDelete, attachmentPath(id), nil)
	return err
}

// Attachments lists what is attached on this host, by ID.
func (c *Client) Attachments(ctx context.Context) ([]attach.Attachment, error) {
	r, err := ask[attachmentsReply](ctx, c, http.MethodGet, attachmentsPath, nil)
	return r.Attachments, err
}

// Attachment gives what is attached by an ID, or fails with [attach.ErrUnknown].
func (c *Client) Attachment(ctx context.Context, id string) (attach.Attachment, error) {
	return ask[attach.Attachment](ctx, c, http.MethodGet, attachmentPath(id), nil)
}
