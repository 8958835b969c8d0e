package registry

import (
	"errors"
	"slices"
	"testing"
	"time"

	"meshd/mesh"
	"meshd/mesh/trust"
)

// hear delivers objects that must all be taken in.
func hear(t *testing.T, r *Registry, raws ...[]byte) {
	t.Helper()
	for i, raw := range raws {
		if err := r.Add(raw); err != nil {
			t.Fatalf("object %d: %v", i, err)
		}
	}
}

func mustBe(t *testing.T, r *Registry, want ...string) {
	t.Helper()
	if got := names(r); !slices.Equal(got, want) {
		t.Errorf("members %v, want %v", got, want)
	}
}

func TestRevokedNode(t *testing.T) {
	m := newMaker("ca")
	once := m.credential(2, start.Add(24*time.Hour))
	founder, a, x := m.certificate("founder", nil), m.certificate("a", once), m.certificate("x", once)
	other := m.certificate("other", nil)
	r := New(m.charter)
	hear(t, r, founder.Raw, other.Raw, a.Raw, m.admission(a, founder, 0), x.Raw, m.admission(x, a, 0))
	hear(t, r, m.record(a, 1, 1, 0), m.record(x, 1, 1, 0), m.tombstone(x.ID(), v(1, 1), a), m.tombstone(x.ID(), v(1, 1), other))
	if _, dead := r.Dead(x.ID()); !dead {
		t.Fatal("the tombstone does not count")
	}
	before := r.Changes()
	out := m.revocation(trust.Revocation{Node: a.ID()})
	hear(t, r, out)
	mustBe(t, r, "founder", "other", "x") // whom it admitted stays
	if r.Changes() == before || !r.Newest().Equal(start.Add(time.Hour)) {
		t.Error("nobody is told, or the CA's time does not count")
	}
	if _, ok := r.Record(a.ID()); ok {
		t.Error("its record stays")
	}
	if _, dead := r.Dead(x.ID()); dead {
		t.Error("its tombstone still counts")
	}
	if _, counts := r.Certificate(a.Hash); counts || len(r.Certificates(a.ID())) > 0 {
		t.Error("its certificate counts")
	}
	if v, yes := r.Revoked(a); !yes || v.Node != a.ID() || len(r.Revocations()) != 1 {
		t.Error("it is not found to be revoked")
	}
	if _, yes := r.Revoked(x); yes {
		t.Error("another one is revoked")
	}
	if got := r.Uses(once.Serial); got != 2 {
		t.Errorf("%d uses of its token: it was one", got)
	}
	if err := r.Add(out); !errors.Is(err, ErrStale) {
		t.Errorf("once more: %v", err)
	}
	if err := r.Add(m.certificate("a", nil).Raw); !errors.Is(err, ErrRevoked) || !errors.Is(err, trust.ErrForbidden) {
		t.Errorf("another certificate of it, by the CA: %v", err)
	}
	forged, err := (&trust.Revocation{Node: founder.ID(), At: start}).Sign(key("a"))
	check(err)
	if err := r.Add(forged); !errors.Is(err, trust.ErrSignature) {
		t.Errorf("it revokes the founder: %v", err)
	}
	mustBe(t, r, "founder", "other", "x")
}

