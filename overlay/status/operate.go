package status

import (
	"context"
	"errors"
	"net/http"
	"time"

	"meshd/mesh"
)

// What an operator changes in a running mesh. A change has an answer when what
// follows from it is saved here, so it outlasts this daemon; the others hear of it
// by gossip. The methods are called from many goroutines.

// Objects are the signed objects that the node believes.
type Objects interface {
	// Objects lists them, the charter first. Whoever gets them verifies them.
	Objects(ctx context.Context) ([][]byte, error)
	// Submit takes one that the CA signed: a charter, a revocation, a tombstone, a
	// certificate. It fails with [ErrRefused] if it is anything else, and with
	// [ErrNotNext] if it is a charter and another has come meanwhile; one that is
	// known already is fine.
	Submit(ctx context.Context, raw []byte) error
}

// Leases are this node's, and those that it may free.
type Leases interface {
	// Renumber takes another subnet in a network. It fails with [ErrLeaseInUse] if
	// something local has addresses of the one that is held, unless it is forced.
	Renumber(ctx context.Context, network string, force bool) error
	// Release gives the lease in a network back, and uses the network no more. It
	// fails with [ErrLeaseInUse] if something local has addresses of it.
	Release(ctx context.Context, network string) error
	// Forget frees the leases of a node that was not heard of for as long as a
	// lease lasts. It fails with [ErrNotNow] if it was.
	Forget(ctx context.Context, id mesh.NodeID) error
}

// Keys are this node's.
type Keys interface {
	Keys(ctx context.Context) (KeysReply, error)
	// RotateGossip hands a new gossip key to all members. It fails with
	// [ErrNotAllowed] if this node's certificate does not permit that, and with
	// [ErrNotNow] while the last rotation goes on. now: the keys before it are
	// dropped as soon as nobody sends with them, and so no longer open tokens.
	RotateGossip(ctx context.Context, now bool) error
	// RotateTunnel makes a new tunnel key of this node.
	RotateTunnel(ctx context.Context) error
}

// Reasons for which a change is not made.
var (
	ErrRefused    = errors.New("object refused")
	ErrNotNext    = errors.New("it does not follow the newest charter")
	ErrLeaseInUse = errors.New("the subnet is in use")
	ErrNotNow     = errors.New("not now")
	ErrNotAllowed = errors.New("this node may not do that")
)

// objectsReply lists signed objects, in base64.
type objectsReply struct {
	Objects [][]byte `json:"objects"`
}

// objectRequest gives the daemon a signed object, in base64.
type objectRequest struct {
	Object []byte `json:"object"`
}

// forgetRequest names a node by its whole ID.
type forgetRequest struct {
	Node mesh.NodeID `json:"node"`
}

// leaseRequest names a network.
type leaseRequest struct {
	Network string `json:"network"`
	Force   bool   `json:"force,omitempty"`
}

// rotateRequest says which key: "gossip" or "tunnel".
type rotateRequest struct {
	Key string `json:"key"`
	Now bool   `json:"now,omitempty"`
}

// KeysReply tells of a node's keys, and nothing secret.
type KeysReply struct {
	Tunnel string      `json:"tunnel"` // public half, as wg prints it
	Gossip []GossipKey `json:"gossip"` // newest first
}

// GossipKey is one generation of the gossip key.
type GossipKey struct {
	Generation uint64     `json:"generation"`
	ID         string     `json:"id"`        // first digits of its hash
	Made       *time.Time `json:"made"`      // null: not known
	Installed  *time.Time `json:"installed"` // here; null: from the start
	Sends      bool       `json:"sends"`     // this node seals with it
	DropsBy    *time.Time `json:"drops_by"`  // this node reads it no longer than that; null: no newer one is in use
}

// What can be rotated.
const (
	keyGossip = "gossip"
	keyTunnel = "tunnel"
)

const (
	objectsPath  = "/v1/objects"
	forgetPath   = "/v1/forget"
	renumberPath = "/v1/leases/renumber"
	releasePath  = "/v1/leases/release"
	keysPath     = "/v1/keys"
	rotatePath   = "/v1/keys/rotate"
)

