package member

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
)

// TestKillIsNoClone: after kill -9 the others know a record of ours that we have
// never seen, with a nonce that is not ours.
func TestKillIsNoClone(t *testing.T) {
	s, a, _, c := trio(t)
	before, disk, table := c.held(), c.disk, c.m.Table()
	c.m.SetEndpoints(nil)
	s.step(c)
	s.run(time.Second)
	for range 5 {
		c.m = nil
		c.disk.Leases, c.table = disk.Leases, table
		s.start(c, a)
		s.run(10 * time.Second)
		if c.ended || c.held() != before || c.has("identity_in_use") {
			t.Fatalf("ended %v, has %q, says %v", c.ended, c.held(), c.view.Health)
		}
	}
}

// TestClones: a copy of a running node is started. The one that has run for longer
// stays, and hardly notices.
func TestClones(t *testing.T) {
	for name, reaches := range map[string]bool{"that hears of the others first": true, "that speaks first": false} {
		t.Run(name, func(t *testing.T) {
			s, a, b, c := trio(t)
			before := c.held()
			s.run(time.Minute)
			s.say("a copy of c is started")
			copied := s.clone(c)
			if reaches {
				s.start(copied, a)
			} else {
				copied.side = 1
				s.start(copied, a)
				s.run(5 * time.Second)
				copied.side = 0
			}
			s.run(2 * time.Minute)
			if !copied.ended || c.ended || c.held() != before {
				t.Errorf("the copy has ended: %v, c: %v, c has %q\n%s", copied.ended, c.ended, c.held(), s.out.String())
			}
			if n := len(c.spoken); n > 10 {
				t.Errorf("c has said %d things", n)
			}
			if a.sees(c).Version != c.sees(c).Version || b.routes(before) != "c" {
				t.Errorf("a sees %v, c is at %v, b routes to %q", a.sees(c).Version, c.sees(c).Version, b.routes(before))
			}
		})
	}
}

// TestClonesOfOneMoment were started in the same second, as by an orchestrator that
// starts two machines of one image.
func TestClonesOfOneMoment(t *testing.T) {
	for seed := range 8 {
		s, a, _, c := trio(t)
		copied := s.clone(c)
		c.stop()
		s.seq += seed
		s.start(c, a)
		s.run(time.Duration(seed) * 100 * time.Millisecond)
		s.start(copied, a)
		s.run(3 * time.Minute)
		if copied.ended == c.ended {
			t.Errorf("started %d00 ms apart: ended %v and %v\n%s", seed, c.ended, copied.ended, s.out.String())
		}
	}
}

// TestRestoreSpeaksFirst: a backup is restored where nobody is reached, so the node
// has spoken before it hears of its own past.
func TestRestoreSpeaksFirst(t *testing.T) {
	s, a, _, c := trio(t)
	backup, before := c.disk, c.held()
	for range 5 {
		c.stop()
		s.start(c, a)
		s.run(5 * time.Second)
	}
	c.stop()
	c.disk, c.table, c.side = backup, nil, 1
	s.say("c gets its disk of long ago back")
	s.start(c, a)
	s.run(5 * time.Second)
	c.side = 0
	s.run(time.Minute)
	s.golden()
	if c.ended || c.held() != before || c.view.Epoch != 7 || a.sees(c).Version.Epoch != 7 {
		t.Errorf("ended %v, has %q in epoch %d, a knows %v", c.ended, c.held(), c.view.Epoch, a.sees(c).Version)
	}
}

