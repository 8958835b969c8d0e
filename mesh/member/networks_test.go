package member

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/registry"
	"meshd/mesh/trust"
)

var (
	web = mesh.Network{Name: "web", IPv4: netip.MustParsePrefix("10.87.0.0/21"), IPv4Len: 24}
	db  = mesh.Network{
		Name: "db", IPv4: netip.MustParsePrefix("10.88.0.0/21"), IPv4Len: 24,
		IPv6: netip.MustParsePrefix("fd88::/61"), IPv6Len: 64,
	}
)

// next signs the charter that follows the newest one of the sim.
func (s *sim) next(networks ...mesh.Network) []byte {
	s.t.Helper()
	raw := must(s.charter.Next(s.now, networks).Sign(key("ca")))(s.t)
	s.charter = must(trust.ParseCharter(raw, s.charter.ID()))(s.t)
	return raw
}

// bring has the operator of a host bring a charter.
func (s *sim) bring(h *host, raw []byte) {
	s.t.Helper()
	if err := h.m.SetCharter(raw); err != nil {
		s.t.Fatal(err)
	}
	s.step(h)
}

func (s *sim) use(h *host, networks ...string) {
	s.t.Helper()
	if err := h.m.Use(s.now, networks); err != nil {
		s.t.Fatal(err)
	}
	s.step(h)
}

// in is the lease that a host sees itself have in a network.
func (h *host) in(network string) string {
	n, _ := h.view.Node(h.view.Self)
	for _, l := range n.Leases {
		if l.Network == network {
			return fmt.Sprint(l.Prefixes, " ", l.State)
		}
	}
	return ""
}

// three starts three hosts, of which a is the founder.
func three(t *testing.T) (s *sim, a, b, c *host) {
	t.Helper()
	s = newSim(t, narrow)
	token := s.token(nil)
	a, b, c = s.host("a", nil), s.host("b", token), s.host("c", token)
	s.start(a, nil)
	s.start(b, a)
	s.start(c, a)
	s.run(15 * time.Second)
	if !s.agreed() {
		t.Fatalf("they do not agree:\n%s", s.out.String())
	}
	return s, a, b, c
}

func TestNetworks(t *testing.T) {
	s, a, b, c := three(t)
	s.use(c, "web", "default", "web") // nobody has it yet
	s.run(time.Minute)
	if c.in("web") != "" || len(c.disk.Leases) != 1 {
		t.Fatalf("c has %q in a network that does not exist", c.in("web"))
	}
	s.say("a brings the network web, for which c has waited")
	s.bring(a, s.next(narrow, web))
	s.run(10 * time.Second)
	s.say("b uses it as well")
	s.use(b, "web")
	s.run(10 * time.Second)
	if b.in("web") == "" || c.in("web") == "" || b.in("web") == c.in("web") || a.in("web") != "" || !s.agreed() {
		t.Errorf("a has %q, b %q, c %q", a.in("web"), b.in("web"), c.in("web"))
	}
	if len(a.view.Networks) != 2 || len(b.disk.Leases) != 2 || !slices.Equal(b.charter, s.charter.Raw) {
		t.Errorf("a sees %v, b has saved %v", a.view.Networks, b.disk.Leases)
	}

	s.say("b is killed, and started with nobody to be reached")
	before := b.in("web")
	b.stop()
	s.run(time.Minute)
	s.start(b, nil)
	if b.in("web") != before || len(b.view.Networks) != 2 || b.view.State == mesh.Left {
		t.Errorf("b had %q and has %q", before, b.in("web"))
	}
	s.exchange(b.m, b, a)
	s.run(10 * time.Second)
	if b.in("web") != before || !s.agreed() {
		t.Errorf("b had %q and has %q", before, b.in("web"))
	}

	s.say("c needs it no longer")
	s.use(c)
	s.run(5 * time.Second)
	if c.in("web") != "" || len(c.disk.Leases) != 1 || !s.agreed() {
		t.Errorf("c has %q, and saved %v", c.in("web"), c.disk.Leases)
	}

	s.say("a deletes it")
	s.bring(a, s.next(narrow))
	s.run(5 * time.Second)
	if b.in("web") != "" || len(b.disk.Leases) != 1 || len(c.view.Networks) != 1 || !s.agreed() {
		t.Errorf("b has %q, and saved %v", b.in("web"), b.disk.Leases)
	}
	s.golden()
}