func TestRevokedToken(t *testing.T) {
	m := newMaker("ca")
	leaked := m.credential(0, start.Add(24*time.Hour))
	founder, stays, thief, late := m.certificate("founder", nil), m.certificate("stays", leaked), m.certificate("thief", leaked), m.certificate("late", leaked)
	other := m.certificate("other", m.token)
	believed := [][]byte{
		founder.Raw, stays.Raw, m.admission(stays, founder, 0), thief.Raw, m.admission(thief, founder, 0),
		other.Raw, m.admission(other, founder, 0), m.record(thief, 1, 1, 0), m.record(stays, 1, 1, 0),
	}
	revocation := m.revocation(trust.Revocation{Credential: leaked.Serial, Except: []mesh.NodeID{stays.ID()}})
	r := New(m.charter)
	hear(t, r, believed...)
	hear(t, r, late.Raw, revocation)
	mustBe(t, r, "founder", "other", "stays")
	if len(r.Unadmitted()) != 0 {
		t.Error("who came by the token still waits to be admitted")
	}
	if err := r.CheckRoom(late); !errors.Is(err, ErrRevoked) {
		t.Errorf("there is room: %v", err)
	}
	if err := r.Add(m.certificate("more", leaked).Raw); !errors.Is(err, ErrRevoked) {
		t.Errorf("one more: %v", err)
	}
	t.Run("heard first", func(t *testing.T) {
		fresh := New(m.charter)
		hear(t, fresh, revocation)
		feed(fresh, believed)
		if a, b := tells(r, start), tells(fresh, start); a != b {
			t.Errorf("another belief:\n%s\n%s", a, b)
		}
		if got := fresh.Missing(); len(got) != 1 || got[0] != thief.Hash {
			t.Errorf("missing %v", got)
		}
		_ = fresh.Add(thief.Raw) // somebody answers
		if len(fresh.waiting) > 0 {
			t.Errorf("%d objects wait for what will not come", len(fresh.waiting))
		}
	})
	t.Run("renewed before", func(t *testing.T) {
		r := New(m.charter)
		renewed := m.certificate("thief", nil) // an honest node after all
		hear(t, r, believed...)
		hear(t, r, renewed.Raw, revocation)
		mustBe(t, r, "founder", "other", "stays", "thief")
		if _, ok := r.Record(thief.ID()); ok {
			t.Error("a record under the certificate of the token counts")
		}
		hear(t, r, m.record(renewed, 1, 2, 0))
	})
}

// Who believed an admission before its witness was revoked keeps to it; who hears of
// the revocation first does not; and a member who is rooted makes them agree.
func TestVouchAnew(t *testing.T) {
	m := newMaker("ca")
	founder, bad := m.certificate("founder", nil), m.certificate("bad", m.token)
	x, y := m.certificate("x", m.token), m.certificate("y", m.token)
	common := [][]byte{founder.Raw, bad.Raw, m.admission(bad, founder, 0), x.Raw}
	first, then := m.admission(x, bad, time.Minute), [][]byte{y.Raw, m.admission(y, x, 2*time.Minute), m.record(x, 1, 1, 0), m.record(y, 1, 1, 0)}
	out := m.revocation(trust.Revocation{Node: bad.ID()})

	early, late := New(m.charter), New(m.charter)
	hear(t, early, common...)
	hear(t, early, first)
	hear(t, early, then...)
	if len(early.Unvouched()) > 0 || !early.Rooted(y.Hash) {
		t.Error("somebody is unvouched before anybody is revoked")
	}
	hear(t, early, out)
	feed(late, common[:1])
	hear(t, late, out)
	feed(late, common)
	if err := late.Add(first); !errors.Is(err, ErrRevoked) {
		t.Errorf("its witness is revoked: %v", err)
	}
	feed(late, then)
	mustBe(t, early, "founder", "x", "y")
	mustBe(t, late, "founder")
	got := early.Unvouched()
	if len(got) != 2 || len(late.Unvouched()) != 0 || early.Rooted(x.Hash) || early.Rooted(y.Hash) || !early.Rooted(founder.Hash) {
		t.Fatalf("unvouched: %v", got)
	}
	for _, u := range got {
		if want := start.Add(map[string]time.Duration{"x": time.Minute, "y": 2 * time.Minute}[u.Certificate.Name]); !u.Seen.Equal(want) {
			t.Errorf("%s was seen at %s, want %s", u.Certificate.Name, u.Seen, want)
		}
	}
	t.Run("by each other alone", func(t *testing.T) {
		r := New(m.charter)
		r.Restore(early.Table())
		hear(t, r, m.admission(x, y, time.Minute))
		mustBe(t, r, "founder", "x", "y")
		if len(r.Unvouched()) != 2 {
			t.Error("a circle of admissions leads back to the CA")
		}
	})
	t.Run("over a restart", func(t *testing.T) {
		r := New(m.charter)
		r.Restore(early.Table())
		mustBe(t, r, "founder", "x", "y")
		if len(r.Unvouched()) != 2 {
			t.Errorf("unvouched: %v", r.Unvouched())
		}
	})
	again := m.admission(x, founder, time.Minute)
	hear(t, early, again)
	hear(t, late, again)
	mustBe(t, early, "founder", "x", "y")
	mustBe(t, late, "founder", "x", "y")
	if len(early.Unvouched()) > 0 || len(late.Unvouched()) > 0 || !early.Rooted(y.Hash) {
		t.Error("somebody is still not vouched for")
	}
	if a, b := tells(early, start), tells(late, start); a != b {
		t.Errorf("two beliefs:\n%s\n%s", a, b)
	}
}

