package member

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/lease"
	"meshd/mesh/registry"
	"meshd/mesh/trust"
)

func TestFounderAlone(t *testing.T) {
	s := newSim(t, narrow)
	a := s.host("a", nil)
	s.start(a, nil)
	s.run(time.Minute)
	s.golden()
	if a.view.State != mesh.Ready || a.views > 4 {
		t.Errorf("%s after %d views", a.view.State, a.views)
	}
}

func TestJoin(t *testing.T) {
	s := newSim(t, narrow)
	token := s.token(nil)
	a, b, c := s.host("a", nil), s.host("b", token), s.host("c", token)
	s.start(a, nil)
	s.run(10 * time.Second)
	s.say("b starts")
	s.start(b, a)
	s.run(10 * time.Second)
	s.say("c starts, with b as its seed")
	s.start(c, b)
	s.run(10 * time.Second)
	s.golden()
	if !s.agreed() {
		t.Error("they do not agree")
	}
	for _, h := range s.hosts {
		for _, n := range h.view.Nodes {
			if n.Control != mesh.ControlAddr(s.charter.ID(), n.ID) || n.Key.IsZero() || len(n.Endpoints) != 1 {
				t.Errorf("%s sees %+v", h.name, n)
			}
		}
	}
}

// TestAdmissionIsMissed: the one word that makes a newcomer a member is lost on its way to
// that one. It asks what is known of its certificate, until somebody has admitted it.
func TestAdmissionIsMissed(t *testing.T) {
	s := newSim(t, narrow)
	a, b := s.host("a", nil), s.host("b", s.token(nil))
	b.deaf = true // but for answers
	s.start(a, nil)
	s.run(5 * time.Second)
	s.start(b, a)
	s.run(5 * time.Second)
	if b.view.State != mesh.Ready || b.held() == "" {
		t.Fatalf("it is %s:\n%s", b.view.State, s.out.String())
	}
	if out := b.m.Step(s.now); len(out.Want) > 0 {
		t.Errorf("it goes on asking for %v", out.Want)
	}
}

func TestCertifiedByTokenItself(t *testing.T) {
	s := newSim(t, dual)
	a, b := s.host("a", nil), s.host("b", s.token(nil))
	cert, err := s.token(nil).Certify(public("b"), mesh.Key{1}, "b", start)
	if err != nil {
		t.Fatal(err)
	}
	b.cert = cert.Raw
	s.start(a, nil)
	s.start(b, a)
	s.run(10 * time.Second)
	if !s.agreed() {
		t.Errorf("they do not agree:\n%s", s.out.String())
	}
}

// TestJoinerWhoseClockIsAhead is seen at once by a member whose clock is right.
func TestJoinerWhoseClockIsAhead(t *testing.T) {
	s := newSim(t, dual)
	token := s.token(nil)
	a, b := s.host("a", nil), s.host("b", token)
	b.skew = 9 * time.Minute
	b.cert = must(token.Certify(public("b"), mesh.Key{1}, "b", start.Add(b.skew)))(t).Raw
	s.start(a, nil)
	s.start(b, a)
	s.run(15 * time.Second)
	if !s.agreed() {
		t.Errorf("they do not agree:\n%s", s.out.String())
	}
}

func TestRestart(t *testing.T) {
	s := newSim(t, narrow)
	a, b := s.host("a", nil), s.host("b", s.token(nil))
	s.start(a, nil)
	s.start(b, a)
	s.run(10 * time.Second)
	before := b.held()
	s.say("b is killed, and started with nobody to be reached")
	b.stop()
	s.run(time.Minute)
	s.start(b, nil)
	if b.view == nil || b.view.State != mesh.Ready || b.held() != before || b.disk.Epoch != 2 {
		t.Errorf("b after its restart: %+v", b.view)
	}
	s.run(10 * time.Second)
	s.golden()
	if b.held() != before || !s.agreed() {
		t.Errorf("b had %s and has %s", before, b.held())
	}
}

func TestRestartWithoutItsTable(t *testing.T) {
	s := newSim(t, narrow)
	a, b := s.host("a", nil), s.host("b", s.token(nil))
	s.start(a, nil)
	s.start(b, a)
	s.run(10 * time.Second)
	before := b.held()
	b.stop()
	b.table = nil
	s.say("b starts with its lease, but without what it knew")
	s.start(b, a)
	s.run(10 * time.Second)
	s.golden()
	if b.held() != before || !s.agreed() {
		t.Errorf("b had %s and has %s", before, b.held())
	}
}

