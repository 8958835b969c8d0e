//go:build linux

package e2e

import (
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"meshd/mesh"
	"meshd/mesh/trust"
	"meshd/overlay/e2e/cluster"
	"meshd/overlay/e2e/lab"
	"meshd/overlay/status"
)

// Names, labels and all other words of members are plain. What is not never gets
// to a terminal or a log, whoever signed it.
func TestEvilWords(t *testing.T) {
	t.Parallel()
	s := besieged(t)
	i := newInsider(t, s.stranger, s.token, s.alpha)
	_, identity, err := ed25519.GenerateKey(nil)
	must(t, err)
	made, err := s.token.Certify(identity.Public().(ed25519.PublicKey), mesh.Key(randomBytes(32)), "good", time.Now())
	must(t, err)
	named := func(name string) []byte {
		return forged(t, made.Raw, "meshd v1 certificate\x00", s.token.Key, func(b map[uint64]any) { b[3] = name })
	}
	good, err := trust.ParseCertificate(named("evil"), s.token.Charter.CA)
	must(t, err)
	words := []string{"\x1b[31mevil\x1b[0m", "evil\nlevel=ERROR msg=owned", "evil\r", "\u202elive", "evil\x00", "\u009b31m", "ev\u200bil", strings.Repeat("e", 300)}
	var objects [][]byte
	for _, w := range append(words, "EVIL") { // good for a label
		objects = append(objects, named(w))
	}
	// One that is good, to be admitted; then its records lie.
	must(t, i.stream(t.Context(), userStream(objectsMessage(good.Raw))))
	must(t, s.beta.WaitFor(bounded(t), "to know the node", func(d *status.Document) bool { return peerNamed(d, "evil") != nil }))
	record := recordOf(t, identity, good.Hash)
	for n, w := range words {
		for _, change := range []func(map[uint64]any){
			func(b map[uint64]any) { b[8] = map[string]string{"site": w} },
			func(b map[uint64]any) { b[8] = map[string]string{w: "fra"} },
			func(b map[uint64]any) { b[9] = []string{w} },
			func(b map[uint64]any) { b[10] = []string{w} },
			func(b map[uint64]any) { b[6] = []any{[]byte(w)} },
			func(b map[uint64]any) {
				b[7] = []any{map[uint64]any{1: w, 2: []any{}, 3: 1, 4: 1, 5: 1}}
			},
		} {
			objects = append(objects, forged(t, record, "meshd v1 record\x00", identity, func(b map[uint64]any) {
				b[2] = uint64(100 + n)
				change(b)
			}))
		}
	}
	for _, o := range objects {
		must(t, i.stream(t.Context(), userStream(objectsMessage(o))))
		must(t, i.stream(t.Context(), pushPull(nil, stateMessage(instanceName(), o))))
	}
	for _, w := range words {
		must(t, i.packet(aliveMessage(w, netip.AddrPortFrom(i.host.IPv4, gossipPort))))
		must(t, i.stream(t.Context(), append([]byte{0, 0x81}, mpField("Node", mpString(w))...))) // a ping for that name
		must(t, i.stream(t.Context(), append([]byte{13, 0x81}, mpField("Error", mpString(w))...)))
		must(t, i.stream(t.Context(), pushPull(nil, stateMessage(w))))
		must(t, i.packet(userPacket(append(wantMessage(w, 1), 0)[:40])))
	}
	// One with plain words, which is older than all those, is taken: they were not.
	plain := forged(t, record, "meshd v1 record\x00", identity, func(b map[uint64]any) {
		b[2], b[8] = uint64(99), map[string]string{"site": "fra"}
	})
	must(t, i.stream(t.Context(), userStream(objectsMessage(plain))))
	must(t, s.alpha.WaitFor(bounded(t), "to take a good record", func(d *status.Document) bool {
		p := peerNamed(d, "evil")
		return p != nil && p.Labels["site"] == "fra"
	}))

	for _, n := range []*cluster.Node{s.alpha, s.beta, s.gamma} {
		for _, args := range [][]string{{"status"}, {"status", "-o", "wide"}, {"status", "-o", "json"}, {"status", "-o", "yaml"}} {
			out, _ := n.Meshctl(t.Context(), args...) // its exit code tells of the node that does not answer
			if out == "" {
				t.Errorf("meshctl %v on %s says nothing", args, n.Name)
			}
			checkPlain(t, fmt.Sprint("meshctl ", args, " on ", n.Name), out, words)
		}
		checkPlain(t, "log of "+n.Name, n.Log(), words)
		if lines := strings.Count(n.Log(), "refused"); lines > 3 {
			t.Errorf("%s logged %d refusals", n.Name, lines)
		}
	}
}

