package status_test

import (
	"strings"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/overlay/status"
)

func table(t *testing.T, doc *status.Document, wide bool) string {
	t.Helper()
	var b strings.Builder
	if err := doc.WriteTable(&b, now, wide); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestWriteTable(t *testing.T) {
	golden(t, "table.txt", table(t, example(), false))
	golden(t, "wide.txt", table(t, example(), true))
	golden(t, "unreachable.txt", table(t, &status.Document{State: mesh.Unreachable}, false))
	waiting := &status.Document{
		State: mesh.WaitingForSeed, Mesh: status.Mesh{ID: mesh.ID{9}, Name: "home"}, Node: status.Node{ID: mesh.NodeID{1}, Name: "alpha"},
		Engine: status.Engine{Name: "wireguard-go", MTU: 1420},
	}
	golden(t, "waiting.txt", table(t, waiting, false))
}

func TestTableHasNoTrailingSpaces(t *testing.T) {
	for i, line := range strings.Split(table(t, example(), true), "\n") {
		if strings.TrimRight(line, " ") != line {
			t.Errorf("line %d ends in spaces: %q", i+1, line)
		}
	}
}

// Nothing that a peer says may move the cursor or fake a line.
func TestTableEscapes(t *testing.T) {
	evil := "x\x1b[2J\n\u202edoc"
	doc := example()
	doc.Peers[0].Name, doc.Peers[0].Suite, doc.Peers[0].Path = evil, evil, evil
	doc.Mesh.Name, doc.Node.Name, doc.Engine.Name = evil, evil, evil
	doc.Node.Leases[0].Network, doc.Node.Leases[0].State = evil, evil
	for i := range doc.Attachments {
		doc.Attachments[i].Network += evil
	}
	doc.Attachments[0].Network = evil // that of the lease
	doc.Peers[1].State = status.PeerState(evil)
	doc.Health[0] = status.Finding{Level: evil, Code: evil, Message: evil}
	clean, got := table(t, example(), true), table(t, doc, true)
	if strings.ContainsAny(got, "\x1b\u202e") {
		t.Errorf("a control character got through:\n%q", got)
	}
	if a, b := strings.Count(clean, "\n"), strings.Count(got, "\n"); a != b {
		t.Errorf("%d lines became %d:\n%s", a, b, got)
	}
}

func TestUnits(t *testing.T) {
	row := func(p status.Peer) []string {
		p.Name = "beta"
		doc := &status.Document{Peers: []status.Peer{p}}
		lines := strings.Split(strings.TrimSpace(table(t, doc, false)), "\n")
		return strings.Fields(lines[len(lines)-1])
	}
	// NODE ADDRESS SUBNET PATH RTT LOSS RX TX SEEN
	for _, tt := range []struct {
		peer   status.Peer
		column int
		want   string
	}{
		{status.Peer{RxBytes: new(uint64(0))}, 6, "0B"},
		{status.Peer{RxBytes: new(uint64(1023))}, 6, "1023B"},
		{status.Peer{RxBytes: new(uint64(1024))}, 6, "1.0KiB"},
		{status.Peer{RxBytes: new(uint64(1<<20 - 1))}, 6, "1.0MiB"},
		{status.Peer{RxBytes: new(uint64(10 << 20))}, 6, "10MiB"},
		{status.Peer{RxBytes: new(^uint64(0))}, 6, "16EiB"},
		{status.Peer{RxBytes: nil}, 6, "-"},
		{status.Peer{RTTms: new(0.25)}, 4, "0.25ms"},
		{status.Peer{RTTms: new(31.04)}, 4, "31.0ms"},
		{status.Peer{RTTms: new(1500.0)}, 4, "1.5s"},
		{status.Peer{Loss: new(0.0)}, 5, "0%"},
		{status.Peer{Loss: new(0.004)}, 5, "0.4%"},
		{status.Peer{Loss: new(1.0)}, 5, "100%"},
		{status.Peer{LastSeen: new(now)}, 8, "0s"},
		{status.Peer{LastSeen: new(now.Add(time.Hour))}, 8, "0s"}, // a clock that was set back
		{status.Peer{LastSeen: new(now.Add(-59 * time.Second))}, 8, "59s"},
		{status.Peer{LastSeen: new(now.Add(-200 * time.Second))}, 8, "3m20s"},
		{status.Peer{LastSeen: new(now.Add(-5 * time.Hour))}, 8, "5h"},
		{status.Peer{LastSeen: new(now.Add(-76 * time.Hour))}, 8, "3d4h"},
		{status.Peer{LastHandshake: new(now.Add(-time.Minute)), LastSeen: new(now.Add(-time.Hour))}, 8, "1m"},
	} {
		t.Run(tt.want, func(t *testing.T) {
			if got := row(tt.peer)[tt.column]; got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}