func TestExpiredToken(t *testing.T) {
	s := newSim(t, narrow)
	a := s.host("a", nil)
	b := s.host("b", s.token(func(c *trust.Credential) { c.NotAfter = start.Add(-time.Minute) }))
	s.start(a, nil)
	s.start(b, a)
	s.run(2 * time.Minute)
	s.say("long after")
	s.run(20 * time.Minute)
	s.golden()
	if len(a.view.Nodes) != 1 || !b.has("no_admission") || len(s.admissions) != 0 {
		t.Errorf("a sees %d nodes, b has %v", len(a.view.Nodes), b.view.Health)
	}
	if a.has("admission_refused") {
		t.Error("a refusal is reported for ever")
	}
	s.run(time.Hour)
	s.exchange(b.m, b, a)
	s.step(a)
	for _, h := range s.hosts {
		if slices.ContainsFunc(h.m.Table(), func(raw []byte) bool { return slices.Equal(raw, b.cert) }) {
			t.Errorf("the table of %s carries the certificate for ever", h.name)
		}
	}
	if a.has("admission_refused") || !b.has("no_admission") {
		t.Errorf("a says %v, b says %v", a.view.Health, b.view.Health)
	}
}

// TestManyCertificatesOfOneNode has a node certify itself again and again with one
// token: it is admitted a few times, and nobody spins on the rest.
func TestManyCertificatesOfOneNode(t *testing.T) {
	s := newSim(t, narrow)
	token := s.token(nil)
	a, b := s.host("a", nil), s.host("b", token)
	s.start(a, nil)
	s.start(b, a)
	s.run(5 * time.Second)
	for range 10 {
		s.serial++
		c := trust.Certificate{
			Serial: trust.Serial{s.serial}, Identity: public("b"), Name: "b", Credential: token.Credential,
			NotBefore: start.Add(-time.Hour), NotAfter: start.Add(time.Hour), Admitted: start,
		}
		raw := must(c.Sign(token.Key))(t)
		for _, h := range s.hosts {
			if err := h.m.Receive(raw); err != nil {
				t.Fatal(err)
			}
			s.step(h)
		}
		s.run(10 * time.Second)
	}
	if len(s.admissions) != 4 {
		t.Errorf("%d certificates were admitted", len(s.admissions))
	}
	if !a.has("admission_refused") || b.has("admission_refused") || !s.agreed() {
		t.Errorf("a says %v, b says %v", a.view.Health, b.view.Health)
	}
}

func TestTokenUsedTwice(t *testing.T) {
	s := newSim(t, narrow)
	once := s.token(func(c *trust.Credential) { c.Uses = 1 })
	a, b, c := s.host("a", nil), s.host("b", once), s.host("c", once)
	s.start(a, nil)
	s.start(b, a)
	s.run(5 * time.Second)
	s.say("c comes with the same token")
	s.start(c, a)
	s.run(45 * time.Second)
	s.golden()
	if len(a.view.Nodes) != 2 || !c.has("no_admission") {
		t.Errorf("a sees %d nodes, c has %v", len(a.view.Nodes), c.view.Health)
	}
	for _, f := range a.view.Health {
		if f.Code == "admission_refused" && strings.Contains(f.Message, "good for 1, and") {
			return
		}
	}
	t.Errorf("a does not say why: %v", a.view.Health)
}

func TestTenStartTogether(t *testing.T) {
	for _, delay := range []time.Duration{20 * time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond} {
		t.Run(delay.String(), func(t *testing.T) {
			s := newSim(t, dual)
			s.delay = delay
			token := s.token(nil)
			for i := range 10 {
				if i == 0 {
					token := (*trust.Token)(nil)
					s.host("n0", token)
					continue
				}
				s.host(fmt.Sprint("n", i), token)
			}
			for i, h := range s.hosts {
				if i == 0 {
					s.start(h, nil)
				} else {
					s.start(h, s.hosts[0])
				}
			}
			for !s.agreed() {
				if s.now.Sub(start) > 8*time.Second {
					t.Fatalf("not ready in time:\n%s", s.out.String())
				}
				s.run(50 * time.Millisecond)
			}
			t.Logf("ready after %s", s.now.Sub(start))
		})
	}
}

