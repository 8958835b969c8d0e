package member

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
)

// giveAll hands what a bad member says to everybody.
func (s *sim) giveAll(raws ...[]byte) {
	for _, raw := range raws {
		for _, h := range s.hosts {
			if h.m != nil {
				_ = h.m.Receive(raw)
				s.step(h)
			}
		}
	}
}

// buries is a tombstone of a host by others, as one that lies signs it.
func (s *sim) buries(of *host, v mesh.Version, by ...*host) {
	s.t.Helper()
	for _, h := range by {
		cert := must(trust.ParseCertificate(h.cert, s.charter.CA))(s.t)
		t := trust.Tombstone{Node: of.id(), Version: v, Reason: trust.Expired, At: s.now, Issuer: cert.Hash}
		s.giveAll(must(t.Sign(key(h.name)))(s.t))
	}
}

// badRecord is one by the key of a host, above all that it has said.
func (s *sim) badRecord(h *host, seq uint64, change func(*trust.Record)) []byte {
	s.t.Helper()
	cert := must(trust.ParseCertificate(h.cert, s.charter.CA))(s.t)
	r := trust.Record{Version: mesh.Version{Epoch: 1000, Seq: seq}, Certificate: cert.Hash, Nonce: 1, Key: mesh.Key{7}}
	if change != nil {
		change(&r)
	}
	return must(r.Sign(key(h.name)))(s.t)
}

// claims has a host that has gone bad say that it holds the subnet of another one.
func (s *sim) claims(bad, of *host) {
	s.t.Helper()
	was := of.sees(of).Leases[0]
	s.giveAll(s.badRecord(bad, 1, func(r *trust.Record) {
		r.Leases = []mesh.Lease{{Network: "default", Prefixes: was.Prefixes, State: mesh.Held, Since: s.now, ClaimEpoch: 1000}}
	}))
}

// TestEpochsBeforeARestartAreOver: b has restarted since it claimed, and was there
// all the time. Others say later that it was gone before that.
func TestEpochsBeforeARestartAreOver(t *testing.T) {
	s, a, b, c := trio(t)
	before, since := b.held(), b.sees(b).Leases[0].Since
	b.stop()
	s.run(2 * time.Second)
	s.start(b, a)
	s.run(time.Minute)
	if l := a.sees(b).Leases[0]; b.held() != before || !l.Since.Equal(since) {
		t.Fatalf("b has %s since %s, and had %s since %s", b.held(), l.Since, before, since)
	}
	c.m = nil // from here on it is bad, and has the key of a
	s.claims(c, b)
	s.buries(b, mesh.Version{Epoch: b.sees(b).Version.Epoch - 1, Seq: 1}, c, a)
	for range 100 {
		s.run(6 * time.Second)
		if b.held() != before || a.routes(before) != "b" {
			t.Fatalf("b had %s and has %q, a routes it to %q", before, b.held(), a.routes(before))
		}
	}
}

// TestTombstonesByOneMember: c says after each word of b that b is gone, and that the
// subnet is its own.
func TestTombstonesByOneMember(t *testing.T) {
	for _, pin := range []bool{false, true} {
		t.Run(fmt.Sprint("pinned ", pin), func(t *testing.T) {
			s := newSim(t, narrow)
			token := s.token(nil)
			a, b, c := s.host("a", nil), s.host("b", token), s.host("c", token)
			if pin {
				b.cert = pinned(t, s, "b", "10.86.5.0/24")
			}
			s.syncing(ttl / 48)
			for _, h := range s.hosts {
				h.ttl = ttl
				s.start(h, a)
				s.run(5 * time.Second)
			}
			before := b.held()
			s.claims(c, b)
			c.m = nil
			last := mesh.Version{}
			for range 600 {
				if v := a.sees(b).Version; v != last {
					last = v
					s.buries(b, v, c)
				}
				s.run(time.Second)
				if a.routes(before) != "b" || b.held() != before {
					t.Fatalf("a routes %s of b to %q, b has %q", before, a.routes(before), b.held())
				}
			}
			if !b.has("buried_alive") {
				t.Error("b does not say that somebody takes it for gone")
			}
			i := slices.IndexFunc(b.view.Health, func(f mesh.Finding) bool { return f.Code == "buried_alive" })
			if i >= 0 && !strings.HasPrefix(b.view.Health[i].Message, "c said") {
				t.Errorf("it does not say who: %q", b.view.Health[i].Message)
			}
			s.run(ttl + time.Hour)
			if b.has("buried_alive") {
				t.Error("it says so for ever")
			}
		})
	}
}
