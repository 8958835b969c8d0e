package registry

import (
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"meshd/mesh"
	"meshd/mesh/trust"
)

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

func check(err error) {
	if err != nil {
		panic(err) // a bug of the test itself
	}
}

// maker signs the objects of one mesh.
type maker struct {
	ca      string
	charter *trust.Charter
	token   *trust.Credential
	serial  byte
}

func newMaker(ca string) *maker {
	c := trust.Charter{Name: "test", Version: 1, Created: start, Networks: []mesh.Network{{
		Name: "default", IPv4: netip.MustParsePrefix("10.86.0.0/16"), IPv4Len: 24,
	}}}
	raw, err := c.Sign(key(ca))
	check(err)
	charter, err := trust.ParseCharter(raw, mesh.ID{})
	check(err)
	m := &maker{ca: ca, charter: charter}
	m.token = m.credential(0, start.Add(24*time.Hour))
	return m
}

func (m *maker) credential(uses uint64, end time.Time) *trust.Credential {
	m.serial++
	c := trust.Credential{Serial: trust.Serial{m.serial}, Key: public("token"), Uses: uses, NotBefore: start, NotAfter: end, MaxCertLife: 1000 * time.Hour}
	raw, err := c.Sign(key(m.ca))
	check(err)
	parsed, err := trust.ParseCredential(raw, public(m.ca))
	check(err)
	return parsed
}

// certificate is signed by the CA if credential is nil.
func (m *maker) certificate(name string, credential *trust.Credential) *trust.Certificate {
	return m.certify(trust.Certificate{Name: name, Credential: credential, NotAfter: start.Add(1000 * time.Hour)})
}

// certify signs a certificate of which the name and the end are given.
func (m *maker) certify(c trust.Certificate) *trust.Certificate {
	m.serial++
	c.Serial, c.Identity, c.NotBefore, c.Admitted = trust.Serial{m.serial}, public(c.Name), start, start
	signer := "token"
	if c.Credential == nil {
		signer = m.ca
	}
	raw, err := c.Sign(key(signer))
	check(err)
	parsed, err := trust.ParseCertificate(raw, public(m.ca))
	check(err)
	return parsed
}

func (m *maker) admission(seen, witness *trust.Certificate, at time.Duration) []byte {
	a := trust.Admission{Certificate: seen.Hash, Admitter: witness.Hash, Seen: start.Add(at)}
	return a.Sign(key(witness.Name))
}

func (m *maker) record(c *trust.Certificate, epoch, seq, nonce uint64) []byte {
	r := trust.Record{Version: mesh.Version{Epoch: epoch, Seq: seq}, Certificate: c.Hash, Nonce: nonce, Key: mesh.Key{1}}
	raw, err := r.Sign(key(c.Name))
	check(err)
	return raw
}

// left is the last word of a node.
func (m *maker) left(c *trust.Certificate) []byte {
	r := trust.Record{Version: mesh.Version{Epoch: 9, Seq: 9}, Certificate: c.Hash, Key: mesh.Key{1}, Left: true}
	raw, err := r.Sign(key(c.Name))
	check(err)
	return raw
}

// revocation is signed by the CA.
func (m *maker) revocation(v trust.Revocation) []byte {
	v.At = start.Add(time.Hour)
	raw, err := v.Sign(key(m.ca))
	check(err)
	return raw
}

// tombstone is the CA's if issuer is nil.
func (m *maker) tombstone(dead mesh.NodeID, v mesh.Version, issuer *trust.Certificate) []byte {
	t := trust.Tombstone{Node: dead, Version: v, Reason: trust.Expired, At: start}
	signer := m.ca
	if issuer != nil {
		t.Issuer, signer = issuer.Hash, issuer.Name
	}
	raw, err := t.Sign(key(signer))
	check(err)
	return raw
}

// rekey has a box for nobody known: who can open it does not matter here.
func (m *maker) rekey(signer *trust.Certificate, generation uint64, secret byte, at time.Duration) []byte {
	k := trust.Rekey{
		Generation: generation, KeyID: trust.KeyIDOf([]byte{secret}), At: start.Add(at), Signer: signer.Hash,
		Boxes: []trust.Box{{Node: mesh.NodeID{1}, Sealed: make([]byte, 80)}},
	}
	raw, err := k.Sign(key(signer.Name))
	check(err)
	return raw
}