// TestAdmissionsPerNewcomer joins newcomers to a mesh of ten.
func TestAdmissionsPerNewcomer(t *testing.T) {
	s := newSim(t, dual)
	s.delay = 200 * time.Millisecond // a broadcast's time through a mesh of ten
	token := s.token(nil)
	for i := range 10 {
		h := s.host(fmt.Sprint("n", i), nil)
		h.founder = i == 0
		s.start(h, s.hosts[0])
	}
	s.run(20 * time.Second)
	const newcomers = 12
	for i := range newcomers {
		h := s.host(fmt.Sprint("new", i), token)
		s.start(h, s.hosts[i%10])
		s.run(2 * time.Second)
	}
	s.run(10 * time.Second)
	total := 0
	for _, n := range s.admissions {
		total += n
	}
	t.Logf("%d admissions for %d newcomers", total, newcomers)
	if len(s.admissions) != newcomers || total > newcomers*3/2 {
		t.Errorf("%d admissions for %d newcomers, %d admitted", total, newcomers, len(s.admissions))
	}
}

// TestAdmittedByTheLastOneAwake joins a mesh of ten of which nine are away.
func TestAdmittedByTheLastOneAwake(t *testing.T) {
	for _, awake := range []int{0, 4, 9} {
		s := newSim(t, dual)
		for i := range 10 {
			h := s.host(fmt.Sprint("n", i), nil)
			h.founder = i == 0
			s.start(h, s.hosts[0])
		}
		s.run(10 * time.Second)
		for i, h := range s.hosts {
			if i != awake {
				h.stop()
			}
		}
		newcomer := s.host("new", s.token(nil))
		s.start(newcomer, s.hosts[awake])
		s.run(2*admitTurns*admitTurn + time.Second)
		if len(newcomer.view.Nodes) != 11 {
			t.Errorf("with n%d awake the newcomer sees %d nodes", awake, len(newcomer.view.Nodes))
		}
	}
}

func TestLeave(t *testing.T) {
	s := newSim(t, mesh.Network{Name: "default", IPv4: netip.MustParsePrefix("10.86.0.0/24"), IPv4Len: 25}) // two subnets
	token := s.token(nil)
	a, b, c := s.host("a", nil), s.host("b", token), s.host("c", token)
	s.start(a, nil)
	s.start(b, a)
	s.run(5 * time.Second)
	freed := b.held()
	s.start(c, a)
	s.run(5 * time.Second)
	if c.view.State != mesh.NoFreeSubnets {
		t.Errorf("c is %s", c.view.State)
	}
	s.say("b leaves")
	b.m.Leave(s.now)
	s.step(b)
	s.run(5 * time.Second)
	if c.held() != freed || !b.disk.Left || len(b.disk.Leases) != 0 {
		t.Errorf("c has %q of %s, b saved %+v", c.held(), freed, b.disk)
	}
	s.say("b is started again")
	b.stop()
	s.start(b, a)
	s.run(time.Minute)
	s.golden()
	if b.view.State != mesh.Left || b.held() != "" || c.held() != freed {
		t.Errorf("b is %s with %q", b.view.State, b.held())
	}
	if n, _ := a.view.Node(b.view.Self); !n.Left {
		t.Error("a has forgotten that b left")
	}
}

func TestRestoredBackup(t *testing.T) {
	s := newSim(t, narrow)
	a, b := s.host("a", nil), s.host("b", s.token(nil))
	s.start(a, nil)
	s.start(b, a)
	s.run(10 * time.Second)
	backup := b.disk
	for range 3 {
		b.stop()
		s.start(b, a)
		s.run(time.Second)
	}
	s.say("b gets its disk of long ago back")
	b.stop()
	b.disk, b.table = backup, nil
	s.start(b, a)
	s.run(2 * time.Minute)
	s.golden()
	if b.view.Epoch != 5 || b.disk.Epoch != 5 {
		t.Errorf("b is in epoch %d, and %d on disk; the others know 4", b.view.Epoch, b.disk.Epoch)
	}
	if n, _ := a.view.Node(b.view.Self); n.Version.Epoch != 5 {
		t.Errorf("a knows b in epoch %d", n.Version.Epoch)
	}
}

