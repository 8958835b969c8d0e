package wggo

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/overlay/tunnel"
)

// testPeer reads "1 via a:1 a:2 allowed p q".
func testPeer(t *testing.T, text string) tunnel.Peer {
	t.Helper()
	fields := strings.Fields(text)
	var n byte
	if _, err := fmt.Sscan(fields[0], &n); err != nil {
		t.Fatal(err)
	}
	p := tunnel.Peer{ID: mesh.NodeID{n}, PublicKey: mesh.Key{n}}
	allowed := false
	for _, f := range fields[1:] {
		switch {
		case f == "via":
		case f == "allowed":
			allowed = true
		case allowed:
			p.AllowedIPs = append(p.AllowedIPs, netip.MustParsePrefix(f))
		default:
			p.Endpoints = append(p.Endpoints, netip.MustParseAddrPort(f))
		}
	}
	return p
}

func TestDiff(t *testing.T) {
	for _, c := range []struct {
		name       string
		have, want []string
		current    string // endpoint that the device has for peer 1
		ops        string // keys shortened to their first byte
	}{
		{name: "nothing"},
		{
			name: "new peer",
			want: []string{"1 via 192.0.2.1:1 192.0.2.1:2 allowed 10.1.0.0/24 fd00::/64"},
			ops:  "01 endpoint=192.0.2.1:1 allowed_ip=10.1.0.0/24 allowed_ip=fd00::/64",
		},
		{name: "new peer without anything", want: []string{"1"}, ops: "01"},
		{
			name: "same",
			have: []string{"1 via 192.0.2.1:1 allowed 10.1.0.0/24"},
			want: []string{"1 via 192.0.2.1:1 allowed 10.1.0.0/24"},
		},
		{
			name:    "same, with a learned endpoint",
			have:    []string{"1 via 192.0.2.1:1 allowed 10.1.0.0/24"},
			want:    []string{"1 via 192.0.2.1:1 allowed 10.1.0.0/24"},
			current: "192.0.2.9:9",
		},
		{
			name:    "one more candidate",
			have:    []string{"1 via 192.0.2.1:1"},
			want:    []string{"1 via 192.0.2.1:2 192.0.2.1:1"},
			current: "192.0.2.1:1",
		},
		{
			name:    "another candidate",
			have:    []string{"1 via 192.0.2.1:1"},
			want:    []string{"1 via 192.0.2.1:2"},
			current: "192.0.2.1:1",
			ops:     "01 endpoint=192.0.2.1:2",
		},
		{
			name:    "no candidate any more",
			have:    []string{"1 via 192.0.2.1:1"},
			want:    []string{"1"},
			current: "192.0.2.1:1",
		},
		{
			name: "a prefix moves: first added, then removed",
			have: []string{"1 allowed 10.1.0.0/24 10.9.0.0/24", "2 allowed 10.2.0.0/24"},
			want: []string{"1 allowed 10.1.0.0/24", "2 allowed 10.2.0.0/24 10.9.0.0/24"},
			ops:  "02 allowed_ip=10.9.0.0/24; 01 update_only allowed_ip=-10.9.0.0/24",
		},
		{
			name: "removed last",
			have: []string{"1 allowed 10.1.0.0/24"},
			want: []string{"2 allowed 10.1.0.0/24"},
			ops:  "02 allowed_ip=10.1.0.0/24; 01 update_only remove",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			have, want, now := map[mesh.Key]*peer{}, map[mesh.Key]tunnel.Peer{}, map[mesh.Key]tunnel.PeerStats{}
			for _, text := range c.have {
				p := testPeer(t, text)
				have[p.PublicKey] = &peer{want: p}
			}
			for _, text := range c.want {
				p := testPeer(t, text)
				want[p.PublicKey] = p
			}
			if c.current != "" {
				now[mesh.Key{1}] = tunnel.PeerStats{Endpoint: netip.MustParseAddrPort(c.current)}
			}
			next, ops := diff(have, want, now)
			ops = strings.NewReplacer("\npublic_key=", "; ", "public_key=", "", strings.Repeat("00", 31), "", "=true", "", "\n", " ").Replace(strings.TrimSpace(ops))
			if ops != c.ops {
				t.Errorf("operations\n%s\nwant\n%s", ops, c.ops)
			}
			if len(next) != len(want) {
				t.Errorf("%d peers afterwards, want %d", len(next), len(want))
			}
		})
	}
}

