package registry

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"meshd/mesh"
	"meshd/mesh/trust"
)

// line is an object, and what it says, for stories.
type line struct {
	raw  []byte
	says string
}

// GoString implements [fmt.GoStringer], for what rapid prints.
func (l line) GoString() string { return l.says }

// plot is a random mesh with everything that can happen to it. Of node root alone it
// is certain that nobody revokes it.
type plot struct {
	m       *maker
	lines   []line
	certs   []*trust.Certificate
	founder *trust.Certificate
	end     time.Time // of the short certificates
}

func (p *plot) add(raw []byte, format string, args ...any) {
	p.lines = append(p.lines, line{raw, fmt.Sprintf(format, args...)})
}

func drawPlot(t *rapid.T) *plot {
	p := &plot{m: newMaker("ca"), end: start.Add(20 * time.Hour)}
	p.drawCertificates(t)
	for range rapid.IntRange(0, 30).Draw(t, "admissions") {
		c, w := p.drawCertificate(t), p.drawCertificate(t)
		at := time.Duration(rapid.IntRange(-1, 26).Draw(t, "hour")) * time.Hour
		p.add(p.m.admission(c, w, at), "%s admits %s at %s", p.name(w), p.name(c), at)
	}
	for range rapid.IntRange(0, 15).Draw(t, "records") {
		c, v := p.drawCertificate(t), drawVersion(t)
		p.add(p.m.record(c, v.Epoch, v.Seq, uint64(rapid.IntRange(0, 1).Draw(t, "nonce"))), "record %v of %s", v, p.name(c))
	}
	for range rapid.IntRange(0, 8).Draw(t, "tombstones") {
		dead, v, issuer := p.drawCertificate(t), drawVersion(t), p.drawCertificate(t)
		if rapid.IntRange(0, 3).Draw(t, "by the CA") == 0 {
			v.Seq = trust.WholeEpoch
			p.add(p.m.tombstone(dead.ID(), v, nil), "the CA's tombstone %v of %s", v, dead.Name)
			continue
		}
		p.add(p.m.tombstone(dead.ID(), v, issuer), "%s's tombstone %v of %s", p.name(issuer), v, dead.Name)
	}
	for range rapid.IntRange(0, 10).Draw(t, "rekeys") {
		c, generation, secret := p.drawCertificate(t), uint64(rapid.IntRange(1, 6).Draw(t, "generation")), byte(rapid.IntRange(1, 2).Draw(t, "key"))
		p.add(p.m.rekey(c, generation, secret, time.Duration(rapid.IntRange(0, 2).Draw(t, "part"))*time.Second), "%s's key %d of generation %d", p.name(c), secret, generation)
	}
	for range rapid.IntRange(0, 3).Draw(t, "revocations") {
		c := p.drawCertificate(t)
		switch {
		case c.Credential != nil && rapid.Bool().Draw(t, "its token"):
			var spared []mesh.NodeID
			if rapid.Bool().Draw(t, "spare one") {
				spared = []mesh.NodeID{p.drawCertificate(t).ID()}
			}
			p.add(p.m.revocation(trust.Revocation{Credential: c.Credential.Serial, Except: spared}), "token of %s is revoked, %v spared", p.name(c), spared)
		case c.Name != p.founder.Name:
			p.add(p.m.revocation(trust.Revocation{Node: c.ID()}), "%s is revoked", c.Name)
		}
	}
	if rapid.Bool().Draw(t, "charter") {
		p.add(p.m.next("web", "10.87.0.0/16"), "another network")
	}
	return p
}