// TestClone lets somebody else speak with the identity of a running node.
func TestClone(t *testing.T) {
	s := newSim(t, narrow)
	a, b := s.host("a", nil), s.host("b", s.token(nil))
	s.start(a, nil)
	s.start(b, a)
	s.run(10 * time.Second)
	before := b.held()
	cert := must(trust.ParseCertificate(b.cert, s.charter.CA))(t)
	spoken := len(b.spoken)
	clone := func(epoch uint64) {
		r := trust.Record{
			Version: mesh.Version{Epoch: epoch}, Certificate: cert.Hash, Nonce: 1, Key: mesh.Key{0xcc},
			Leases: []mesh.Lease{{Network: "default", Prefixes: narrow.Slot(7), State: mesh.Held, Since: start}},
		}
		raw := must(r.Sign(key("b")))(t)
		for _, h := range s.hosts {
			_ = h.m.Receive(raw)
			s.step(h)
		}
	}
	clone(7)
	if b.disk.Epoch != 8 || b.held() != before || !b.has("identity_in_use") {
		t.Errorf("epoch %d on disk, has %s of %s, health %v", b.disk.Epoch, b.held(), before, b.view.Health)
	}
	for range 20 { // a fight
		clone(b.disk.Epoch + 10)
		if b.held() != before {
			t.Fatalf("b believes the clone: it has %s", b.held())
		}
		s.run(100 * time.Millisecond)
	}
	if n := len(b.spoken) - spoken; n > 2 {
		t.Errorf("%d records in two seconds of a fight", n)
	}
	s.run(2 * time.Minute)
	if n, _ := a.view.Node(b.view.Self); n.Key == (mesh.Key{0xcc}) {
		t.Error("the clone has the last word")
	}
	if b.has("identity_in_use") {
		t.Error("the finding stays")
	}
	clone(trust.MaxEpoch) // nothing is above it; it must not harm
	s.run(time.Minute)
	if b.held() != before {
		t.Errorf("b has %s", b.held())
	}
}

func TestClockOf1970(t *testing.T) {
	s := newSim(t, narrow)
	token := s.token(nil)
	a, b, c := s.host("a", nil), s.host("b", token), s.host("c", token)
	s.start(a, nil)
	s.start(b, a)
	s.run(5 * time.Second)
	c.skew = time.Unix(0, 0).Sub(start)
	s.say("c starts in 1970")
	s.start(c, a)
	s.run(10 * time.Second)
	s.golden()
	if !s.agreed() || len(c.view.Nodes) != 3 {
		t.Errorf("c sees %d nodes", len(c.view.Nodes))
	}
	if !c.has("clock") || a.has("clock") {
		t.Errorf("c says %v, a says %v", c.view.Health, a.view.Health)
	}
	views := c.views
	s.run(10 * time.Minute)
	if c.views != views {
		t.Errorf("%d views without any news", c.views-views)
	}
	s.run(time.Hour)
	late, d := s.now.Add(-10*time.Minute), s.host("d", token)
	d.cert = must((&trust.Certificate{
		Serial: trust.Serial{200}, Identity: public("d"), Name: "d", NotBefore: late, NotAfter: late.Add(day), Admitted: late,
		Credential: token.Credential, Rights: token.Credential.Rights,
	}).Sign(token.Key))(t)
	s.start(d, a)
	s.run(10 * time.Second)
	if !s.agreed() || len(c.view.Nodes) != 4 {
		t.Errorf("c sees %d nodes, when one has joined an hour after all that the CA has signed", len(c.view.Nodes))
	}
}

// Set to a wrong time from another one, by which its own certificate had ended too, a
// clock drops nobody.
func TestClockThatIsSetTwice(t *testing.T) {
	s := newSim(t, narrow)
	a, c := s.host("a", nil), s.host("c", s.token(nil))
	b := s.host("b", s.token(nil)) // for 300 days
	s.start(a, nil)
	s.start(b, a)
	s.start(c, a)
	s.byCA(a, renewed(t, s, c, func(c *trust.Certificate) { c.NotAfter = start.Add(400 * day) }))
	s.run(time.Minute)
	c.stop()
	c.skew = 3650 * day
	s.start(c, a)
	s.run(time.Minute)
	c.skew = 350 * day
	c.m.Jumped(s.now.Add(c.skew), -3300*day)
	s.step(c)
	s.run(time.Minute)
	if len(c.view.Nodes) != 3 || !c.has("clock") {
		t.Errorf("c sees %d nodes, says %v", len(c.view.Nodes), c.view.Health)
	}
}

func TestClockBeyondTheCertificates(t *testing.T) {
	s := newSim(t, narrow)
	a, b := s.host("a", nil), s.host("b", s.token(nil))
	s.start(a, nil)
	s.start(b, a)
	s.run(5 * time.Second)
	b.stop()
	b.skew = 20 * 365 * 24 * time.Hour
	s.start(b, a)
	s.run(5 * time.Second)
	if len(b.view.Nodes) != 2 || !b.has("clock") || b.view.State != mesh.Ready || !s.agreed() {
		t.Errorf("b sees %d nodes, is %s and says %v", len(b.view.Nodes), b.view.State, b.view.Health)
	}
}

