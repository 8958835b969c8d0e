package overlay

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
)

// Findings that come and go fill no log; what is left out is counted.
func TestReport(t *testing.T) {
	var log bytes.Buffer
	r := newReporter(slog.New(slog.NewTextHandler(&log, nil)))
	now := time.Unix(1000, 0)
	find := func(code, message string) *mesh.View {
		return &mesh.View{Health: []mesh.Finding{{Level: "info", Code: code, Message: message}}}
	}
	old := find("clock", "first")
	r.say(mesh.Diff(nil, old), now)
	for n := range 1000 {
		next := find("refused", fmt.Sprint("node ", n))
		r.say(mesh.Diff(old, next), now.Add(time.Duration(n)*50*time.Millisecond))
		old = next
	}
	r.say(mesh.Diff(old, find("refused", "last")), now.Add(2*time.Minute))
	want := []string{
		`severity=info code=clock message=first`,
		`severity=info code=refused message="node 0"`,
		`severity=info code=refused message=last omitted=999`,
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) != len(want) {
		t.Fatalf("logged\n%s", log.String())
	}
	for i, line := range lines {
		if !strings.HasSuffix(line, want[i]) {
			t.Errorf("line %d is %s\nwant %s", i, line, want[i])
		}
	}
}