// checkPlain looks for what could fool a terminal or who reads a log.
func checkPlain(t *testing.T, what, text string, words []string) {
	t.Helper()
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if at := strings.IndexFunc(line, func(r rune) bool { return r > unicode.MaxASCII || r < ' ' }); at >= 0 {
			t.Errorf("%s has %q", what, line)
		}
		if strings.HasPrefix(line, "level=") {
			t.Errorf("%s has a forged line: %q", what, line)
		}
	}
	for _, w := range words {
		if strings.Contains(text, w) {
			t.Errorf("%s has %q", what, w)
		}
	}
}

// A member that signs leases of what is not its own gets none of it: what its
// certificate does not permit is refused by every node, and of what another holds, or
// what is no node's subnet, no route changes, and no packet goes astray.
func TestForeignPrefix(t *testing.T) {
	t.Parallel()
	s := besieged(t)
	nodes := []*cluster.Node{s.alpha, s.beta, s.gamma}
	network := s.token.Charter.Networks[0]
	held := func(n *cluster.Node) []netip.Prefix { return document(t, n).Node.Leases[0].Prefixes }
	var free [][]netip.Prefix // of nobody
	for slot := 0; len(free) < 2; slot++ {
		taken := func(n *cluster.Node) bool { return held(n)[0] == network.Slot(slot)[0] }
		if !slices.ContainsFunc(nodes, taken) {
			free = append(free, network.Slot(slot))
		}
	}
	own, foreign := free[0], free[1]
	text, err := s.alpha.Token(t.Context(), "--subnet", own[0].String())
	must(t, err)
	pin, err := trust.ParseToken(text)
	must(t, err)

	var insiders []*insider // one talks to each daemon: none has it from another
	for _, n := range nodes {
		insiders = append(insiders, newInsider(t, s.stranger, s.token, n))
	}
	tell := func(object []byte) {
		t.Helper()
		for _, i := range insiders {
			must(t, i.stream(t.Context(), userStream(objectsMessage(object))))
		}
	}
	member := func(name string, token *trust.Token) *claimant {
		t.Helper()
		_, identity, err := ed25519.GenerateKey(nil)
		must(t, err)
		certificate, err := token.Certify(identity.Public().(ed25519.PublicKey), mesh.Key(randomBytes(32)), name, time.Now())
		must(t, err)
		tell(certificate.Raw)
		return &claimant{name, identity, certificate.Hash, mesh.Key(randomBytes(32))}
	}
	pinned, other := member("pinned", pin), member("other", s.token)
	// What each may say. The label tells one record from another.
	honest := func(seq uint64, say string) {
		t.Helper()
		tell(pinned.claims(t, seq, say, own...))
		tell(other.claims(t, seq, say))
		for _, n := range nodes {
			must(t, n.WaitFor(bounded(t), "to hear what is true", func(d *status.Document) bool {
				p, o := peerNamed(d, "pinned"), peerNamed(d, "other")
				return p != nil && o != nil && p.Labels["say"] == say && o.Labels["say"] == say
			}))
		}
	}
	honest(1, "first")
	must(t, cluster.WaitPairs(bounded(t), nodes...))

	begin, networks, leases := time.Now(), map[*cluster.Node]string{}, map[*cluster.Node]string{}
	var pings []*lab.Pings
	for _, n := range nodes {
		networks[n], leases[n] = fmt.Sprint(ourNetwork(t, n.Host)), leasesOf(document(t, n))
		for _, to := range nodes {
			if to == n {
				continue
			}
			for _, a := range addresses(t, to) {
				p, err := n.Host.Pings(t.Context(), a, 20*time.Millisecond)
				must(t, err)
				defer p.Stop()
				pings = append(pings, p)
			}
		}
	}
	check := func(lie []netip.Prefix) {
		t.Helper()
		pause(t.Context(), 300*time.Millisecond)
		for _, n := range nodes {
			d := document(t, n)
			if p := peerNamed(d, "pinned"); len(p.Leases) != 1 || !slices.Equal(p.Leases[0].Prefixes, own) {
				t.Errorf("%s has pinned with %v after the lie of %s", n.Name, p.Leases, lie)
			}
			if d.State != mesh.Ready || leasesOf(d) != leases[n] {
				t.Errorf("%s is %s with %s after the lie of %s, and had %s", n.Name, d.State, leasesOf(d), lie, leases[n])
			}
			if now := fmt.Sprint(ourNetwork(t, n.Host)); now != networks[n] {
				t.Errorf("%s has %s after the lie of %s, and had %s", n.Name, now, lie, networks[n])
			}
		}
	}
	half := func(of []netip.Prefix) []netip.Prefix {
		return []netip.Prefix{netip.PrefixFrom(of[0].Addr(), of[0].Bits()+1), netip.PrefixFrom(of[1].Addr(), of[1].Bits()+1)}
	}
	seq := uint64(100)
	for _, lie := range [][]netip.Prefix{
		foreign, held(s.alpha), held(s.beta), held(s.gamma), half(held(s.beta)), {network.IPv4, network.IPv6},
		{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
		{netip.PrefixFrom(s.beta.Host.IPv4, 32), netip.PrefixFrom(s.beta.Host.IPv6, 128)},
	} {
		seq++
		tell(pinned.claims(t, seq, "lie", lie...))
		if !slices.Equal(lie, foreign) { // which it may have
			tell(other.claims(t, seq, "lie", lie...))
		}
		check(lie)
	}
	// It is older than the lies, so none of them was taken.
	tell(pinned.claims(t, 2, "last", own...))
	for _, n := range nodes {
		must(t, n.WaitFor(bounded(t), "to hear what is older than the lies", func(d *status.Document) bool {
			return peerNamed(d, "pinned").Labels["say"] == "last"
		}))
	}
	end := time.Now()
	for _, p := range pings {
		_, err := p.Flows(bounded(t), end)
		must(t, err)
		if lost, sent := p.Lost(end); lost > 0 || sent < 10 {
			t.Errorf("%s: %d of %d lost", p, lost, sent)
		}
	}
	for _, n := range nodes {
		lines, most := strings.Count(n.Log(), "object refused"), 1+int(time.Since(begin)/time.Minute)
		if lines == 0 || lines > most {
			t.Errorf("%s logged %d refusals, want one a minute", n.Name, lines)
		}
	}
}

// claimant is a member without a daemon, which says what it likes.
type claimant struct {
	name        string
	identity    ed25519.PrivateKey
	certificate trust.Hash
	tunnel      mesh.Key
}

// claims is a record of it that holds the prefixes, since long ago.
func (c *claimant) claims(t *testing.T, seq uint64, say string, prefixes ...netip.Prefix) []byte {
	t.Helper()
	r := trust.Record{
		Version: mesh.Version{Epoch: 1, Seq: seq}, Certificate: c.certificate, Nonce: 1, Key: c.tunnel, Labels: map[string]string{"say": say},
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("198.18.0.250:51880")}, Suites: []string{"x"},
	}
	if len(prefixes) > 0 {
		since := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
		r.Leases = []mesh.Lease{{Network: "default", Prefixes: prefixes, State: mesh.Held, Since: since, ClaimEpoch: 1}}
	}
	raw, err := r.Sign(c.identity)
	must(t, err)
	return raw
}