func TestExpiredPeerIsDropped(t *testing.T) {
	s := newSim(t, narrow)
	short := s.token(func(c *trust.Credential) { c.MaxCertLife = 301 * 24 * time.Hour })
	a, b := s.host("a", nil), s.host("b", short)
	long := trust.Certificate{
		Serial: trust.Serial{200}, Identity: public("a"), Name: "a", NotBefore: start.Add(-time.Hour),
		NotAfter: start.Add(900 * 24 * time.Hour), Admitted: start.Add(-time.Hour),
	}
	a.cert = must(long.Sign(key("ca")))(t)
	s.start(a, nil)
	s.start(b, a)
	s.run(5 * time.Second)
	if len(a.view.Nodes) != 2 {
		t.Fatalf("a sees %d nodes", len(a.view.Nodes))
	}
	b.stop()
	a.skew = 301 * 24 * time.Hour // as if that time had passed
	s.run(time.Minute)
	if len(a.view.Nodes) != 1 {
		t.Error("a still sees b, whose certificate has ended")
	}
}

func TestRecordsAreRenewed(t *testing.T) {
	s := newSim(t, narrow)
	a := s.host("a", nil)
	s.start(a, nil)
	s.run(10 * time.Second)
	first := a.spoken[len(a.spoken)-1].Version
	n := len(a.spoken)
	s.run(3*time.Hour + time.Minute)
	if got := len(a.spoken) - n; got != 3 {
		t.Errorf("%d records in three hours", got)
	}
	if last := a.spoken[len(a.spoken)-1].Version; last.Epoch != first.Epoch || last.Seq != first.Seq+3 {
		t.Errorf("from %v to %v", first, last)
	}
	if views := a.views; views > 8 {
		t.Errorf("%d views", views)
	}
}

func TestViewOnlyOnChange(t *testing.T) {
	s := newSim(t, narrow)
	a, b := s.host("a", nil), s.host("b", s.token(nil))
	s.start(a, nil)
	s.start(b, a)
	s.run(10 * time.Second)
	views := a.views
	for range 100 {
		s.exchange(b.m, b, a)
		s.run(10 * time.Second)
	}
	if a.views != views {
		t.Errorf("%d views without any news", a.views-views)
	}
	b.m.SetEndpoints([]netip.AddrPort{netip.MustParseAddrPort("198.51.100.7:1")})
	s.step(b)
	s.run(time.Second)
	if a.views != views+1 {
		t.Errorf("%d views for one change", a.views-views)
	}
	if n, _ := a.view.Node(b.view.Self); len(n.Endpoints) != 1 || n.Endpoints[0].String() != "198.51.100.7:1" {
		t.Errorf("b is at %v", n.Endpoints)
	}
}

func TestSetLabels(t *testing.T) {
	s := newSim(t, narrow)
	a, b := s.host("a", nil), s.host("b", s.token(nil))
	s.start(a, nil)
	s.start(b, a)
	s.run(10 * time.Second)
	set := func(labels map[string]string) error {
		err := b.m.SetLabels(s.now, labels)
		s.step(b)
		s.run(time.Second)
		return err
	}
	seen := func() string {
		n, _ := a.view.Node(b.view.Self)
		return fmt.Sprint(n.Labels)
	}
	for _, labels := range []map[string]string{{"site": "fra"}, {"site": "ams", "rack": "7"}, nil} {
		if err := set(labels); err != nil || seen() != fmt.Sprint(labels) {
			t.Errorf("a sees %s, %v; want %v", seen(), err, labels)
		}
	}
	if n := len(b.spoken); set(nil) != nil || len(b.spoken) != n {
		t.Error("the same labels make another record")
	}
	if err := set(map[string]string{"site": "new york"}); err == nil || seen() != "map[]" {
		t.Errorf("a label that nobody accepts: %v, a sees %s", err, seen())
	}
	if err := set(map[string]string{"site": "fra"}); err != nil || seen() != "map[site:fra]" {
		t.Errorf("after a refusal: %v, a sees %s", err, seen())
	}
}

// A node is told to keep what it loses, loses its subnet, and is told to move on.
func TestSetOnConflict(t *testing.T) {
	s := newSim(t, narrow)
	token := s.token(nil)
	a, b, c := s.host("a", nil), s.host("b", token), s.host("c", token)
	s.start(a, nil)
	s.start(b, a)
	s.run(5 * time.Second)
	c.disk.Leases = []mesh.Lease{{Network: "default", Prefixes: []netip.Prefix{netip.MustParsePrefix(b.held())}, State: mesh.Held, Since: start.Add(time.Hour), ClaimEpoch: 1}}
	s.start(c, a)
	c.m.SetOnConflict(lease.Quarantine)
	s.run(10 * time.Second)
	if c.view.State != mesh.Quarantine {
		t.Fatalf("c is %s", c.view.State)
	}
	c.m.SetOnConflict(lease.Renumber)
	s.step(c)
	s.run(10 * time.Second)
	if c.view.State != mesh.Ready || c.held() == b.held() || !s.agreed() {
		t.Errorf("b has %s, c is %s with %s", b.held(), c.view.State, c.held())
	}
}

