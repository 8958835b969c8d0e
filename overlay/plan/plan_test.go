package plan_test

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/overlay/plan"
	"meshd/overlay/tunnel"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var (
	meshID  = mesh.ID{0xaa}
	founded = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	network = mesh.Network{
		Name: "default", IPv4: netip.MustParsePrefix("10.86.0.0/16"), IPv4Len: 24,
		IPv6: netip.MustParsePrefix("fd00:86::/48"), IPv6Len: 64,
	}
)

// node makes a member that holds, or otherwise has, the given slot; -1: none.
func node(n byte, name string, slot int, state mesh.LeaseState) mesh.Node {
	id := mesh.NodeID{n}
	out := mesh.Node{
		ID: id, Name: name, Control: mesh.ControlAddr(meshID, id), Key: mesh.Key{n},
		Admitted:  founded.Add(time.Duration(n) * time.Hour),
		Endpoints: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, n}), 51880)},
	}
	if slot >= 0 {
		out.Leases = []mesh.Lease{{Network: "default", Prefixes: network.Slot(slot), State: state}}
	}
	return out
}

func view(state mesh.State, nodes ...mesh.Node) *mesh.View {
	return &mesh.View{
		Mesh: meshID, MeshName: "home", Control: mesh.ControlRange(meshID), Networks: []mesh.Network{network},
		Self: mesh.NodeID{1}, State: state, Nodes: nodes,
	}
}

func TestBuild(t *testing.T) {
	left := node(3, "gamma", -1, 0)
	left.Left = true
	silent := node(4, "delta", -1, 0)
	silent.Key = mesh.Key{}
	thief := node(5, "thief", 9, mesh.Held)
	thief.Key = mesh.Key{2}
	double := node(6, "double", 10, mesh.Held)
	double.Control = mesh.ControlAddr(meshID, mesh.NodeID{1})

	for name, v := range map[string]*mesh.View{
		"two_ready":            view(mesh.Ready, node(1, "alpha", 17, mesh.Held), node(2, "beta", 80, mesh.Held)),
		"no_lease_yet":         view(mesh.Probing, node(1, "alpha", 17, mesh.Pending), node(2, "beta", 80, mesh.Held)),
		"peer_pending":         view(mesh.Ready, node(1, "alpha", 17, mesh.Held), node(2, "beta", 80, mesh.Pending)),
		"peer_quarantined":     view(mesh.Ready, node(1, "alpha", 17, mesh.Held), node(2, "beta", 80, mesh.Quarantined)),
		"quarantined":          view(mesh.Quarantine, node(1, "alpha", 17, mesh.Quarantined), node(2, "beta", 17, mesh.Held)),
		"not_admitted":         view(mesh.WaitingForSeed, node(2, "beta", 80, mesh.Held)),
		"left":                 view(mesh.Left, node(1, "alpha", 17, mesh.Released), node(2, "beta", 80, mesh.Held)),
		"peers_left_or_silent": view(mesh.Ready, node(1, "alpha", 17, mesh.Held), left, silent),
		"stolen_key":           view(mesh.Ready, node(1, "alpha", 17, mesh.Held), node(2, "beta", 80, mesh.Held), thief, double),
	} {
		t.Run(name, func(t *testing.T) {
			golden(t, filepath.Join("testdata", name+".txt"), text(plan.Build(v, plan.Options{Link: "mesh0", MTU: 1420})))
		})
	}
}

// Senders heed what a path carries, to the peer alone to which it leads; what the
// device does not send anyway needs no route.
func TestNarrowPath(t *testing.T) {
	v := view(mesh.Ready, node(1, "alpha", 17, mesh.Held), node(2, "beta", 80, mesh.Held), node(3, "gamma", 81, mesh.Held))
	opt := plan.Options{Link: "mesh0", MTU: 1420, Paths: map[mesh.NodeID]int{{2}: 1200, {3}: 1420, {9}: 1200}}
	p := plan.Build(v, opt)
	golden(t, filepath.Join("testdata", "narrow_path.txt"), text(p))
	for i, want := range []int{1200, 0} {
		if got := p.Tunnel.Peers[i]; got.MTU != want {
			t.Errorf("peer %s has MTU %d, want %d", got.ID.Short(), got.MTU, want)
		}
	}
	v.Nodes[0].Leases[0].State = mesh.Quarantined // there are no routes to lease ranges now
	for _, r := range plan.Build(v, opt).Host.Routes {
		if r.MTU != 0 && r.Dst != netip.PrefixFrom(v.Nodes[1].Control, 128) {
			t.Errorf("route %s past the others' unreachable ones", r)
		}
	}
}

