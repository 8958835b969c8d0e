package member

import (
	"cmp"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/sha256"
	"flag"
	"fmt"
	"math/bits"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/lease"
	"meshd/mesh/registry"
	"meshd/mesh/trust"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// keys saves time: deriving one is as slow as a signature.
var keys = map[string]ed25519.PrivateKey{}

func key(name string) ed25519.PrivateKey {
	if keys[name] == nil {
		seed := sha256.Sum256([]byte(name))
		keys[name] = ed25519.NewKeyFromSeed(seed[:])
	}
	return keys[name]
}

func public(name string) ed25519.PublicKey { return key(name).Public().(ed25519.PublicKey) }

// sim is a mesh of Members in virtual time. What one broadcasts, all others that
// are up and on its side of a partition receive after the delay.
type sim struct {
	t       *testing.T
	charter *trust.Charter
	parsed  registry.Parsed // by any of them
	now     time.Time
	delay   time.Duration
	hosts   []*host
	events  []event
	seq     int
	serial  byte
	out     strings.Builder

	admissions map[trust.Hash]int // broadcast, by certificate
	tombstones map[mesh.NodeID]int
	seals      bool                // certificates have seal keys
	rights     map[string][]string // capabilities, then, by name
}

type event struct {
	at  time.Time
	seq int
	do  func()
}

// host is a machine: what is on its disk, and the daemon while it runs.
type host struct {
	name    string
	cert    []byte
	founder bool
	skew    time.Duration // of its clock
	disk    State
	charter []byte // saved; nil: that of the sim
	table   [][]byte
	keyring Keyring
	ttl     time.Duration // 0: the default
	rotates time.Duration // how often, by itself; 0: never
	side    int           // of a partition
	deaf    bool          // what all are told goes elsewhere
	boot    time.Duration // by how much its BOOTTIME is ahead, from suspends
	inUse   []string      // networks, from the start on
	from    *host         // whose state this is a copy of; nil: none's
	place   byte          // of its address; 0: one of its own

	unplugged bool // it starts without any

	m      *Member // nil: not running
	nonce  uint64
	view   *mesh.View
	views  int
	line   string // of the transcript
	asked  map[trust.Hash]time.Time
	spoken []trust.Record // own records, as broadcast
	seed   *host
	ended  bool // as a clone
}

// owner is the host whose identity this one has.
func (h *host) owner() *host {
	if h.from != nil {
		return h.from
	}
	return h
}

// clone adds a machine with a copy of another one's disk.
func (s *sim) clone(of *host) *host {
	h := &host{name: "copy", from: of, cert: of.cert, disk: of.disk, table: slices.Clone(of.table), asked: map[trust.Hash]time.Time{}}
	if of.m != nil {
		h.table = of.m.Table()
	}
	s.hosts = append(s.hosts, h)
	return h
}

// sealKey is the private key to which things are sealed to a host.
func sealKey(name string) [32]byte { return sha256.Sum256([]byte("seal " + name)) }

func publicSeal(t testing.TB, name string) mesh.Key {
	private := sealKey(name)
	k := must(ecdh.X25519().NewPrivateKey(private[:]))(t)
	return mesh.Key(k.PublicKey().Bytes())
}

// syncing lets every host exchange with the next one that it reaches, again and
// again, as they do through the tunnels.
func (s *sim) syncing(every time.Duration) {
	s.after(every, func() {
		for i, h := range s.hosts {
			for j := range s.hosts[1:] {
				other := s.hosts[(i+1+j)%len(s.hosts)]
				if h.m != nil && other.m != nil && other.side == h.side {
					s.exchange(h.m, h, other)
					break
				}
			}
		}
		s.syncing(every)
	})
}

// suspend lets time pass for a host that is asleep: it hears nothing and does
// nothing, and its monotonic clock stands still.
func (s *sim) suspend(h *host, d time.Duration) {
	s.t.Helper()
	m := h.m
	h.m = nil
	s.run(d)
	h.m, h.skew, h.boot = m, h.skew-d, h.boot+d
	h.m.Slept(s.now.Add(h.skew), d)
	s.step(h)
	s.after(s.delay, func() {
		if h.seed != nil {
			s.exchange(m, h, h.seed)
		}
	})
}

// byCA signs an object with the CA key, and gives it to a host.
func (s *sim) byCA(h *host, sign func(ed25519.PrivateKey) ([]byte, error)) {
	s.t.Helper()
	raw := must(sign(key("ca")))(s.t)
	if err := h.m.Submit(raw); err != nil {
		s.t.Fatal(err)
	}
	s.step(h)
}

func (h *host) id() mesh.NodeID { return trust.IdentityOf(public(h.owner().name)) }

// sees is what a host knows of another.
func (h *host) sees(other *host) mesh.Node {
	n, _ := h.view.Node(other.id())
	return n
}

// routes tells to whom a host sends packets for a subnet.
func (h *host) routes(subnet string) string {
	var to []string
	for _, n := range h.view.Nodes {
		for _, l := range n.Leases {
			if l.State == mesh.Held && l.Prefixes[0].String() == subnet {
				to = append(to, n.Name)
			}
		}
	}
	return strings.Join(to, " and ")
}

func newSim(t *testing.T, network mesh.Network) *sim {
	c := trust.Charter{Name: "test", Version: 1, Created: start.Add(-time.Hour), Networks: []mesh.Network{network}}
	raw := must(c.Sign(key("ca")))(t)
	return &sim{
		t: t, charter: must(trust.ParseCharter(raw, mesh.ID{}))(t), now: start, delay: 100 * time.Millisecond,
		admissions: map[trust.Hash]int{}, tombstones: map[mesh.NodeID]int{},
	}
}

// dual is the network that init makes by default; narrow has few subnets, which
// are readable in a transcript.
var (
	dual = mesh.Network{
		Name: "default", IPv4: netip.MustParsePrefix("10.86.0.0/16"), IPv4Len: 24,
		IPv6: netip.MustParsePrefix("fd86:1:2::/48"), IPv6Len: 64,
	}
	narrow = mesh.Network{Name: "default", IPv4: netip.MustParsePrefix("10.86.0.0/21"), IPv4Len: 24}
)

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// token makes a credential and reads it back from a token's text.
func (s *sim) token(change func(*trust.Credential)) *trust.Token {
	s.t.Helper()
	s.serial++
	c := trust.Credential{
		Serial: trust.Serial{s.serial}, Key: public("token"), NotBefore: start.Add(-time.Hour), NotAfter: start.Add(24 * time.Hour),
		MaxCertLife: 365 * 24 * time.Hour,
	}
	if change != nil {
		change(&c)
	}
	raw := must(c.Sign(key("ca")))(s.t)
	token := &trust.Token{
		Charter: s.charter, Credential: must(trust.ParseCredential(raw, s.charter.CA))(s.t),
		Key: key("token"), GossipKey: make([]byte, trust.GossipKeySize),
	}
	return must(trust.ParseToken(token.String()))(s.t)
}

// host adds a machine whose certificate the token signs; nil: the CA does. Its
// serial is fixed, unlike that of Token.Certify, so that lots fall alike.
func (s *sim) host(name string, token *trust.Token) *host {
	s.t.Helper()
	s.serial++
	c := trust.Certificate{
		Serial: trust.Serial{s.serial}, Identity: public(name), Name: name, NotBefore: start.Add(-time.Hour),
		NotAfter: start.Add(300 * 24 * time.Hour), Admitted: start.Add(-time.Hour),
	}
	if s.seals {
		c.SealKey, c.Capabilities = publicSeal(s.t, name), s.rights[name]
	}
	signer := key("ca")
	if token != nil {
		c.Credential, c.Rights, signer = token.Credential, token.Credential.Rights, token.Key
	}
	h := &host{name: name, cert: must(c.Sign(signer))(s.t), founder: token == nil, asked: map[trust.Hash]time.Time{}}
	s.hosts = append(s.hosts, h)
	return h
}

func (s *sim) after(d time.Duration, do func()) {
	s.seq++
	s.events = append(s.events, event{s.now.Add(d), s.seq, do})
}

// start runs the daemon of a host: epoch raised and saved, addresses told, and
// an exchange with the seed as soon as that one is up.
func (s *sim) start(h, seed *host) {
	s.t.Helper()
	h.disk.Epoch++
	s.seq++
	h.nonce = bits.Reverse64(uint64(s.seq)) // so that the later run does not always have the greater one
	charter := s.charter.Raw
	if h.charter != nil {
		charter = h.charter
	}
	m, err := New(s.now.Add(h.skew-time.Nanosecond), Config{ // a daemon's first step is later
		Identity: key(h.owner().name), Charter: charter, Certificate: h.cert, TunnelKey: mesh.Key(sha256.Sum256([]byte(h.owner().name))),
		Nonce: h.nonce, Founder: h.founder, HasSeeds: seed != nil, OnConflict: lease.Auto, Suites: []string{"chacha20poly1305"},
		TTL: h.ttl, SealKey: sealKey(h.owner().name), Keyring: h.keyring, RotateEvery: h.rotates, Parsed: &s.parsed,
	}, h.disk, h.table)
	if err != nil {
		s.t.Fatal(err)
	}
	h.m, h.view, h.seed = m, nil, seed
	m.SetInUse(h.inUse)
	if h.place == 0 {
		h.place = byte(slices.Index(s.hosts, h) + 1)
	}
	if !h.unplugged {
		m.SetEndpoints([]netip.AddrPort{h.endpoint()})
	}
	if seed != nil {
		s.after(s.delay, func() { s.exchange(m, h, seed) })
	}
	s.step(h)
}

func (h *host) endpoint() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, h.place}), 51820)
}