func TestPinOfOneFamily(t *testing.T) {
	s := newSim(t, dual)
	pin := s.token(func(c *trust.Credential) { c.Rights.Pins = []netip.Prefix{netip.MustParsePrefix("10.86.5.0/24")} })
	a, b := s.host("a", nil), s.host("b", pin)
	s.start(a, nil)
	s.start(b, a)
	s.run(10 * time.Second)
	n, _ := a.view.Node(b.view.Self)
	if got := fmt.Sprint(n.Leases); b.held() != "10.86.5.0/24" || !strings.Contains(got, "fd86:1:2:5::/64") {
		t.Errorf("b has %s, and a sees %s", b.held(), got)
	}
}

func TestHeldByTwoAfterAPartition(t *testing.T) {
	s := newSim(t, narrow)
	token := s.token(nil)
	a, b, c := s.host("a", nil), s.host("b", token), s.host("c", token)
	s.start(a, nil)
	s.start(b, a)
	s.run(5 * time.Second)
	// c had the same subnet as b on the other side of a partition, since later.
	c.disk.Leases = []mesh.Lease{{Network: "default", Prefixes: []netip.Prefix{netip.MustParsePrefix(b.held())}, State: mesh.Held, Since: start.Add(time.Hour), ClaimEpoch: 1}}
	s.say("c comes back with the subnet of b")
	s.start(c, a)
	s.run(10 * time.Second)
	s.golden()
	if !s.agreed() || c.held() == b.held() {
		t.Errorf("b has %s, c has %s", b.held(), c.held())
	}
}

// Of nodes that started together, one became ready with a subnet and lost it: the
// better claim was here in time, but not the admission of its owner.
func TestClaimWaitsForARivalsProof(t *testing.T) {
	s := newSim(t, narrow)
	a, b := s.host("a", nil), s.host("b", s.token(nil))
	s.start(a, nil)
	cert := must(trust.ParseCertificate(b.cert, s.charter.CA))(t)
	own, _ := a.view.Node(a.view.Self)
	rival := trust.Record{Version: mesh.Version{Epoch: 1, Seq: 1}, Certificate: cert.Hash, Key: mesh.Key{1}, Leases: slices.Clone(own.Leases)}
	rival.Leases[0].Since = start.Add(-time.Minute)
	if err := a.m.Receive(must(rival.Sign(key("b")))(t)); err != nil {
		t.Fatal(err)
	}
	s.run(4 * time.Second)
	if a.view.State != mesh.Probing {
		t.Errorf("%s before the rival's certificate came", a.view.State)
	}
	if err := a.m.Receive(b.cert); err != nil {
		t.Fatal(err)
	}
	s.step(a)
	s.run(10 * time.Second)
	if a.view.State != mesh.Ready || a.held() == own.Leases[0].Prefixes[0].String() || len(a.disk.Leases) != 1 {
		t.Errorf("%s with %s, the rival claims %s", a.view.State, a.held(), own.Leases[0].Prefixes[0])
	}
}

func TestEndpointsThatOthersRefuse(t *testing.T) {
	s := newSim(t, dual)
	a := s.host("a", nil)
	s.start(a, nil)
	var all []netip.AddrPort
	for _, e := range []string{
		"[fe80::1]:1", "[fe80::1%eth0]:1", "0.0.0.0:1", "192.0.2.9:0", "[::ffff:192.0.2.9]:1", "224.0.0.1:1", "10.86.3.4:1",
		"[fd86:1:2::1]:1", mesh.ControlAddr(s.charter.ID(), a.view.Self).String(), "192.0.2.9:1", "192.0.2.10:1", "192.0.2.11:1", "192.0.2.12:1", "192.0.2.13:1",
	} {
		p, err := netip.ParseAddrPort(e)
		if err != nil {
			p = netip.AddrPortFrom(netip.MustParseAddr(e), 1)
		}
		all = append(all, p)
	}
	a.m.SetEndpoints(append(all, netip.AddrPort{}))
	s.step(a)
	n, _ := a.view.Node(a.view.Self)
	if got := fmt.Sprint(n.Endpoints); got != "[192.0.2.9:1 192.0.2.10:1 192.0.2.11:1 192.0.2.12:1]" {
		t.Errorf("endpoints %s", got)
	}
}

