package wg

import (
	"strings"
	"testing"
	"time"
)

// Both directions are used all the time while one end changes its key, and the
// other hears of it sooner or later: nothing is lost, and the key before is given up.
func TestKeyChanges(t *testing.T) {
	for _, heard := range []time.Duration{0, time.Second, 4 * time.Second, 20 * time.Second} {
		for _, age := range []time.Duration{time.Second, RekeyAfter - time.Second, RejectAfter - 61*time.Second} {
			for _, suite := range bothSuites {
				w := newWorld(t)
				w.brief = true
				a, b := w.pair(Peer{Suite: suite, Handle: "the only one"})
				talk := func(d time.Duration) {
					for range d / (100 * time.Millisecond) {
						a.send(b, "ping")
						b.send(a, "pong")
						w.run(100 * time.Millisecond)
					}
				}
				sent := func() int { return int(w.now.Sub(start) / (100 * time.Millisecond)) }
				talk(age)
				former := a.machine.PublicKey()
				a.rotates()
				talk(heard)
				b.hears(a)
				talk(2 * RejectAfter)
				w.run(time.Second)
				if n := sent() - 10; a.remote(b).got != n || b.remote(a).got != n {
					t.Errorf("heard after %s, session of %s: %d and %d of %d arrived\n%s", heard, age, a.remote(b).got, b.remote(a).got, n, &w.story)
				}
				if s := b.remote(a).session; s.Peer() != a.machine.PublicKey() {
					t.Errorf("heard after %s, session of %s: b's session is with the key before", heard, age)
				}
				if a.machine.former != nil {
					t.Errorf("heard after %s, session of %s: a still takes the key before", heard, age)
				}
				if b.machine.peer(w.now, former) != nil {
					t.Errorf("heard after %s, session of %s: b still takes the key before", heard, age)
				}
			}
		}
	}
}

// Who has no session when the key changes makes one at once, whoever begins and
// whether or not the peer has heard.
func TestKeyChangesWithoutSession(t *testing.T) {
	for _, suite := range bothSuites {
		for _, heard := range []bool{false, true} {
			for _, first := range []string{"a", "b"} {
				w := newWorld(t)
				a, b := w.pair(Peer{Suite: suite, Handle: "the only one"})
				a.rotates()
				if heard {
					b.hears(a)
				}
				if first == "a" {
					a.send(b, "ping")
				} else {
					b.send(a, "pong")
				}
				w.run(time.Second)
				if got := a.remote(b).got + b.remote(a).got; got != 1 {
					t.Errorf("%s begins, heard: %v: %d packets arrived\n%s", first, heard, got, &w.story)
				}
			}
		}
	}
}

// A peer that never hears of the key is served with the one before for some
// minutes, and then no more.
func TestFormerKeyEnds(t *testing.T) {
	w := newWorld(t)
	a, b := w.pair(Peer{Handle: "the only one"})
	a.rotates()
	w.run(formerFor - time.Second)
	b.send(a, "in time")
	w.run(time.Second)
	if got := a.remote(b).got; got != 1 {
		t.Errorf("%d packets arrived within %s\n%s", got, formerFor, &w.story)
	}
	w.run(2 * RejectAfter)
	b.send(a, "late")
	w.run(time.Second)
	if got := a.remote(b).got; got != 1 || !strings.Contains(w.story.String(), "a refuses initiation: first MAC is wrong") {
		t.Errorf("%d packets arrived after %s\n%s", got, formerFor, &w.story)
	}
	b.hears(a)
	w.run(RekeyTry + time.Second)
	if got := a.remote(b).got; got != 2 {
		t.Errorf("%d packets arrived in the end, want both\n%s", got, &w.story)
	}
}

func TestKeysInQuickSuccession(t *testing.T) {
	w := newWorld(t)
	a, b := w.pair(Peer{Handle: "the only one"})
	a.rotates()
	w.run(time.Second)
	a.rotates()
	a.send(b, "ping")
	w.run(time.Second)
	if got := b.remote(a).got; got != 1 {
		t.Errorf("%d packets arrived\n%s", got, &w.story)
	}
}

// Another node with a peer's former key, or a key that is none, is not that peer.
func TestKeyOfAnother(t *testing.T) {
	w := newWorld(t)
	a, b := w.pair(Peer{Handle: "b at a, a at b"})
	a.send(b, "ping")
	w.run(time.Second)
	old := b.remote(a).session
	peer := b.remote(a).peer
	peer.Handle = "somebody else"
	peer.Key[0]++
	if _, err := b.machine.SetPeers(w.now, []Peer{peer}); err != nil {
		t.Fatal(err)
	}
	if old.Alive(w.now) || b.machine.peer(w.now, a.machine.PublicKey()) != nil {
		t.Error("the session of one peer has passed to another")
	}
	peer.Key = [32]byte{}
	if _, err := b.machine.SetPeers(w.now, []Peer{peer}); err == nil {
		t.Error("a key that is none was taken")
	}
}

// What a session has of its time while the host sleeps counts.
func TestSlept(t *testing.T) {
	for _, tt := range []struct {
		awake, slept time.Duration
		alive        bool
	}{
		{time.Second, RejectAfter - 2*time.Second, true},
		{time.Second, RejectAfter, false},
		{100 * time.Second, 81 * time.Second, false},
	} {
		w := newWorld(t)
		a, b := w.pair(Peer{})
		a.send(b, "ping")
		w.run(tt.awake)
		s := a.remote(b).session
		a.machine.Slept(tt.slept)
		a.carryOut(a.machine.Step(w.now))
		if s.Alive(w.now) != tt.alive || (a.remote(b).session != nil) != tt.alive {
			t.Errorf("session of %s after a sleep of %s: alive %v", tt.awake, tt.slept, s.Alive(w.now))
		}
		if tt.alive && !s.due(w.now) {
			t.Errorf("session of %s after a sleep of %s is not to be renewed", tt.awake, tt.slept)
		}
	}
}

// One that shows a peer's former key, which it has copied, gets none of the handshakes
// that the peer still makes with it.
func TestCopiedFormerKey(t *testing.T) {
	w := newWorld(t)
	a, b := w.pair(Peer{Handle: "the victim"})
	former := b.remote(a).peer
	former.Handle = "the thief"
	a.rotates()
	peer := former
	peer.Key, peer.Handle = a.machine.PublicKey(), "the victim"
	r := b.remote(a)
	r.peer = peer
	b.peers[peer.Key] = r
	if _, err := b.machine.SetPeers(w.now, []Peer{former, peer}); err != nil {
		t.Fatal(err)
	}
	a.send(b, "with the key before")
	w.run(time.Second)
	if s := r.session; s == nil || s.Handle() != "the victim" || r.got != 1 {
		t.Errorf("%d packets arrived, session %v\n%s", r.got, s, &w.story)
	}
}
