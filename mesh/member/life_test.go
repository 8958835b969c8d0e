package member

import (
	"crypto/ed25519"
	"errors"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
)

// The stories below are one for each rule that the design gives a reason for. They
// are named after the reason: without the rule they end badly.

const (
	day = 24 * time.Hour
	// ttl is that of these stories.
	ttl = 2 * time.Hour
)

// trio starts three hosts that sync twice in a renewal, and lets them settle.
func trio(t *testing.T) (s *sim, a, b, c *host) {
	t.Helper()
	s = newSim(t, narrow)
	token := s.token(nil)
	a, b, c = s.host("a", nil), s.host("b", token), s.host("c", token)
	s.syncing(ttl / 48)
	for i, h := range s.hosts {
		h.ttl = ttl
		if i == 0 {
			s.start(h, nil)
		} else {
			s.start(h, a)
		}
		s.run(5 * time.Second)
	}
	if !s.agreed() {
		t.Fatalf("they do not agree:\n%s", s.out.String())
	}
	s.out.Reset()
	s.say("a, b and c are there")
	return s, a, b, c
}

func TestSilentForTheTTL(t *testing.T) {
	s, a, b, c := trio(t)
	gone := c.held()
	s.say("c is switched off for good")
	c.stop()
	s.run(ttl)
	if n := a.sees(c); n.Expired != mesh.NotExpired {
		t.Error("taken for gone before anybody has looked twice")
	}
	s.run(ttl / 12)
	for _, h := range []*host{a, b} {
		if n := h.sees(c); n.Expired != mesh.NotHeard {
			t.Errorf("%s does not take c for gone: %+v", h.name, n)
		}
		if h.routes(gone) != "c" {
			t.Errorf("%s routes %s to %q, though nobody else holds it", h.name, gone, h.routes(gone))
		}
	}
	if n := s.tombstones[c.id()]; n != 2 {
		t.Errorf("%d tombstones", n)
	}
	s.run(3 * ttl)
	if n := s.tombstones[c.id()]; n != 2 {
		t.Errorf("%d tombstones after long", n)
	}
	s.golden()
}

// TestNobodyIsBuriedWithoutASync: a node that is cut off hears nobody, which says
// nothing of the others.
func TestNobodyIsBuriedWithoutASync(t *testing.T) {
	s, a, b, c := trio(t)
	s.say("c is cut off")
	c.side = 1
	s.run(3 * ttl)
	for _, h := range []*host{a, b} {
		if n := s.tombstones[h.id()]; n != 0 || c.sees(h).Expired != mesh.NotExpired {
			t.Errorf("c has buried %s, %d times", h.name, n)
		}
	}
}

// TestLongGossipOutage: everybody takes everybody for gone, and nobody's traffic
// stops.
func TestLongGossipOutage(t *testing.T) {
	s, a, b, c := trio(t)
	before := map[*host]string{a: a.held(), b: b.held(), c: c.held()}
	s.say("a and b are cut off from c")
	c.side = 1
	s.run(2 * ttl)
	if a.sees(c).Expired != mesh.NotHeard || b.sees(c).Expired != mesh.NotHeard {
		t.Fatal("c was not taken for gone, so this shows nothing")
	}
	for _, h := range s.hosts {
		for of, subnet := range before {
			if h.routes(subnet) != of.name {
				t.Errorf("%s routes %s to %q, not %s", h.name, subnet, h.routes(subnet), of.name)
			}
		}
	}
	s.say("it is over")
	c.side = 0
	s.run(ttl / 24)
	s.golden()
	if !s.agreed() || c.held() != before[c] || a.sees(c).Expired != mesh.NotExpired {
		t.Errorf("c has %s of %s; a sees %+v", c.held(), before[c], a.sees(c))
	}
	s.say("c is started anew, and is the same")
	c.stop()
	s.run(time.Minute)
	s.start(c, a)
	s.run(time.Minute)
	if !s.agreed() || c.held() != before[c] {
		t.Errorf("after a restart c has %q of %s: the tombstone that it has answered voids its lease", c.held(), before[c])
	}
}