func TestNewRefuses(t *testing.T) {
	s := newSim(t, dual)
	a := s.host("a", nil)
	good := Config{Identity: key("a"), Charter: s.charter.Raw, Certificate: a.cert, TunnelKey: mesh.Key{1}}
	foreign := newSim(t, dual)
	other := trust.Charter{Name: "other", Version: 1, Created: start, Networks: []mesh.Network{dual}}
	raw := must(other.Sign(key("other ca")))(t)
	unnamed := trust.Charter{Name: "test", Version: 1, Created: start, Networks: []mesh.Network{{Name: "prod", IPv4: dual.IPv4, IPv4Len: 24}}}
	noDefault := must(unnamed.Sign(key("ca")))(t)
	labels := map[string]string{}
	for i := range 16 {
		labels[fmt.Sprint("label", i)] = strings.Repeat("x", 64)
	}
	for name, change := range map[string]func(*Config, *State){
		"another's certificate":  func(c *Config, _ *State) { c.Identity = key("b") },
		"another mesh's charter": func(c *Config, _ *State) { c.Charter = raw },
		"no charter":             func(c *Config, _ *State) { c.Charter = nil },
		"no certificate":         func(c *Config, _ *State) { c.Certificate = nil },
		"epoch not raised":       func(_ *Config, st *State) { st.Epoch = 0 },
		"no default network":     func(c *Config, _ *State) { c.Charter = noDefault },
		"no tunnel key":          func(c *Config, _ *State) { c.TunnelKey = mesh.Key{} },
		"labels beyond a record": func(c *Config, _ *State) { c.Labels = labels },
		"label with an escape":   func(c *Config, _ *State) { c.Labels = map[string]string{"a": "\x1b"} },
	} {
		cfg, state := good, State{Epoch: 1}
		change(&cfg, &state)
		if _, err := New(start, cfg, state, nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := New(start, good, State{Epoch: 1}, foreign.junk()); err != nil {
		t.Errorf("junk in the table: %v", err)
	}
}

// junk is a table that is worth nothing.
func (s *sim) junk() [][]byte {
	return [][]byte{nil, []byte("junk"), make([]byte, 9000), s.host("b", s.token(nil)).cert}
}

func TestReceiveRefusesJunk(t *testing.T) {
	s := newSim(t, narrow)
	a := s.host("a", nil)
	s.start(a, nil)
	s.run(5 * time.Second)
	views := a.views
	for i := range 2000 {
		junk := trust.Record{Version: mesh.Version{Epoch: 1}, Key: mesh.Key{1}, Certificate: trust.Hash{byte(i), byte(i >> 8), 1}}
		_ = a.m.Receive(must(junk.Sign(key("nobody")))(t))
	}
	if err := a.m.Receive([]byte("junk")); err == nil {
		t.Error("junk accepted")
	}
	s.step(a)
	if a.views != views || a.view.State != mesh.Ready {
		t.Errorf("%d views, %s", a.views-views, a.view.State)
	}
	for _, raw := range a.m.Table() {
		if err := a.m.Receive(raw); !errors.Is(err, registry.ErrStale) {
			t.Errorf("what it knows already: %v, want %v", err, registry.ErrStale)
		}
	}
}

func BenchmarkIdleStep(b *testing.B) {
	for _, n := range []int{10, 200} {
		b.Run(fmt.Sprintf("nodes=%d", n), func(b *testing.B) {
			m := bigMesh(b, n)
			now := start.Add(time.Second)
			for b.Loop() {
				m.Step(now)
			}
		})
	}
}

// BenchmarkStepOnChange has an endpoint of the node change before each Step.
func BenchmarkStepOnChange(b *testing.B) {
	for _, n := range []int{10, 200} {
		b.Run(fmt.Sprintf("nodes=%d", n), func(b *testing.B) {
			m := bigMesh(b, n)
			now := start.Add(time.Second)
			port := uint16(0)
			for b.Loop() {
				port = port%1000 + 1
				m.SetEndpoints([]netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, 1}), port)})
				m.Step(now)
			}
		})
	}
}

