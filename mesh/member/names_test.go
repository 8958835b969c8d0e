package member

import (
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
)

// Of nodes of one name it is said which have which subnet, and who came first keeps its.
func TestDuplicateName(t *testing.T) {
	s := newSim(t, narrow)
	a, b, c := s.host("a", nil), s.host("b", nil), s.host("c", nil)
	cert := must(trust.ParseCertificate(c.cert, s.charter.CA))(t)
	cert.Name = "b"
	c.cert = must(cert.Sign(key("ca")))(t)
	s.start(a, nil)
	s.start(b, a)
	s.run(20 * time.Second)
	before := a.sees(b).Leases
	s.start(c, a)
	s.run(20 * time.Second)
	if now := a.sees(b).Leases; len(before) != 1 || !slices.EqualFunc(now, before, mesh.Lease.Equal) {
		t.Errorf("b had %v and has %v", before, now)
	}
	i := slices.IndexFunc(a.view.Health, func(f mesh.Finding) bool { return f.Code == "duplicate_name" })
	if i < 0 {
		t.Fatalf("a says %v", a.view.Health)
	}
	for _, h := range []*host{b, c} {
		want := h.id().Short() + " with " + a.sees(h).Leases[0].Prefixes[0].String()
		if text := a.view.Health[i].Message; !strings.HasPrefix(text, "2 nodes are called b: ") || !strings.Contains(text, want) {
			t.Errorf("a says %q, want %q in it", text, want)
		}
	}
}