// Whoever has proved to have the private half of a tunnel key has it, also where an
// older member shows it.
func TestProvenKey(t *testing.T) {
	for _, tt := range []struct {
		name            string
		senior, junior  bool // has proved it
		want, complains int
	}{
		{"neither", false, false, 2, 1},
		{"the senior", true, false, 2, 1},
		{"the junior", false, true, 3, 1},
		{"both, which cannot be", true, true, 2, 1},
	} {
		self, senior, junior := node(1, "alpha", 17, mesh.Held), node(2, "beta", 80, mesh.Held), node(3, "gamma", 81, mesh.Held)
		senior.Admitted = junior.Admitted.Add(-time.Hour)
		senior.Key, senior.Proven, junior.Proven = junior.Key, tt.senior, tt.junior
		p := plan.Build(view(mesh.Ready, self, senior, junior), plan.Options{Link: "mesh0", MTU: 1420})
		if len(p.Tunnel.Peers) != 1 || p.Tunnel.Peers[0].ID[0] != byte(tt.want) || len(p.Health) != tt.complains {
			t.Errorf("%s has proved it: peers %v, health %v", tt.name, p.Tunnel.Peers, p.Health)
		}
	}
}

// AES takes the word of both nodes, each signed; the order in which they list
// their suites says nothing.
func TestSuite(t *testing.T) {
	const chacha, aes = tunnel.ChaCha20Poly1305, tunnel.AES256GCM
	for _, c := range []struct {
		own, others []string
		want        string
	}{
		{[]string{aes, chacha}, []string{aes, chacha}, aes},
		{[]string{chacha, aes}, []string{aes}, aes},
		{[]string{aes, chacha}, []string{chacha}, chacha},
		{[]string{chacha}, []string{aes, chacha}, chacha},
		{[]string{aes, chacha}, nil, chacha},
		{[]string{aes}, []string{"x"}, chacha},
	} {
		alpha, beta := node(1, "alpha", 17, mesh.Held), node(2, "beta", 80, mesh.Held)
		alpha.Suites, beta.Suites = c.own, c.others
		peers := plan.Build(view(mesh.Ready, alpha, beta), plan.Options{Link: "mesh0", MTU: 1420}).Tunnel.Peers
		if len(peers) != 1 || peers[0].Suite != c.want {
			t.Errorf("%v and %v: %+v, want %s", c.own, c.others, peers, c.want)
		}
	}
}

// text prints a plan for people.
func text(p plan.Plan) string {
	var b strings.Builder
	fmt.Fprintf(&b, "own %v\n", p.Tunnel.Own)
	fmt.Fprintf(&b, "inside %v\n", p.Tunnel.Inside)
	for _, peer := range p.Tunnel.Peers {
		fmt.Fprintf(&b, "peer %s key %x endpoints %v allowed %v\n", peer.ID.Short(), peer.PublicKey[:1], peer.Endpoints, peer.AllowedIPs)
	}
	b.WriteString(p.Host.String())
	for _, f := range p.Health {
		fmt.Fprintf(&b, "%s %s: %s\n", f.Level, f.Code, f.Message)
	}
	return b.String()
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s\ngot:\n%s\nwant:\n%s", path, got, want)
	}
}

// TestNobodyGetsTwice holds invariants I1 and I2 over a mesh full of overlaps:
// no inner address belongs to two peers, or to a peer and to us.
func TestNobodyGetsTwice(t *testing.T) {
	nodes := []mesh.Node{node(1, "alpha", 17, mesh.Held)}
	for i := byte(2); i < 40; i++ {
		n := node(i, fmt.Sprintf("n%d", i), int(i)+100, mesh.Held)
		if i%3 == 0 {
			n.Key = mesh.Key{i / 3}
		}
		if i%5 == 0 {
			n.Control = mesh.ControlAddr(meshID, mesh.NodeID{i / 5})
		}
		nodes = append(nodes, n)
	}
	p := plan.Build(view(mesh.Ready, nodes...), plan.Options{Link: "mesh0", MTU: 1420})
	keys, seen := map[mesh.Key]bool{}, p.Tunnel.Own
	for _, peer := range p.Tunnel.Peers {
		if keys[peer.PublicKey] {
			t.Errorf("two peers with key %s", peer.PublicKey)
		}
		keys[peer.PublicKey] = true
		for _, a := range peer.AllowedIPs {
			for _, b := range seen {
				if a.Overlaps(b) {
					t.Errorf("%s of peer %s overlaps %s", a, peer.ID.Short(), b)
				}
			}
		}
		seen = append(seen, peer.AllowedIPs...)
	}
	if len(p.Tunnel.Peers) == 0 || len(p.Health) == 0 {
		t.Fatalf("%d peers and %d findings: the test proves nothing", len(p.Tunnel.Peers), len(p.Health))
	}
}

func TestHostWithoutIPv6(t *testing.T) {
	p := plan.Build(view(mesh.Ready, node(1, "alpha", 17, mesh.Held), node(2, "beta", 80, mesh.Held)), plan.Options{Link: "mesh0", MTU: 1420, NoIPv6: true})
	golden(t, filepath.Join("testdata", "no_ipv6.txt"), text(p))
}
