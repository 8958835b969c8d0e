package mesh_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"meshd/mesh"
)

func TestDiff(t *testing.T) {
	network := mesh.Network{IPv4: netip.MustParsePrefix("10.86.0.0/16"), IPv4Len: 24}
	node := func(n byte, name string, slot int, state mesh.LeaseState) mesh.Node {
		out := mesh.Node{ID: mesh.NodeID{n}, Name: name}
		if slot >= 0 {
			out.Leases = []mesh.Lease{{Network: "default", Prefixes: network.Slot(slot), State: state}}
		}
		return out
	}
	view := func(state mesh.State, health []mesh.Finding, nodes ...mesh.Node) *mesh.View {
		return &mesh.View{Self: mesh.NodeID{1}, State: state, Health: health, Nodes: nodes}
	}
	left := node(2, "beta", -1, 0)
	left.Left = true
	bad := []mesh.Finding{{Level: "error", Code: "clock", Message: "set it"}}
	alpha := node(1, "alpha", 17, mesh.Held)
	withWeb := view(mesh.Ready, nil, alpha)
	withWeb.Networks = []mesh.Network{{Name: "web"}}
	steps := []struct {
		name string
		view *mesh.View
		want string
	}{
		{"first", view(mesh.Probing, nil, node(1, "alpha", 17, mesh.Pending)), "state changed probing; own leases changed [10.86.17.0/24 pending]"},
		{"held", view(mesh.Ready, nil, alpha), "state changed ready; own leases changed [10.86.17.0/24 held]"},
		{"joined", view(mesh.Ready, nil, alpha, node(2, "beta", 80, mesh.Pending)), "node joined beta [10.86.80.0/24 pending]"},
		{"its lease", view(mesh.Ready, nil, alpha, node(2, "beta", 80, mesh.Held)), "leases changed beta [10.86.80.0/24 held]"},
		{"nothing", view(mesh.Ready, nil, alpha, node(2, "beta", 80, mesh.Held)), ""},
		{"bad health", view(mesh.Ready, bad, alpha, node(2, "beta", 80, mesh.Held)), "! health finding error clock set it"},
		{"the same", view(mesh.Ready, bad, alpha, node(2, "beta", 80, mesh.Held)), ""},
		{"left", view(mesh.Ready, nil, alpha, left), "node left beta"},
		{"gone", view(mesh.Ready, nil, alpha), "node is no longer a member beta"},
		{"a network", withWeb, "networks changed [web]"},
	}
	var old *mesh.View
	for _, s := range steps {
		var lines []string
		for _, c := range mesh.Diff(old, s.view) {
			words := []string{c.Message}
			if c.Serious {
				words[0] = "! " + words[0]
			}
			for i := 0; i+1 < len(c.Args); i += 2 {
				if c.Args[i] != "id" {
					words = append(words, fmt.Sprint(c.Args[i+1]))
				}
			}
			lines = append(lines, strings.Join(words, " "))
		}
		if got := strings.Join(lines, "; "); got != s.want {
			t.Errorf("%s: %q, want %q", s.name, got, s.want)
		}
		old = s.view
	}
}