// belief is everything that a registry holds true, as text; admissions beyond
// the first are left out, since only a few of them are kept.
func belief(r *Registry) string {
	s := fmt.Sprintln("charter", r.charter.Hash)
	for _, h := range slices.SortedFunc(maps.Keys(r.certs), trust.Hash.Compare) {
		c := r.certs[h]
		s += fmt.Sprintln("certificate", h, c.Name, c.admitted, len(c.admissions) > 0)
	}
	for _, m := range r.Members(all) {
		s += fmt.Sprintln("member", m.ID, m.Certificate.Hash)
		if m.Record != nil {
			s += fmt.Sprintln("  record", m.Record.Version, m.Record.Hash)
		}
	}
	return s
}

func all(*trust.Certificate) bool { return true }

func names(r *Registry) (out []string) {
	for _, m := range r.Members(all) {
		out = append(out, m.Certificate.Name)
	}
	slices.Sort(out)
	return out
}

func feed(r *Registry, raws [][]byte) {
	for _, raw := range raws {
		_ = r.Add(raw)
	}
}

// drawMesh draws a mesh: chains and cycles of admissions, some of them leading
// to the CA and some not, several records and certificates of a node, and things
// that must be refused.
func drawMesh(t *rapid.T, m *maker) (raws [][]byte, admitted map[trust.Hash]bool, best map[mesh.NodeID]mesh.Version) {
	var certs []*trust.Certificate
	for i := range rapid.IntRange(1, 9).Draw(t, "nodes") {
		credential := m.token
		if i == 0 || rapid.IntRange(0, 9).Draw(t, "by the CA") == 0 {
			credential = nil
		}
		certs = append(certs, m.certificate(fmt.Sprint("n", i), credential))
		if rapid.IntRange(0, 4).Draw(t, "again") == 0 {
			certs = append(certs, m.certificate(fmt.Sprint("n", i), m.token))
		}
	}
	admitted, best = map[trust.Hash]bool{}, map[mesh.NodeID]mesh.Version{}
	type edge struct{ seen, witness *trust.Certificate }
	var edges []edge
	for _, c := range certs {
		raws = append(raws, c.Raw)
		admitted[c.Hash] = c.Credential == nil
		for range rapid.IntRange(0, 6).Draw(t, "witnesses") {
			w := rapid.SampledFrom(certs).Draw(t, "witness")
			at := time.Duration(rapid.IntRange(-1, 30).Draw(t, "hour")) * time.Hour
			raws = append(raws, m.admission(c, w, at))
			if c.Credential != nil && c.Name != w.Name && at >= 0 && at <= 24*time.Hour {
				edges = append(edges, edge{c, w})
			}
		}
	}
	for range certs { // as many rounds as the longest chain
		for _, e := range edges {
			if admitted[e.witness.Hash] {
				admitted[e.seen.Hash] = true
			}
		}
	}
	for _, c := range certs {
		for range rapid.IntRange(0, 3).Draw(t, "records") {
			v := mesh.Version{Epoch: uint64(rapid.IntRange(1, 2).Draw(t, "epoch")), Seq: uint64(rapid.IntRange(0, 2).Draw(t, "seq"))}
			raws = append(raws, m.record(c, v.Epoch, v.Seq, uint64(rapid.IntRange(0, 1).Draw(t, "nonce"))))
			if admitted[c.Hash] && best[c.ID()].Compare(v) < 0 {
				best[c.ID()] = v
			}
		}
	}
	return raws, admitted, best
}

func TestOrderOfArrivalDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMaker("ca")
		raws, admitted, best := drawMesh(t, m)
		first, second := New(m.charter), New(m.charter)
		feed(first, raws)
		twice := rapid.Permutation(append(slices.Clone(raws), raws...)).Draw(t, "order")
		feed(second, twice)
		if a, b := belief(first), belief(second); a != b {
			t.Fatalf("two beliefs:\n%s\n%s", a, b)
		}
		for h, want := range admitted {
			if _, got := first.Certificate(h); got != want {
				t.Fatalf("certificate %s admitted: %v, want %v", h, got, want)
			}
		}
		for _, member := range first.Members(all) {
			if v := best[member.ID]; (member.Record != nil) != (v != mesh.Version{}) || member.Record != nil && member.Record.Version != v {
				t.Fatalf("node %s has record %v, want %v", member.Certificate.Name, member.Record, v)
			}
		}
		checkTable(t, m, first)
		checkLookup(t, m, second)
	})
}