// TestRestartDoesNotOutrunItsTombstone: a node that was off past its TTL starts in a
// higher epoch, which is above the tombstone; its clock says that it was off for a
// minute. It must not evict the new owner.
func TestRestartDoesNotOutrunItsTombstone(t *testing.T) {
	s, a, b, c := trio(t)
	old := c.held()
	s.say("c is switched off")
	c.stop()
	c.skew = -3 * ttl
	s.run(2 * ttl)
	d := s.host("d", nil)
	d.founder, d.ttl = false, ttl
	d.cert = pinned(t, s, "d", old)
	s.say("d is pinned to the subnet of c")
	s.start(d, a)
	s.run(time.Minute)
	if d.held() != old {
		t.Fatalf("d has %q, not %s", d.held(), old)
	}
	s.say("the pin of d is lifted by a new certificate")
	s.byCA(a, renewed(t, s, d, func(c *trust.Certificate) { c.Rights = trust.Rights{} }))
	s.run(time.Minute)
	s.run(ttl)
	s.say("c comes back, with a clock that stood still, and is heard before it hears")
	c.side = 1
	s.start(c, a)
	s.run(5 * time.Second)
	for _, raw := range c.m.Table() {
		for _, h := range []*host{a, b, d} {
			_ = h.m.Receive(raw)
			s.step(h)
		}
	}
	if d.held() != old || a.routes(old) != "d" || a.sees(c).Version.Epoch != 2 {
		t.Errorf("d has %q of %s, and a routes it to %s: the start of c outruns its tombstone", d.held(), old, a.routes(old))
	}
	c.side = 0
	s.run(time.Hour)
	s.golden()
	if d.held() != old || c.held() == old || c.view.State != mesh.Ready {
		t.Errorf("d has %q of %s, c has %q and is %s", d.held(), old, c.held(), c.view.State)
	}
	if a.routes(old) != "d" || b.routes(old) != "d" {
		t.Errorf("a routes it to %s, b to %s", a.routes(old), b.routes(old))
	}
}

// TestOffForLongerThanTheTTL: nobody has taken the subnet meanwhile.
func TestOffForLongerThanTheTTL(t *testing.T) {
	s, a, _, c := trio(t)
	before := c.held()
	since := c.sees(c).Leases[0].Since
	c.stop()
	s.say("c is switched off")
	s.run(2 * ttl)
	s.say("and on again")
	s.start(c, a)
	if c.held() != "" {
		t.Errorf("c holds %s at once", c.held())
	}
	s.run(time.Minute)
	s.golden()
	if c.held() != before || !c.sees(c).Leases[0].Since.After(since) || !s.agreed() {
		t.Errorf("c has %q of %s", c.held(), before)
	}
}

// TestOffForLongerThanTheTTLAlone: what c remembers of the others may be long
// untrue, so it sends them nothing but the question what is true.
func TestOffForLongerThanTheTTLAlone(t *testing.T) {
	s, a, b, c := trio(t)
	c.stop()
	s.run(2 * ttl)
	a.stop()
	b.stop()
	s.start(c, a)
	s.run(time.Hour)
	if c.view.State != mesh.WaitingForSeed || len(c.sees(a).Leases) != 0 || len(c.sees(c).Leases) != 0 {
		t.Errorf("c is %s, with %v, and sees a with %v", c.view.State, c.sees(c).Leases, c.sees(a).Leases)
	}
	if len(c.sees(a).Endpoints) == 0 || c.sees(a).Key.IsZero() {
		t.Error("c does not know where to ask")
	}
}