// stop kills the daemon.
func (h *host) stop() { h.table, h.m = h.m.Table(), nil }

// exchange swaps whole tables, and tries again while the seed is down.
func (s *sim) exchange(m *Member, h, seed *host) {
	if h.m != m {
		return // restarted meanwhile
	}
	if seed.m == nil || seed.side != h.side {
		s.after(time.Second, func() { s.exchange(m, h, seed) })
		return
	}
	ours, theirs := m.Table(), seed.m.Table()
	for _, x := range []struct {
		to  *host
		raw [][]byte
	}{{h, theirs}, {seed, ours}} {
		known := map[string]bool{} // what is the same is not sent, as in an exchange
		for _, raw := range x.to.m.Table() {
			known[string(raw)] = true
		}
		for _, raw := range x.raw {
			if !known[string(raw)] {
				_ = x.to.m.Receive(raw)
			}
		}
		x.to.m.Synced()
		s.step(x.to)
	}
}

// step runs one Step of a host and does what it asks for.
func (s *sim) step(h *host) {
	now := s.now.Add(h.skew)
	out := h.m.Step(now)
	if out.Charter != nil {
		h.charter = out.Charter
	}
	for _, state := range []*State{out.State, out.Keep} {
		if state != nil {
			h.disk = *state
		}
	}
	if out.Table {
		h.table = h.m.Table()
	}
	if out.Certificate != nil {
		h.cert = out.Certificate
	}
	if out.Keyring != nil {
		h.keyring = *out.Keyring
	}
	for _, raw := range out.Broadcast {
		s.spread(h, raw)
	}
	for _, hash := range out.Want {
		if s.now.Before(h.asked[hash]) {
			continue
		}
		h.asked[hash] = s.now.Add(time.Second)
		s.after(s.delay, func() { s.answer(h, hash) })
	}
	if out.Ask != 0 {
		s.ask(h, h.m, out.Ask)
	}
	if out.View != nil {
		h.views++
		h.view = out.View
		s.tell(h)
	}
	if out.Clone {
		s.say(h.name + " ends: it is a clone")
		h.m, h.ended = nil, true
	}
}