// checkTable feeds a table to a fresh registry: each object counts at once.
func checkTable(t *rapid.T, m *maker, r *Registry) {
	fresh := New(m.charter)
	for i, raw := range r.Table() {
		if err := fresh.Add(raw); err != nil && i > 0 {
			t.Fatalf("object %d of the table: %v", i, err)
		}
		if len(fresh.waiting) > 0 {
			t.Fatalf("object %d of the table has to wait", i)
		}
	}
	if a, b := belief(r), belief(fresh); a != b {
		t.Fatalf("the table gives another belief:\n%s\n%s", a, b)
	}
}

// checkLookup feeds what Lookup gives to a fresh registry: it needs no more.
func checkLookup(t *rapid.T, m *maker, r *Registry) {
	for h, c := range r.certs {
		fresh := New(m.charter)
		for _, raw := range r.Lookup(h) {
			if err := fresh.Add(raw); err != nil || len(fresh.waiting) > 0 {
				t.Fatalf("looked up: %v, %d wait", err, len(fresh.waiting))
			}
		}
		if _, admitted := fresh.Certificate(h); admitted != c.admitted {
			t.Fatalf("looked up and admitted: %v, want %v", admitted, c.admitted)
		}
	}
}

func TestRecordAndAdmissionWait(t *testing.T) {
	m := newMaker("ca")
	founder, joined := m.certificate("founder", nil), m.certificate("joined", m.token)
	r := New(m.charter)
	step := func(what string, raw []byte, missing []trust.Hash, members ...string) {
		t.Helper()
		before := r.Changes()
		if err := r.Add(raw); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := r.Missing(); !slices.Equal(got, missing) {
			t.Errorf("%s: missing %v, want %v", what, got, missing)
		}
		if got := names(r); !slices.Equal(got, members) {
			t.Errorf("%s: members %v, want %v", what, got, members)
		}
		if believed := len(r.waiting) == 0 || len(members) > 0; believed && r.Changes() == before {
			t.Errorf("%s: no change counted", what)
		}
	}
	both := []trust.Hash{founder.Hash, joined.Hash}
	slices.SortFunc(both, trust.Hash.Compare)
	record := m.record(joined, 1, 1, 0)
	step("record", record, []trust.Hash{joined.Hash})
	step("admission", m.admission(joined, founder, 0), both)
	step("its certificate", joined.Raw, []trust.Hash{founder.Hash})
	if err := r.Add(record); !errors.Is(err, ErrStale) {
		t.Errorf("a waiting record again: %v", err)
	}
	if got := r.Unadmitted(); len(got) != 1 || got[0].Hash != joined.Hash {
		t.Errorf("unadmitted: %v", got)
	}
	step("the witness's", founder.Raw, nil, "founder", "joined")
	if rec, ok := r.Record(joined.ID()); !ok || rec.Version != (mesh.Version{Epoch: 1, Seq: 1}) {
		t.Error("the record does not count")
	}
	if len(r.Unadmitted()) != 0 || len(r.waiting) != 0 {
		t.Error("something still waits")
	}
	for _, raw := range r.Table() {
		if err := r.Add(raw); !errors.Is(err, ErrStale) {
			t.Errorf("known, and yet: %v", err)
		}
	}
}

