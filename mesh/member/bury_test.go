package member

import (
	"testing"

	"meshd/mesh"
)

// TestBuriesOnce: a member that alone takes another for gone has said so when it has
// said it once, however long nobody confirms it.
func TestBuriesOnce(t *testing.T) {
	s, a, b, c := trio(t)
	s.say("b comes back as one who waits for long")
	b.stop()
	b.ttl = 100 * ttl
	s.start(b, a)
	s.run(ttl / 12)
	s.say("c is switched off for good")
	c.stop()
	s.run(10 * ttl)
	if n := s.tombstones[c.id()]; n != 1 {
		t.Errorf("%d tombstones, want one by a alone", n)
	}
	for _, h := range []*host{a, b} {
		if n := h.sees(c); n.Expired != mesh.NotExpired {
			t.Errorf("%s takes c for gone by the word of one: %+v", h.name, n)
		}
	}
}