// bigMesh is a member that knows n others, each with a lease.
func bigMesh(b *testing.B, n int) *Member {
	charter := trust.Charter{Name: "test", Version: 1, Created: start.Add(-time.Hour), Networks: []mesh.Network{dual}}
	raw := must(charter.Sign(key("ca")))(b)
	var table [][]byte
	var own []byte
	for i := range n {
		name := fmt.Sprint("n", i)
		c := trust.Certificate{
			Serial: trust.Serial{byte(i)}, Identity: public(name), Name: name,
			NotBefore: start.Add(-time.Hour), NotAfter: start.Add(time.Hour), Admitted: start.Add(-time.Hour),
		}
		cert := must(c.Sign(key("ca")))(b)
		parsed := must(trust.ParseCertificate(cert, public("ca")))(b)
		if i == 0 {
			own = cert
			continue
		}
		r := trust.Record{
			Version: mesh.Version{Epoch: 1}, Certificate: parsed.Hash, Key: mesh.Key{1},
			Leases: []mesh.Lease{{Network: "default", Prefixes: dual.Slot(i), State: mesh.Held, Since: start}},
		}
		table = append(table, cert, must(r.Sign(key(name)))(b))
	}
	m := must(New(start, Config{
		Identity: key("n0"), Charter: raw, Certificate: own, TunnelKey: mesh.Key{1}, Founder: true, OnConflict: lease.Auto,
	}, State{Epoch: 1, Leases: []mesh.Lease{{Network: "default", Prefixes: dual.Slot(0), State: mesh.Held, Since: start}}}, table))(b)
	if out := m.Step(start); out.View == nil || len(out.View.Nodes) != n || !slices.Equal(out.Want, nil) {
		b.Fatal("not the mesh that was meant")
	}
	return m
}

// TestPinOfAnotherCertificate gives one identity two certificates: a free one,
// under which it leases somebody else's subnet, and, once that has ended, one
// with a pin to it and with the seniority of an old hand.
func TestPinOfAnotherCertificate(t *testing.T) {
	s := newSim(t, narrow)
	owner := s.host("owner", nil)
	s.start(owner, nil)
	s.run(5 * time.Second)
	mine := netip.MustParsePrefix(owner.held())
	certify := func(serial byte, admitted, end time.Duration, pins ...netip.Prefix) *trust.Certificate {
		c := trust.Certificate{
			Serial: trust.Serial{serial}, Identity: public("evil"), Name: "evil", Rights: trust.Rights{Pins: pins},
			NotBefore: start.Add(-2 * time.Hour), NotAfter: start.Add(end), Admitted: start.Add(admitted),
		}
		return must(trust.ParseCertificate(must(c.Sign(key("ca")))(t), s.charter.CA))(t)
	}
	free, pinned := certify(201, time.Minute, time.Hour), certify(202, -2*time.Hour, 100*time.Hour, mine)
	r := trust.Record{
		Version: mesh.Version{Epoch: 1}, Certificate: free.Hash, Nonce: 1, Key: mesh.Key{0xee},
		Leases: []mesh.Lease{{Network: "default", Prefixes: []netip.Prefix{mine}, State: mesh.Held, Since: start.Add(-2 * time.Hour)}},
	}
	for _, raw := range [][]byte{free.Raw, pinned.Raw, must(r.Sign(key("evil")))(t)} {
		if err := owner.m.Receive(raw); err != nil {
			t.Fatal(err)
		}
	}
	for _, after := range []time.Duration{time.Second, 2 * time.Hour} {
		s.run(after)
		if owner.held() != mine.String() {
			t.Fatalf("after %s the owner has %q, not %s", after, owner.held(), mine)
		}
	}
	n, known := owner.view.Node(trust.IdentityOf(public("evil")))
	if !known || len(n.Leases) != 0 {
		t.Errorf("listed: %v, with leases %v", known, n.Leases)
	}
}

// TestOwnLeaseUnderItsOwnCertificate has a clone speak under another certificate
// of the same identity.
func TestOwnLeaseUnderItsOwnCertificate(t *testing.T) {
	s := newSim(t, narrow)
	a := s.host("a", nil)
	s.start(a, nil)
	s.run(5 * time.Second)
	before := a.held()
	other := s.host("a", nil) // the same identity
	cert := must(trust.ParseCertificate(other.cert, s.charter.CA))(t)
	r := trust.Record{Version: mesh.Version{Epoch: trust.MaxEpoch}, Certificate: cert.Hash, Nonce: 1, Key: mesh.Key{0xcc}}
	for _, raw := range [][]byte{cert.Raw, must(r.Sign(key("a")))(t)} {
		if err := a.m.Receive(raw); err != nil {
			t.Fatal(err)
		}
	}
	s.run(time.Minute)
	if a.held() != before {
		t.Errorf("has %q of %s", a.held(), before)
	}
}