func TestUnproven(t *testing.T) {
	m := newMaker("ca")
	founder, joined := m.certificate("founder", nil), m.certificate("joined", m.token)
	lease := mesh.Lease{Network: "default", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.86.3.0/24")}, State: mesh.Pending, Since: start}
	record := trust.Record{Version: mesh.Version{Epoch: 1, Seq: 1}, Certificate: joined.Hash, Key: mesh.Key{1}, Leases: []mesh.Lease{lease}}
	raw, err := record.Sign(key("joined"))
	check(err)
	r := New(m.charter)
	for _, c := range []struct {
		what string
		raw  []byte
		want int
	}{
		{"founder", founder.Raw, 0}, {"record", raw, 1}, {"its certificate", joined.Raw, 1}, {"its admission", m.admission(joined, founder, 0), 0},
	} {
		if err := r.Add(c.raw); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		if got := r.Unproven(); len(got) != c.want || c.want > 0 && got[0].Prefixes[0] != lease.Prefixes[0] {
			t.Errorf("after %s: %v unproven, want %d", c.what, got, c.want)
		}
	}
}

func TestUnadmittedIsNoMember(t *testing.T) {
	m := newMaker("ca")
	founder := m.certificate("founder", nil)
	a, b, c := m.certificate("a", m.token), m.certificate("b", m.token), m.certificate("c", m.token)
	short := m.certificate("short", m.credential(0, start.Add(time.Hour)))
	forged := trust.Admission{Certificate: c.Hash, Admitter: founder.Hash, Seen: start}
	for name, raws := range map[string][][]byte{
		"no admission":                      {},
		"by itself":                         {m.admission(a, a, 0)},
		"cycle of two":                      {m.admission(a, b, 0), m.admission(b, a, 0)},
		"cycle of three":                    {m.admission(a, b, 0), m.admission(b, c, 0), m.admission(c, a, 0)},
		"after its token's end":             {m.admission(short, founder, time.Hour+time.Second)},
		"before its token's begin":          {m.admission(a, founder, -time.Second)},
		"signed by another than it says":    {forged.Sign(key("a"))},
		"by a witness out of its own time":  {m.admission(a, founder, 1001*time.Hour)},
		"by a certificate of nobody's mesh": {m.admission(a, newMaker("other ca").certificate("founder", nil), 0)},
	} {
		t.Run(name, func(t *testing.T) {
			r := New(m.charter)
			feed(r, [][]byte{founder.Raw, a.Raw, b.Raw, c.Raw, short.Raw})
			feed(r, raws)
			for _, x := range []*trust.Certificate{a, b, c, short} {
				_ = r.Add(m.record(x, 1, 1, 0))
			}
			if got := names(r); !slices.Equal(got, []string{"founder"}) {
				t.Errorf("members %v", got)
			}
			if len(r.records) != 0 {
				t.Error("a record of an unadmitted node counts")
			}
		})
	}
	t.Run("until the cycle is opened", func(t *testing.T) {
		r := New(m.charter)
		feed(r, [][]byte{a.Raw, b.Raw, c.Raw, m.admission(a, b, 0), m.admission(b, c, 0), m.admission(c, a, 0), m.admission(a, founder, 0)})
		if got := names(r); len(got) != 0 {
			t.Errorf("members %v", got)
		}
		if err := r.Add(founder.Raw); err != nil {
			t.Fatal(err)
		}
		if got := names(r); !slices.Equal(got, []string{"a", "b", "c", "founder"}) {
			t.Errorf("members %v", got)
		}
	})
}

func TestForeignMeshIsRefused(t *testing.T) {
	m, foreign := newMaker("ca"), newMaker("other ca")
	r := New(m.charter)
	founder, stranger := m.certificate("founder", nil), foreign.certificate("stranger", nil)
	check(r.Add(founder.Raw))
	before := belief(r)
	for name, raw := range map[string][]byte{
		"charter":              foreign.charter.Raw,
		"certificate":          stranger.Raw,
		"token's certificate":  foreign.certificate("joined", foreign.token).Raw,
		"credential":           m.token.Raw, // never on its own
		"foreign credential":   foreign.token.Raw,
		"record by another":    m.record(&trust.Certificate{Object: founder.Object, Name: "stranger"}, 1, 1, 0),
		"nothing":              nil,
		"junk":                 []byte("junk"),
		"endless":              make([]byte, 1<<20),
		"record, one bit over": flip(m.record(founder, 1, 1, 0)),
	} {
		if err := r.Add(raw); err == nil || errors.Is(err, ErrStale) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A foreign record and admission cannot be told from early ones; they wait, and count for nothing.
	feed(r, [][]byte{foreign.record(stranger, 1, 1, 0), foreign.admission(stranger, stranger, 0)})
	if after := belief(r); after != before {
		t.Errorf("belief changed:\n%s\n%s", before, after)
	}
}

func flip(raw []byte) []byte {
	raw[len(raw)-1] ^= 1
	return raw
}

func TestCharterNeverGoesBack(t *testing.T) {
	m := newMaker("ca")
	next := trust.Charter{Name: "test", Version: 2, Previous: m.charter.Hash, Created: start.Add(time.Hour), Networks: m.charter.Networks}
	raw, err := next.Sign(key("ca"))
	check(err)
	r := New(m.charter)
	if err := r.Add(raw); err != nil || r.Charter().Version != 2 || !r.Newest().Equal(start.Add(time.Hour)) {
		t.Errorf("version %d, newest %s: %v", r.Charter().Version, r.Newest(), err)
	}
	if err := r.Add(m.charter.Raw); !errors.Is(err, ErrStale) || r.Charter().Version != 2 {
		t.Errorf("version %d: %v", r.Charter().Version, err)
	}
}

// next signs the charter after the maker's, with one more network.
func (m *maker) next(name, ranges string) []byte {
	networks := append(slices.Clone(m.charter.Networks), mesh.Network{Name: name, IPv4: netip.MustParsePrefix(ranges), IPv4Len: 24})
	raw, err := m.charter.Next(start, networks).Sign(key(m.ca))
	check(err)
	return raw
}

// Of two charters of one version everybody follows the same, and who saw both
// knows it until the next one.
func TestForkedCharter(t *testing.T) {
	m := newMaker("ca")
	one, two := m.next("web", "10.87.0.0/16"), m.next("db", "10.88.0.0/16")
	var last []byte
	for _, order := range [][][]byte{{one, two}, {two, one}} {
		r := New(m.charter)
		check(r.Add(order[0]))
		if r.Forked() {
			t.Error("one charter is a fork")
		}
		changes := r.Changes()
		if err := r.Add(order[1]); err != nil && !errors.Is(err, ErrStale) {
			t.Error(err)
		}
		if !r.Forked() || r.Changes() == changes {
			t.Error("nobody is told of the other charter")
		}
		changes = r.Changes()
		for _, raw := range order {
			if err := r.Add(raw); !errors.Is(err, ErrStale) || r.Changes() != changes {
				t.Errorf("once more: %v", err)
			}
		}
		if last != nil && !slices.Equal(last, r.Charter().Raw) {
			t.Error("the order decides which charter counts")
		}
		last = r.Charter().Raw
		raw, err := r.Charter().Next(start, r.Charter().Networks).Sign(key("ca"))
		check(err)
		if err := r.Add(raw); err != nil || r.Forked() {
			t.Errorf("after the next one it is still a fork: %v", err)
		}
	}
}

// A new network over the endpoint of a member takes its record away: who joins
// then would not believe it either.
func TestCharterOverAnEndpoint(t *testing.T) {
	m := newMaker("ca")
	founder := m.certificate("founder", nil)
	inside := func(seq uint64, endpoint string) []byte {
		r := trust.Record{
			Version: mesh.Version{Epoch: 1, Seq: seq}, Certificate: founder.Hash, Key: mesh.Key{1},
			Endpoints: []netip.AddrPort{netip.MustParseAddrPort(endpoint)},
		}
		raw, err := r.Sign(key("founder"))
		check(err)
		return raw
	}
	r := New(m.charter)
	feed(r, [][]byte{founder.Raw, inside(1, "10.87.1.1:1")})
	if _, ok := r.Record(founder.ID()); !ok {
		t.Fatal("no record")
	}
	check(r.Add(m.next("web", "10.87.0.0/16")))
	if _, ok := r.Record(founder.ID()); ok || len(names(r)) != 1 {
		t.Error("the record stays, or its node is no member any longer")
	}
	if err := r.Add(inside(2, "10.87.1.1:1")); !errors.Is(err, trust.ErrForbidden) {
		t.Errorf("such a record: %v", err)
	}
	if err := r.Add(inside(3, "192.0.2.1:1")); err != nil {
		t.Error(err)
	}
}

// TestFloods sends what nobody vouches for, in quantities.
func TestFloods(t *testing.T) {
	m := newMaker("ca")
	founder := m.certificate("founder", nil)
	t.Run("junk records", func(t *testing.T) {
		r := New(m.charter)
		check(r.Add(founder.Raw))
		before := belief(r)
		for i := range 3 * maxWaiting {
			junk := trust.Record{Version: mesh.Version{Epoch: 1}, Key: mesh.Key{1}, Certificate: trust.Hash{byte(i), byte(i >> 8), 1}}
			raw, err := junk.Sign(key("nobody"))
			check(err)
			if err := r.Add(raw); err != nil {
				t.Fatal(err)
			}
		}
		if len(r.waiting) > maxWaiting || len(r.certs) != 1 || belief(r) != before {
			t.Errorf("%d wait, %d certificates", len(r.waiting), len(r.certs))
		}
		if err := r.Add(m.record(founder, 1, 1, 0)); err != nil || len(r.records) != 1 {
			t.Errorf("an honest record meanwhile: %v", err)
		}
	})
	t.Run("certificates of a leaked token that has expired", func(t *testing.T) {
		r := New(m.charter)
		check(r.Add(founder.Raw))
		honest := m.certificate("honest", m.token)
		check(r.Add(honest.Raw))
		leaked := m.credential(0, start.Add(time.Hour))
		for i := range maxUnadmitted + 100 {
			c := m.certificate(fmt.Sprint("evil", i), leaked)
			check(r.Add(c.Raw))
			_ = r.Add(m.admission(c, founder, 2*time.Hour)) // a witness who does not lie cannot help it
			_ = r.Add(m.record(c, 1, 1, 0))
		}
		if len(r.unadmitted) > maxUnadmitted || len(r.certs) > maxUnadmitted+1 || len(r.waiting) > maxWaiting {
			t.Errorf("%d unadmitted, %d certificates, %d wait", len(r.unadmitted), len(r.certs), len(r.waiting))
		}
		if got := names(r); !slices.Equal(got, []string{"founder"}) {
			t.Errorf("members %v", got)
		}
		// The honest one is still there.
		feed(r, [][]byte{m.admission(honest, founder, 0)})
		if got := names(r); !slices.Equal(got, []string{"founder", "honest"}) {
			t.Errorf("members %v", got)
		}
	})
	t.Run("admissions of one certificate", func(t *testing.T) {
		r := New(m.charter)
		c := m.certificate("joined", m.token)
		feed(r, [][]byte{founder.Raw, c.Raw})
		for i := range 1000 {
			_ = r.Add(m.admission(c, founder, time.Duration(i)*time.Second))
		}
		if n := len(r.certs[c.Hash].admissions); n != 1 {
			t.Errorf("%d admissions of one witness are kept", n)
		}
		for i := range 20 {
			w := m.certificate(fmt.Sprint("witness", i), nil)
			feed(r, [][]byte{w.Raw, m.admission(c, w, 0)})
		}
		if n := len(r.certs[c.Hash].admissions); n != maxAdmissions {
			t.Errorf("%d admissions are kept", n)
		}
	})
	t.Run("a long chain, backwards", func(t *testing.T) {
		r := New(m.charter)
		var raws [][]byte
		last := founder
		for i := range maxUnadmitted {
			c := m.certificate(fmt.Sprint("n", i), m.token)
			raws = append(raws, c.Raw, m.admission(c, last, 0))
			last = c
		}
		slices.Reverse(raws)
		feed(r, raws)
		if n := len(names(r)); n != 0 {
			t.Errorf("%d members without the founder", n)
		}
		check(r.Add(founder.Raw))
		if n := len(names(r)); n != maxUnadmitted+1 {
			t.Errorf("%d members", n)
		}
	})
}

// TestNobodyVouchesForItself lets an admitted node witness another certificate of
// its own.
func TestNobodyVouchesForItself(t *testing.T) {
	m := newMaker("ca")
	founder, a, again := m.certificate("founder", nil), m.certificate("a", m.token), m.certificate("a", m.token)
	r := New(m.charter)
	feed(r, [][]byte{founder.Raw, a.Raw, m.admission(a, founder, 0), again.Raw})
	if err := r.Add(m.admission(again, a, 0)); !errors.Is(err, trust.ErrForbidden) {
		t.Errorf("by itself: %v", err)
	}
	if _, admitted := r.Certificate(again.Hash); admitted {
		t.Error("admitted by itself")
	}
	if err := r.Add(m.admission(again, founder, 0)); err != nil {
		t.Errorf("by another: %v", err)
	}
}

// TestBoundsOfAToken has a witness who admits whatever a token signs.
func TestBoundsOfAToken(t *testing.T) {
	m := newMaker("ca")
	witness := m.certificate("witness", nil)
	admit := func(r *Registry, c *trust.Certificate) error {
		check(r.Add(c.Raw))
		return r.Add(m.admission(c, witness, 0))
	}
	t.Run("certificates of one node", func(t *testing.T) {
		r := New(m.charter)
		check(r.Add(witness.Raw))
		for i := range 10 {
			c := m.certificate("a", m.token)
			err := admit(r, c)
			if room := i < maxPerIdentity; room != (err == nil) || !room && !errors.Is(err, trust.ErrForbidden) {
				t.Errorf("certificate %d: %v", i, err)
			}
			if _, admitted := r.Certificate(c.Hash); admitted != (i < maxPerIdentity) {
				t.Errorf("certificate %d admitted: %v", i, admitted)
			}
		}
		if err := admit(r, m.certificate("a", m.credential(0, start.Add(time.Hour)))); err != nil {
			t.Errorf("by another token: %v", err)
		}
		if err := admit(r, m.certificate("b", m.token)); err != nil {
			t.Errorf("another node: %v", err)
		}
	})
	for uses, want := range map[uint64]int{0: 60, 1: 17, 16: 32, 20: 40} {
		t.Run(fmt.Sprintf("nodes by a token of %d uses", uses), func(t *testing.T) {
			r := New(m.charter)
			check(r.Add(witness.Raw))
			token := m.credential(uses, start.Add(time.Hour))
			for i := range 60 {
				_ = admit(r, m.certificate(fmt.Sprint("n", i), token))
			}
			if got := r.Uses(token.Serial); got != want {
				t.Errorf("%d nodes, want %d", got, want)
			}
			if err := admit(r, m.certificate("n0", token)); err != nil {
				t.Errorf("another certificate of the first: %v", err)
			}
			if err := admit(r, m.certificate("late", m.token)); err != nil {
				t.Errorf("by another token: %v", err)
			}
		})
	}
	if got := maxIdentities(1 << 63); got != maxByToken {
		t.Errorf("a token of 2^63 uses: %d nodes", got)
	}
}

// TestTableBeginsWithTheMembers cuts a table after its last record: what a flood
// adds must not displace a member.
func TestTableBeginsWithTheMembers(t *testing.T) {
	m := newMaker("ca")
	founder := m.certificate("founder", nil)
	r := New(m.charter)
	feed(r, [][]byte{founder.Raw, m.record(founder, 1, 1, 0)})
	want, last := []string{"founder"}, founder
	for i := range 5 { // each admitted by the one before
		c := m.certificate(fmt.Sprint("n", i), m.token)
		feed(r, [][]byte{c.Raw, m.admission(c, last, 0), m.admission(c, founder, time.Second), m.record(c, 1, 1, 0)})
		want, last = append(want, c.Name), c
	}
	for i := range 50 {
		c := m.certificate(fmt.Sprint("flood", i), m.token)
		feed(r, [][]byte{c.Raw, m.admission(c, founder, 0)})
	}
	newcomer := m.certificate("newcomer", m.token)
	check(r.Add(newcomer.Raw))
	fresh := New(m.charter)
	table := r.Table()
	cut := 1 + 2 + 5*3 // charter; founder; five others with an admission each
	feed(fresh, table[1:cut])
	if got := names(fresh); !slices.Equal(got, want) {
		t.Errorf("members %v, want %v", got, want)
	}
	for _, member := range fresh.Members(all) {
		if member.Record == nil {
			t.Errorf("no record of %s", member.Certificate.Name)
		}
	}
	if !slices.Equal(table[cut], newcomer.Raw) {
		t.Error("who waits for admission does not come next")
	}
}

// TestFloodDrivesOutItsOwnToken fills the room with a token that is still good.
func TestFloodDrivesOutItsOwnToken(t *testing.T) {
	m := newMaker("ca")
	r := New(m.charter)
	honest, leaked := m.certificate("honest", m.token), m.credential(0, start.Add(time.Hour))
	check(r.Add(honest.Raw))
	var last *trust.Certificate
	for i := range maxUnadmitted + 100 {
		last = m.certificate(fmt.Sprint("evil", i), leaked)
		check(r.Add(last.Raw))
	}
	if len(r.unadmitted) != maxUnadmitted {
		t.Errorf("%d unadmitted", len(r.unadmitted))
	}
	for _, c := range []*trust.Certificate{honest, last} {
		if known, _ := r.Certificate(c.Hash); known == nil {
			t.Errorf("%s was driven out", c.Name)
		}
	}
	// When its token has ended, the flood goes before any other.
	r.Expire(start.Add(90*time.Minute), trust.Hash{})
	for i := range maxUnadmitted {
		check(r.Add(m.certificate(fmt.Sprint("new", i), m.token).Raw))
	}
	for _, c := range r.Unadmitted()[:maxUnadmitted-1] {
		if c.Credential.Serial == leaked.Serial {
			t.Fatal("a certificate of an ended token stays before one that can be admitted")
		}
	}
	// A member of long ago, of an ended token, is learned even so.
	founder, old := m.certificate("founder", nil), m.certificate("old", leaked)
	feed(r, [][]byte{founder.Raw, old.Raw, m.admission(old, founder, 0)})
	if got := names(r); !slices.Equal(got, []string{"founder", "old"}) {
		t.Errorf("members %v", got)
	}
}

func TestExpire(t *testing.T) {
	m := newMaker("ca")
	founder, token := m.certificate("founder", nil), m.credential(0, start.Add(time.Hour))
	member, waits, own := m.certificate("member", token), m.certificate("waits", token), m.certificate("own", token)
	longer := m.certificate("longer", m.token)
	r := New(m.charter)
	feed(r, [][]byte{
		founder.Raw, member.Raw, m.admission(member, founder, 0), waits.Raw, own.Raw, longer.Raw,
		m.record(waits, 1, 1, 0), m.record(longer, 1, 1, 0),
	})
	unadmitted := func() (out []string) {
		for _, c := range r.Unadmitted() {
			out = append(out, c.Name)
		}
		return out
	}
	inTable := func(c *trust.Certificate) bool {
		return slices.ContainsFunc(r.Table(), func(raw []byte) bool { return slices.Equal(raw, c.Raw) })
	}
	before := r.Changes()
	r.Expire(start.Add(2*time.Hour), own.Hash)
	if got := unadmitted(); !slices.Equal(got, []string{"waits", "own", "longer"}) || r.Changes() != before || !inTable(own) || !inTable(waits) {
		t.Errorf("an hour after the token's end: %v, %d changes", got, r.Changes()-before)
	}
	r.Expire(start.Add(2*time.Hour+time.Second), own.Hash)
	if got := unadmitted(); !slices.Equal(got, []string{"own", "longer"}) || r.Changes() == before || inTable(own) || inTable(waits) || !inTable(longer) {
		t.Errorf("later: %v, %d changes", got, r.Changes()-before)
	}
	if len(r.waiting) != 1 || len(r.Missing()) != 0 {
		t.Errorf("%d objects wait, %v is missing", len(r.waiting), r.Missing())
	}
	if got := names(r); !slices.Equal(got, []string{"founder", "member"}) {
		t.Errorf("members %v", got)
	}
	// Its admission comes late.
	feed(r, [][]byte{waits.Raw, m.admission(waits, founder, 0)})
	r.Expire(start.Add(3*time.Hour), own.Hash)
	if got := names(r); !slices.Equal(got, []string{"founder", "member", "waits"}) {
		t.Errorf("members %v", got)
	}
}

func TestUses(t *testing.T) {
	m := newMaker("ca")
	founder, once := m.certificate("founder", nil), m.credential(1, start.Add(time.Hour))
	a, again, b := m.certificate("a", once), m.certificate("a", once), m.certificate("b", once)
	r := New(m.charter)
	feed(r, [][]byte{founder.Raw, a.Raw, again.Raw, b.Raw})
	for i, c := range []struct {
		raw  []byte
		want int
	}{{nil, 0}, {m.admission(a, founder, 0), 1}, {m.admission(again, founder, 0), 1}, {m.admission(b, founder, 0), 2}} {
		_ = r.Add(c.raw)
		if got := r.Uses(once.Serial); got != c.want {
			t.Errorf("step %d: %d uses, want %d", i, got, c.want)
		}
	}
	if got := r.Uses(trust.Serial{99}); got != 0 {
		t.Errorf("an unknown credential has %d uses", got)
	}
}

func TestMembersPrefersTheRecordsCertificate(t *testing.T) {
	m := newMaker("ca")
	old, renewed := m.certificate("a", nil), m.certificate("a", nil)
	r := New(m.charter)
	feed(r, [][]byte{old.Raw, renewed.Raw})
	for _, c := range []*trust.Certificate{old, renewed} {
		check(r.Add(m.record(c, 1, uint64(c.Serial[0]), 0)))
		got := r.Members(all)
		if len(got) != 1 || got[0].Certificate.Hash != c.Hash {
			t.Errorf("members %v, want certificate %s", got, c.Hash)
		}
	}
	if got := r.Members(func(c *trust.Certificate) bool { return c.Hash == old.Hash }); len(got) != 1 || got[0].Certificate.Hash != old.Hash {
		t.Errorf("members %v", got)
	}
	if got := r.Members(func(*trust.Certificate) bool { return false }); len(got) != 0 {
		t.Errorf("members %v", got)
	}
}