// TestRevoked: whom the CA throws out is nobody at once, and after restarts.
func TestRevoked(t *testing.T) {
	s, a, b, c := trio(t)
	subnet := c.held()
	s.say("the CA revokes c")
	gone := trust.Revocation{Node: c.id(), At: s.now}
	s.byCA(a, gone.Sign)
	if _, ok := a.view.Node(c.id()); ok {
		t.Error("a sees c still")
	}
	s.run(time.Second)
	for _, h := range []*host{a, b} {
		if len(h.view.Nodes) != 2 || h.routes(subnet) != "" {
			t.Errorf("%s sees %d nodes and routes %s to %q", h.name, len(h.view.Nodes), subnet, h.routes(subnet))
		}
	}
	if c.view.State != mesh.Revoked || len(c.view.Nodes) != 1 || !c.has("revoked") || c.held() != "" {
		t.Errorf("c is %s and sees %v", c.view.State, c.view.Nodes)
	}
	if leases := c.sees(c).Leases; len(leases) != 1 || leases[0].State != mesh.Quarantined {
		t.Errorf("the containers of c have %v", leases)
	}
	said := len(c.spoken)
	s.run(ttl)
	if len(c.spoken) != said {
		t.Error("c goes on speaking")
	}
	s.say("all are killed and started anew; b has had its table saved by then")
	for _, h := range s.hosts {
		h.m = nil
		s.start(h, a)
	}
	for _, h := range []*host{a, b} {
		if _, ok := h.view.Node(c.id()); ok {
			t.Errorf("%s sees c again", h.name)
		}
	}
	s.run(time.Minute)
	s.golden()
	if c.view.State != mesh.Revoked || len(a.view.Nodes) != 2 {
		t.Errorf("c is %s, a sees %d nodes", c.view.State, len(a.view.Nodes))
	}
}

// TestAdmittedByTheRevoked: nobody falls out with the one that has admitted it, and
// who comes later believes in them too.
func TestAdmittedByTheRevoked(t *testing.T) {
	s := newSim(t, narrow)
	token := s.token(nil)
	a, b, c := s.host("a", nil), s.host("b", nil), s.host("c", token)
	b.founder = false
	s.syncing(time.Minute)
	s.say("b alone admits c")
	s.start(a, nil)
	s.start(b, a)
	s.run(5 * time.Second)
	a.side = 1
	s.start(c, b)
	s.run(10 * time.Second)
	a.side = 0
	s.run(2 * time.Minute)
	before := c.held()
	s.say("the CA revokes b")
	gone := trust.Revocation{Node: b.id(), At: s.now}
	s.byCA(a, gone.Sign)
	s.run(10 * time.Second)
	if _, ok := a.view.Node(c.id()); !ok || c.held() != before || c.view.State != mesh.Ready {
		t.Errorf("a sees c: %v, c is %s with %q", ok, c.view.State, c.held())
	}
	b.stop()
	s.say("d joins, and hears of the revocation first")
	d := s.host("d", token)
	s.start(d, a)
	s.run(10 * time.Second)
	s.golden()
	if _, ok := d.view.Node(c.id()); !ok {
		t.Error("d does not believe in c")
	}
}

// TestRevokedToken admits nobody any more, and throws those out whom nobody spares.
func TestRevokedToken(t *testing.T) {
	s := newSim(t, narrow)
	token := s.token(nil)
	a, b, c, d := s.host("a", nil), s.host("b", token), s.host("c", token), s.host("d", token)
	s.start(a, nil)
	s.start(b, a)
	s.start(c, a)
	s.run(10 * time.Second)
	ended := trust.Revocation{Credential: token.Credential.Serial, Except: []mesh.NodeID{b.id()}, At: s.now}
	s.byCA(a, ended.Sign)
	s.start(d, a)
	s.run(time.Minute)
	if len(a.view.Nodes) != 2 || len(b.view.Nodes) != 2 || b.view.State != mesh.Ready || c.view.State != mesh.Revoked || len(s.admissions) != 2 {
		t.Errorf("a sees %d nodes, b %d; b is %s, c %s, d %s; %d admissions",
			len(a.view.Nodes), len(b.view.Nodes), b.view.State, c.view.State, d.view.State, len(s.admissions))
	}
}