func TestByKeyReportsBadPeers(t *testing.T) {
	good := testPeer(t, "1 via 10.1.0.7:1 [::ffff:192.0.2.1]:1 [::ffff:10.1.0.7]:1 allowed 10.1.0.7/24")
	twin, keyless, strange := testPeer(t, "1"), testPeer(t, "0"), testPeer(t, "3")
	twin.ID, strange.Suite = mesh.NodeID{2}, "rot13"
	peers, err := byKey([]tunnel.Peer{good, twin, keyless, strange}, prefixes{netip.MustParsePrefix("10.0.0.0/8")})
	if err == nil {
		t.Fatal("bad peers were accepted")
	}
	for _, p := range []tunnel.Peer{twin, keyless, strange} {
		if !strings.Contains(err.Error(), p.ID.Short()) {
			t.Errorf("the error does not name peer %s: %v", p.ID.Short(), err)
		}
	}
	got := peers[good.PublicKey]
	if len(peers) != 1 || got.ID != good.ID {
		t.Fatalf("got %v, want the good peer", peers)
	}
	if len(got.Endpoints) != 1 || got.Endpoints[0].String() != "192.0.2.1:1" || got.AllowedIPs[0].String() != "10.1.0.0/24" {
		t.Errorf("got %v %v, want them in the device's form, without endpoints inside the mesh", got.Endpoints, got.AllowedIPs)
	}
}

// TestNextEndpoint plays a peer through time: a try every second, what the
// device knows, and where it is sent to.
func TestRenewalIsGivenUp(t *testing.T) {
	e, key, now := New(Options{}), mesh.Key{1}, time.Now()
	e.peers[key] = &peer{owed: renewal{until: now}}
	e.renewSessions(now.Add(time.Nanosecond)) // asks no device, and there is none
	if owed := e.peers[key].owed; owed != (renewal{}) {
		t.Errorf("still owed: %+v", owed)
	}
}

func TestNextEndpoint(t *testing.T) {
	const patience = 10 * time.Second
	begin := time.Unix(1e9, 0)
	type step struct {
		second   int
		endpoint string
		idle     bool // nobody initiates handshakes
		rx       uint64
		want     string // empty: stay
	}
	for _, c := range []struct {
		name  string
		peer  string
		steps []step
	}{
		{"moves on after our patience, and around", "1 via 192.0.2.1:1 192.0.2.1:2", []step{
			{second: 0, endpoint: "192.0.2.1:1"},
			{second: 9, endpoint: "192.0.2.1:1"},
			{second: 10, endpoint: "192.0.2.1:1", want: "192.0.2.1:2"},
			{second: 19, endpoint: "192.0.2.1:2"},
			{second: 20, endpoint: "192.0.2.1:2", want: "192.0.2.1:1"},
		}},
		{"stays while idle", "1 via 192.0.2.1:1 192.0.2.1:2", []step{
			{second: 0, endpoint: "192.0.2.1:1"},
			{second: 9, endpoint: "192.0.2.1:1", idle: true},
			{second: 10, endpoint: "192.0.2.1:1"},
			{second: 19, endpoint: "192.0.2.1:1"},
			{second: 20, endpoint: "192.0.2.1:1", want: "192.0.2.1:2"},
		}},
		{"stays while something is heard", "1 via 192.0.2.1:1 192.0.2.1:2", []step{
			{second: 0, endpoint: "192.0.2.1:1", rx: 1},
			{second: 9, endpoint: "192.0.2.1:1", rx: 2},
			{second: 12, endpoint: "192.0.2.1:1", rx: 2},
			{second: 18, endpoint: "192.0.2.1:1", rx: 3},
			{second: 28, endpoint: "192.0.2.1:1", rx: 3, want: "192.0.2.1:2"},
		}},
		{"has nowhere to go", "1 via 192.0.2.1:1", []step{
			{second: 0, endpoint: "192.0.2.1:1"},
			{second: 10, endpoint: "192.0.2.1:1"},
			{second: 30, endpoint: "192.0.2.1:1"},
		}},
		{"comes back to a learned endpoint", "1 via 192.0.2.1:1", []step{
			{second: 0, endpoint: "192.0.2.9:9"},
			{second: 10, endpoint: "192.0.2.9:9", want: "192.0.2.1:1"},
			{second: 20, endpoint: "192.0.2.1:1", want: "192.0.2.9:9"},
		}},
		{"knows a learned endpoint only", "1", []step{
			{second: 0, endpoint: "192.0.2.9:9"},
			{second: 10, endpoint: "192.0.2.9:9"},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &peer{want: testPeer(t, c.peer)}
			for _, s := range c.steps {
				now := begin.Add(time.Duration(s.second) * time.Second)
				lastTry := now.Add(-time.Second)
				if s.idle {
					lastTry = time.Time{}
				}
				stats := tunnel.PeerStats{Endpoint: netip.MustParseAddrPort(s.endpoint), RxBytes: s.rx}
				next, move := p.nextEndpoint(stats, lastTry, now, patience)
				if got := next.String(); move && got != s.want || !move && s.want != "" {
					t.Errorf("at %d s: move %v to %v, want %q", s.second, move, next, s.want)
				}
			}
		})
	}
}