func (s *sim) spread(h *host, raw []byte) {
	if kind, _ := trust.KindOf(raw); len(raw) > trust.MaxBroadcast && kind != trust.KindRekey {
		s.t.Errorf("broadcast of %d bytes", len(raw))
	}
	if a, err := trust.ParseAdmission(raw); err == nil {
		s.admissions[a.Certificate]++
	}
	if d, err := trust.ParseTombstone(raw); err == nil {
		s.tombstones[d.Node]++
	}
	if r, err := trust.ParseRecord(raw); err == nil {
		h.spoken = append(h.spoken, *r)
		if r.Version.Epoch != h.disk.Epoch || r.Left != h.disk.Left {
			s.t.Errorf("%s speaks in epoch %d with epoch %d on disk", h.name, r.Version.Epoch, h.disk.Epoch)
		}
	}
	s.after(s.delay, func() {
		for _, to := range s.hosts {
			if to != h && to.m != nil && to.side == h.side && !to.deaf {
				_ = to.m.Receive(raw)
				s.step(to)
			}
		}
	})
}

// ask exchanges tables with the next host that is up.
func (s *sim) ask(h *host, m *Member, ask uint64) {
	s.after(s.delay, func() {
		at := slices.Index(s.hosts, h)
		for i := range s.hosts[1:] {
			other := s.hosts[(at+1+i)%len(s.hosts)]
			if other.m == nil || other.side != h.side {
				continue
			}
			s.exchange(m, h, other)
			break
		}
		if h.m == m {
			m.Asked(ask)
			s.step(h)
		}
	})
}