// A node that was away while a network was deleted and made anew with other ranges
// comes back with a lease that means nothing any longer.
func TestNetworkMadeAnew(t *testing.T) {
	s, a, b, _ := three(t)
	old := s.next(narrow, web)
	s.bring(a, old)
	s.use(b, "web")
	s.run(10 * time.Second)
	away := b.m
	b.stop()
	s.bring(a, s.next(narrow))
	anew := web
	anew.IPv4 = netip.MustParsePrefix("10.89.0.0/21")
	s.bring(a, s.next(narrow, anew))
	s.run(time.Minute)

	t.Run("it never stopped", func(t *testing.T) {
		b.m = away
		s.exchange(away, b, a)
		s.run(10 * time.Second)
		if got := b.in("web"); !strings.HasPrefix(got, "[10.89.") || !strings.HasSuffix(got, " held") || !s.agreed() {
			t.Errorf("b has %q", got)
		}
	})
	t.Run("it restarts with the old charter", func(t *testing.T) {
		b.stop()
		b.disk.Leases[1].Prefixes = []netip.Prefix{netip.MustParsePrefix("10.87.3.0/24")}
		b.charter, b.table = old, nil
		s.start(b, a)
		s.run(10 * time.Second)
		if got := b.in("web"); !strings.HasPrefix(got, "[10.89.") || !s.agreed() {
			t.Errorf("b has %q", got)
		}
	})
}

func TestLeaveAllNetworks(t *testing.T) {
	s, a, b, c := three(t)
	s.bring(a, s.next(narrow, web, db))
	s.use(b, "web", "db")
	s.use(c, "web", "db")
	s.run(10 * time.Second)
	b.m.Leave(s.now)
	s.step(b)
	s.run(time.Second)
	n, _ := a.view.Node(b.m.ID())
	if len(n.Leases) != 3 || slices.ContainsFunc(n.Leases, func(l mesh.Lease) bool { return l.State != mesh.Released }) || !n.Left {
		t.Errorf("a sees that b has %v", n.Leases)
	}
}

// The loser of a subnet keeps it for local traffic only where something uses it.
func TestQuarantineByNetwork(t *testing.T) {
	s, a, b, c := three(t)
	s.bring(a, s.next(narrow, web, db))
	s.use(b, "web", "db")
	s.run(10 * time.Second)
	c.stop()
	for _, l := range b.disk.Leases[1:] { // c had the same ones on the other side of a partition, since later
		l.Since = s.now.Add(time.Hour)
		c.disk.Leases = append(c.disk.Leases, l)
	}
	c.table = nil // it hears of b when it knows what is in use
	s.start(c, nil)
	c.m.SetInUse([]string{"web"})
	s.step(c)
	s.exchange(c.m, c, a)
	s.run(10 * time.Second)
	if !strings.HasSuffix(c.in("web"), "quarantined") || !strings.HasSuffix(c.in("db"), "held") || c.in("db") == b.in("db") {
		t.Errorf("c has %q and %q\n%s", c.in("web"), c.in("db"), s.out.String())
	}
	if c.view.State != mesh.Ready || !c.has("quarantined") {
		t.Errorf("c is %s, %v", c.view.State, c.view.Health)
	}
	c.says(t, "quarantined", "subnet "+strings.Trim(strings.TrimSuffix(b.in("web"), " held"), "[]")+" of network web belongs to node b ("+b.m.ID().Short()+"): its traffic")
	s.use(b)
	s.run(10 * time.Second)
	if !strings.HasSuffix(c.in("web"), "held") || c.has("quarantined") {
		t.Errorf("b has given it back, and c has %q", c.in("web"))
	}
}

