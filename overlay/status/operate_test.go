package status_test

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/member"
	"meshd/mesh/meshtest"
	"meshd/mesh/trust"
	"meshd/overlay/status"
)

// operator notes what it is asked to do.
type operator struct {
	calls []string
	fail  error
	core  *member.Member // nil: objects are only noted
}

func (o *operator) called(format string, args ...any) error {
	o.calls = append(o.calls, fmt.Sprintf(format, args...))
	return o.fail
}

func (o *operator) Objects(context.Context) ([][]byte, error) {
	if o.core == nil {
		return nil, o.called("objects")
	}
	return o.core.Table(), nil
}

func (o *operator) Submit(_ context.Context, raw []byte) error {
	if o.core == nil {
		return o.called("submit %s", raw)
	}
	if err := o.core.Submit(raw); errors.Is(err, member.ErrRefused) {
		return fmt.Errorf("%w: %w", status.ErrRefused, err)
	} else if err != nil {
		return err
	}
	return nil
}

func (o *operator) Renumber(_ context.Context, network string, force bool) error {
	return o.called("renumber %s %t", network, force)
}
func (o *operator) Release(_ context.Context, network string) error {
	return o.called("release %s", network)
}
func (o *operator) Forget(_ context.Context, id mesh.NodeID) error { return o.called("forget %s", id) }
func (o *operator) Keys(context.Context) (status.KeysReply, error) {
	return status.KeysReply{Tunnel: "abc"}, o.called("keys")
}
func (o *operator) RotateGossip(_ context.Context, now bool) error {
	return o.called("rotate gossip %t", now)
}
func (o *operator) RotateTunnel(context.Context) error { return o.called("rotate tunnel") }

func startOperator(t *testing.T, o *operator) (*status.Client, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "meshd.sock")
	serve(t, status.Options{Control: path, Daemon: &daemon{}, Objects: o, Leases: o, Keys: o})
	return status.NewClient(path), path
}

func TestOperate(t *testing.T) {
	o := &operator{}
	client, path := startOperator(t, o)
	id := mesh.NodeID{7}
	for _, do := range []func(context.Context) error{
		func(ctx context.Context) error { return client.Submit(ctx, []byte("raw")) },
		func(ctx context.Context) error { return client.Forget(ctx, id) },
		func(ctx context.Context) error { return client.Renumber(ctx, "web", true) },
		func(ctx context.Context) error { return client.Release(ctx, "web") },
		func(ctx context.Context) error { return client.RotateGossip(ctx, true) },
		func(ctx context.Context) error { return client.RotateTunnel(ctx) },
	} {
		if err := do(t.Context()); err != nil {
			t.Error(err)
		}
	}
	want := fmt.Sprintf("submit raw; forget %s; renumber web true; release web; rotate gossip true; rotate tunnel", id)
	if got := strings.Join(o.calls, "; "); got != want {
		t.Errorf("the daemon was told\n%s, want\n%s", got, want)
	}
	if code, body := raw(t, path, "GET", "/v1/objects", ""); code != 200 || string(body) != `{"objects":[]}`+"\n" {
		t.Errorf("no objects: %d %s", code, body)
	}
	if code, body := raw(t, path, "GET", "/v1/keys", ""); code != 200 || string(body) != `{"tunnel":"abc","gossip":[]}`+"\n" {
		t.Errorf("keys: %d %s", code, body)
	}
	if err := client.Submit(t.Context(), make([]byte, trust.MaxObject)); err != nil {
		t.Errorf("the largest object: %v", err)
	}
	o.fail = fmt.Errorf("%w \x1b[2J", status.ErrNotNext)
	if err := client.Submit(t.Context(), nil); err == nil || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("what is no text reaches the terminal: %q", err)
	}
}

// What the daemon gives as a reason, the client has as one.
func TestOperateReasons(t *testing.T) {
	for _, reason := range []error{
		status.ErrRefused, status.ErrNotNext, status.ErrLeaseInUse, status.ErrNotNow, status.ErrNotAllowed, status.ErrUnknownNode, status.ErrAmbiguousNode,
	} {
		o := &operator{fail: fmt.Errorf("do it: %w: because", reason)}
		client, _ := startOperator(t, o)
		for what, err := range map[string]error{
			"submit": client.Submit(t.Context(), nil), "forget": client.Forget(t.Context(), mesh.NodeID{1}),
			"renumber": client.Renumber(t.Context(), "web", false), "release": client.Release(t.Context(), "web"),
			"rotate": client.RotateGossip(t.Context(), false), "tunnel": client.RotateTunnel(t.Context()),
		} {
			if !errors.Is(err, reason) || err.Error() != o.fail.Error() {
				t.Errorf("%s: %v, want %v", what, err, o.fail)
			}
		}
		for what, get := range map[string]func() error{
			"objects": func() error { _, err := client.Objects(t.Context()); return err },
			"keys":    func() error { _, err := client.Keys(t.Context()); return err },
		} {
			if err := get(); !errors.Is(err, reason) {
				t.Errorf("%s: %v, want %v", what, err, reason)
			}
		}
	}
}

