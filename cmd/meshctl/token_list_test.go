package main

import (
	"path/filepath"
	"testing"
	"time"

	"meshd/mesh/member"
	"meshd/mesh/meshtest"
	"meshd/mesh/trust"
	"meshd/overlay/status"
)

// A use is a use, also when the node that made it was revoked since.
func TestTokenListCountsRevokedNodes(t *testing.T) {
	m := meshtest.NewMesh(t)
	now := time.Now()
	keys, membership := m.Founder(t, "alpha")
	beta, joined := m.Joined(t, "beta")
	core := meshtest.Member(t, now, keys, membership, member.State{Epoch: 1}, [][]byte{joined.Certificate}, 1)
	for range 50 { // until its lot to vouch for beta has come
		core.Step(now)
		now = now.Add(time.Second)
	}
	o := &operated{daemon: &daemon{doc: healthy()}, core: core}
	socket := serveWith(t, status.Options{Daemon: o, Objects: o, Leases: o, Keys: o})
	list := func() result {
		return meshctl(t.Context(), "--config", filepath.Join(t.TempDir(), "config.yaml"), "--socket", socket, "token", "list", "-f", "{{range .}}{{.nodes}}{{end}}")
	}
	want(t, list(), 0, "[beta]")
	raw, err := (&trust.Revocation{Node: beta.ID(), At: now}).Sign(m.CA())
	if err != nil {
		t.Fatal(err)
	}
	if err := core.Submit(raw); err != nil {
		t.Fatal(err)
	}
	core.Step(now)
	want(t, list(), 0, "[beta (revoked)]")
}