// answer looks a certificate up at the first who knows it.
func (s *sim) answer(h *host, hash trust.Hash) {
	for _, other := range s.hosts {
		if other == h || other.m == nil || h.m == nil || other.side != h.side {
			continue
		}
		if raws := other.m.Lookup(hash); raws != nil {
			s.after(s.delay, func() {
				for _, raw := range raws {
					_ = h.m.Receive(raw)
				}
				s.step(h)
			})
			return
		}
	}
}

// run lets time pass, doing everything that falls due.
func (s *sim) run(d time.Duration) {
	s.t.Helper()
	end := s.now.Add(d)
	for steps := 0; ; steps++ {
		next, at, do := end, -1, (*host)(nil)
		for i, e := range s.events {
			if e.at.Before(next) || e.at.Equal(next) && at >= 0 && e.seq < s.events[at].seq {
				next, at = e.at, i
			}
		}
		for _, h := range s.hosts {
			if h.m == nil {
				continue
			}
			if due, ok := h.m.Next(); ok && due.Add(-h.skew).Before(next) {
				next, do = due.Add(-h.skew), h
			}
		}
		if do == nil && at < 0 {
			s.now = end
			return
		}
		if next.After(s.now) {
			s.now = next
		}
		if do != nil {
			s.step(do)
			if do.m == nil {
				continue // it has ended, as a clone
			}
			if due, _ := do.m.Next(); !due.After(s.now.Add(do.skew)) {
				s.t.Fatalf("%s is due again at once, at %s", do.name, s.now.Sub(start))
			}
		} else {
			e := s.events[at]
			s.events = slices.Delete(s.events, at, at+1)
			e.do()
		}
		if steps > 1_000_000 {
			s.t.Fatal("the mesh does not come to rest")
		}
	}
}

func (s *sim) say(what string) {
	fmt.Fprintf(&s.out, "%9s  -- %s\n", s.now.Sub(start).Round(time.Millisecond), what)
}

// tell writes what a host sees, if that is news.
func (s *sim) tell(h *host) {
	v := h.view
	var nodes []string
	for _, n := range v.Nodes {
		text := n.Name
		for _, l := range n.Leases {
			text += fmt.Sprintf(" %s %s", l.Prefixes[0], l.State)
		}
		if n.Left {
			text += " left"
		}
		if n.Expired != mesh.NotExpired {
			text += " " + string(n.Expired)
		}
		nodes = append(nodes, text)
	}
	slices.Sort(nodes)
	line := fmt.Sprintf("%-8s epoch %d %-16s  %s", h.name, v.Epoch, v.State, strings.Join(nodes, ", "))
	for _, f := range v.Health {
		line += "  !" + f.Code
	}
	if line != h.line {
		h.line = line
		fmt.Fprintf(&s.out, "%9s  %s\n", s.now.Sub(start).Round(time.Millisecond), line)
	}
}

func (s *sim) golden() {
	s.t.Helper()
	file := filepath.Join("testdata", strings.TrimPrefix(s.t.Name(), "Test")+".txt")
	if *update {
		if err := os.WriteFile(file, []byte(s.out.String()), 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
	if want, got := string(must(os.ReadFile(file))(s.t)), s.out.String(); got != want {
		s.t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// held is the subnet that a host sees itself hold.
func (h *host) held() string {
	if n, ok := h.view.Node(h.view.Self); ok {
		for _, l := range n.Leases {
			if l.State == mesh.Held {
				return l.Prefixes[0].String()
			}
		}
	}
	return ""
}

func (h *host) has(code string) bool {
	return slices.ContainsFunc(h.view.Health, func(f mesh.Finding) bool { return f.Code == code })
}

// agreed tells whether all running hosts are ready and see the same owners of
// subnets of their own.
func (s *sim) agreed() bool {
	var first []string
	for i, h := range slices.DeleteFunc(slices.Clone(s.hosts), func(h *host) bool { return h.m == nil }) {
		if h.view == nil || h.view.State != mesh.Ready {
			return false
		}
		var seen []string
		owners := map[netip.Prefix]bool{}
		for _, n := range h.view.Nodes {
			for _, l := range n.Leases {
				seen = append(seen, fmt.Sprint(n.Name, l.Prefixes, l.State))
				if l.State != mesh.Held || owners[l.Prefixes[0]] {
					return false
				}
				owners[l.Prefixes[0]] = true
			}
		}
		slices.SortFunc(seen, cmp.Compare[string])
		if i == 0 {
			first = seen
		} else if !slices.Equal(first, seen) {
			return false
		}
		if len(seen) < len(s.hosts) {
			return false
		}
	}
	return len(first) > 0
}

func prefixes(all ...string) (out []netip.Prefix) {
	for _, p := range all {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}