// says fails unless the host has a finding whose message has some words.
func (h *host) says(t *testing.T, code, words string) {
	t.Helper()
	if !slices.ContainsFunc(h.view.Health, func(f mesh.Finding) bool { return f.Code == code && strings.Contains(f.Message, words) }) {
		t.Errorf("%s says %v, want %s with %q", h.name, h.view.Health, code, words)
	}
}

// Who is pinned to a subnet of one network may lease in no other.
func TestPinnedElsewhere(t *testing.T) {
	s := newSim(t, narrow)
	pin := s.token(func(c *trust.Credential) { c.Rights.Pins = []netip.Prefix{netip.MustParsePrefix("10.86.5.0/24")} })
	a, b := s.host("a", nil), s.host("b", pin)
	s.start(a, nil)
	s.start(b, a)
	s.bring(a, s.next(narrow, web))
	s.use(b, "web")
	s.run(15 * time.Second)
	if b.in("default") != "[10.86.5.0/24] held" || b.in("web") != "" || b.view.State != mesh.Ready {
		t.Errorf("b has %q and %q", b.in("default"), b.in("web"))
	}
	i := slices.IndexFunc(b.view.Health, func(f mesh.Finding) bool { return f.Code == "no_free_subnets" })
	if i < 0 || !strings.Contains(b.view.Health[i].Message, "lets it lease nothing in network web") {
		t.Errorf("health %v", b.view.Health)
	}
}

// TestPinsInTwoNetworks: one token may pin a node in several, and each pin counts in
// its network.
func TestPinsInTwoNetworks(t *testing.T) {
	s, a, b, _ := three(t)
	s.bring(a, s.next(narrow, web))
	s.run(time.Second)
	d := s.host("d", s.token(func(c *trust.Credential) { c.Rights.Pins = prefixes("10.86.3.0/24", "10.87.5.0/24") }))
	s.start(d, a)
	s.use(d, "web")
	s.use(b, "web")
	s.run(10 * time.Second)
	if d.in("default") != "[10.86.3.0/24] held" || d.in("web") != "[10.87.5.0/24] held" {
		t.Errorf("d has %q and %q", d.in("default"), d.in("web"))
	}
	if err := d.m.Renumber(s.now, "web", true); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("a pinned lease is renumbered: %v", err)
	}
	before := b.in("web")
	if err := b.m.Renumber(s.now, "web", false); err != nil {
		t.Error(err)
	}
	s.step(b)
	s.run(10 * time.Second)
	if b.in("web") == before || !strings.HasSuffix(b.in("web"), "held") {
		t.Errorf("b had %s and has %s", before, b.in("web"))
	}
	if err := b.m.Use(s.now, nil); err != nil {
		t.Error(err)
	}
	s.step(b)
	s.run(time.Second)
	if n := a.sees(b); len(n.Leases) != 1 {
		t.Errorf("b uses the network no more, and a sees %v", n.Leases)
	}
}

// TestQuarantineOverARestart: containers go on among themselves, and their subnet is
// not taken for free by its own node either.
func TestQuarantineOverARestart(t *testing.T) {
	s, a, b, c := three(t)
	lost := c.in("default")
	c.m.SetInUse([]string{home})
	s.say("a node that is pinned to the subnet of c comes")
	d := s.host("d", nil)
	d.founder, d.cert = false, pinned(t, s, "d", c.held())
	s.start(d, a)
	s.run(10 * time.Second)
	if c.view.State != mesh.Quarantine || len(c.disk.Leases) != 1 {
		t.Fatalf("c is %s, with %v on disk", c.view.State, c.disk.Leases)
	}
	c.says(t, "quarantined", "belongs to node d ("+d.m.ID().Short()+"): traffic")
	e := s.host("e", nil)
	e.founder, e.cert = false, pinned(t, s, "e", d.held())
	s.start(e, a)
	s.run(10 * time.Second)
	e.says(t, "pin_conflict", "the subnet "+d.held()+" that this node is pinned to belongs to node d ("+d.m.ID().Short()+") with the same pin")
	e.stop()
	c.stop()
	s.run(time.Second)
	c.inUse = []string{home}
	s.start(c, nil)
	if c.view.State != mesh.Quarantine || c.in("default") != strings.Replace(lost, "held", "quarantined", 1) {
		t.Errorf("c is %s with %q", c.view.State, c.in("default"))
	}
	s.run(time.Minute)
	if b.routes(d.held()) != "d" {
		t.Errorf("b routes to %q", b.routes(d.held()))
	}
}

