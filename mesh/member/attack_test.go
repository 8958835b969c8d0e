package member

import (
	"bytes"
	"errors"
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

// rotators is a mesh in which some hosts may rotate.
func rotators(t *testing.T, every time.Duration, may ...string) (s *sim, a, b, c *host) {
	t.Helper()
	s = newSim(t, narrow)
	s.seals, s.rights = true, map[string][]string{}
	for _, name := range may {
		s.rights[name] = []string{trust.CapRotate}
	}
	token := s.token(nil)
	for _, name := range []string{"a", "b", "c"} {
		by := token
		if name == "a" || slices.Contains(may, name) {
			by = nil // a token gives no right to rotate
		}
		h := s.host(name, by)
		h.founder, h.rotates, h.keyring = name == "a", every, NewKeyring(make([]byte, trust.GossipKeySize))
	}
	a, b, c = s.hosts[0], s.hosts[1], s.hosts[2]
	s.syncing(20 * time.Second)
	for i, h := range s.hosts {
		s.start(h, s.hosts[max(0, i-1)])
	}
	s.run(30 * time.Second)
	return s, a, b, c
}

// TestNobodyHoldsUpARotation: c, who may not rotate, says for ever that it uses the
// first key.
func TestNobodyHoldsUpARotation(t *testing.T) {
	s, a, b, c := rotators(t, 0, "a")
	c.m = nil
	s.giveAll(s.badRecord(c, 1, nil)) // its keys: 0, 0
	rotate := func(n byte, grace time.Duration) error {
		err := a.m.RotateGossip(s.now, ringKey(n), grace)
		s.step(a)
		return err
	}
	if err := rotate(1, time.Hour); err != nil {
		t.Fatal(err)
	}
	s.run(time.Second)
	if err := rotate(2, time.Hour); !errors.Is(err, ErrNotNow) || !strings.Contains(err.Error(), "c") {
		t.Errorf("at once, with a grace: %v", err)
	}
	if err := rotate(3, 0); err != nil {
		t.Errorf("at once, without a grace: %v", err)
	}
	s.run(2 * time.Minute)
	s.giveAll(s.badRecord(c, 2, nil))
	if err := rotate(4, time.Hour); err != nil {
		t.Errorf("after two minutes: %v", err)
	}
	s.run(2 * time.Hour)
	if a.keyring.Send != 3 || b.keyring.Send != 3 || len(a.keyring.Keys) != 1 {
		t.Errorf("a has a %v, b a %v", a.keyring, b.keyring)
	}
}

// TestRotatorIsRevoked: who joins after that has the key of today by a token, and
// learns its generation from another one who may rotate.
func TestRotatorIsRevoked(t *testing.T) {
	for _, every := range []time.Duration{0, 30 * day} {
		s, a, b, c := rotators(t, every, "a", "b")
		if err := a.m.RotateGossip(s.now, ringKey(1), 0); err != nil {
			t.Fatal(err)
		}
		s.step(a)
		s.run(5 * time.Minute)
		gone := trust.Revocation{Node: a.id(), At: s.now}
		s.byCA(b, gone.Sign)
		s.run(time.Second)
		a.m = nil
		d := s.host("d", s.token(nil))
		d.keyring = NewKeyring(ringKey(1))
		s.start(d, b)
		s.run(5 * time.Minute)
		want := uint64(1)
		if every > 0 {
			want = 2 // the key of who was thrown out goes
		}
		for _, h := range []*host{b, c, d} {
			if h.keyring.Send != want || h.keyring.Newest() != want {
				t.Errorf("%s has a %v, not of generation %d", h.name, h.keyring, want)
			}
		}
		if err := b.m.RotateGossip(s.now, ringKey(9), time.Hour); err != nil {
			t.Errorf("it rotates: %v", err)
		}
	}
}

// TestKeysAheadOfAll: c, who may rotate, takes the last generation there is, dates the
// key into the future, and is revoked.
func TestKeysAheadOfAll(t *testing.T) {
	for _, rotated := range []bool{false, true} {
		s, a, b, c := rotators(t, 30*day, "a", "c")
		if rotated {
			if err := a.m.RotateGossip(s.now, ringKey(1), 0); err != nil {
				t.Fatal(err)
			}
			s.step(a)
			s.run(5 * time.Minute)
		}
		cert := must(trust.ParseCertificate(c.cert, s.charter.CA))(t)
		r := trust.Rekey{Generation: trust.MaxGeneration, KeyID: trust.KeyIDOf(ringKey(66)), At: s.now.Add(290 * day), Signer: cert.Hash}
		for _, h := range []*host{a, b} {
			of := must(trust.ParseCertificate(h.cert, s.charter.CA))(t)
			box, err := trust.SealKey(ringKey(66), of)
			if err == nil && !of.SealKey.IsZero() {
				r.Boxes = append(r.Boxes, box)
			}
		}
		slices.SortFunc(r.Boxes, func(x, y trust.Box) int { return bytes.Compare(x.Node[:], y.Node[:]) })
		s.giveAll(must(r.Sign(key("c")))(t))
		s.run(5 * time.Minute)
		if rotated && a.keyring.Newest() != 1 {
			t.Errorf("a takes it, far ahead of what counts: a %v", a.keyring)
		}
		gone := trust.Revocation{Node: c.id(), At: s.now}
		s.byCA(a, gone.Sign)
		c.m = nil
		s.run(5 * time.Minute)
		if a.keyring.Newest() == trust.MaxGeneration || a.keyring.Sending().Key[0] == 66 && s.now.Sub(start) > time.Hour {
			t.Errorf("a has a %v", a.keyring)
		}
		if err := a.m.RotateGossip(s.now, ringKey(2), 0); err != nil {
			t.Fatal(err)
		}
		s.step(a)
		s.run(5 * time.Minute)
		for _, h := range []*host{a, b} {
			if h.keyring.Sending().Key[0] != 2 || len(h.keyring.Keys) != 1 {
				t.Errorf("%s has a %v, rotated before: %v", h.name, h.keyring, rotated)
			}
		}
	}
}

// TestRevokedWhileOff: c was revoked while b was off. b routes to c until it has
// exchanged with another member, and no longer.
func TestRevokedWhileOff(t *testing.T) {
	s, a, b, c := trio(t)
	sub := c.held()
	b.stop()
	gone := trust.Revocation{Node: c.id(), At: s.now}
	s.byCA(a, gone.Sign)
	c.m = nil
	s.run(time.Minute)
	s.start(b, a)
	if b.routes(sub) != "c" {
		t.Error("b has asked nobody, and comes up with less than what it remembers")
	}
	s.run(2 * s.delay)
	if got := b.routes(sub); got != "" || !b.sees(c).Key.IsZero() {
		t.Errorf("b has exchanged with a, and routes %s to %q", sub, got)
	}
}