func (p *plot) drawCertificates(t *rapid.T) {
	tokens := []*trust.Credential{p.m.token, p.m.credential(0, start.Add(30*time.Minute))}
	p.founder = p.m.certify(trust.Certificate{Name: "root", NotAfter: start.Add(1000 * time.Hour), Capabilities: []string{trust.CapRotate}})
	p.certs = append(p.certs, p.founder)
	p.add(p.founder.Raw, "certificate of the root")
	for i := range rapid.IntRange(1, 5).Draw(t, "nodes") {
		name := fmt.Sprint("n", i)
		for range rapid.IntRange(1, 3).Draw(t, "certificates") {
			c := trust.Certificate{Name: name, NotAfter: start.Add(1000 * time.Hour)}
			if rapid.IntRange(0, 4).Draw(t, "signed by the CA") > 0 {
				c.Credential = tokens[rapid.IntRange(0, len(tokens)-1).Draw(t, "token")]
			}
			if rapid.IntRange(0, 2).Draw(t, "short") == 0 {
				c.NotAfter = p.end
			}
			if c.Credential == nil && rapid.Bool().Draw(t, "may rotate") {
				c.Capabilities = []string{trust.CapRotate}
			}
			signed := p.m.certify(c)
			p.certs = append(p.certs, signed)
			p.add(signed.Raw, "certificate %s, by a token: %v, until %s", p.name(signed), signed.Credential != nil, signed.NotAfter.Sub(start))
		}
	}
}

func (p *plot) drawCertificate(t *rapid.T) *trust.Certificate {
	return p.certs[rapid.IntRange(0, len(p.certs)-1).Draw(t, "certificate")]
}

func drawVersion(t *rapid.T) mesh.Version {
	return mesh.Version{Epoch: uint64(rapid.IntRange(1, 3).Draw(t, "epoch")), Seq: uint64(rapid.IntRange(0, 2).Draw(t, "seq"))}
}

func (p *plot) name(c *trust.Certificate) string { return fmt.Sprintf("%s/%d", c.Name, c.Serial[0]) }

func (p *plot) story(order []line) string {
	var s strings.Builder
	for _, l := range order {
		fmt.Fprintln(&s, " ", l.says)
	}
	return s.String()
}

// tell delivers lines in an order that is drawn, some of them twice, and then each
// once more in another one.
func (p *plot) tell(t *rapid.T, r *Registry) (order []line) {
	doubles := rapid.SliceOfN(rapid.SampledFrom(p.lines), 0, 10).Draw(t, "doubles")
	order = rapid.Permutation(append(slices.Clone(p.lines), doubles...)).Draw(t, "order")
	order = append(order, rapid.Permutation(p.lines).Draw(t, "again")...)
	for _, l := range order {
		_ = r.Add(l.raw)
	}
	return order
}

// vouchAnew has the founder do what members do: until nobody in any of the
// registries is unvouched.
func (p *plot) vouchAnew(t *rapid.T, all ...*Registry) {
	for range p.certs {
		var again [][]byte
		for _, r := range all {
			for _, u := range r.Unvouched() {
				again = append(again, p.m.admission(u.Certificate, p.founder, u.Seen.Sub(start)))
			}
		}
		for _, r := range all {
			feed(r, again)
		}
	}
	for _, r := range all {
		if left := r.Unvouched(); len(left) > 0 {
			t.Fatalf("%d are still not vouched for", len(left))
		}
	}
}

// tells is everything that nodes must agree on, as text.
func tells(r *Registry, now time.Time) string {
	var s strings.Builder
	fmt.Fprintln(&s, "charter", r.Charter().Version)
	for _, v := range r.Revocations() {
		fmt.Fprintln(&s, "revocation", v.Hash)
	}
	for _, m := range r.Members(func(c *trust.Certificate) bool { return now.Before(c.NotAfter) }) {
		fmt.Fprintf(&s, "member %s/%d\n", m.Certificate.Name, m.Certificate.Serial[0])
		for _, c := range r.Certificates(m.ID) {
			if now.Before(c.NotAfter) {
				fmt.Fprintf(&s, "  certificate %d\n", c.Serial[0])
			}
		}
		if m.Record != nil {
			fmt.Fprintln(&s, "  record", m.Record.Version, m.Record.Nonce, m.Record.Hash)
		}
		for _, tomb := range m.tombs {
			fmt.Fprintln(&s, "  tombstone", tomb.Version, tomb.ByCA(), tomb.Hash)
		}
		for _, a := range r.Accusations(m.ID) {
			fmt.Fprintln(&s, "  accused", a.Version, a.By.Name, a.Hash)
		}
		for _, k := range r.rekeys[m.ID] {
			fmt.Fprintln(&s, "  key", k.Generation, k.KeyID, k.Hash)
		}
	}
	for _, h := range slices.SortedFunc(maps.Keys(r.certs), trust.Hash.Compare) {
		if c := r.certs[h]; r.spent(c) && now.Before(c.NotAfter) {
			fmt.Fprintln(&s, "spent", h)
		}
	}
	return s.String()
}