// Four bad witnesses fill the room for admissions; there is room for a good one.
func TestRoomForAGoodWitness(t *testing.T) {
	m := newMaker("ca")
	founder, x := m.certificate("founder", nil), m.certificate("x", m.token)
	r := New(m.charter)
	hear(t, r, founder.Raw, x.Raw)
	var out [][]byte
	for _, name := range []string{"a", "b", "c", "d"} {
		w := m.certificate(name, nil)
		hear(t, r, w.Raw, m.admission(x, w, 0))
		out = append(out, m.revocation(trust.Revocation{Node: w.ID()}))
	}
	if err := r.Add(m.admission(x, founder, 0)); !errors.Is(err, ErrStale) {
		t.Errorf("a fifth: %v", err)
	}
	hear(t, r, out[:3]...)
	if len(r.Unvouched()) > 0 {
		t.Error("one of four is good, and yet it is unvouched")
	}
	hear(t, r, out[3])
	if len(r.Unvouched()) != 1 {
		t.Error("all four are revoked, and yet it is vouched for")
	}
	hear(t, r, m.admission(x, founder, 0))
	if len(r.Unvouched()) > 0 || len(r.certs[x.Hash].admissions) > maxAdmissions {
		t.Errorf("unvouched %v, %d admissions", r.Unvouched(), len(r.certs[x.Hash].admissions))
	}
}

// The last certificate by the CA is revoked: members keep to each other, and with
// one more by the CA newcomers believe them too.
func TestFounderIsRevoked(t *testing.T) {
	m := newMaker("ca")
	founder, a, b := m.certificate("founder", nil), m.certificate("a", m.token), m.certificate("b", m.token)
	r := New(m.charter)
	hear(t, r, founder.Raw, a.Raw, m.admission(a, founder, 0), b.Raw, m.admission(b, founder, 0))
	hear(t, r, m.revocation(trust.Revocation{Node: founder.ID()}))
	mustBe(t, r, "a", "b")
	if len(r.Unvouched()) != 2 || r.Rooted(a.Hash) {
		t.Error("they are rooted without anybody to be rooted in")
	}
	renewed := m.certificate("a", nil)
	hear(t, r, renewed.Raw, m.admission(b, renewed, 0))
	if got := r.Unvouched(); len(got) != 1 || got[0].Certificate.Hash != a.Hash {
		t.Errorf("unvouched: %v, want the old certificate of a alone", got)
	}
	fresh := New(m.charter)
	feed(fresh, r.Table())
	mustBe(t, fresh, "a", "b")
}

// Whoever is told all at once hears of a revocation before those whom it throws out,
// and of those who stay.
func TestRevocationsComeFirst(t *testing.T) {
	m := newMaker("ca")
	founder, x := m.certificate("founder", nil), m.certificate("x", m.token)
	r := New(m.charter)
	hear(t, r, founder.Raw, x.Raw, m.admission(x, founder, 0), m.record(founder, 1, 1, 0), m.record(x, 1, 1, 0))
	for i := range 20 {
		hear(t, r, m.revocation(trust.Revocation{Node: mesh.NodeID{byte(i + 1)}}))
	}
	settled := r.Settled()
	slices.Reverse(settled) // whatever the order in which it was asked for
	for name, objects := range map[string][][]byte{"table": r.Table()[1:], "lookup": r.Lookup(settled...)} {
		last := 0
		for i, raw := range objects {
			if kind, err := trust.KindOf(raw); err != nil || kind == trust.KindRevocation {
				last = i
			}
		}
		if last != 19 {
			t.Errorf("%s: the last of 20 revocations is object %d", name, last)
		}
	}
	slices.Reverse(settled)
	for i, h := range settled[1:] {
		if is := r.revocations.all[h] != nil; is != (i < 20) {
			t.Errorf("settled object %d is a revocation: %v", i, is)
		}
	}
}

