package status_test

import (
	"encoding/json"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/overlay/attach"
	"meshd/overlay/status"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares with a file in testdata, or rewrites it with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
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
		t.Errorf("%s: got\n%s\nwant\n%s", path, got, want)
	}
}

var now = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

func lease(prefixes ...string) status.Lease {
	l := mesh.Lease{Network: "default", State: mesh.Held, Since: now.Add(-76 * time.Hour)}
	for _, p := range prefixes {
		l.Prefixes = append(l.Prefixes, netip.MustParsePrefix(p))
	}
	return status.NewLease(l)
}

func renewed(l status.Lease) status.Lease {
	l.Renewed, l.Expires = new(now.Add(-20*time.Minute)), new(now.Add(1420*time.Minute))
	return l
}

// example is a mesh with a peer in every state.
func example() *status.Document {
	id := mesh.ID{9}
	node := func(n byte) *netip.Addr { return new(mesh.ControlAddr(id, mesh.NodeID{n})) }
	return &status.Document{
		Version: status.Version, Networks: []status.Network{status.NewNetwork(mesh.Network{
			Name: "default", IPv4: netip.MustParsePrefix("10.86.0.0/16"), IPv4Len: 24,
			IPv6: netip.MustParsePrefix("fd12:3456:789a::/48"), IPv6Len: 64,
		})},
		State: mesh.Ready, Mesh: status.Mesh{ID: id, Name: "home", Revocations: 2},
		Node: status.Node{
			ID: mesh.NodeID{1}, Name: "alpha", Epoch: 7, Control: node(1),
			Leases:          []status.Lease{renewed(lease("10.86.17.0/24", "fd12:3456:789a:11::/64"))},
			CertificateEnds: new(now.Add(300 * 24 * time.Hour)), GossipKey: &status.Generations{Newest: 3, Sends: 2}, GossipKeyMade: new(now.Add(-30 * 24 * time.Hour)),
		},
		Engine: status.Engine{Name: "wireguard-go", MTU: 1420, Drops: map[string]uint64{"inner_source": 3}},
		Peers: []status.Peer{
			{
				ID: mesh.NodeID{2}, Name: "beta", Control: node(2), State: status.PeerUp, Path: status.PathDirect,
				Endpoint: new(netip.MustParseAddrPort("203.0.113.9:51880")), Suite: "chacha20poly1305",
				Leases: []status.Lease{lease("10.86.80.0/24", "fd12:3456:789a:50::/64")},
				RTTms:  new(12.1), Loss: new(0.0), RxBytes: new(uint64(1288490189)), TxBytes: new(uint64(356515840)),
				LastHandshake: new(now.Add(-80 * time.Second)), LastSeen: new(now.Add(-2 * time.Second)),
				CertificateEnds: new(now.Add(9 * 24 * time.Hour)), GossipKey: &status.Generations{Newest: 3, Sends: 3},
			},
			{
				ID: mesh.NodeID{3}, Name: "delta", Control: node(3), State: status.PeerDown, Path: status.PathDirect,
				Endpoint: new(netip.MustParseAddrPort("[2001:db8::4]:51880")), PathMTU: new(1200), Suite: "chacha20poly1305",
				Expired: mesh.NotHeard,
				Leases:  []status.Lease{lease("10.86.4.0/24")}, Loss: new(1.0), RxBytes: new(uint64(0)), TxBytes: new(uint64(1480)),
			},
			{
				ID: mesh.NodeID{4}, Name: "epsilon", Control: node(4), State: status.PeerLeft, Path: status.PathNone,
				Leases: []status.Lease{{Network: "default", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.86.9.0/24")}, State: "released"}},
			},
			{
				ID: mesh.NodeID{5}, Name: "gamma", Control: node(5), State: status.PeerIdle, Path: status.PathIdle,
				Endpoint: new(netip.MustParseAddrPort("198.51.100.4:51880")), Suite: "chacha20poly1305",
				Leases: []status.Lease{lease("10.86.3.0/24")}, RxBytes: new(uint64(12288)), TxBytes: new(uint64(9216)),
			},
		},
		Health: []status.Finding{{Level: "warning", Code: "clock", Message: "this host's clock is 3m ahead: run an NTP client"}},
		Attachments: status.CountAttachments([]attach.Attachment{
			{Network: "web", State: attach.Stale}, {Network: "web", State: attach.Live}, {Network: "default", State: attach.Live}, {Network: "web", State: attach.Live},
		}),
	}
}

func TestJSON(t *testing.T) {
	for name, doc := range map[string]*status.Document{
		"example":     example(),
		"unreachable": {Version: status.Version, State: mesh.Unreachable},
	} {
		t.Run(name, func(t *testing.T) {
			raw, err := json.MarshalIndent(doc, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".json", string(raw)+"\n")
			var again status.Document
			if err := json.Unmarshal(raw, &again); err != nil {
				t.Fatal(err)
			}
			back, err := json.MarshalIndent(again, "", "  ")
			if err != nil || string(back) != string(raw) {
				t.Errorf("reading and writing it again gives %v\n%s", err, back)
			}
		})
	}
}

// Marshalling must not change the document that others still read.
func TestJSONLeavesTheDocumentAlone(t *testing.T) {
	doc := &status.Document{Peers: []status.Peer{{Name: "beta"}}}
	if _, err := json.Marshal(doc); err != nil {
		t.Fatal(err)
	}
	if want := (&status.Document{Peers: []status.Peer{{Name: "beta"}}}); !reflect.DeepEqual(doc, want) {
		t.Errorf("document became %+v", doc)
	}
}

func TestExitCode(t *testing.T) {
	peer := func(s status.PeerState) []status.Peer { return []status.Peer{{State: s}} }
	for _, tt := range []struct {
		name string
		doc  status.Document
		want int
	}{
		{"alone and ready", status.Document{State: mesh.Ready}, 0},
		{"peers up, idle", status.Document{State: mesh.Ready, Peers: append(peer(status.PeerUp), peer(status.PeerIdle)...)}, 0},
		{"a peer left", status.Document{State: mesh.Ready, Peers: peer(status.PeerLeft)}, 0},
		{"a peer is down", status.Document{State: mesh.Ready, Peers: peer(status.PeerDown)}, 1},
		{"an info", status.Document{State: mesh.Ready, Health: []status.Finding{{Level: "info"}}}, 0},
		{"a warning", status.Document{State: mesh.Ready, Health: []status.Finding{{Level: "warning"}}}, 1},
		{"waiting", status.Document{State: mesh.WaitingForSeed}, 3},
		{"not ready counts more than degraded", status.Document{State: mesh.Probing, Peers: peer(status.PeerDown)}, 3},
		{"no daemon", status.Document{State: mesh.Unreachable}, 3},
		{"zero", status.Document{}, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.doc.ExitCode(); got != tt.want {
				t.Errorf("ExitCode = %d, want %d", got, tt.want)
			}
			if got := tt.doc.Healthy(); got != (tt.want == 0) {
				t.Errorf("Healthy = %v with exit code %d", got, tt.want)
			}
		})
	}
}

func TestFind(t *testing.T) {
	doc := example()
	twin := doc.Peers[0]
	twin.ID = mesh.NodeID{77}
	twin.Name = "twin"
	other := twin
	other.ID = mesh.NodeID{78}
	back := doc.Peers[2] // epsilon, that left and joined again under a new identity
	back.ID, back.State = mesh.NodeID{79}, status.PeerUp
	twin.Leases, other.Leases = nil, nil
	place := doc.Peers[0] // came in the place of delta, which is expired
	place.ID, place.Name, place.Leases = mesh.NodeID{80}, "delta", nil
	doc.Peers = append(doc.Peers, twin, other, back, place)

	for _, tt := range []struct {
		ask  string
		want mesh.NodeID
		err  error
		text string
	}{
		{ask: "beta", want: mesh.NodeID{2}},
		{ask: mesh.NodeID{5}.String(), want: mesh.NodeID{5}},
		{ask: mesh.NodeID{5}.Short(), want: mesh.NodeID{5}},
		{ask: "10.86.80.1", want: mesh.NodeID{2}},
		{ask: "fd12:3456:789a:50::1", want: mesh.NodeID{2}},
		{ask: doc.Peers[3].Control.String(), want: mesh.NodeID{5}},
		{ask: "epsilon", want: mesh.NodeID{79}},
		{ask: "delta", want: mesh.NodeID{80}},
		{ask: "twin", err: status.ErrAmbiguousNode, text: mesh.NodeID{78}.String()},
		{ask: "nobody", err: status.ErrUnknownNode, text: "beta, delta, epsilon, gamma, twin"},
		{ask: "10.86.80.2", err: status.ErrUnknownNode, text: "there are"},
		{ask: "", err: status.ErrUnknownNode, text: "there are"},
		{ask: "a", err: status.ErrUnknownNode, text: "there are"},
		{ask: "alpha", err: status.ErrUnknownNode, text: "this node itself"},
		{ask: "\x1b[2J", err: status.ErrUnknownNode, text: `\x1b[2J`},
	} {
		t.Run(tt.ask, func(t *testing.T) {
			p, err := doc.Find(tt.ask)
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if err != nil {
				if !strings.Contains(err.Error(), tt.text) {
					t.Errorf("error %q, want it to say %q", err, tt.text)
				}
				return
			}
			if p.ID != tt.want {
				t.Errorf("found %s, want %s", p.ID, tt.want)
			}
		})
	}

	t.Run("alone", func(t *testing.T) {
		if _, err := new(status.Document).Find("beta"); !errors.Is(err, status.ErrUnknownNode) || !strings.Contains(err.Error(), "knows no other") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("many names are cut", func(t *testing.T) {
		var doc status.Document
		for i := range 1000 {
			doc.Peers = append(doc.Peers, status.Peer{Name: "node-" + strings.Repeat("x", i%60)})
		}
		if _, err := doc.Find("nobody"); len(err.Error()) > 2000 || !strings.Contains(err.Error(), "more") {
			t.Errorf("error of %d bytes: %.200s", len(err.Error()), err)
		}
	})
}