// TestMeshThatWasOff: somebody has to go on, or nobody ever does.
func TestMeshThatWasOff(t *testing.T) {
	s, a, b, c := trio(t)
	before := a.held()
	for _, h := range s.hosts {
		h.stop()
	}
	s.run(3 * ttl)
	s.say("a, where the mesh was made, comes back alone")
	s.start(a, b)
	s.run(time.Minute)
	if a.view.State != mesh.Ready || a.held() != before {
		t.Errorf("a is %s with %q", a.view.State, a.held())
	}
	s.start(b, a)
	s.start(c, a)
	s.run(time.Minute)
	if !s.agreed() {
		t.Errorf("they do not agree:\n%s", s.out.String())
	}
}

// TestSuspendedForLongerThanTheTTL: the monotonic clock stood still, so to the
// daemon nothing has happened.
func TestSuspendedForLongerThanTheTTL(t *testing.T) {
	s, a, b, c := trio(t)
	old := c.held()
	token := s.token(nil)
	s.say("c is suspended")
	m := c.m
	c.m = nil
	s.run(2 * ttl)
	// The others take all that is free, the subnet of c last.
	var more []*host
	for i := range 6 {
		h := s.host("n"+string(rune('0'+i)), token)
		h.cert, h.ttl = long(t, s, h.name), ttl
		s.start(h, a)
		s.run(time.Minute)
		more = append(more, h)
	}
	owner := a.routes(old)
	if owner == "c" || owner == "" {
		t.Fatalf("%s is routed to %q", old, owner)
	}
	slept := s.now.Sub(start) - 15*time.Second
	s.say("c wakes up")
	c.m, c.skew, c.boot = m, -slept, slept
	said := len(c.spoken)
	c.m.Slept(s.now.Add(c.skew), slept)
	s.step(c)
	if c.held() != "" || len(c.sees(a).Leases) != 0 || len(c.spoken) != said {
		t.Errorf("c holds %q, sees a with %v and has said %d things, before it has heard anybody", c.held(), c.sees(a).Leases, len(c.spoken)-said)
	}
	s.exchange(c.m, c, a)
	s.run(10 * time.Minute)
	for _, h := range append(more, a, b) {
		if h.routes(old) != owner {
			t.Errorf("%s routes %s to %s, not %s", h.name, old, h.routes(old), owner)
		}
	}
	if c.held() == old {
		t.Errorf("c has %s of %s", c.held(), owner)
	}
}

// TestSuspendedOverNight is shorter than the TTL.
func TestSuspendedOverNight(t *testing.T) {
	s, a, _, c := trio(t)
	before, epoch, spoken := c.held(), c.view.Epoch, len(c.spoken)
	s.suspend(c, 10*ttl/24)
	said := c.spoken[len(c.spoken)-1].Version
	if len(c.spoken) == spoken {
		t.Error("c has not renewed its record")
	}
	if c.held() != before || c.view.Epoch != epoch {
		t.Errorf("c has %q in epoch %d", c.held(), c.view.Epoch)
	}
	s.run(time.Minute)
	if a.sees(c).Version != said {
		t.Error("a has not heard of that")
	}
	s.suspend(c, 13*ttl/24)
	s.run(ttl / 12)
	if c.held() != before || s.tombstones[c.id()] != 0 {
		t.Errorf("c has %q, and %d tombstones", c.held(), s.tombstones[c.id()])
	}
}

// TestForget frees what was not heard of for the TTL, and nothing else.
func TestForget(t *testing.T) {
	s, a, _, c := trio(t)
	if err := a.m.Forget(s.now, c.id()); !errors.Is(err, ErrNotNow) {
		t.Errorf("forgetting a node that runs: %v", err)
	}
	if err := a.m.Forget(s.now, a.id()); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("forgetting itself: %v", err)
	}
	if err := a.m.Forget(s.now, mesh.NodeID{1}); !errors.Is(err, ErrUnknownNode) {
		t.Errorf("forgetting nobody: %v", err)
	}
	c.stop()
	s.run(ttl - ttl/24)
	if err := a.m.Forget(s.now, c.id()); !errors.Is(err, ErrNotNow) {
		t.Errorf("forgetting a node that was off for nearly the TTL: %v", err)
	}
	s.run(ttl / 12)
	if err := a.m.Forget(s.now, c.id()); err != nil {
		t.Error(err)
	}
	s.step(a)
	if a.sees(c).Expired != mesh.NotExpired {
		t.Error("the word of one is enough")
	}
	if err := a.m.Forget(s.now, c.id()); err != nil || a.m.Step(s.now).Broadcast != nil {
		t.Errorf("forgetting it again: %v", err)
	}
	s.run(ttl / 12) // another one looks, too
	if a.sees(c).Expired == mesh.NotExpired {
		t.Error("c is not forgotten")
	}
}