func TestSetCharterRefuses(t *testing.T) {
	s, a, _, _ := three(t)
	old := s.charter
	first := s.next(narrow, web)
	s.bring(a, first)
	s.bring(a, first) // who did not hear the answer asks again
	sign := func(change func(c *trust.Charter)) []byte {
		c := s.charter.Next(s.now, s.charter.Networks)
		change(c)
		return must(c.Sign(key("ca")))(t)
	}
	moved := web
	moved.IPv4 = netip.MustParsePrefix("10.90.0.0/21")
	for name, tt := range map[string]struct {
		raw  []byte
		want error
	}{
		"one that came late":    {must(old.Next(s.now, []mesh.Network{narrow, db}).Sign(key("ca")))(t), trust.ErrNotNext},
		"a version too far":     {sign(func(c *trust.Charter) { c.Version++ }), trust.ErrNotNext},
		"other ranges":          {sign(func(c *trust.Charter) { c.Networks = []mesh.Network{narrow, moved} }), trust.ErrForbidden},
		"no default network":    {sign(func(c *trust.Charter) { c.Networks = []mesh.Network{web} }), trust.ErrForbidden},
		"another name":          {sign(func(c *trust.Charter) { c.Name = "other" }), trust.ErrForbidden},
		"another CA":            {must(s.charter.Next(s.now, s.charter.Networks).Sign(key("other ca")))(t), trust.ErrForbidden},
		"another kind":          {a.cert, trust.ErrMalformed},
		"nothing":               {nil, trust.ErrMalformed},
		"more than a signature": {append(sign(func(*trust.Charter) {}), 0), trust.ErrMalformed},
	} {
		if err := a.m.SetCharter(tt.raw); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	if s.step(a); !slices.Equal(a.charter, s.charter.Raw) || len(a.view.Networks) != 2 {
		t.Errorf("a sees %v", a.view.Networks)
	}
}

// Two operators change the mesh at a time: all follow one of them, and those who
// saw both say so until the next change.
func TestForkedCharter(t *testing.T) {
	s, a, b, c := three(t)
	old := s.charter
	one := s.next(narrow, web)
	s.charter = old
	two := s.next(narrow, db)
	s.bring(a, one)
	if err := b.m.SetCharter(two); err != nil {
		t.Fatal(err)
	}
	s.step(b)
	s.run(5 * time.Second)
	winner, loser := one, two
	if must(trust.ParseCharter(two, old.ID()))(t).Newer(must(trust.ParseCharter(one, old.ID()))(t)) {
		winner, loser = two, one
	}
	for _, h := range s.hosts {
		if !slices.Equal(h.charter, winner) || !h.has("charter_fork") {
			t.Errorf("%s follows another charter, or says nothing of it: %v", h.name, h.view.Health)
		}
	}
	c.stop()
	s.start(c, a)
	s.run(5 * time.Second)
	if err := c.m.Receive(loser); !errors.Is(err, registry.ErrStale) || !slices.Equal(c.charter, winner) {
		t.Errorf("after a restart: %v", err)
	}
	s.charter = must(trust.ParseCharter(winner, old.ID()))(t)
	s.bring(c, s.next(narrow, web, db))
	s.run(5 * time.Second)
	for _, h := range s.hosts {
		if len(h.view.Networks) != 3 || h.has("charter_fork") {
			t.Errorf("%s sees %v, %v", h.name, h.view.Networks, h.view.Health)
		}
	}
}

// A node whose address lies in a new network can be reached by that no longer: it
// tells the others what is left.
func TestNetworkOverAnEndpoint(t *testing.T) {
	s, a, b, _ := three(t)
	b.m.SetEndpoints([]netip.AddrPort{netip.MustParseAddrPort("10.87.1.1:51820"), netip.MustParseAddrPort("198.51.100.7:51820")})
	s.step(b)
	s.run(time.Second)
	endpoints := func() string {
		n, _ := a.view.Node(b.m.ID())
		return fmt.Sprint(n.Endpoints)
	}
	if endpoints() != "[10.87.1.1:51820 198.51.100.7:51820]" {
		t.Fatalf("b is at %s", endpoints())
	}
	s.bring(a, s.next(narrow, web))
	s.run(5 * time.Second)
	if endpoints() != "[198.51.100.7:51820]" || !s.agreed() {
		t.Errorf("b is at %s", endpoints())
	}
	s.bring(a, s.next(narrow))
	s.run(5 * time.Second)
	if endpoints() != "[10.87.1.1:51820 198.51.100.7:51820]" || !s.agreed() {
		t.Errorf("b is at %s", endpoints())
	}
}

func TestUseRefuses(t *testing.T) {
	s, a, _, _ := three(t)
	s.bring(a, s.next(narrow, web))
	s.use(a, "web")
	s.run(10 * time.Second)
	before := a.in("web")
	many := strings.Fields("n1 n2 n3 n4 n5 n6 n7 n8")
	long := []string{}
	for i := range 7 {
		long = append(long, strings.Repeat("x", 62)+fmt.Sprint(i))
	}
	for name, networks := range map[string][]string{"too many": many, "too long": long, "no name": {"../web"}} {
		if err := a.m.Use(s.now, networks); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if s.step(a); a.in("web") != before {
			t.Errorf("%s: a had %q and has %q", name, before, a.in("web"))
		}
	}
	if err := a.m.Use(s.now, many[:7]); err != nil {
		t.Errorf("seven networks: %v", err)
	}
}

// TestManyNetworksAtRandom has nodes use networks, leave them, restart and meet
// charters while they do: what is held never overlaps once they have come to rest.
func TestManyNetworksAtRandom(t *testing.T) {
	for seed := range uint64(10) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			s := newSim(t, narrow)
			token := s.token(nil)
			s.start(s.host("a", nil), nil)
			for _, name := range []string{"b", "c", "d"} {
				s.start(s.host(name, token), s.hosts[0])
			}
			all := []mesh.Network{web, db}
			for range 30 {
				h := s.hosts[random.IntN(len(s.hosts))]
				switch random.IntN(4) {
				case 0:
					networks := []mesh.Network{narrow}
					for _, n := range all {
						if random.IntN(3) > 0 {
							networks = append(networks, n)
						}
					}
					s.run(2 * time.Second) // one operator at a time, who sees what the one before did
					s.bring(h, s.next(networks...))
				case 1, 2:
					var networks []string
					for _, n := range all {
						if random.IntN(2) > 0 {
							networks = append(networks, n.Name)
						}
					}
					s.use(h, networks...)
				case 3:
					seed := s.hosts[(slices.Index(s.hosts, h)+1)%len(s.hosts)]
					h.stop()
					s.run(time.Duration(random.IntN(3000)) * time.Millisecond)
					s.start(h, seed)
				}
				s.run(time.Duration(random.IntN(5000)) * time.Millisecond)
			}
			s.run(30 * time.Second)
			if !s.agreed() {
				t.Fatalf("they do not agree:\n%s", s.out.String())
			}
			var held []netip.Prefix
			for _, n := range s.hosts[0].view.Nodes {
				for _, l := range n.Leases {
					network, ok := s.charter.Network(l.Network)
					for _, p := range l.Prefixes {
						if _, err := network.SlotOf(p); !ok || err != nil || slices.ContainsFunc(held, p.Overlaps) {
							t.Errorf("%s has %s in %s", n.Name, p, l.Network)
						}
						held = append(held, p)
					}
				}
			}
		})
	}
}
