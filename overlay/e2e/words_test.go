//go:build linux

package e2e

import (
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode"

	"meshd/mesh"
	"meshd/mesh/trust"
	"meshd/overlay/e2e/cluster"
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