// operate adds what an operator changes to the control API.
func operate(opt Options, handle func(methods, path string, serve http.HandlerFunc)) {
	if o := opt.Objects; o != nil {
		handle("GET, POST", objectsPath, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				serveRequest(w, r, func(ctx context.Context, req objectRequest) error { return o.Submit(ctx, req.Object) })
				return
			}
			all, err := o.Objects(r.Context())
			serveAnswer(w, objectsReply{notNil(all)}, err)
		})
	}
	if l := opt.Leases; l != nil {
		handle(http.MethodPost, renumberPath, func(w http.ResponseWriter, r *http.Request) {
			serveRequest(w, r, func(ctx context.Context, req leaseRequest) error {
				return l.Renumber(ctx, req.Network, req.Force)
			})
		})
		handle(http.MethodPost, releasePath, func(w http.ResponseWriter, r *http.Request) {
			serveRequest(w, r, func(ctx context.Context, req leaseRequest) error { return l.Release(ctx, req.Network) })
		})
		handle(http.MethodPost, forgetPath, func(w http.ResponseWriter, r *http.Request) {
			serveRequest(w, r, func(ctx context.Context, req forgetRequest) error { return l.Forget(ctx, req.Node) })
		})
	}
	if k := opt.Keys; k != nil {
		handle(http.MethodGet, keysPath, func(w http.ResponseWriter, r *http.Request) {
			answer, err := k.Keys(r.Context())
			answer.Gossip = notNil(answer.Gossip)
			serveAnswer(w, answer, err)
		})
		handle(http.MethodPost, rotatePath, func(w http.ResponseWriter, r *http.Request) { serveRotate(k, w, r) })
	}
}

func serveRotate(k Keys, w http.ResponseWriter, r *http.Request) {
	var req rotateRequest
	if !decode(w, r, &req) {
		return
	}
	var rotate func(context.Context) error
	switch {
	case req.Key == keyGossip:
		rotate = func(ctx context.Context) error { return k.RotateGossip(ctx, req.Now) }
	case req.Key == keyTunnel && !req.Now:
		rotate = k.RotateTunnel
	default:
		replyError(w, http.StatusBadRequest, `read request: key must be "gossip" or "tunnel", and now goes with the first`)
		return
	}
	serveAnswer(w, struct{}{}, whole(r, rotate))
}

// serveRequest makes a change that a request describes.
func serveRequest[T any](w http.ResponseWriter, r *http.Request, do func(context.Context, T) error) {
	var req T
	if decode(w, r, &req) {
		serveAnswer(w, struct{}{}, whole(r, func(ctx context.Context) error { return do(ctx, req) }))
	}
}

// whole makes a change that does not stop half-way when the client goes.
func whole(r *http.Request, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), changeTimeout)
	defer cancel()
	return do(ctx)
}

func serveAnswer(w http.ResponseWriter, answer any, err error) {
	if err != nil {
		replyFailure(w, err)
		return
	}
	reply(w, http.StatusOK, answer)
}

// Objects fetches what the node believes, as signed, the charter first.
func (c *Client) Objects(ctx context.Context) ([][]byte, error) {
	r, err := ask[objectsReply](ctx, c, http.MethodGet, objectsPath, nil)
	return r.Objects, err
}

// Submit gives the daemon an object that the CA signed; see [Objects].
func (c *Client) Submit(ctx context.Context, raw []byte) error {
	return c.post(ctx, objectsPath, objectRequest{raw})
}

// Forget frees the leases of a node; see [Leases].
func (c *Client) Forget(ctx context.Context, id mesh.NodeID) error {
	return c.post(ctx, forgetPath, forgetRequest{id})
}

// Renumber takes another subnet in a network; see [Leases].
func (c *Client) Renumber(ctx context.Context, network string, force bool) error {
	return c.post(ctx, renumberPath, leaseRequest{network, force})
}

// Release gives the lease in a network back; see [Leases].
func (c *Client) Release(ctx context.Context, network string) error {
	return c.post(ctx, releasePath, leaseRequest{Network: network})
}

// Keys tells of the node's keys.
func (c *Client) Keys(ctx context.Context) (KeysReply, error) {
	return ask[KeysReply](ctx, c, http.MethodGet, keysPath, nil)
}

// RotateGossip hands a new gossip key to all members; see [Keys].
func (c *Client) RotateGossip(ctx context.Context, now bool) error {
	return c.post(ctx, rotatePath, rotateRequest{keyGossip, now})
}

// RotateTunnel makes a new tunnel key of the node.
func (c *Client) RotateTunnel(ctx context.Context) error {
	return c.post(ctx, rotatePath, rotateRequest{Key: keyTunnel})
}