// Whatever the order in which objects of all kinds come, and however often: who has
// heard the same believes the same.
func TestMergeLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPlot(t)
		now := start.Add(time.Duration(rapid.SampledFrom([]int{1, 22}).Draw(t, "now")) * time.Hour)
		first, second := New(p.m.charter), New(p.m.charter)
		one := p.tell(t, first)
		second.Expire(now, trust.Hash{}) // the one has its clock late
		two := p.tell(t, second)
		first.Expire(now, trust.Hash{})
		p.vouchAnew(t, first, second)
		for _, l := range p.lines {
			_, _ = first.Add(l.raw), second.Add(l.raw)
		}
		if a, b := tells(first, now), tells(second, now); a != b {
			t.Fatalf("two beliefs of one story:\n%s\n%s\none heard\n%s\ntwo heard\n%s", a, b, p.story(one), p.story(two))
		}
		first.pruneAt, second.pruneAt = time.Time{}, time.Time{}
		first.Expire(now, trust.Hash{})
		second.Expire(now, trust.Hash{})
		if a, b := first.Settled(), second.Settled(); !slices.Equal(a, b) {
			t.Fatalf("settled differently: %d, %d objects\none heard\n%s\ntwo heard\n%s", len(a), len(b), p.story(one), p.story(two))
		}
		// Merging is nothing but hearing the other's table.
		merged := New(p.m.charter)
		feed(merged, second.Table())
		feed(merged, first.Table())
		if a, b := tells(first, now), tells(merged, now); a != b {
			t.Fatalf("tables tell another belief:\n%s\n%s\none heard\n%s", a, b, p.story(one))
		}
	})
}

// A table has each object after those that it rests on, and who saved one believes
// what it has believed.
func TestTableTellsAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPlot(t)
		r := New(p.m.charter)
		heard := p.tell(t, r)
		restored := New(p.m.charter)
		restored.Restore(r.Table())
		if a, b := tells(r, start), tells(restored, start); a != b {
			t.Fatalf("restored is another belief:\n%s\n%s\nheard was\n%s", a, b, p.story(heard))
		}
		if len(r.Unvouched()) != len(restored.Unvouched()) {
			t.Fatalf("unvouched: %d, restored %d", len(r.Unvouched()), len(restored.Unvouched()))
		}
		p.vouchAnew(t, r)
		fresh := New(p.m.charter)
		for i, raw := range r.Table() {
			if err := fresh.Add(raw); err != nil && i > 0 && !spent(r, raw) {
				t.Fatalf("object %d of the table: %v\nheard was\n%s", i, err, p.story(heard))
			}
			if len(fresh.waiting) > 0 {
				t.Fatalf("object %d of the table has to wait\nheard was\n%s", i, p.story(heard))
			}
		}
		if a, b := tells(r, start), tells(fresh, start); a != b {
			t.Fatalf("the table tells another belief:\n%s\n%s\nheard was\n%s", a, b, p.story(heard))
		}
		for _, h := range r.Settled() {
			one := New(p.m.charter)
			feed(one, revocationsOf(r))
			for _, raw := range r.Lookup(h) {
				if err := one.Add(raw); err != nil && !spent(r, raw) && h != p.m.charter.Hash && h != r.Charter().Hash && r.revocations.all[h] == nil || len(one.waiting) > 0 {
					t.Fatalf("looked up: %v, %d wait\nheard was\n%s", err, len(one.waiting), p.story(heard))
				}
			}
			if !slices.Contains(one.Settled(), h) {
				t.Fatalf("looked up, and not believed\nheard was\n%s", p.story(heard))
			}
		}
	})
}

