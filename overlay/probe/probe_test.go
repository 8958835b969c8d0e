package probe

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"meshd/mesh"
)

var (
	start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	beta  = target{mesh.NodeID{2}, netip.MustParseAddr("fd00::2"), nil}
)

// drive runs a schedule for a while; answer says after how long a probe comes
// back, negative: never. It returns the number of probes sent.
func drive(s *schedule, from time.Time, d time.Duration, answer func(at time.Duration) time.Duration) int {
	sent := 0
	for now := from; now.Before(from.Add(d)); {
		for _, o := range s.step(now) {
			sent++
			if rtt := answer(now.Sub(start)); rtt >= 0 {
				s.answer(now.Add(rtt), o.Addr, o.ID, o.Size)
			}
		}
		next, ok := s.next()
		if !ok {
			break
		}
		now = later(next, now.Add(time.Millisecond))
	}
	return sent
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func always(rtt time.Duration) func(time.Duration) time.Duration {
	return func(time.Duration) time.Duration { return rtt }
}

func TestFirstRoundTripIsNotTheHandshake(t *testing.T) {
	s := newSchedule(1)
	s.set(start, []target{beta})
	first := true
	drive(s, start, time.Second, func(time.Duration) time.Duration {
		if first {
			first = false
			return 800 * time.Millisecond // waits for the handshake
		}
		return 5 * time.Millisecond
	})
	r := s.results()[beta.ID]
	if r.RTT != 5*time.Millisecond || r.Probes != 2 || r.Loss != 0 || r.Down {
		t.Errorf("%+v, want an RTT of 5ms after two probes", r)
	}
}

func TestLossBeginsWithTheFirstAnswer(t *testing.T) {
	s := newSchedule(1)
	s.set(start, []target{beta})
	drive(s, start, 10*time.Second, always(-1))
	if r := s.results()[beta.ID]; r.Loss != 1 || !r.Down {
		t.Errorf("%+v: never answered, want all lost", r)
	}
	drive(s, start.Add(10*time.Second), 10*time.Second, always(time.Millisecond))
	if r := s.results()[beta.ID]; r.Loss != 0 || r.Down {
		t.Errorf("%+v: what was sent before there was a tunnel counts as lost", r)
	}
}

func TestIdleCost(t *testing.T) {
	s := newSchedule(1)
	s.set(start, []target{beta})
	if sent := drive(s, start, time.Hour, always(time.Millisecond)); sent < 3600/17 || sent > 3600/15 {
		t.Errorf("%d probes in an hour, want about one in 16 s", sent)
	}
}

// What the peer asks need not be asked again: two nodes share the work.
func TestPeerThatAsks(t *testing.T) {
	s := newSchedule(1)
	s.set(start, []target{beta})
	sent := drive(s, start, time.Minute, always(time.Millisecond))
	for now := start.Add(time.Minute); now.Before(start.Add(time.Hour)); now = now.Add(10 * time.Second) {
		s.question(now, beta.Addr)
		sent += drive(s, now, 10*time.Second, always(time.Millisecond))
	}
	if least, most := 3600/85, 3600/53; sent < least || sent > most {
		t.Errorf("%d probes in an hour, want %d to %d: one in %d times 16 s", sent, least, most, ownEvery)
	}
	// It may be the only sign that a lost peer is back.
	now := start.Add(time.Hour)
	drive(s, now, time.Minute, always(-1))
	for s.peers[beta.ID].id != 0 { // until the last one is lost as well
		now, _ = s.next()
		s.step(now)
	}
	if !s.question(now, beta.Addr) {
		t.Error("a lost peer asks, and is not asked")
	}
	if due := s.step(now); len(due) != 1 {
		t.Errorf("due %v, want the peer at once", due)
	}
}

func TestLargeMesh(t *testing.T) {
	const peers = 200
	s := newSchedule(1)
	var all []target
	for i := range peers {
		all = append(all, target{mesh.NodeID{byte(i)}, netip.AddrFrom16([16]byte{15: byte(i)}), nil})
	}
	s.set(start, all)
	drive(s, start, time.Minute, always(time.Millisecond)) // all are measured
	now, end, wakes, sent := start.Add(time.Minute), start.Add(11*time.Minute), 0, 0
	for now.Before(end) {
		out := s.step(now)
		for _, o := range out {
			s.answer(now.Add(time.Millisecond), o.Addr, o.ID, o.Size)
		}
		wakes, sent = wakes+1, sent+len(out)
		now, _ = s.next()
	}
	if perSecond := float64(sent) / 600; perSecond > 5.5 {
		t.Errorf("%.1f probes a second, want 5 where nobody else asks", perSecond)
	}
	if wakes > 600 {
		t.Errorf("woke %d times in 600 s", wakes)
	}
	// Where nobody answers any more it is us, and asking all of them all the time no help.
	drive(s, end, 20*time.Second, always(-1))
	if sent := drive(s, end.Add(20*time.Second), 100*time.Second, always(-1)); sent > 2200 || sent < 1500 {
		t.Errorf("%d probes in 100 s to those that do not answer, want 20 a second", sent)
	}
	drive(s, end.Add(2*time.Minute), 11*time.Second, always(time.Millisecond))
	for id, r := range s.results() {
		if r.Down {
			t.Errorf("%s is down, and has answered for 11 s", id.Short())
		}
	}
}

func TestDownAndUpAgain(t *testing.T) {
	s := newSchedule(1)
	s.set(start, []target{beta})
	drive(s, start, time.Minute, always(time.Millisecond))
	dead := start.Add(time.Minute)
	drive(s, dead, 25*time.Second, always(-1)) // README.md promises it
	if r := s.results()[beta.ID]; !r.Down || r.Loss == 0 {
		t.Errorf("%+v: silent for 25 s, and not down", r)
	}
	if c := s.changes(); len(c) != 1 || !c[beta.ID] {
		t.Errorf("changes %v, want that it went down", c)
	}
	drive(s, dead.Add(25*time.Second), 7*time.Second, always(time.Millisecond))
	if r := s.results()[beta.ID]; r.Down || r.Answered.Before(dead) {
		t.Errorf("%+v: answers again, and is down", r)
	}
	if c := s.changes(); len(c) != 1 || c[beta.ID] || len(s.changes()) != 0 {
		t.Errorf("changes %v, want once that it came back", c)
	}
}

// A handshake that gets lost is repeated after a little more than 5 s, and until
// then nothing passes.
func TestLostHandshake(t *testing.T) {
	const silence = 5500 * time.Millisecond
	for seed := range uint64(100) {
		s := newSchedule(seed)
		s.set(start, []target{beta})
		lost, since := 0, time.Duration(0)
		answer := func(at time.Duration) time.Duration {
			if at < time.Minute || lost > 0 && at >= since+silence {
				return time.Millisecond
			}
			if lost == 0 {
				since = at
			}
			lost++
			return -1
		}
		for at := time.Duration(0); at < 2*time.Minute; at += 100 * time.Millisecond {
			drive(s, start.Add(at), 100*time.Millisecond, answer)
			if down := s.changes(); len(down) > 0 {
				t.Fatalf("down %v after the start and %d lost probes", at, lost)
			}
		}
		if lost < 5 {
			t.Errorf("%d probes were lost: the test proves nothing", lost)
		}
	}
}

func TestForeignAnswersCountForNothing(t *testing.T) {
	s := newSchedule(1)
	s.set(start, []target{beta})
	o := s.step(start)[0]
	s.answer(start, netip.MustParseAddr("fd00::3"), o.ID, size) // from another node
	s.answer(start, o.Addr, o.ID+2, size)                       // to another question
	if len(s.results()) != 0 {
		t.Error("an answer that nobody asked for was counted")
	}
	s.answer(start, o.Addr, o.ID, o.Size)
	s.answer(start, o.Addr, o.ID, o.Size) // replayed
	if r := s.results()[beta.ID]; r.Probes != 1 {
		t.Errorf("%d outcomes, want 1", r.Probes)
	}
}

func TestSetKeepsWhatIsKnown(t *testing.T) {
	s := newSchedule(1)
	s.set(start, []target{beta})
	drive(s, start, time.Second, always(time.Millisecond))
	gamma := target{mesh.NodeID{3}, netip.MustParseAddr("fd00::3"), nil}
	s.set(start.Add(time.Second), []target{beta, gamma})
	if s.results()[beta.ID].Probes == 0 {
		t.Error("results were lost")
	}
	if due := s.step(start.Add(time.Second)); len(due) != 1 || due[0].Addr != gamma.Addr {
		t.Errorf("due %v, want the new peer at once", due)
	}
	s.set(start.Add(time.Second), nil)
	if _, ok := s.next(); ok || len(s.results()) != 0 {
		t.Error("peers that left are still probed")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("mshP\x01\x00\x00\x00\x00\x00\x00\x00\x07"))
	f.Add([]byte("mshP\x03\x00\x00\x00\x00\x00\x00\x00\x07"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, packet []byte) {
		kind, _, ok := parse(packet)
		if ok != (len(packet) >= size && string(packet[:4]) == magic && (kind == ask || kind == respond)) {
			t.Errorf("parse(%x) = %d, %v", packet, kind, ok)
		}
	})
}

// Without tunnels nothing is lost: nobody is probed until there are some.
func TestWithheldProbesNobody(t *testing.T) {
	p := New(slog.New(slog.DiscardHandler), nil, nil)
	view := mesh.View{Self: mesh.NodeID{1}, Withheld: true, Nodes: []mesh.Node{{ID: mesh.NodeID{1}, Key: mesh.Key{1}}, {ID: mesh.NodeID{2}, Key: mesh.Key{2}}}}
	for _, withheld := range []bool{true, false, true} {
		view.Withheld = withheld
		p.SetView(&view)
		if probed := len(p.schedule.peers) > 0; probed == withheld {
			t.Errorf("withheld %v, probed %v", withheld, probed)
		}
	}
}