// TestCertificateRenewed: it reaches its node through the mesh, and nothing else
// changes.
func TestCertificateRenewed(t *testing.T) {
	s, a, b, c := trio(t)
	s.say("certificates are to end in twelve days")
	for _, h := range s.hosts {
		h.skew = 288 * day
	}
	s.run(time.Minute)
	if level(c, "certificate_ends") != "warning" {
		t.Errorf("c says %v", c.view.Health)
	}
	before, since := c.held(), c.sees(c).Leases[0].Since
	s.say("the CA renews that of c, on a")
	s.byCA(a, renewed(t, s, c, nil))
	s.run(time.Minute)
	if level(c, "certificate_ends") != "info" { // that of the others
		t.Errorf("c says %v", c.view.Health)
	}
	for _, h := range s.hosts {
		n := h.sees(c)
		if n.Ends.Before(start.Add(500*day)) || h.routes(before) != "c" || !n.Leases[0].Since.Equal(since) {
			t.Errorf("%s sees %+v", h.name, n)
		}
	}
	if c.view.State != mesh.Ready {
		t.Errorf("c is %s", c.view.State)
	}
	s.say("those of a and b are renewed too, and the old ones end")
	s.byCA(a, renewed(t, s, a, nil))
	s.byCA(a, renewed(t, s, b, nil))
	s.run(14 * time.Minute)
	for _, h := range s.hosts {
		h.skew = 302 * day
	}
	s.run(time.Minute)
	if !s.agreed() || c.held() != before {
		t.Errorf("they do not agree:\n%s", s.out.String())
	}
	c.stop()
	s.start(c, a)
	s.run(time.Minute)
	if c.held() != before || c.has("certificate_ends") {
		t.Errorf("after a restart c has %q and says %v", c.held(), c.view.Health)
	}
}

// level is that of a finding; of several the first.
func level(h *host, code string) string {
	for _, f := range h.view.Health {
		if f.Code == code {
			return f.Level
		}
	}
	return ""
}

// TestClockThatIsSet: whatever a clock is set to, nobody is dropped for it.
func TestClockThatIsSet(t *testing.T) {
	for name, by := range map[string]time.Duration{
		"a day ahead": day, "a day back": -day, "ten years ahead": 3650 * day, "ten years back": -3650 * day,
		"to 1970": time.Unix(0, 0).Sub(start),
	} {
		t.Run(name, func(t *testing.T) {
			s, a, b, c := trio(t)
			// The certificate of b ends within the day, that of a lasts.
			s.byCA(a, renewed(t, s, a, func(c *trust.Certificate) { c.NotAfter = start.Add(8000 * day) }))
			s.byCA(a, renewed(t, s, c, func(c *trust.Certificate) { c.NotAfter = start.Add(8000 * day) }))
			s.run(time.Minute)
			before := c.held()
			c.skew = by
			c.m.Jumped(s.now.Add(by), by)
			s.step(c)
			s.run(time.Hour)
			if !s.agreed() || c.held() != before || len(c.view.Nodes) != 3 {
				t.Errorf("c sees %d nodes, has %q, is %s", len(c.view.Nodes), c.held(), c.view.State)
			}
			if !c.has("clock") {
				t.Errorf("c says %v", c.view.Health)
			}
			if s.tombstones[a.id()]+s.tombstones[b.id()] > 0 {
				t.Error("c has buried others")
			}
			c.skew = 0
			c.m.Jumped(s.now, -by)
			s.step(c)
			s.run(time.Minute)
			if c.has("clock") || !s.agreed() {
				t.Errorf("set right, c says %v", c.view.Health)
			}
		})
	}
}