// Requests that are no requests do not get to the daemon.
func TestOperateBadRequests(t *testing.T) {
	o := &operator{}
	_, path := startOperator(t, o)
	large := `{"object":"` + base64.StdEncoding.EncodeToString(make([]byte, 20<<10)) + `"}`
	for _, tt := range []struct {
		method, path, body string
		code               int
	}{
		{"POST", "/v1/objects", ``, 400},
		{"POST", "/v1/objects", `[]`, 400},
		{"POST", "/v1/objects", `{"object":"***"}`, 400},
		{"POST", "/v1/objects", `{"object":"AA=="}{}`, 400},
		{"POST", "/v1/objects", `{"objects":["AA=="]}`, 400},
		{"POST", "/v1/objects", large, 400},
		{"DELETE", "/v1/objects", ``, 405},
		{"POST", "/v1/forget", `{"node":"beta"}`, 400}, // an ID, so that no name is taken for another
		{"POST", "/v1/forget", `{"node":""}`, 400},
		{"POST", "/v1/forget", `{"node":null,"force":true}`, 400},
		{"GET", "/v1/forget", ``, 405},
		{"POST", "/v1/leases/renumber", `{"network":7}`, 400},
		{"POST", "/v1/leases/renumber", `{"network":"web","all":true}`, 400},
		{"GET", "/v1/leases/renumber", ``, 405},
		{"POST", "/v1/leases/release", `"web"`, 400},
		{"POST", "/v1/keys", `{}`, 405},
		{"POST", "/v1/keys/rotate", `{}`, 400},
		{"POST", "/v1/keys/rotate", `{"key":"identity"}`, 400},
		{"POST", "/v1/keys/rotate", `{"key":"tunnel","now":true}`, 400},
		{"GET", "/v1/keys/rotate", ``, 405},
	} {
		if code, body := raw(t, path, tt.method, tt.path, tt.body); code != tt.code || !strings.Contains(string(body), `"error":"`) {
			t.Errorf("%s %s %.60s: %d %s, want %d", tt.method, tt.path, tt.body, code, body, tt.code)
		}
	}
	if len(o.calls) > 0 {
		t.Errorf("the daemon was told %q", o.calls)
	}
}

// TestSubmitRefuses gives a real member what its CA has not signed, or not for this.
func TestSubmitRefuses(t *testing.T) {
	m := meshtest.NewMesh(t)
	keys, membership := m.Founder(t, "alpha")
	o := &operator{core: meshtest.Member(t, time.Now(), keys, membership, member.State{Epoch: 1}, nil, 1)}
	client, _ := startOperator(t, o)
	_, stranger, _ := ed25519.GenerateKey(nil)
	sign := func(raw []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	own, err := trust.ParseCertificate(membership.Certificate, m.Charter.CA)
	if err != nil {
		t.Fatal(err)
	}
	beta, joined := m.Joined(t, "beta")
	now := time.Now()
	revocation := trust.Revocation{Node: beta.ID(), At: now}
	tomb := trust.Tombstone{Node: beta.ID(), Version: mesh.Version{Epoch: 1, Seq: trust.WholeEpoch}, Reason: trust.Forgotten, At: now}
	byMember := trust.Tombstone{Node: beta.ID(), Version: mesh.Version{Epoch: 1, Seq: 1}, Reason: trust.Forgotten, At: now, Issuer: own.Hash}
	renewed := *own
	renewed.Serial, renewed.NotAfter = trust.NewSerial(), own.NotAfter.Add(time.Hour)
	charter := *m.Charter
	cut := sign(revocation.Sign(stranger))
	admission := trust.Admission{Certificate: trust.Hash{1}, Admitter: own.Hash, Seen: now}
	before := fmt.Sprintf("%x", o.core.Table())
	for name, raw := range map[string][]byte{
		"nothing":                     nil,
		"junk":                        []byte("junk"),
		"too large":                   make([]byte, trust.MaxObject+1),
		"a revocation by another CA":  sign(revocation.Sign(stranger)),
		"a revocation by a member":    sign(revocation.Sign(keys.Identity)),
		"a revocation, cut":           cut[:len(cut)-1],
		"a tombstone by another CA":   sign(tomb.Sign(stranger)),
		"a member's tombstone":        sign(byMember.Sign(keys.Identity)),
		"a certificate by another CA": sign(renewed.Sign(stranger)),
		"a certificate by a token":    joined.Certificate,
		"an admission":                admission.Sign(keys.Identity),
		"a charter of another mesh":   sign(charter.Sign(stranger)),
		"a record with nothing in it": {0x83, 5, 0x40, 0x40},
	} {
		if err := client.Submit(t.Context(), raw); err == nil {
			t.Errorf("%s was taken", name)
		} else if !errors.Is(err, status.ErrRefused) && name != "a charter of another mesh" {
			t.Errorf("%s: %v, want %v", name, err, status.ErrRefused)
		}
	}
	if after := fmt.Sprintf("%x", o.core.Table()); after != before {
		t.Error("something of that is believed")
	}
}