// spent tells whether an object is a certificate of which no more than the use of its
// token is left: what admitted it comes next.
func spent(r *Registry, raw []byte) bool {
	c := r.certs[sha256.Sum256(raw)]
	return c != nil && r.spent(c)
}

func revocationsOf(r *Registry) (out [][]byte) {
	for _, v := range r.Revocations() {
		out = append(out, v.Raw)
	}
	return out
}

// What holds at every moment of any story.
func TestInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPlot(t)
		r := New(p.m.charter)
		marks := map[mesh.NodeID]mesh.Version{}
		doubled := append(slices.Clone(p.lines), p.lines...)
		for i, l := range rapid.Permutation(doubled).Draw(t, "order") {
			_ = r.Add(l.raw)
			if i%7 == 0 {
				r.pruneAt = time.Time{}
				r.Expire(start.Add(time.Duration(i)*time.Hour/2), p.founder.Hash)
			}
			p.checkInvariants(t, r, marks, l)
		}
	})
}

func (p *plot) checkInvariants(t *rapid.T, r *Registry, marks map[mesh.NodeID]mesh.Version, last line) {
	members := r.Members(func(c *trust.Certificate) bool { return !r.over(c.NotAfter) })
	ids := map[mesh.NodeID]bool{}
	if kind, _ := trust.KindOf(last.raw); kind == trust.KindRevocation || kind == trust.KindCharter {
		clear(marks) // the CA may void a record
	}
	for _, m := range members {
		ids[m.ID] = true
		if _, is := r.Revoked(m.Certificate); is {
			t.Fatalf("after %q: %s is a member and revoked", last.says, m.Certificate.Name)
		}
		if m.Record != nil {
			if c, _ := r.Certificate(m.Record.Certificate); c == nil || c.ID() != m.ID {
				t.Fatalf("after %q: a record without its certificate", last.says)
			}
		}
		var version mesh.Version
		if m.Record != nil {
			version = m.Record.Version
		}
		if version.Compare(marks[m.ID]) < 0 {
			t.Fatalf("after %q: the record of %s went back from %v to %v", last.says, m.Certificate.Name, marks[m.ID], version)
		}
		marks[m.ID] = version
		for _, tomb := range r.tombs[m.ID] {
			if !tomb.ByCA() && (tomb.Version.Compare(version) > 0 || !r.certs[tomb.Issuer].counts()) {
				t.Fatalf("after %q: tombstone %v by %s", last.says, tomb.Version, tomb.Issuer)
			}
		}
	}
	maps.DeleteFunc(marks, func(id mesh.NodeID, _ mesh.Version) bool { return !ids[id] })
	for _, k := range r.Rekeys() {
		if c, counts := r.Certificate(k.Signer); !counts || !slices.Contains(c.Capabilities, trust.CapRotate) {
			t.Fatalf("after %q: a key by who may not", last.says)
		}
	}
	for h, c := range r.certs {
		for _, a := range c.admissions {
			if r.certs[a.Admitter] == nil {
				t.Fatalf("after %q: the witness of %s is unknown", last.says, p.name(c.Certificate))
			}
		}
		if c.Hash != h || len(c.admissions) > maxAdmissions {
			t.Fatalf("after %q: %s has %d admissions", last.says, p.name(c.Certificate), len(c.admissions))
		}
	}
	waits, changes := len(r.waiting), r.changes
	if waits > maxWaiting || len(r.unadmitted) > maxUnadmitted {
		t.Fatalf("after %q: %d wait", last.says, waits)
	}
	if r.settle(func(*waiting) bool { return true }); len(r.waiting) != waits || r.changes != changes {
		t.Fatalf("after %q: %d wait that could be decided", last.says, waits-len(r.waiting))
	}
}