// TestRotation: all have the new key before anybody sends with it.
func TestRotation(t *testing.T) {
	s := newSim(t, narrow)
	s.seals, s.rights = true, map[string][]string{"a": {trust.CapRotate}}
	token := s.token(nil)
	first := make([]byte, trust.GossipKeySize)
	a, b, c := s.host("a", nil), s.host("b", token), s.host("c", token)
	s.syncing(20 * time.Second)
	for i, h := range s.hosts {
		h.keyring, h.rotates = NewKeyring(first), 90*time.Minute
		s.start(h, s.hosts[max(0, i-1)])
	}
	s.run(30 * time.Second)
	key := func(n byte) []byte { k := make([]byte, trust.GossipKeySize); k[0] = n; return k }
	if err := b.m.RotateGossip(s.now, key(1), 0); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("b rotates: %v", err)
	}
	rotate := func(n byte, grace time.Duration) {
		t.Helper()
		if err := a.m.RotateGossip(s.now, key(n), grace); err != nil {
			t.Fatal(err)
		}
		s.step(a)
	}
	rotate(1, 0)
	if err := a.m.RotateGossip(s.now, key(2), time.Hour); !errors.Is(err, ErrNotNow) {
		t.Errorf("a rotates twice: %v", err)
	}
	s.run(time.Minute)
	for _, h := range s.hosts {
		if k := h.keyring; k.Send != 1 || len(k.Keys) != 1 || k.Keys[0].Key[0] != 1 {
			t.Errorf("%s has a %v", h.name, k)
		}
	}
	s.say("c sleeps, and d joins with a token of before")
	s.run(time.Minute)
	m := c.m
	c.m = nil
	d := s.host("d", token)
	d.keyring = NewKeyring(first)
	s.start(d, a)
	s.run(time.Minute)
	if d.keyring.Newest() != 1 {
		t.Errorf("d has a %v", d.keyring)
	}
	rotate(2, 24*time.Hour)
	s.run(2 * time.Minute)
	for _, h := range []*host{a, b, d} {
		if k := h.keyring; k.Send != 2 || len(k.Keys) != 2 {
			t.Errorf("%s has a %v", h.name, k)
		}
	}
	c.m = m
	s.run(time.Minute)
	if k := c.keyring; k.Send != 2 || len(k.Keys) != 2 {
		t.Errorf("c has a %v", k)
	}
	s.say("and after a while by itself")
	s.run(100 * time.Minute)
	for _, h := range s.hosts {
		if h.keyring.Send != 3 {
			t.Errorf("%s has a %v", h.name, h.keyring)
		}
		if got := fmt.Sprint(h.sees(a).Keys); got != "{3 3}" {
			t.Errorf("%s sees a with %s", h.name, got)
		}
	}
}

// TestClockKeepsKeys: no grace is over because a clock was set, and none lasts for years.
func TestClockKeepsKeys(t *testing.T) {
	for name, by := range map[string]time.Duration{"ten years ahead": 3650 * day, "ten years back": -3650 * day} {
		t.Run(name, func(t *testing.T) {
			s := newSim(t, narrow)
			s.seals, s.rights = true, map[string][]string{"a": {trust.CapRotate}}
			a, b := s.host("a", nil), s.host("b", s.token(nil))
			s.syncing(20 * time.Second)
			for i, h := range s.hosts {
				h.keyring = NewKeyring(make([]byte, trust.GossipKeySize))
				s.start(h, s.hosts[max(0, i-1)])
			}
			s.run(30 * time.Second)
			next := make([]byte, trust.GossipKeySize)
			next[0] = 1
			if err := a.m.RotateGossip(s.now, next, 2*time.Hour); err != nil {
				t.Fatal(err)
			}
			s.step(a)
			s.run(2 * time.Minute)
			b.skew = by
			b.m.Jumped(s.now.Add(by), by)
			s.step(b)
			s.run(time.Hour)
			if k := b.keyring; k.Send != 1 || len(k.Keys) != 2 {
				t.Errorf("an hour before the grace is over b has a %v", k)
			}
			s.run(time.Hour)
			if k := b.keyring; len(k.Keys) != 1 {
				t.Errorf("after the grace b has a %v", k)
			}
		})
	}
}

// TestRevokedHasNoKey: the key after a revocation is not for whom it has thrown out.
func TestRevokedHasNoKey(t *testing.T) {
	s := newSim(t, narrow)
	s.seals, s.rights = true, map[string][]string{"a": {trust.CapRotate}}
	token := s.token(nil)
	a, b, c := s.host("a", nil), s.host("b", token), s.host("c", token)
	s.syncing(5 * time.Second)
	for i, h := range s.hosts {
		h.keyring = NewKeyring(make([]byte, trust.GossipKeySize))
		s.start(h, s.hosts[max(0, i-1)])
	}
	s.run(30 * time.Second)
	gone := trust.Revocation{Node: c.id(), At: s.now}
	s.byCA(a, gone.Sign)
	k := make([]byte, trust.GossipKeySize)
	k[0] = 9
	if err := a.m.RotateGossip(s.now, k, 0); err != nil {
		t.Fatal(err)
	}
	s.step(a)
	s.run(2 * time.Minute)
	if b.keyring.Send != 1 || c.keyring.Newest() != 0 {
		t.Errorf("b has a %v, c a %v", b.keyring, c.keyring)
	}
	for _, raw := range a.m.Table() {
		if r, err := trust.ParseRekey(raw); err == nil && r.For(c.id()) {
			t.Error("there is a box for c")
		}
	}
}