// A host that was thrown out must not come back with its own token: whoever has heard
// of it, in whatever order and after whatever restart, knows that it was used.
func TestRevokedNodeHasUsedItsToken(t *testing.T) {
	m := newMaker("ca")
	once := m.credential(1, start.Add(24*time.Hour))
	founder, laptop := m.certificate("founder", nil), m.certificate("laptop", once)
	admission, out := m.admission(laptop, founder, 0), m.revocation(trust.Revocation{Node: laptop.ID()})
	r := New(m.charter)
	hear(t, r, founder.Raw, laptop.Raw, admission, m.record(laptop, 1, 1, 0), out)
	used := func(t *testing.T, r *Registry) {
		t.Helper()
		mustBe(t, r, "founder")
		if got := r.Uses(once.Serial); got != 1 || !r.Admitted(laptop.Hash) || len(r.waiting) > 0 || len(r.Unadmitted()) > 0 {
			t.Errorf("%d uses, want 1; %d wait, %d ask to be admitted", got, len(r.waiting), len(r.Unadmitted()))
		}
	}
	used(t, r)
	t.Run("restored", func(t *testing.T) {
		again := New(m.charter)
		again.Restore(r.Table())
		used(t, again)
	})
	t.Run("told by table", func(t *testing.T) {
		fresh := New(m.charter)
		feed(fresh, r.Table())
		used(t, fresh)
	})
	t.Run("told by lookup", func(t *testing.T) {
		fresh := New(m.charter)
		feed(fresh, r.Lookup(r.Settled()...))
		used(t, fresh)
		if !slices.Equal(fresh.Settled(), r.Settled()) {
			t.Error("they have settled differently")
		}
	})
	t.Run("heard the other way round", func(t *testing.T) {
		fresh := New(m.charter)
		feed(fresh, [][]byte{out, admission, laptop.Raw, founder.Raw})
		used(t, fresh)
	})
	t.Run("heard between", func(t *testing.T) {
		fresh := New(m.charter)
		feed(fresh, [][]byte{founder.Raw, laptop.Raw, out, laptop.Raw, admission})
		used(t, fresh)
	})
	t.Run("without an admission", func(t *testing.T) {
		fresh := New(m.charter)
		feed(fresh, [][]byte{founder.Raw, out, laptop.Raw})
		if fresh.Uses(once.Serial) != 0 || fresh.Admitted(laptop.Hash) || len(fresh.Unadmitted()) > 0 || slices.Contains(fresh.Settled(), laptop.Hash) {
			t.Error("what nobody has vouched for counts as a use, or asks to be vouched for")
		}
	})
	t.Run("its witness is revoked too", func(t *testing.T) {
		witness := m.certificate("witness", m.token)
		both := [][]byte{m.revocation(trust.Revocation{Node: witness.ID()}), out}
		r, fresh := New(m.charter), New(m.charter)
		hear(t, r, founder.Raw, witness.Raw, m.admission(witness, founder, 0), laptop.Raw, m.admission(laptop, witness, time.Minute))
		hear(t, r, both...)
		hear(t, fresh, founder.Raw)
		hear(t, fresh, both...)
		feed(fresh, r.Table())
		if got := fresh.Uses(once.Serial); got != 0 {
			t.Errorf("%d uses by the word of a revoked witness alone", got)
		}
		got := r.Unvouched()
		if len(got) != 1 || got[0].Certificate.Hash != laptop.Hash || !got[0].Seen.Equal(start.Add(time.Minute)) {
			t.Fatalf("unvouched: %v, want what the revoked witness has admitted", got)
		}
		hear(t, r, m.admission(laptop, founder, time.Minute))
		feed(fresh, r.Table())
		used(t, r)
		used(t, fresh)
	})
	t.Run("its token is revoked too", func(t *testing.T) {
		hear(t, r, m.revocation(trust.Revocation{Credential: once.Serial}))
		if slices.Contains(r.Settled(), laptop.Hash) {
			t.Error("it is passed on, and nobody can use the token any more")
		}
	})
	t.Run("it ends", func(t *testing.T) {
		again := New(m.charter)
		again.Restore([][]byte{founder.Raw, laptop.Raw, admission, out})
		again.expireNow(start.Add(2000 * time.Hour))
		if again.Admitted(laptop.Hash) || len(again.Table()) > 3 {
			t.Error("it is kept for ever")
		}
	})
}