// TestForgottenByTheCA: at once, and for all that the node still says in its epoch.
func TestForgottenByTheCA(t *testing.T) {
	s, a, b, c := trio(t)
	c.side = 1
	tomb := trust.Tombstone{Node: c.id(), Version: mesh.Version{Epoch: 1, Seq: trust.WholeEpoch}, Reason: trust.Forgotten, At: s.now}
	s.say("c is cut off, and the CA forgets it")
	s.byCA(a, tomb.Sign)
	s.run(ttl / 8)
	if b.sees(c).Expired != mesh.Forgotten {
		t.Errorf("b sees %+v", b.sees(c))
	}
	s.say("it is back")
	c.side = 0
	before, since := c.held(), c.sees(c).Leases[0].Since
	s.run(time.Hour)
	s.golden()
	if c.view.Epoch != 2 || c.held() != before || !c.sees(c).Leases[0].Since.After(since) || !s.agreed() {
		t.Errorf("c is in epoch %d with %q since %s", c.view.Epoch, c.held(), c.sees(c).Leases[0].Since)
	}
}

// TestTombstonesOfALivingNode: two members gone bad say of b that it is gone, again
// and again.
func TestTombstonesOfALivingNode(t *testing.T) {
	s, a, b, c := trio(t)
	before, said := b.held(), len(b.spoken)
	for range 600 {
		s.buries(b, b.sees(b).Version, c, a) // somebody has their keys
		s.run(time.Second)
	}
	if n := len(b.spoken) - said; n < 50 || n > 70 {
		t.Errorf("b has answered %d times in ten minutes", n)
	}
	s.run(time.Minute)
	if b.held() != before || a.routes(before) != "b" || a.sees(b).Expired != mesh.NotExpired {
		t.Errorf("b has %q, a sees %+v", b.held(), a.sees(b))
	}
}

// pinned makes a certificate by the CA for a host, with a pin.
func pinned(t *testing.T, s *sim, name, subnet string) []byte {
	t.Helper()
	return certify(t, s, name, func(c *trust.Certificate) { c.Rights.Pins = prefixes(subnet) })
}

// long makes a certificate by the CA that lasts.
func long(t *testing.T, s *sim, name string) []byte { return certify(t, s, name, nil) }

func certify(t *testing.T, s *sim, name string, change func(*trust.Certificate)) []byte {
	t.Helper()
	s.serial++
	c := trust.Certificate{
		Serial: trust.Serial{s.serial}, Identity: public(name), Name: name, NotBefore: start.Add(-time.Hour),
		NotAfter: start.Add(300 * day), Admitted: start.Add(-time.Hour),
	}
	if change != nil {
		change(&c)
	}
	return must(c.Sign(key("ca")))(t)
}

// renewed signs the certificate of a host again, for longer.
func renewed(t *testing.T, s *sim, h *host, change func(*trust.Certificate)) func(ed25519.PrivateKey) ([]byte, error) {
	t.Helper()
	s.serial++
	c := *must(trust.ParseCertificate(h.cert, s.charter.CA))(t)
	c.Serial, c.Credential, c.NotBefore, c.NotAfter = trust.Serial{s.serial}, nil, s.now, c.NotAfter.Add(300*day)
	if change != nil {
		change(&c)
	}
	return c.Sign
}