// TestRenumber takes another subnet, and never that of somebody else.
func TestRenumber(t *testing.T) {
	s, a, b, c := trio(t)
	before := c.held()
	c.m.SetInUse([]string{home})
	if err := c.m.Renumber(s.now, home, false); !errors.Is(err, ErrInUse) {
		t.Errorf("in use: %v", err)
	}
	if err := c.m.Renumber(s.now, "web", false); !errors.Is(err, ErrNotNow) {
		t.Errorf("without a lease: %v", err)
	}
	if err := c.m.Renumber(s.now, home, true); err != nil {
		t.Fatal(err)
	}
	s.step(c)
	s.run(10 * time.Second)
	if !s.agreed() || c.held() == before || a.routes(before) != "" || b.routes(c.held()) != "c" {
		t.Errorf("c has %q after %s", c.held(), before)
	}
}

// TestReserved keeps subnets for who is pinned to them.
func TestReserved(t *testing.T) {
	s, a, _, c := trio(t)
	next := s.charter.Next(s.now, s.charter.Networks)
	next.Reserved = prefixes("10.86.1.0/24", "10.86.2.0/24", "10.86.3.0/24", "10.86.5.0/24", c.held())
	s.byCA(a, next.Sign)
	s.run(time.Minute)
	if !s.agreed() {
		t.Error("whoever has a subnet that is reserved now has lost it")
	}
	d, e, f := s.host("d", nil), s.host("e", nil), s.host("f", nil)
	for _, h := range []*host{d, e, f} {
		h.founder = false
		if h == f {
			h.cert = pinned(t, s, "f", "10.86.5.0/24")
		}
		s.start(h, a)
		s.run(10 * time.Second)
	}
	if d.held() != "10.86.7.0/24" || e.view.State != mesh.NoFreeSubnets || f.held() != "10.86.5.0/24" {
		t.Errorf("d has %q, e is %s, f has %q", d.held(), e.view.State, f.held())
	}
}

// TestSubmit takes what the CA signed, and nothing else.
func TestSubmit(t *testing.T) {
	s, a, b, _ := trio(t)
	sign := func(o interface {
		Sign(ed25519.PrivateKey) ([]byte, error)
	}, by string) []byte {
		return must(o.Sign(key(by)))(t)
	}
	cert := must(trust.ParseCertificate(b.cert, s.charter.CA))(t)
	for name, raw := range map[string][]byte{
		"garbage":                    {1, 2, 3},
		"a revocation by a member":   sign(&trust.Revocation{Node: b.id(), At: s.now}, "a"),
		"a tombstone by a member":    sign(&trust.Tombstone{Node: b.id(), Version: mesh.Version{Epoch: 1}, Reason: trust.Forgotten, At: s.now, Issuer: cert.Hash}, "a"),
		"a certificate by a token":   b.cert,
		"a record":                   sign(&trust.Record{Version: mesh.Version{Epoch: 9}, Certificate: cert.Hash, Key: mesh.Key{1}}, "b"),
		"a tombstone by another key": sign(&trust.Tombstone{Node: b.id(), Version: mesh.Version{Epoch: 1}, Reason: trust.Forgotten, At: s.now}, "b"),
	} {
		if err := a.m.Submit(raw); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	gone := sign(&trust.Revocation{Node: mesh.NodeID{1}, At: s.now}, "ca")
	for range 2 { // who asks again did not hear that all went well
		if err := a.m.Submit(gone); err != nil {
			t.Error(err)
		}
	}
	if out := a.m.Step(s.now); !out.Table {
		t.Error("the revocation need not be saved, it says")
	}
}
